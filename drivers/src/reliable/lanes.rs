//! One worker's reliable lanes over one datagram port.
//!
//! Comes in: endpoints, frames, `poll`. Goes out: events. Promises what [`crate::lane`] promises; a
//! datagram that fits no lane, or whose tag is wrong, costs a look-up and a count. Timers are looked at
//! once per poll; a poll makes no system call of its own.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use thiserror::Error;

use super::connection::{Connection, Path, Refusal};
use super::endpoint::{Meeting, ReliableConfig, ReliableEndpoint};
use super::packet::{BadHeader, Header};
use super::parking::Parking;
use super::port::DatagramPort;
use super::setup::PAYLOAD_BYTES_MIN;
use super::tombs::Tombs;
use crate::frame::{Frame, FramePools};
use crate::lane::{
    AddError, LaneClosed, LaneEvent, LaneGroup, LaneId, LaneStats, Polled, Refused, RefusedReason,
    WireBytes,
};
use crate::port::ConfigError;
use crate::slots::{Slots, slot_of};

/// Bursts received in one poll, at most.
const BURSTS_MAX: usize = 4;
/// Datagrams that one lane sends in one turn, at most.
const SENDS_MAX: u32 = 64;

/// Why there is no group.
#[derive(Debug, Error)]
pub enum ReliableError {
    /// A figure is outside its range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The port's datagrams are too short or too long.
    #[error(
        "the port carries datagrams of {max_payload} bytes, reliable lanes need {min} to {max}: \
         set its MTU accordingly"
    )]
    Payload {
        /// What the port carries.
        max_payload: usize,
        /// Least.
        min: usize,
        /// Most.
        max: usize,
    },
    /// The kernel gave no descriptors to park on.
    #[error("no descriptor to park on ({0}): raise the limit of open files")]
    Parking(#[from] std::io::Error),
}

/// Datagrams that were dropped, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Shorter than any of ours.
    pub short: u64,
    /// Another version, an unknown kind, unknown flags or an impossible number.
    pub unknown_format: u64,
    /// For a lane that this group never had.
    pub unknown_connection: u64,
    /// With a tag that does not fit.
    pub forged: u64,
    /// Seen before, or too old to tell.
    pub replayed: u64,
    /// From the peer, and not as the format says.
    pub malformed: u64,
    /// Before the set-up was complete.
    pub early: u64,
}

/// Connection numbers are random already.
#[derive(Default)]
struct AsItIs(u64);

impl std::hash::Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// The lanes, apart from the port, so that both can be used at once.
struct Lanes {
    slots: Slots<Connection>,
    by_connection: HashMap<u64, u16, BuildHasherDefault<AsItIs>>,
    /// The connection of the last datagram, and its slot.
    last: (u64, u16),
    /// Slots whose lane has something to do now.
    listed: Vec<u16>,
    tombs: Tombs,
    dropped: Dropped,
    /// No timer of any lane is due before.
    due_ns: u64,
    /// Some lane waits for a buffer.
    starving: bool,
}

/// One worker's lanes. It stays on the thread that made it.
pub struct ReliableLanes<P: DatagramPort> {
    port: P,
    lanes: Lanes,
    /// The list that is being served.
    serving: Vec<u16>,
    config: ReliableConfig,
    path: Path,
    parking: Parking,
    _stays_on_its_thread: PhantomData<*const ()>,
}

impl<P: DatagramPort> ReliableLanes<P> {
    /// A group without lanes over `port`.
    ///
    /// # Errors
    /// See [`ReliableError`].
    pub fn new(port: P, config: ReliableConfig) -> Result<Self, ReliableError> {
        config.validate()?;
        let max = usize::from(u16::MAX);
        let max_payload = u16::try_from(port.max_payload())
            .ok()
            .filter(|bytes| usize::from(*bytes) >= PAYLOAD_BYTES_MIN)
            .ok_or(ReliableError::Payload {
                max_payload: port.max_payload(),
                min: PAYLOAD_BYTES_MIN,
                max,
            })?;
        let lanes = usize::from(config.lanes_max);
        let parking = Parking::new(port.wake_fd())?;
        let path = Path {
            max_payload,
            finds_damage: port.finds_damage(),
        };
        Ok(Self {
            port,
            lanes: Lanes {
                slots: Slots::new(config.lanes_max),
                by_connection: HashMap::with_capacity_and_hasher(
                    2 * lanes,
                    BuildHasherDefault::default(),
                ),
                last: (0, 0),
                listed: Vec::with_capacity(lanes),
                tombs: Tombs::new(2 * lanes),
                dropped: Dropped::default(),
                due_ns: u64::MAX,
                starving: false,
            },
            serving: Vec::with_capacity(lanes),
            config,
            path,
            parking,
            _stays_on_its_thread: PhantomData,
        })
    }

    /// Datagrams that were dropped so far.
    #[must_use]
    pub fn dropped(&self) -> Dropped {
        self.lanes.dropped
    }

    /// The port below.
    pub fn port(&self) -> &P {
        &self.port
    }

    /// Receives, at most [`BURSTS_MAX`] bursts, and hardly more datagrams than the caller takes frames: frames
    /// that wait for the caller keep buffers that the peer waits for. Returns how many datagrams.
    fn receive(&mut self, now_ns: u64, room: usize) -> u32 {
        let mut count = 0;
        for _ in 0..BURSTS_MAX {
            let lanes = &mut self.lanes;
            let burst = self
                .port
                .recv(&mut |from, datagram| lanes.hear(now_ns, from, datagram));
            count += burst as u32;
            if burst == 0 || count as usize >= room {
                break;
            }
        }
        count
    }

    /// Serves every listed lane once. Returns the work done.
    fn serve(&mut self, now_ns: u64, room: &mut usize, out: &mut Vec<LaneEvent>) -> u32 {
        let mut work = 0;
        let mut blocked = false;
        std::mem::swap(&mut self.lanes.listed, &mut self.serving);
        for at in 0..self.serving.len() {
            let slot = usize::from(self.serving[at]);
            let Some(lane) = self.lanes.slots.at_mut(slot) else {
                continue;
            };
            lane.listed = false;
            let (done, next) = serve_lane(lane, &mut self.port, &mut blocked, now_ns, room, out);
            work += done;
            let starved = lane.is_starved();
            self.lanes.starving |= starved;
            match next {
                Next::Rest(due_ns) => self.lanes.due_ns = self.lanes.due_ns.min(due_ns),
                Next::Again => self.lanes.list(slot),
                Next::Gone(_) if *room == 0 => self.lanes.list(slot),
                Next::Gone(reason) => {
                    *room -= 1;
                    work += 1;
                    if let Some(lane) = self.lanes.take_apart(slot, now_ns, reason) {
                        out.push(LaneEvent::Closed { lane, reason });
                    }
                }
            }
        }
        self.serving.clear();
        if !blocked {
            let port = &mut self.port;
            let due_ns = self.lanes.tombs.due_ns();
            if due_ns <= now_ns {
                work += self
                    .lanes
                    .tombs
                    .speak(now_ns, |to, farewell| say(port, to, farewell));
            }
        }
        work
    }
}

/// Sends a datagram that is complete.
fn say(port: &mut impl DatagramPort, to: SocketAddr, datagram: &[u8]) -> bool {
    port.send(to, &mut |buf| match buf.get_mut(..datagram.len()) {
        Some(space) => {
            space.copy_from_slice(datagram);
            datagram.len()
        }
        None => 0,
    })
}

/// What a lane needs after it was served.
enum Next {
    /// A datagram, a submit, a buffer, or this time.
    Rest(u64),
    /// Another turn soon.
    Again,
    /// To be taken apart.
    Gone(LaneClosed),
}

/// Hands out frames, sends datagrams, and ends a lane that is done. Returns the work done too.
fn serve_lane<P: DatagramPort>(
    lane: &mut Connection,
    port: &mut P,
    blocked: &mut bool,
    now_ns: u64,
    room: &mut usize,
    out: &mut Vec<LaneEvent>,
) -> (u32, Next) {
    let mut work = 0;
    while *room > 0
        && let Some(frame) = lane.deliver()
    {
        *room -= 1;
        work += 1;
        out.push(LaneEvent::Frame {
            lane: lane.id,
            frame,
        });
    }
    let mut sends = 0;
    while sends < SENDS_MAX
        && !*blocked
        && let Some((to, plan)) = lane.peer().zip(lane.plan(now_ns))
    {
        if port.send(to, &mut |buf| lane.write(&plan, now_ns, buf)) {
            sends += 1;
            work += u32::from(plan.is_work());
        } else {
            *blocked = true;
        }
    }
    if *room > 0 && lane.is_writable_again() {
        *room -= 1;
        work += 1;
        lane.told_writable();
        out.push(LaneEvent::Writable { lane: lane.id });
    }
    lane.end_if_finished();
    if let Some(reason) = lane.over() {
        return (work, Next::Gone(reason));
    }
    let more = lane.has_whole_frame() || lane.is_writable_again();
    let next = if more || sends == SENDS_MAX || *blocked || lane.plan(now_ns).is_some() {
        Next::Again
    } else {
        Next::Rest(lane.due_ns())
    };
    (work, next)
}

impl Lanes {
    /// Puts a lane among those to be served.
    fn list(&mut self, slot: usize) {
        if let Some(lane) = self.slots.at_mut(slot)
            && !lane.listed
        {
            lane.listed = true;
            self.listed.push(slot as u16);
        }
    }

    /// Gives a datagram to its lane.
    fn hear(&mut self, now_ns: u64, from: SocketAddr, datagram: &mut [u8]) {
        let header = match Header::parse(datagram) {
            Ok(header) => header,
            Err(BadHeader::Short) => return self.dropped.short += 1,
            Err(BadHeader::Unknown) => return self.dropped.unknown_format += 1,
        };
        let (last, mut slot) = self.last;
        let known = last == header.connection
            && self
                .slots
                .at_mut(slot.into())
                .is_some_and(|lane| lane.number_of_connection() == last);
        if !known {
            let Some(&found) = self.by_connection.get(&header.connection) else {
                if !self
                    .tombs
                    .hear(now_ns, from, header.connection, header.kind)
                {
                    self.dropped.unknown_connection += 1;
                }
                return;
            };
            self.last = (header.connection, found);
            slot = found;
        }
        let Some(lane) = self.slots.at_mut(slot.into()) else {
            return;
        };
        let heard = lane.hear(now_ns, from, &header, datagram);
        self.list(slot.into());
        match heard {
            Ok(()) => {}
            Err(Refusal::Forged) => self.dropped.forged += 1,
            Err(Refusal::Replayed) => self.dropped.replayed += 1,
            Err(Refusal::Malformed) => self.dropped.malformed += 1,
            Err(Refusal::Early) => self.dropped.early += 1,
        }
    }

    /// Lists the lanes whose timers are due.
    fn tick(&mut self, now_ns: u64) {
        if now_ns < self.due_ns {
            return;
        }
        self.due_ns = u64::MAX;
        for slot in 0..self.slots.room() {
            let Some(lane) = self.slots.at_mut(slot) else {
                continue;
            };
            let due_ns = lane.due_ns();
            if due_ns <= now_ns {
                lane.tick(now_ns);
                self.list(slot);
            } else {
                self.due_ns = self.due_ns.min(due_ns);
            }
        }
    }

    /// Lists the lanes that waited for a buffer and may have one now.
    fn relieve(&mut self) {
        if !std::mem::take(&mut self.starving) {
            return;
        }
        for slot in 0..self.slots.room() {
            let Some(lane) = self.slots.at_mut(slot) else {
                continue;
            };
            let relieved = lane.relieve();
            let starved = lane.is_starved();
            self.starving |= starved;
            if relieved {
                self.list(slot);
            }
        }
    }

    /// Frees a lane's slot and remembers what its peer is to hear last.
    fn take_apart(&mut self, slot: usize, now_ns: u64, reason: LaneClosed) -> Option<LaneId> {
        let lane = self.slots.take(slot)?;
        self.by_connection.remove(&lane.number_of_connection());
        self.tombs.bury(now_ns, lane.farewell(reason));
        self.slots.give_free(slot);
        Some(lane.id)
    }
}

impl<P: DatagramPort> LaneGroup for ReliableLanes<P> {
    type Endpoint = ReliableEndpoint;

    fn add(&mut self, endpoint: ReliableEndpoint, pools: &FramePools) -> Result<LaneId, AddError> {
        if self.lanes.by_connection.contains_key(&endpoint.connection) {
            return Err(AddError::WrongEndpoint(
                "another lane of this group has its connection number",
            ));
        }
        if let Meeting::Connect(peer) = endpoint.meeting
            && (peer.ip().is_unspecified() || peer.port() == 0)
        {
            return Err(AddError::WrongEndpoint("the peer's address is incomplete"));
        }
        let id = self.lanes.slots.next_id()?;
        let mut nonce = [0; 16];
        rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty()).map_err(
            |cause| AddError::Kernel {
                step: "getrandom",
                cause: cause.into(),
            },
        )?;
        pools.wake_on_relief(self.parking.waker());
        let lane = Connection::new(
            id,
            &endpoint,
            &self.config,
            self.path,
            nonce,
            pools,
            self.port.now_ns(),
        );
        self.lanes.slots.put(id, lane);
        let slot = slot_of(id);
        self.lanes
            .by_connection
            .insert(endpoint.connection, slot as u16);
        self.lanes.list(slot);
        Ok(id)
    }

    fn submit(&mut self, lane: LaneId, frame: Frame) -> Result<(), Refused> {
        let Some(known) = self.lanes.slots.get_mut(lane) else {
            return Err(Refused {
                frame,
                reason: RefusedReason::Unknown,
            });
        };
        known
            .submit(frame)
            .map_err(|(frame, reason)| Refused { frame, reason })?;
        self.lanes.list(slot_of(lane));
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<LaneEvent>) -> Polled {
        self.parking.disarm();
        let now_ns = self.port.now_ns();
        let mut room = out.capacity() - out.len();
        let mut work = self.receive(now_ns, room);
        self.lanes.relieve();
        self.lanes.tick(now_ns);
        work += self.serve(now_ns, &mut room, out);
        self.port.flush();
        if !self.lanes.listed.is_empty() {
            work += 1;
        }
        if work == 0 {
            Polled::Idle
        } else {
            Polled::Busy(work)
        }
    }

    fn backlog_bytes(&self, lane: LaneId) -> usize {
        self.lanes
            .slots
            .get(lane)
            .map_or(0, Connection::backlog_bytes)
    }

    fn wire_bytes(&self, lane: LaneId) -> WireBytes {
        self.lanes
            .slots
            .get(lane)
            .map(Connection::wire_bytes)
            .unwrap_or_default()
    }

    fn stats(&self, lane: LaneId) -> Option<LaneStats> {
        self.lanes.slots.get(lane).map(Connection::stats)
    }

    fn close(&mut self, lane: LaneId) {
        if let Some(known) = self.lanes.slots.get_mut(lane) {
            known.abort(LaneClosed::Local);
            self.lanes.list(slot_of(lane));
        }
    }

    fn finish(&mut self, lane: LaneId) {
        if let Some(known) = self.lanes.slots.get_mut(lane) {
            known.finish();
            self.lanes.list(slot_of(lane));
        }
    }

    fn park_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.parking.fd())
    }

    fn prepare_park(&mut self) -> bool {
        self.port.flush();
        // First clear, then look: what changes after the look rings the waker.
        self.parking.clear();
        self.lanes.relieve();
        let now_ns = self.port.now_ns();
        let due_ns = self.lanes.due_ns.min(self.lanes.tombs.due_ns());
        self.lanes.listed.is_empty()
            && due_ns > now_ns
            && self.parking.arm(due_ns - now_ns)
            && self.port.prepare_park()
    }
}

impl<P: DatagramPort> Drop for ReliableLanes<P> {
    fn drop(&mut self) {
        for lane in self.lanes.slots.lanes() {
            if let Some(peer) = lane.peer() {
                let farewell = lane.farewell(LaneClosed::Local);
                // A port without room loses it; the peer finds out by the silence.
                say(&mut self.port, peer, &farewell.datagram[..farewell.len]);
            }
        }
        self.port.flush();
    }
}
