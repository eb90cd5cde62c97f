//! What must hold at every moment of every world.
//!
//! In: both ends, and what really happened between them. Out: the first thing that does not hold.
//! Promise: what one end says of the other is not believed; it is compared with what was read,
//! handed up and taken.

use super::super::wire::WireError;
use super::super::{CHANNEL_GUARANTEE_BYTES, ChannelId, MAX_IN_FLIGHT, TransportError};
use super::plan::{DESTINATION, SECOND, SOURCE};
use super::world::World;

/// Simulated time without any progress after which a world counts as standing still.
const WATCHDOG_NS: u64 = 100 * SECOND;

/// What did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

impl Broken {
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    pub fn unless(holds: bool, what: impl FnOnce() -> String) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self(what())) }
    }
}

/// Both ends are honest: an error is a fault.
impl From<TransportError> for Broken {
    fn from(error: TransportError) -> Self {
        Self(error.to_string())
    }
}

impl From<WireError> for Broken {
    fn from(error: WireError) -> Self {
        Self(error.to_string())
    }
}

impl World {
    /// All that can be seen from outside.
    pub fn check(&mut self) -> Result<(), Broken> {
        for from in [SOURCE, DESTINATION] {
            self.check_direction(from)?;
            self.check_silence(from)?;
        }
        let still_ns = self.now.since(self.last_progress);
        Broken::unless(still_ns < WATCHDOG_NS, || {
            format!(
                "nothing moves any more: gaps {:?} and {:?}, lanes up {} and {}",
                self.sides[DESTINATION].inbound.gap(),
                self.sides[SOURCE].inbound.gap(),
                self.sides[SOURCE].outbound.lanes_up(),
                self.sides[DESTINATION].outbound.lanes_up(),
            )
        })
    }

    fn check_direction(&mut self, from: usize) -> Result<(), Broken> {
        let outbound = &self.sides[from].outbound;
        let inbound = &self.sides[1 - from].inbound;
        let streams = &self.streams[from];
        let open = streams.iter().filter(|stream| stream.open).count() as u64;
        let limit = self.plan.window_limit_bytes + open * CHANNEL_GUARANTEE_BYTES;
        let held = outbound.held_bytes();
        Broken::unless(held <= limit, || {
            format!("{held} held where {limit} may be")
        })?;
        self.end.largest_held_bytes = self.end.largest_held_bytes.max(held);
        let (mut read, mut taken) = (0, 0);
        for (index, stream) in streams.iter().enumerate() {
            let known = outbound.delivered_bytes(ChannelId(index as u16));
            Broken::unless(known <= stream.taken, || {
                let taken = stream.taken;
                format!("channel {index}: {known} count as delivered, {taken} were taken")
            })?;
            read += stream.read;
            taken += stream.taken;
        }
        Broken::unless(held >= read - taken, || {
            format!("{held} count as held, {} are", read - taken)
        })?;
        let there = inbound.held_bytes();
        Broken::unless(there <= read - taken, || {
            format!("{there} held there, {} are on the way", read - taken)
        })?;
        let in_flight = outbound.in_flight();
        Broken::unless(in_flight <= MAX_IN_FLIGHT, || {
            format!("{in_flight} in flight")
        })?;
        let base = outbound.next_seq().0 - in_flight as u64;
        Broken::unless(base <= inbound.next_seq().0, || {
            let next = inbound.next_seq();
            format!("batches below {base} are forgotten, the peer waits for {next}")
        })
    }

    /// A side gives up when it has heard nothing for the resume limit, neither before nor after.
    fn check_silence(&self, side: usize) -> Result<(), Broken> {
        let state = &self.sides[side];
        let silent_ns = self.now.since(state.heard_at);
        let limit_ns = self.plan.resume_limit_ns;
        let late_ns = limit_ns + 3 * self.plan.check_every_ns + self.plan.turn_ns;
        Broken::unless(state.expired || silent_ns <= late_ns, || {
            format!("side {side} has heard nothing for {silent_ns} ns and goes on")
        })
    }
}
