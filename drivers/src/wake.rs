//! The file descriptor that a parked worker sleeps on.
//!
//! Comes in: `wake` from any thread. Goes out: a descriptor that is readable until `clear`.
//! Promises: a wake after the last `clear` is never lost; any number of wakes is one readiness.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// An eventfd that anybody may ring and one worker watches in its epoll.
#[derive(Debug)]
pub struct Waker {
    fd: OwnedFd,
}

impl Waker {
    /// A waker that is not readable yet.
    ///
    /// # Errors
    /// The kernel's, as a rule because the process is out of descriptors.
    pub fn new() -> std::io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { fd })
    }

    /// Makes the descriptor readable. One system call, so not for the hot path.
    pub fn wake(&self) {
        // A full counter (EAGAIN) is readable already, which is all that was asked for.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Makes the descriptor unreadable until the next [`Waker::wake`].
    pub fn clear(&self) {
        let mut count = [0u8; 8];
        // Nothing to read (EAGAIN) is the state that was asked for.
        let _ = rustix::io::read(&self.fd, &mut count);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
