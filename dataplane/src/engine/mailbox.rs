//! Messages to a thread that polls: a bounded lock-free queue and an eventfd that ends its park. Any
//! thread sends; one receives. Used by the cold paths alone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};

/// The queue is full: its owner is stuck or drowned.
#[derive(Debug, thiserror::Error)]
#[error("a worker takes no messages: it is stuck or overloaded; look at its last_turn_ns")]
pub struct MailboxFull;

#[derive(Debug)]
struct Shared<M> {
    queue: ArrayQueue<M>,
    wake: OwnedFd,
}

/// The sending end.
#[derive(Debug)]
pub struct Sender<M>(Arc<Shared<M>>);

impl<M> Clone for Sender<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// The receiving end.
#[derive(Debug)]
pub struct Mailbox<M>(Arc<Shared<M>>);

/// A mailbox for at most `slots` messages.
///
/// # Errors
/// What the system said to the eventfd.
pub fn mailbox<M>(slots: usize) -> io::Result<(Sender<M>, Mailbox<M>)> {
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(slots),
        wake,
    });
    Ok((Sender(Arc::clone(&shared)), Mailbox(shared)))
}

impl<M> Sender<M> {
    /// Sends and wakes the receiver.
    ///
    /// # Errors
    /// [`MailboxFull`]; the message is dropped.
    pub fn send(&self, message: M) -> Result<(), MailboxFull> {
        self.0.queue.push(message).map_err(|_| MailboxFull)?;
        self.ring();
        Ok(())
    }

    /// Wakes the receiver without a message: its work lies elsewhere.
    pub fn ring(&self) {
        // A full eventfd is already readable, so a refused write wakes all the same.
        let _ = rustix::io::write(&self.0.wake, &1u64.to_ne_bytes());
    }
}

impl<M> Mailbox<M> {
    /// The oldest message.
    #[must_use]
    pub fn receive(&self) -> Option<M> {
        self.0.queue.pop()
    }

    /// Is nothing waiting?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.queue.is_empty()
    }

    /// Readable while a wake-up is pending.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }

    /// Takes pending wake-ups back; messages sent later wake again. For who watches the descriptor while it
    /// is readable: call before [`Self::receive`], and after every wait.
    pub fn drain_wakeups(&self) {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.0.wake, &mut count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_mailbox_refuses_and_keeps_what_it_has() {
        let (sender, mailbox) = mailbox(2).unwrap();
        sender.send(1).unwrap();
        sender.send(2).unwrap();
        assert!(sender.send(3).is_err());
        assert_eq!(
            (mailbox.receive(), mailbox.receive(), mailbox.receive()),
            (Some(1), Some(2), None)
        );
    }
}
