//! One lane: its send queue, its receive side, and its end.
//!
//! Comes in: frames, completions. Goes out: requests, events. Promises: one send is under way at a
//! time, so order holds; a frame's buffer and the socket outlive every request that names them; the
//! lane's last event is its `Closed`, and by then the kernel holds nothing of it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use io_uring::types::{CancelBuilder, Fd};
use io_uring::{cqueue, opcode};

use super::inbox::{Cut, Inbox};
use super::port::SendMode;
use super::registry::Registry;
use super::ring::{Op, Ring, user_data};
use super::socket;
use crate::frame::{Frame, FramePools, Relief};
use crate::lane::{LaneClosed, LaneEvent, LaneId, RefusedReason, WireBytes};

/// Frames that the kernel may hold on a lane without a copy, beyond the one being sent.
pub(super) const ZC_SLOTS: usize = 8;
/// Below this a copy is cheaper than the bookkeeping of sending without one.
const ZC_BYTES_MIN: usize = 16 << 10;
/// `IORING_SEND_ZC_REPORT_USAGE`: say in the notification whether the kernel copied after all.
const ZC_REPORT_USAGE: u16 = 8;
/// `IORING_NOTIF_USAGE_ZC_COPIED`.
const ZC_COPIED: i32 = i32::MIN;

/// A lane's queue limits.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueLimits {
    pub(super) frames: usize,
    pub(super) bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// No more frames are taken; `shut` once the peer was told.
    Finishing {
        shut: bool,
    },
    /// Waiting until the kernel holds nothing any more.
    Closing(LaneClosed),
}

/// What a lane needs after [`Connection::serve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Its next completion or submit.
    Rest,
    /// Another `serve` soon: events or requests did not fit.
    Again,
    /// A buffer in its pools.
    Starved(Relief),
    /// To be taken apart: the kernel holds nothing, and `Closed` is to be told.
    Gone(LaneClosed),
}

pub(super) struct Connection {
    pub(super) id: LaneId,
    /// None once no request can name it any more and it was closed.
    fd: Option<OwnedFd>,
    pub(super) pools: FramePools,
    limits: QueueLimits,
    queue: VecDeque<Frame>,
    queued_bytes: usize,
    /// How much of the first frame in the queue the kernel took.
    head_sent_bytes: usize,
    sending: bool,
    sent_bytes: u64,
    /// A frame was refused since the last `Writable`.
    refused: bool,
    zc: bool,
    zc_mode: SendMode,
    zc_slots: [Option<Frame>; ZC_SLOTS],
    inbox: Inbox,
    phase: Phase,
    /// Requests whose completion is to come, notifications not counted.
    requests: u32,
    cancelled: bool,
    /// Whether the lane is in the group's list of lanes to serve.
    pub(super) listed: bool,
    /// Since when the lane waits for a buffer.
    pub(super) starved: Option<Relief>,
}

impl Connection {
    pub(super) fn new(
        id: LaneId,
        fd: OwnedFd,
        pools: FramePools,
        inbox: Inbox,
        limits: QueueLimits,
        zc_mode: SendMode,
        copy_pays: bool,
    ) -> Self {
        Self {
            id,
            fd: Some(fd),
            pools,
            limits,
            queue: VecDeque::with_capacity(limits.frames),
            queued_bytes: 0,
            head_sent_bytes: 0,
            sending: false,
            sent_bytes: 0,
            refused: false,
            zc: match zc_mode {
                SendMode::Copy => false,
                SendMode::Auto => !copy_pays,
                SendMode::ZeroCopy => true,
            },
            zc_mode,
            zc_slots: [const { None }; ZC_SLOTS],
            inbox,
            phase: Phase::Open,
            requests: 0,
            cancelled: false,
            listed: false,
            starved: None,
        }
    }

    pub(super) fn fd(&self) -> Option<&OwnedFd> {
        self.fd.as_ref()
    }

    pub(super) fn backlog_bytes(&self) -> usize {
        self.queued_bytes
    }

    pub(super) fn wire_bytes(&self) -> WireBytes {
        WireBytes {
            sent: self.sent_bytes,
            received: self.inbox.received_bytes,
        }
    }

    /// Queues a frame, or gives it back.
    pub(super) fn submit(&mut self, frame: Frame) -> Result<(), (Frame, RefusedReason)> {
        if self.phase != Phase::Open {
            return Err((frame, RefusedReason::Unknown));
        }
        let bytes = frame.wire().len();
        let too_many = self.queue.len() >= self.limits.frames;
        let too_long = self.queued_bytes + bytes > self.limits.bytes && !self.queue.is_empty();
        if too_many || too_long {
            self.refused = true;
            return Err((frame, RefusedReason::Full));
        }
        self.queued_bytes += bytes;
        self.queue.push_back(frame);
        Ok(())
    }

    pub(super) fn finish(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Finishing { shut: false };
        }
    }

    /// Ends the lane: what is queued is dropped, what the kernel holds is called back.
    pub(super) fn abort(&mut self, reason: LaneClosed) {
        if let Phase::Closing(_) = self.phase {
            return;
        }
        self.phase = Phase::Closing(reason);
        // The frame under way stays until its completion.
        self.queue.truncate(usize::from(self.sending));
        self.queued_bytes = 0;
        self.starved = None;
        if let Some(fd) = &self.fd {
            // Refused only if this is no socket any more; then there is nothing to abort.
            let _ = socket::abort_on_close(fd.as_fd());
        }
    }

    /// Whether a request or a frame of this lane is in the kernel's hands.
    pub(super) fn kernel_holds(&self) -> bool {
        self.requests > 0 || self.zc_slots.iter().any(Option::is_some)
    }

    /// Takes one completion.
    pub(super) fn completed(&mut self, op: Op, entry: &cqueue::Entry) {
        match op {
            Op::Recv => {
                if self.inbox.completed(entry.result(), entry.flags()) {
                    self.requests = self.requests.saturating_sub(1);
                }
            }
            Op::Send => {
                self.requests = self.requests.saturating_sub(1);
                self.sent(entry.result());
            }
            Op::SendZc(slot) => self.sent_zc(slot, entry),
            Op::Cancel => {
                self.requests = self.requests.saturating_sub(1);
                // Not found means done already; being executed means ask again.
                self.cancelled = entry.result() != -libc::EALREADY;
            }
        }
    }

    fn sent_zc(&mut self, slot: u8, entry: &cqueue::Entry) {
        let held = &mut self.zc_slots[usize::from(slot) % ZC_SLOTS];
        if cqueue::notif(entry.flags()) {
            *held = None;
            if self.zc_mode == SendMode::Auto && entry.result() & ZC_COPIED != 0 {
                // The path cannot do it, so the copy is cheaper where the caches are warm.
                self.zc = false;
            }
            return;
        }
        if !cqueue::more(entry.flags()) {
            *held = None;
        }
        self.requests = self.requests.saturating_sub(1);
        self.sent(entry.result());
    }

    fn sent(&mut self, result: i32) {
        self.sending = false;
        if let Phase::Closing(_) = self.phase {
            self.queue.clear();
            return;
        }
        let bytes = match usize::try_from(result) {
            Ok(0) => return self.abort(LaneClosed::Failed { errno: libc::EPIPE }),
            Ok(bytes) => bytes,
            Err(_) => match -result {
                libc::EAGAIN | libc::EINTR => 0,
                // The kernel cannot pin or track the pages: send with a copy.
                libc::ENOMEM | libc::ENOBUFS | libc::EOPNOTSUPP if self.zc => {
                    self.zc = false;
                    0
                }
                errno => return self.abort(LaneClosed::Failed { errno }),
            },
        };
        self.sent_bytes += bytes as u64;
        self.queued_bytes = self.queued_bytes.saturating_sub(bytes);
        self.head_sent_bytes += bytes;
        if let Some(head) = self.queue.front()
            && self.head_sent_bytes >= head.wire().len()
        {
            self.queue.pop_front();
            self.head_sent_bytes = 0;
        }
    }

    /// Does all that can be done now: cuts frames, asks for more, sends, ends.
    pub(super) fn serve(
        &mut self,
        ring: &mut Ring,
        registry: &mut Registry,
        room: &mut usize,
        out: &mut Vec<LaneEvent>,
    ) -> Next {
        let mut next = Next::Rest;
        if !matches!(self.phase, Phase::Closing(_)) {
            match self.inbox.cut(self.id, &self.pools, room, out) {
                Cut::Empty => {}
                Cut::NoRoom => next = Next::Again,
                Cut::Starved(since) => next = Next::Starved(since),
                Cut::Ended(LaneClosed::Finished) => self.finish(),
                Cut::Ended(reason) => self.abort(reason),
            }
        }
        if !matches!(self.phase, Phase::Closing(_)) {
            let asked = self.ask(ring) && self.send(ring, registry);
            if !asked || !self.tell_writable(room, out) {
                // A starved lane keeps its place among the starved; its requests go out then.
                next = Next::Again;
            }
            self.end_if_finished();
        }
        match self.phase {
            Phase::Closing(reason) => self.let_go(ring, reason),
            Phase::Open | Phase::Finishing { .. } => next,
        }
    }

    /// Makes the next receive request. False when the ring had no room.
    fn ask(&mut self, ring: &mut Ring) -> bool {
        let Some(fd) = &self.fd else { return true };
        let request = match self.inbox.request(self.id, fd.as_fd()) {
            Ok(Some(request)) => request,
            Ok(None) => return true,
            Err(cause) => {
                let errno = cause.raw_os_error().unwrap_or(libc::EIO);
                self.abort(LaneClosed::Failed { errno });
                return true;
            }
        };
        // SAFETY: the request names the lane's chunks, which the group keeps until the lane is gone,
        // or the frame in its inbox, which nobody touches before the completion; the socket stays
        // open while `requests` counts this one.
        if unsafe { ring.push(&request) } {
            self.requests += 1;
            return true;
        }
        self.inbox.not_requested();
        false
    }

    /// Sends on. False when the ring had no room.
    fn send(&mut self, ring: &mut Ring, registry: &mut Registry) -> bool {
        if self.sending {
            return true;
        }
        let (Some(head), Some(fd)) = (self.queue.front(), &self.fd) else {
            return true;
        };
        let fd = Fd(fd.as_raw_fd());
        let rest = head.wire().get(self.head_sent_bytes..).unwrap_or_default();
        // Never a signal for a peer that went away; and the kernel goes on after a short write, so
        // that a long frame is one completion. What it did take meanwhile counts as backlog still.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let without_copy = if self.zc && rest.len() >= ZC_BYTES_MIN {
            let slot = self.zc_slots.iter().position(Option::is_none);
            slot.and_then(|slot| Some((slot, registry.place_of(&ring.submitter(), head, rest)?)))
        } else {
            None
        };
        let (request, op) = match without_copy {
            Some((slot, place)) => {
                let send = opcode::SendZc::new(fd, rest.as_ptr(), rest.len() as u32)
                    .buf_index(Some(place))
                    .flags(flags)
                    .zc_flags(ZC_REPORT_USAGE);
                (send.build(), Op::SendZc(slot as u8))
            }
            None => {
                let send = opcode::Send::new(fd, rest.as_ptr(), rest.len() as u32).flags(flags);
                (send.build(), Op::Send)
            }
        };
        // SAFETY: the request names bytes of the queue's first frame, which stays there until the
        // completion, and in a slot until the notification where there is one; frozen frames are
        // not written; the socket stays open while `requests` counts this one.
        if !unsafe { ring.push(&request.user_data(user_data(self.id, op))) } {
            return false;
        }
        if let Op::SendZc(slot) = op {
            self.zc_slots[usize::from(slot)] = Some(head.clone());
        }
        self.sending = true;
        self.requests += 1;
        true
    }

    /// Says that there is room again, if somebody waits for it. False when `out` has no room.
    fn tell_writable(&mut self, room: &mut usize, out: &mut Vec<LaneEvent>) -> bool {
        let low = self.queue.len() <= self.limits.frames / 2
            && self.queued_bytes <= self.limits.bytes / 2;
        if !self.refused || !low || self.phase != Phase::Open {
            return true;
        }
        if *room == 0 {
            return false;
        }
        *room -= 1;
        self.refused = false;
        out.push(LaneEvent::Writable { lane: self.id });
        true
    }

    fn end_if_finished(&mut self) {
        let Phase::Finishing { shut } = &mut self.phase else {
            return;
        };
        if !self.queue.is_empty() || self.sending {
            return;
        }
        if !*shut {
            *shut = true;
            if let Some(fd) = &self.fd {
                // Refused only when the connection is gone, which the receive side sees.
                let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Write);
            }
        }
        if self.inbox.finished() {
            self.phase = Phase::Closing(LaneClosed::Finished);
        }
    }

    /// Calls back what the kernel holds, then closes the socket, then is gone.
    fn let_go(&mut self, ring: &mut Ring, reason: LaneClosed) -> Next {
        if let Some(fd) = &self.fd {
            if self.requests > 0 && !self.cancelled {
                let all = CancelBuilder::fd(Fd(fd.as_raw_fd())).all();
                let cancel = opcode::AsyncCancel2::new(all).build();
                // SAFETY: a cancellation names no buffer.
                if !unsafe { ring.push(&cancel.user_data(user_data(self.id, Op::Cancel))) } {
                    return Next::Again;
                }
                self.cancelled = true;
                self.requests += 1;
            }
            if self.requests > 0 {
                return Next::Rest;
            }
            // Only now: a number that a request still names could be given to another file. The
            // close makes the kernel drop what it holds without a copy.
            self.fd = None;
        }
        if self.kernel_holds() {
            Next::Rest
        } else {
            Next::Gone(reason)
        }
    }
}
