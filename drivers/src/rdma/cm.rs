//! rdma_cm's identifiers and what they report.
//!
//! Comes in: calls that start something. Goes out: [`Event`]s, copied, so that the library's are given
//! back at once. Promises: no wait is without a deadline; an identifier goes before its channel, and
//! never while an event of it is held.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::time::{Duration, Instant};

use rdma_sys::{
    ibv_context, rdma_ack_cm_event, rdma_cm_event, rdma_cm_event_type, rdma_cm_id,
    rdma_create_event_channel, rdma_create_id, rdma_destroy_event_channel, rdma_destroy_id,
    rdma_event_channel, rdma_get_cm_event, rdma_migrate_id, rdma_port_space,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::device::non_null;

/// Bytes that a connection request can carry over Ethernet and InfiniBand alike.
pub(super) const PRIVATE_BYTES: usize = 56;

/// The answer of a call that returns 0 or sets errno.
pub(super) fn check(answer: libc::c_int) -> io::Result<()> {
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What happened on a channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Event {
    /// One of `rdma_cm_event_type`.
    pub(super) kind: rdma_cm_event_type::Type,
    /// Why, where something failed.
    pub(super) status: i32,
    /// The identifier that it is about: a new one for a connection request.
    pub(super) id: *mut rdma_cm_id,
    /// What the peer said with it, padded with zeros.
    pub(super) private: [u8; PRIVATE_BYTES],
}

/// Reports the events of its identifiers.
pub(super) struct Channel(NonNull<rdma_event_channel>);

// SAFETY: needed because of the raw pointer. A channel is a descriptor and is used by one thread at a
// time.
unsafe impl Send for Channel {}

impl Channel {
    /// A channel that never blocks.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: needed to ask the library, which returns a channel or null.
        let channel = Self(non_null(unsafe { rdma_create_event_channel() })?);
        rustix::io::ioctl_fionbio(channel.as_fd(), true)?;
        Ok(channel)
    }

    fn as_ptr(&self) -> *mut rdma_event_channel {
        self.0.as_ptr()
    }

    /// The next event, or none yet.
    pub(super) fn next(&self) -> io::Result<Option<Event>> {
        let mut event: *mut rdma_cm_event = null_mut();
        // SAFETY: needed to take an event; the channel lives, and the library writes `event` when it
        // says 0.
        match check(unsafe { rdma_get_cm_event(self.as_ptr(), &raw mut event) }) {
            Ok(()) => {}
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(cause) => return Err(cause),
        }
        // SAFETY: needed to copy the event before it is given back. For events about connections the
        // union holds `conn`, whose private data has the length that stands beside it.
        let copied = unsafe {
            let conn = (*event).param.conn;
            let mut private = [0; PRIVATE_BYTES];
            let len = usize::from(conn.private_data_len).min(PRIVATE_BYTES);
            if !conn.private_data.is_null() {
                let said = std::slice::from_raw_parts(conn.private_data.cast::<u8>(), len);
                private[..len].copy_from_slice(said);
            }
            Event {
                kind: (*event).event,
                status: (*event).status,
                id: (*event).id,
                private,
            }
        };
        // SAFETY: needed to give the event back, once.
        check(unsafe { rdma_ack_cm_event(event) })?;
        Ok(Some(copied))
    }

    /// The next event, or [`io::ErrorKind::TimedOut`].
    pub(super) fn wait(&self, deadline: Instant) -> io::Result<Event> {
        loop {
            if let Some(event) = self.next()? {
                return Ok(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let left = left.min(Duration::from_secs(3600));
            let patience = Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(self, PollFlags::IN)], Some(&patience)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: needed to lend the channel's descriptor; it is open until the drop of `self`.
        unsafe { BorrowedFd::borrow_raw((*self.0.as_ptr()).fd) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: needed to give the channel back; its identifier went before it.
        unsafe { rdma_destroy_event_channel(self.0.as_ptr()) };
    }
}

/// One end of a connection to be, with a channel of its own.
pub(super) struct Id {
    id: NonNull<rdma_cm_id>,
    channel: Channel,
}

// SAFETY: needed because of the raw pointer. The identifier is used by one thread at a time, and the
// library locks what its identifiers share.
unsafe impl Send for Id {}

impl Id {
    /// A new identifier.
    pub(super) fn new() -> io::Result<Self> {
        let channel = Channel::new()?;
        let mut id = null_mut();
        // SAFETY: needed to make it; the library writes `id` when it says 0, and the channel outlives
        // the identifier, because both are in this value and the drop destroys the identifier first.
        check(unsafe {
            rdma_create_id(
                channel.as_ptr(),
                &raw mut id,
                null_mut(),
                rdma_port_space::RDMA_PS_TCP,
            )
        })?;
        Ok(Self {
            id: non_null(id)?,
            channel,
        })
    }

    /// Takes over the identifier of a connection request, and moves it to a channel of its own.
    ///
    /// # Safety
    /// `id` came with a connection request and nobody else owns it.
    pub(super) unsafe fn adopt(id: *mut rdma_cm_id) -> io::Result<Self> {
        let id = non_null(id)?;
        let moved = Channel::new().and_then(|channel| {
            // SAFETY: needed to part it from its listener; both live, and no event of it is held.
            check(unsafe { rdma_migrate_id(id.as_ptr(), channel.as_ptr()) })?;
            Ok(channel)
        });
        match moved {
            Ok(channel) => Ok(Self { id, channel }),
            Err(cause) => {
                // SAFETY: needed to give it back; the caller says that it is ours.
                unsafe { rdma_destroy_id(id.as_ptr()) };
                Err(cause)
            }
        }
    }

    /// For calls of the library.
    pub(super) fn as_ptr(&self) -> *mut rdma_cm_id {
        self.id.as_ptr()
    }

    /// The device that it is bound to; null before that.
    pub(super) fn device(&self) -> *mut ibv_context {
        // SAFETY: needed to read the library's structure, which lives as long as `self`.
        unsafe { self.id.as_ref() }.verbs
    }

    /// Where its events come.
    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: needed to give the identifier back; events are given back as they are taken, so that
        // this does not wait for one.
        unsafe { rdma_destroy_id(self.id.as_ptr()) };
    }
}

/// A socket address as C has it.
pub(super) fn sockaddr(address: SocketAddr) -> libc::sockaddr_storage {
    // SAFETY: needed to make a C structure; all its fields are integers, for which zeros are values.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let place = &raw mut storage;
    match address {
        SocketAddr::V4(v4) => {
            let value = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(v4.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: needed to fill the storage, which is made to be long and aligned enough.
            unsafe { place.cast::<libc::sockaddr_in>().write(value) };
        }
        SocketAddr::V6(v6) => {
            let value = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { place.cast::<libc::sockaddr_in6>().write(value) };
        }
    }
    storage
}
