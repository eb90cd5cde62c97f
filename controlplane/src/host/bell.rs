//! Descriptors that the event loop waits on. In: a doorbell, a pidfd. Out: futures that end when it
//! rings, or when the process has ended.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use dwcp_hugepages::doorbell::Doorbell;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Puts a descriptor of ours into the event loop, to learn when it can be read.
pub(super) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: needed because the event loop keeps the number of the descriptor. Sound because an
    // `OwnedFd` keeps the same descriptor open for as long as it lives, and it lives in the `AsyncFd`.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// A doorbell whose eventfd lies in the event loop.
pub(super) struct AsyncBell(AsyncFd<BellFd>);

struct BellFd(Doorbell);

impl AsRawFd for BellFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd().as_raw_fd()
    }
}

impl AsyncBell {
    pub(super) fn new(bell: Doorbell) -> io::Result<Self> {
        // SAFETY: needed because the event loop keeps the number of the descriptor. Sound because a
        // doorbell owns its eventfd and never changes it, and `BellFd` gives no way to take it out.
        unsafe { AsyncFd::register_with_interest(BellFd(bell), Interest::READABLE) }
            .map(Self)
            .map_err(io::Error::from)
    }

    /// Says that we are about to sleep; look at the ring after this.
    pub(super) fn prepare(&self) {
        self.0.get_ref().0.prepare_park();
    }

    /// The ring was not empty after all.
    pub(super) fn cancel(&self) {
        self.0.get_ref().0.cancel_park();
    }

    /// Ends when the bell was rung.
    pub(super) async fn rung(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let bell = &self.0.get_ref().0;
        // Cleared before it is drained: a ring in between makes the descriptor ready again.
        ready.clear_ready();
        bell.drain();
        bell.cancel_park();
        Ok(())
    }
}

/// The process at the other end of a socket.
pub(super) struct PeerProcess {
    pid: Option<u32>,
    pidfd: Option<AsyncFd<OwnedFd>>,
}

impl PeerProcess {
    /// Takes hold of it. Across process namespaces there is nothing to hold: then only the socket tells.
    pub(super) fn of(socket: impl AsFd) -> Self {
        let pid = socket_peercred(socket).ok().map(|peer| peer.pid);
        let pidfd = pid
            .and_then(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK).ok())
            .and_then(|fd| watch(fd).ok());
        Self {
            pid: pid.and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok()),
            pidfd,
        }
    }

    /// Its number, as the kernel knows it here.
    pub(super) const fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Ends when the process has ended; never if it cannot be seen.
    pub(super) async fn ended(&self) {
        match &self.pidfd {
            Some(pidfd) if pidfd.readable().await.is_ok() => {}
            _ => std::future::pending().await,
        }
    }
}
