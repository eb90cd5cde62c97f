//! Readiness of a worker's descriptors. In: descriptors with a token; out: which became readable,
//! writable or dead, each edge once. The owner remembers readiness until an operation would block.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{Timespec, epoll};

/// Events taken in one wait.
const EVENTS_MAX: usize = 128;

/// Whose descriptor became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(pub u64);

/// What became of it.
#[derive(Clone, Copy, Debug)]
pub struct Readiness {
    /// Whose.
    pub token: Token,
    /// A read will not block, be it for data, end or error.
    pub readable: bool,
    /// A write will not block, be it for room or error.
    pub writable: bool,
}

/// An epoll instance.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// # Errors
    /// What the system said.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll })
    }

    /// Reports both edges of a stream socket. The kernel forgets it when the socket is closed.
    ///
    /// # Errors
    /// What the system said.
    pub fn add_stream(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        Ok(epoll::add(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token.0),
            flags,
        )?)
    }

    /// Reports each ring of a doorbell once, whether or not anybody empties it. Whoever rings may do so
    /// after its owner, awake, saw the reason already: that must not keep the owner from sleeping later.
    ///
    /// # Errors
    /// What the system said.
    pub fn add_doorbell(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.0);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, fd, data, flags)?)
    }

    /// Reports while the descriptor is readable: listeners, and mailboxes that are drained when it is.
    ///
    /// # Errors
    /// What the system said.
    pub fn add_readable(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.0);
        Ok(epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?)
    }

    /// No longer reports it. Needed where a duplicate of the descriptor lives on elsewhere.
    pub fn remove(&self, fd: impl AsFd) {
        // It may be gone already: nothing is lost.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for at most `timeout_ns` (0: looks only) and gives each readiness to `found`.
    ///
    /// # Errors
    /// What the system said; an interruption counts as a wait that found nothing.
    pub fn wait(&self, timeout_ns: u64, mut found: impl FnMut(Readiness)) -> io::Result<usize> {
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout_ns / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(timeout_ns % 1_000_000_000).unwrap_or(0),
        };
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS_MAX];
        let events = match epoll::wait(&self.epoll, &mut events, Some(&timeout)) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let count = events.len();
        for event in events {
            let flags = event.flags;
            let dead = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
            found(Readiness {
                token: Token(event.data.u64()),
                readable: dead
                    || flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP),
                writable: dead || flags.contains(epoll::EventFlags::OUT),
            });
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    #[test]
    fn a_doorbell_that_nobody_empties_is_reported_once_a_ring() {
        let poller = Poller::new().unwrap();
        let bell = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        poller.add_doorbell(&bell, Token(7)).unwrap();
        let look = || poller.wait(0, |_| {}).unwrap();
        assert_eq!(look(), 0);
        for _ in 0..3 {
            rustix::io::write(&bell, &1u64.to_ne_bytes()).unwrap();
            assert_eq!(look(), 1);
            assert_eq!(look(), 0);
        }
    }
}
