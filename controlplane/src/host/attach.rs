//! The first packet of an attach. In: the path of the socket. Out: mapped and verified segments, or the
//! first thing that disagrees. Nothing behind a segment's header is looked at before all of it agreed.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dwcp_api::attach::{BUSY_MAGIC, GREETING_FDS, GREETING_MAGIC, Greeting};
use dwcp_api::event::EventRecord;
use dwcp_api::layout::{
    COMMAND_PARK_OFFSET, COMMAND_RING_OFFSET, COMMAND_SLOTS, EVENT_PARK_OFFSET, EVENT_SLOTS,
    event_ring_offset, rings_layout, stats_layout, switches_layout,
};
use dwcp_api::worker::WORKERS_MAX;
use dwcp_api::{ABI_VERSION, LAYOUT_HASH};
use dwcp_hugepages::doorbell::Doorbell;
use dwcp_hugepages::ring::{Consumer, Producer, RingMem};
use dwcp_hugepages::scm::{ScmError, recv_with_fds};
use dwcp_hugepages::segment::{PeerAccess, Segment};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;
use zerocopy::FromBytes;

use super::bell::{AsyncBell, PeerProcess, watch};
use super::error::AttachError;
use super::link::{Commands, Link};

/// How long a greeting may take.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// The attach socket in the event loop.
pub(super) struct Packets(AsyncFd<OwnedFd>);

impl Packets {
    /// The next packet, with at most `fds_max` descriptors.
    pub(super) async fn next(
        &self,
        buf: &mut [u8],
        fds_max: usize,
    ) -> Result<(usize, Vec<OwnedFd>), ScmError> {
        loop {
            let mut ready = self
                .0
                .readable()
                .await
                .map_err(|_| ScmError::Os(rustix::io::Errno::BADF))?;
            match recv_with_fds(self.0.get_ref(), buf, fds_max) {
                Err(ScmError::WouldBlock) => ready.clear_ready(),
                outcome => return outcome,
            }
        }
    }
}

/// Everything that one attach yields.
pub(super) struct Attached {
    pub(super) greeting: Greeting,
    pub(super) packets: Packets,
    pub(super) process: PeerProcess,
    pub(super) link: Link,
    pub(super) events: Consumer<EventRecord>,
    pub(super) bell: AsyncBell,
}

/// Connects and attaches.
pub(super) async fn attach(path: &Path) -> Result<Attached, AttachError> {
    let socket = open(path).map_err(|problem| AttachError::Connect {
        path: path.display().to_string(),
        problem,
    })?;
    // Taken before the greeting is read: from here on its end is seen.
    let process = PeerProcess::of(&socket);
    let packets = Packets(watch(socket).map_err(AttachError::Loop)?);
    let mut buf = [0; size_of::<Greeting>() + 1];
    let (length, fds) = timeout(GREETING_LIMIT, packets.next(&mut buf, GREETING_FDS))
        .await
        .map_err(|_| AttachError::Silent(GREETING_LIMIT.as_secs()))??;
    let greeting = check(&buf[..length])?;
    let Ok([stats, switches, rings, command_bell, event_bell]) =
        <[OwnedFd; GREETING_FDS]>::try_from(fds)
    else {
        return Err(AttachError::NoGreeting("it has not five descriptors"));
    };

    let stats = Segment::attach(stats, stats_layout(), PeerAccess::ReadOnly)?;
    let switches = Arc::new(Segment::attach(
        switches,
        switches_layout(),
        PeerAccess::ReadWrite,
    )?);
    let rings = Arc::new(Segment::attach(
        rings,
        rings_layout(),
        PeerAccess::ReadWrite,
    )?);
    if rings.generation() != greeting.generation {
        return Err(AttachError::Generation {
            found: rings.generation(),
            expected: greeting.generation,
        });
    }
    let ring_at = |offset| RingMem::in_segment(Arc::clone(&rings), offset);
    let commands = Commands {
        ring: Producer::new(ring_at(COMMAND_RING_OFFSET), COMMAND_SLOTS)?,
        bell: Doorbell::attach(rings.shared(COMMAND_PARK_OFFSET)?, command_bell)?,
    };
    let events = Consumer::new(ring_at(event_ring_offset()), EVENT_SLOTS)?;
    let bell = Doorbell::attach(rings.shared(EVENT_PARK_OFFSET)?, event_bell)?;
    let link = Link {
        instance: greeting.instance,
        workers: greeting.workers as usize,
        stats: Arc::new(stats),
        switches: switches.shared(0)?,
        commands: Mutex::new(commands),
    };
    let bell = AsyncBell::new(bell).map_err(AttachError::Loop)?;
    Ok(Attached {
        greeting,
        packets,
        process,
        link,
        events,
        bell,
    })
}

fn open(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn check(packet: &[u8]) -> Result<Greeting, AttachError> {
    let greeting = Greeting::read_from_bytes(packet)
        .map_err(|_| AttachError::NoGreeting("its length is another release's or no greeting's"))?;
    match greeting.magic {
        GREETING_MAGIC => {}
        BUSY_MAGIC => return Err(AttachError::Busy),
        _ => return Err(AttachError::NoGreeting("its magic is unknown")),
    }
    if greeting.abi != ABI_VERSION {
        return Err(AttachError::Abi {
            found: greeting.abi,
            ours: ABI_VERSION,
        });
    }
    if greeting.layout_hash != LAYOUT_HASH {
        return Err(AttachError::Layout {
            found: greeting.layout_hash,
            ours: LAYOUT_HASH,
        });
    }
    if greeting.workers as usize > WORKERS_MAX {
        return Err(AttachError::Workers(greeting.workers));
    }
    if greeting.listen.as_str().is_empty() {
        return Err(AttachError::Empty("listen address"));
    }
    Ok(greeting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_api::text::Text;
    use zerocopy::IntoBytes;

    fn greeting() -> Greeting {
        Greeting {
            magic: GREETING_MAGIC,
            generation: 1,
            instance: 2,
            layout_hash: LAYOUT_HASH,
            abi: ABI_VERSION,
            pid: 3,
            workers: 1,
            max_version: 3,
            listen: Text::clipped("10.0.0.1:4790"),
            node: Text::clipped("a"),
        }
    }

    #[test]
    fn a_greeting_is_taken_whole_or_refused_with_its_reason() {
        let good = greeting();
        assert!(check(good.as_bytes()).is_ok());
        assert!(matches!(
            check(&good.as_bytes()[1..]),
            Err(AttachError::NoGreeting(_))
        ));
        let refused = |change: fn(&mut Greeting)| {
            let mut bad = greeting();
            change(&mut bad);
            check(bad.as_bytes()).err().unwrap()
        };
        assert!(matches!(
            refused(|g| g.magic = 1),
            AttachError::NoGreeting(_)
        ));
        assert!(matches!(
            refused(|g| g.magic = BUSY_MAGIC),
            AttachError::Busy
        ));
        assert!(matches!(refused(|g| g.abi += 1), AttachError::Abi { .. }));
        assert!(matches!(
            refused(|g| g.layout_hash ^= 1),
            AttachError::Layout { .. }
        ));
        assert!(matches!(
            refused(|g| g.workers = 65),
            AttachError::Workers(65)
        ));
        assert!(matches!(
            refused(|g| g.listen = Text::EMPTY),
            AttachError::Empty(_)
        ));
    }
}
