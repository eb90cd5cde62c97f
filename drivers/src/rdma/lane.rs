//! One lane: a queue pair, what it sends, what it receives, and its end.
//!
//! Comes in: frames, completions, news of the connection. Goes out: requests, events. Promises: the
//! lane's last event is its `Closed`; a lane ends as `Finished` on both sides or on none, unless the
//! connection breaks in the last moment.
//!
//! The end: each side says fin behind its last frame. A side is complete once it has the peer's fin
//! and knows that its own arrived. It then says done, so that the peer knows too, and waits until that
//! arrived or the connection ends, for its device answers the peer's last requests only while the
//! queue pair lives.

use std::io;

use rdma_sys::rdma_cm_event_type;

use super::connect::Endpoint;
use super::inbox::{Inbox, Taken, Told, Violation, broken_rules};
use super::message::{Buffer, Writer};
use super::outbox::{Outbox, QueueLimits, Said, TooMuch};
use super::queue_pair::{Completion, QueuePair, WRITES_MAX};
use super::registry::Registry;
use super::round_trip::RoundTrip;
use crate::frame::{Frame, FramePools, Relief};
use crate::lane::{LaneClosed, LaneEvent, LaneId, LaneStats, RefusedReason, WireBytes};

/// What a lane did in [`Lane::serve`].
pub(super) struct Served {
    /// Pieces of work.
    pub(super) work: u32,
    /// It has more to tell than there was room for.
    pub(super) waits_for_room: bool,
    /// It is over.
    pub(super) over: Option<LaneClosed>,
}

pub(super) struct Lane {
    pub(super) id: LaneId,
    pair: QueuePair,
    pub(super) pools: FramePools,
    inbox: Inbox,
    outbox: Outbox,
    round_trip: RoundTrip,
    /// Buffers to advertise.
    buffers: std::collections::VecDeque<Buffer>,
    /// Since when the lane waits for a buffer.
    pub(super) starved: Option<Relief>,
    /// The connection is of no more use.
    broken: Option<LaneClosed>,
    /// The peer has everything.
    peer_done: bool,
    /// An event was asked for and did not come yet.
    armed: bool,
}

impl From<TooMuch> for Violation {
    fn from(_: TooMuch) -> Self {
        broken_rules()
    }
}

fn failed(cause: &io::Error) -> LaneClosed {
    LaneClosed::Failed {
        errno: cause.raw_os_error().unwrap_or(libc::EIO),
    }
}

impl Lane {
    pub(super) fn new(
        id: LaneId,
        endpoint: Endpoint,
        pools: FramePools,
        limits: QueueLimits,
    ) -> Self {
        Self {
            id,
            pair: endpoint.0,
            pools,
            inbox: Inbox::new(),
            outbox: Outbox::new(limits),
            round_trip: RoundTrip::default(),
            buffers: std::collections::VecDeque::with_capacity(WRITES_MAX),
            starved: None,
            broken: None,
            peer_done: false,
            armed: false,
        }
    }

    pub(super) fn pair(&self) -> &QueuePair {
        &self.pair
    }

    #[cfg(test)]
    pub(super) fn pair_mut(&mut self) -> &mut QueuePair {
        &mut self.pair
    }

    pub(super) fn submit(&mut self, frame: Frame) -> Result<(), (Frame, RefusedReason)> {
        self.outbox.submit(frame)
    }

    pub(super) fn finish(&mut self) {
        self.outbox.close();
    }

    pub(super) fn backlog_bytes(&self) -> usize {
        self.outbox.backlog_bytes()
    }

    pub(super) fn wire_bytes(&self) -> WireBytes {
        WireBytes {
            sent: self.outbox.sent_bytes(),
            received: self.inbox.received_bytes(),
        }
    }

    /// What this side sees of the path; what the device sends again it does not tell.
    pub(super) fn stats(&self) -> LaneStats {
        LaneStats {
            rtt_us: self.round_trip.smoothed_us(),
            rtt_min_us: self.round_trip.min_us(),
            acked_bytes: self.outbox.acked_bytes(),
            congestion: *b"of the device\0\0\0",
            ..LaneStats::default()
        }
    }

    /// Takes completions. Returns how many.
    fn reap(&mut self) -> u32 {
        let Self {
            pair,
            inbox,
            outbox,
            round_trip,
            broken,
            peer_done,
            ..
        } = self;
        let count = pair.reap(|pair, completion| {
            let taken = match completion {
                // Its requests come back one by one; the first one says why.
                _ if broken.is_some() => Ok(()),
                Completion::Sent { seq } => {
                    outbox.completed(seq);
                    round_trip.completed(seq);
                    Ok(())
                }
                Completion::Message { slot, bytes } => inbox
                    .message(slot, pair.message(slot, bytes), |told| match told {
                        Told::Credits(back) => Ok(outbox.credit(back)?),
                        Told::Buffer(buffer) => Ok(outbox.buffer(buffer)?),
                    })
                    .map(|said| *peer_done |= said.done),
                Completion::Written {
                    slot,
                    bytes,
                    number,
                } => inbox.written(slot, bytes, number),
                Completion::Broken { errno } => Err(Violation(LaneClosed::Failed { errno })),
            };
            if let Err(Violation(reason)) = taken {
                *broken = Some(reason);
            }
        });
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Does all that can be done now.
    pub(super) fn serve(
        &mut self,
        registry: &mut Registry,
        room: &mut usize,
        out: &mut Vec<LaneEvent>,
    ) -> Served {
        let mut work = self.reap();
        self.take_buffers(registry);
        work += self.inbox.deliver(self.id, room, out);
        // What was handed over made room for buffers of what follows.
        self.take_buffers(registry);
        if self.inbox.finished() {
            self.outbox.close();
        }
        if self.broken.is_none() {
            match self.send(registry) {
                Ok(posted) => work += posted,
                Err(cause) => self.broken = Some(failed(&cause)),
            }
        }
        let mut waits_for_room = self.inbox.has_ready();
        if self.outbox.writable() {
            if *room > 0 {
                *room -= 1;
                work += 1;
                self.outbox.told_writable();
                out.push(LaneEvent::Writable { lane: self.id });
            } else {
                waits_for_room = true;
            }
        }
        Served {
            work,
            waits_for_room,
            over: self.over(),
        }
    }

    fn take_buffers(&mut self, registry: &mut Registry) {
        if self
            .starved
            .is_some_and(|since| !self.pools.relieved(since))
        {
            return;
        }
        self.starved = None;
        let Self {
            pair,
            pools,
            inbox,
            buffers,
            ..
        } = self;
        let taken = inbox.take_buffers(
            pools,
            |slot| pair.message(slot, usize::MAX),
            |frame| -> io::Result<()> {
                buffers.push_back(registry.buffer_of(pair.device(), pools, frame)?);
                Ok(())
            },
        );
        match taken {
            Ok(Taken::All) => {}
            Ok(Taken::Starved(since)) => self.starved = Some(since),
            Err(cause) => self.broken = self.broken.or(Some(failed(&cause))),
        }
    }

    /// Posts slots, messages and writes until there is nothing more to post.
    fn send(&mut self, registry: &mut Registry) -> io::Result<u32> {
        let mut work = 0;
        for slot in self.inbox.take_free() {
            self.pair.want(slot);
        }
        // Before the credits for them go out.
        work += self.pair.post_wanted()?;
        loop {
            while self.pair.has_room() && self.push_message() {}
            while self.pair.has_room()
                && let Some(write) = self.outbox.next_write()
            {
                let key = registry.key_of(self.pair.device(), &write.frame)?;
                // SAFETY: the key is that of the frame's arena; a frame is not written once it is
                // frozen, and the outbox holds it until the completion. Both are dropped with the
                // lane, the queue pair first.
                let seq = unsafe {
                    self.pair
                        .push_write(write.frame.bytes(), key, write.to, write.number)
                };
                self.outbox.posted_write(seq, write.frame);
            }
            let Some(last) = self.pair.last_pushed() else {
                return Ok(u32::try_from(work).unwrap_or(u32::MAX));
            };
            self.round_trip.posting(last);
            work += self.pair.post()?;
        }
    }

    /// Builds one message if there is anything to say. False when there was not.
    fn push_message(&mut self) -> bool {
        let Some(slot) = self.outbox.free_slot() else {
            return false;
        };
        let says_done = self.complete() && self.outbox.done() == Said::No && !self.peer_done;
        let mut message = Writer::new(self.pair.outgoing(slot));
        while let Some(buffer) = self.buffers.front()
            && message.buffer(*buffer)
        {
            self.buffers.pop_front();
        }
        self.outbox.fill(&mut message);
        let fin = self.outbox.wants_fin() && message.fin();
        let done = says_done && message.done();
        if message.is_empty() && !self.inbox.owes_much() {
            return false;
        }
        let (bytes, counted) = message.finish(self.inbox.take_owed());
        let seq = self.pair.push_message(slot, bytes);
        self.outbox.posted_message(seq, counted, fin, done);
        true
    }

    /// This side knows that both have everything.
    fn complete(&self) -> bool {
        self.inbox.finished()
            && self.inbox.is_empty()
            && (self.outbox.fin() == Said::Arrived || self.peer_done)
    }

    /// Whether the lane is over, and how.
    fn over(&self) -> Option<LaneClosed> {
        if self.complete() {
            let told = self.peer_done || self.outbox.done() == Said::Arrived;
            return (told || self.broken.is_some()).then_some(LaneClosed::Finished);
        }
        // Behind a fin everything arrived: the caller gets it, whatever became of the connection.
        let owes = self.inbox.finished() && !self.inbox.is_empty();
        if owes { None } else { self.broken }
    }

    /// Takes news of the connection. Completions that were there before it count first.
    pub(super) fn look(&mut self) -> u32 {
        let mut news = 0;
        loop {
            let reason = match self.pair.event() {
                Ok(None) => return news,
                Ok(Some(event)) => match event.kind {
                    rdma_cm_event_type::RDMA_CM_EVENT_DISCONNECTED
                    | rdma_cm_event_type::RDMA_CM_EVENT_TIMEWAIT_EXIT => libc::ECONNRESET,
                    rdma_cm_event_type::RDMA_CM_EVENT_DEVICE_REMOVAL => libc::ENODEV,
                    // The others tell of addresses, which a connection that stands does not need.
                    _ => continue,
                },
                Err(cause) => cause.raw_os_error().unwrap_or(libc::EIO),
            };
            news += 1 + self.reap();
            self.broken = self.broken.or(Some(LaneClosed::Failed { errno: reason }));
        }
    }

    /// Asks for an event at the next completion, unless one is to come. One that came and is of
    /// completions that were taken already would wake for nothing: it goes.
    pub(super) fn arm(&mut self) {
        self.disarm();
        if !self.armed {
            match self.pair.arm() {
                Ok(()) => self.armed = true,
                Err(cause) => self.broken = self.broken.or(Some(failed(&cause))),
            }
        }
    }

    /// Takes the events that were asked for.
    pub(super) fn disarm(&mut self) {
        if self.armed && self.pair.take_events() {
            self.armed = false;
        }
    }
}
