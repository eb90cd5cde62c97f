//! The TCP port: what this kernel's io_uring can do, and how workers get their lanes.
//!
//! Comes in: options and a configuration. Goes out: capabilities found by trying, and one
//! [`TcpLanes`] per worker. Promises: what the kernel lacks is replaced by what it has, and said.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use dwcp_hugepages::arena::{ArenaError, BackingPolicy};
use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, Probe, cqueue, opcode};
use thiserror::Error;

use super::lanes::TcpLanes;
use crate::MAX_FRAME_BYTES;
use crate::port::{
    Capabilities, ConfigError, DrainError, Life, OpenError, Port, PortConfig, PortState,
    ProbeError, WrongState,
};
use crate::slots::LANES_MAX;

/// How a lane receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecvMode {
    /// One request for many arrivals, into chunks that are copied from: the least work per small
    /// frame.
    Multishot,
    /// One request per arrival, the long part of a frame straight into its buffer: one copy less per
    /// long frame.
    SingleShot,
}

/// How a lane sends its long frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendMode {
    /// From registered memory without a copy, until the kernel says that it copied anyway; but with a copy on one
    /// host, where the kernel would make it later, and on a far path. There a window is on the way, and the kernel
    /// counts a piece of a hugepage that it does not copy as all of that page up to it, on average as 1 MiB for
    /// 64 KiB (Linux 6.18, `io_sg_from_iter`): the send buffer is full with a twentieth of its bytes.
    Auto,
    /// Always with a copy; frame memory is not registered.
    Copy,
    /// Without a copy even where the kernel copies later, as over loopback. For tests.
    ZeroCopy,
}

/// What only the TCP port knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpOptions {
    /// How lanes receive. Multishot falls back to single shot where the kernel lacks it.
    pub recv: RecvMode,
    /// How lanes send.
    pub send: SendMode,
    /// Memory behind the receive chunks.
    pub backing: BackingPolicy,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            recv: RecvMode::SingleShot,
            send: SendMode::Auto,
            backing: BackingPolicy::PreferHuge,
        }
    }
}

/// Why a worker got no lanes.
#[derive(Debug, Error)]
pub enum LanesError {
    /// Open and start the port first.
    #[error(transparent)]
    State(#[from] WrongState),
    /// No io_uring for this worker.
    #[error("no io_uring for this worker: {0}; raise RLIMIT_NOFILE or RLIMIT_MEMLOCK")]
    Ring(io::Error),
    /// No memory for the receive chunks.
    #[error("no memory for receive chunks: {0}")]
    Memory(#[from] ArenaError),
}

/// The TCP back end of this process.
pub struct TcpPort {
    options: TcpOptions,
    capabilities: Capabilities,
    life: Life,
}

impl TcpPort {
    /// A port that is closed yet.
    #[must_use]
    pub fn new(options: TcpOptions) -> Self {
        Self {
            options,
            capabilities: Capabilities::default(),
            life: Life::new(),
        }
    }

    /// The lanes of the calling worker; they stay on its thread.
    ///
    /// # Errors
    /// See [`LanesError`].
    pub fn lanes(&self) -> Result<TcpLanes, LanesError> {
        let group = self.life.group()?;
        let recv = if self.capabilities.multishot_recv {
            self.options.recv
        } else {
            RecvMode::SingleShot
        };
        let mut options = self.options;
        if !(self.capabilities.zero_copy_send && self.capabilities.registered_buffers) {
            options.send = SendMode::Copy;
        }
        TcpLanes::new(self.life.config(), &options, recv, group)
    }
}

impl Port for TcpPort {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn probe(&self) -> Result<Capabilities, ProbeError> {
        let missing = |what| move |cause| ProbeError::Missing { what, cause };
        let ring = IoUring::new(8).map_err(missing("io_uring (kernel.io_uring_disabled = 0)"))?;
        let mut probe = Probe::new();
        ring.submitter()
            .register_probe(&mut probe)
            .map_err(missing("io_uring's probe"))?;
        for (what, code) in [
            ("io_uring send", opcode::Send::CODE),
            ("io_uring recv", opcode::Recv::CODE),
            ("io_uring recvmsg", opcode::RecvMsg::CODE),
            ("io_uring cancellation", opcode::AsyncCancel2::CODE),
        ] {
            if !probe.is_supported(code) {
                let cause = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
                return Err(ProbeError::Missing { what, cause });
            }
        }
        let mut found = Capabilities {
            zero_copy_send: probe.is_supported(opcode::SendZc::CODE),
            park_fd: true,
            max_frame_bytes: MAX_FRAME_BYTES,
            ..Capabilities::default()
        };
        if !found.zero_copy_send {
            found
                .missing
                .push("zero_copy_send: the kernel has no IORING_OP_SEND_ZC (6.0)".into());
        }
        match ring.submitter().register_buffers_sparse(1) {
            Ok(()) => found.registered_buffers = true,
            Err(cause) => found.missing.push(format!("registered_buffers: {cause}")),
        }
        match try_multishot() {
            Ok(()) => found.multishot_recv = true,
            Err(cause) => found.missing.push(format!("multishot_recv: {cause}")),
        }
        Ok(found)
    }

    fn validate(&self, config: &PortConfig) -> Result<(), ConfigError> {
        config.check(LANES_MAX)
    }

    fn open(&mut self, config: PortConfig) -> Result<(), OpenError> {
        self.life.may_open()?;
        self.validate(&config)?;
        self.capabilities = self.probe()?;
        self.life.opened(config);
        Ok(())
    }

    fn start(&mut self) -> Result<(), WrongState> {
        self.life.start()
    }

    fn drain(&mut self, deadline: Duration) -> Result<(), DrainError> {
        self.life.drain(deadline)
    }

    fn close(&mut self) {
        self.life.close();
        self.capabilities = Capabilities::default();
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn state(&self) -> PortState {
        self.life.state()
    }
}

/// One page: the entries of a buffer ring, and behind them the bytes it lends.
#[repr(C, align(4096))]
struct TryPage([u8; 4096]);

/// Receives one byte by multishot through a buffer ring, for there is no flag that says it works.
fn try_multishot() -> io::Result<()> {
    let mut page = Box::new(TryPage([0; 4096]));
    let base = page.0.as_mut_ptr();
    let mut ring = IoUring::new(4)?;
    // SAFETY: the page is zeroed, aligned and lives until after `ring`, which is dropped below;
    // the one entry lies at its start, its tail behind the entry's fields, the lent bytes behind it.
    unsafe {
        ring.submitter()
            .register_buf_ring_with_flags(base as u64, 1, 0, 0)?;
        let entry = base.cast::<BufRingEntry>();
        (*entry).set_addr(base.add(1024) as u64);
        (*entry).set_len(1024);
        (*entry).set_bid(0);
        let tail = BufRingEntry::tail(entry.cast_const()).cast_mut();
        std::sync::atomic::AtomicU16::from_ptr(tail).store(1, std::sync::atomic::Ordering::Release);
    }
    let (near, mut far) = std::os::unix::net::UnixStream::pair()?;
    io::Write::write_all(&mut far, b"x")?;
    let request = opcode::RecvMulti::new(Fd(near.as_raw_fd()), 0).build();
    // SAFETY: the request names the page's bytes only, which outlive the ring.
    unsafe { ring.submission().push(&request) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let answer = ring.completion().next();
    drop(far);
    // The ring may end a little later than this; as nothing more was sent, no byte is written then.
    drop(ring);
    drop(page);
    match answer {
        Some(entry) if entry.result() == 1 && cqueue::more(entry.flags()) => Ok(()),
        Some(entry) if entry.result() < 0 => Err(io::Error::from_raw_os_error(-entry.result())),
        _ => Err(io::Error::other("the request ended after one arrival")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_life_of_a_port_is_walked_one_way() {
        let mut port = TcpPort::new(TcpOptions::default());
        assert!(matches!(port.lanes(), Err(LanesError::State(_))));
        assert!(port.start().is_err());
        port.open(PortConfig::default()).unwrap();
        assert!(matches!(
            port.open(PortConfig::default()),
            Err(OpenError::Already)
        ));
        assert!(port.lanes().is_err(), "not started");
        port.start().unwrap();
        let group = port.lanes().unwrap();
        assert_eq!(
            port.drain(Duration::ZERO),
            Err(DrainError::Deadline { groups: 1 })
        );
        assert!(port.lanes().is_err(), "draining");
        drop(group);
        port.drain(Duration::ZERO).unwrap();
        port.close();
        assert_eq!(port.state(), PortState::Closed);
    }

    #[test]
    fn figures_out_of_range_are_named() {
        let port = TcpPort::new(TcpOptions::default());
        let config = PortConfig {
            lanes_max: LANES_MAX + 1,
            ..PortConfig::default()
        };
        assert_eq!(
            port.validate(&config),
            Err(ConfigError::OutOfRange {
                name: "lanes_max",
                value: usize::from(LANES_MAX) + 1,
                min: 1,
                max: usize::from(LANES_MAX),
            })
        );
        let config = PortConfig {
            queue_frames_max: 0,
            ..PortConfig::default()
        };
        assert!(port.validate(&config).is_err());
    }

    #[test]
    fn whatever_is_missing_has_a_reason() {
        let found = TcpPort::new(TcpOptions::default()).probe().unwrap();
        let lacks = [
            found.zero_copy_send,
            found.registered_buffers,
            found.multishot_recv,
        ];
        assert_eq!(
            found.missing.len(),
            lacks.iter().filter(|&&has| !has).count()
        );
    }
}
