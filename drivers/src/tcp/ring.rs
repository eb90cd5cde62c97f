//! The io_uring of one worker: made as well as the kernel allows, entered only with a reason.
//!
//! Comes in: requests. Goes out: completions. Promises: `enter` is the only system call of the hot
//! path; looking for work without any costs two loads of shared memory; after [`Ring::arm`] the
//! waker is rung by the next completion.
//!
//! The ordering that matters is in parking: `arm` first lets the kernel ring, then looks. The kernel
//! first notes its work, then looks whether it may ring. One of the two sees the other.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, squeue};

use crate::lane::LaneId;
use crate::wake::Waker;

/// `IORING_ENTER_GETEVENTS`: also run work that the kernel deferred to this call.
const ENTER_GETEVENTS: u32 = 1;

/// What a request was, so that its completion finds its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Recv,
    Send,
    /// A send without a copy; the number says which of the lane's slots holds the frame.
    SendZc(u8),
    Cancel,
}

/// A request's name: its lane and what it was.
pub(super) fn user_data(lane: LaneId, op: Op) -> u64 {
    let (op, slot) = match op {
        Op::Recv => (1, 0),
        Op::Send => (2, 0),
        Op::SendZc(slot) => (3, slot),
        Op::Cancel => (4, 0),
    };
    (u64::from(lane.0) << 32) | (u64::from(slot) << 8) | op
}

/// The inverse of [`user_data`]; none for what it never made.
pub(super) fn from_user_data(data: u64) -> Option<(LaneId, Op)> {
    let [op, slot, _, _, lane @ ..] = data.to_le_bytes();
    let op = match op {
        1 => Op::Recv,
        2 => Op::Send,
        3 => Op::SendZc(slot),
        4 => Op::Cancel,
        _ => return None,
    };
    Some((LaneId(u32::from_le_bytes(lane)), op))
}

/// When the kernel does the work behind a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TaskRun {
    /// In our own calls only (6.1).
    Deferred,
    /// In any call of ours, never by interrupting us (5.19).
    Cooperative,
    /// As soon as it can.
    Interrupting,
}

pub(super) struct Ring {
    ring: IoUring,
    waker: Arc<Waker>,
    armed: bool,
}

impl Ring {
    /// A ring for `lanes` lanes with at most `per_lane` completions each under way, as well as this
    /// kernel makes it.
    ///
    /// # Errors
    /// The kernel's: no io_uring, not allowed, or no memory.
    pub(super) fn new(lanes: u32, per_lane: u32) -> io::Result<Self> {
        Self::of(TaskRun::Deferred, lanes, per_lane)
            .or_else(|_| Self::of(TaskRun::Cooperative, lanes, per_lane))
            .or_else(|_| Self::of(TaskRun::Interrupting, lanes, per_lane))
    }

    fn of(task_run: TaskRun, lanes: u32, per_lane: u32) -> io::Result<Self> {
        let entries = (lanes * 2).next_power_of_two().clamp(32, 4096);
        let completions = (lanes * per_lane).next_power_of_two().clamp(256, 65_536);
        let mut builder = IoUring::builder();
        builder.dontfork().setup_clamp().setup_cqsize(completions);
        match task_run {
            TaskRun::Deferred => builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all(),
            TaskRun::Cooperative => builder.setup_coop_taskrun().setup_taskrun_flag(),
            TaskRun::Interrupting => &mut builder,
        };
        let ring = builder.build(entries)?;
        let waker = Arc::new(Waker::new()?);
        ring.submitter()
            .register_eventfd(waker.as_fd().as_raw_fd())?;
        let mut ring = Self {
            ring,
            waker,
            armed: false,
        };
        ring.ring.completion().disable_eventfd();
        Ok(ring)
    }

    pub(super) fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    pub(super) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.ring.submitter()
    }

    /// Queues a request. False when the kernel would not make room: try again after reaping.
    ///
    /// # Safety
    /// Every buffer that `entry` names stays alive and untouched until its completion was reaped.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: needed because the crate cannot know the buffers' lifetimes; our caller does.
        if unsafe { self.ring.submission().push(entry) }.is_ok() {
            return true;
        }
        self.enter();
        // SAFETY: as above.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Whether `enter` would do anything.
    pub(super) fn has_reason_to_enter(&mut self) -> bool {
        let submission = self.ring.submission();
        !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
    }

    /// Hands over what is queued and runs deferred work, without waiting.
    pub(super) fn enter(&mut self) {
        let queued = self.ring.submission().len() as u32;
        // SAFETY: needed because the crate's own `submit` does not run deferred work. No argument
        // is passed, and `queued` is what the submission queue says.
        let entered = unsafe {
            self.ring
                .submitter()
                .enter::<libc::sigset_t>(queued, 0, ENTER_GETEVENTS, None)
        };
        // EINTR, and EBUSY or EAGAIN while completions wait to be reaped or memory is short: what
        // was not taken is still queued and goes with the next call.
        if let Err(cause) = entered
            && !matches!(
                cause.raw_os_error(),
                Some(libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ETIME)
            )
        {
            tracing::error!(%cause, "io_uring_enter failed; its lanes make no progress");
        }
    }

    /// Like [`Ring::enter`], and waits for one completion at most this long. For the end only.
    pub(super) fn enter_and_wait(&mut self, patience: Duration) {
        let patience = Timespec::from(patience);
        let args = SubmitArgs::new().timespec(&patience);
        // A timeout and an interruption both mean that the caller looks at its own clock.
        let _ = self.ring.submitter().submit_with_args(1, &args);
    }

    /// Moves completions to `out`, as many as it has room for.
    pub(super) fn reap(&mut self, out: &mut Vec<cqueue::Entry>) {
        let room = out.capacity() - out.len();
        out.extend(self.ring.completion().take(room));
    }

    fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Lets the next completion ring the waker. False when there is something to reap already.
    ///
    /// The waker is cleared once a park, by [`Ring::disarm`]. A ring that comes later than that, from
    /// the kernel or from pools, ends one park too early, which is harmless and rare.
    pub(super) fn arm(&mut self) -> bool {
        if !self.quiet() {
            return false;
        }
        if self.armed {
            return true;
        }
        self.ring.completion().enable_eventfd();
        self.armed = true;
        // Pairs with the kernel's: see the top of this file.
        fence(Ordering::SeqCst);
        self.quiet()
    }

    /// Hands over what is queued; true when the kernel has nothing for us after that.
    fn quiet(&mut self) -> bool {
        if self.has_reason_to_enter() {
            self.enter();
        }
        !self.has_completions() && !self.has_reason_to_enter()
    }

    /// Keeps the kernel from ringing while the worker is awake.
    pub(super) fn disarm(&mut self) {
        if self.armed {
            self.ring.completion().disable_eventfd();
            self.waker.clear();
            self.armed = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_comes_back() {
        for lane in [0, 1, 0x8000_0001, u32::MAX] {
            for op in [
                Op::Recv,
                Op::Send,
                Op::SendZc(0),
                Op::SendZc(255),
                Op::Cancel,
            ] {
                let lane = LaneId(lane);
                assert_eq!(from_user_data(user_data(lane, op)), Some((lane, op)));
            }
        }
        assert_eq!(from_user_data(0), None);
        assert_eq!(from_user_data(u64::MAX), None);
    }

    #[test]
    fn an_armed_ring_is_readable_after_a_completion_and_not_before() {
        for task_run in [
            TaskRun::Deferred,
            TaskRun::Cooperative,
            TaskRun::Interrupting,
        ] {
            match Ring::of(task_run, 1, 1) {
                Ok(ring) => wake_up(ring),
                Err(cause) => println!("not on this kernel: {task_run:?}: {cause}"),
            }
        }
    }

    fn wake_up(mut ring: Ring) {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let poll = io_uring::opcode::PollAdd::new(
            io_uring::types::Fd(near.as_raw_fd()),
            libc::POLLIN as u32,
        );
        let poll = poll.build().user_data(user_data(LaneId(7), Op::Recv));
        // SAFETY: a poll request names no buffer.
        assert!(unsafe { ring.push(&poll) });
        assert!(ring.arm());
        assert!(!readable(&ring));
        std::io::Write::write_all(&mut &far, b"x").unwrap();
        assert!(readable(&ring));
        assert!(!ring.arm(), "there is something to reap");
        ring.disarm();
        let mut out = Vec::with_capacity(4);
        ring.reap(&mut out);
        assert_eq!(
            from_user_data(out[0].user_data()),
            Some((LaneId(7), Op::Recv))
        );
    }

    fn readable(ring: &Ring) -> bool {
        let mut fds = [rustix::event::PollFd::new(
            &**ring.waker(),
            rustix::event::PollFlags::IN,
        )];
        let zero = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut fds, Some(&zero)).unwrap() == 1
    }
}
