//! The RDMA port: which devices this host has, and how workers get their lanes.
//!
//! Comes in: options and a configuration. Goes out: capabilities, a [`Connector`] for handshakes, one
//! [`RdmaLanes`] per worker. Promises: the devices are opened once and stay open as long as a lane, a
//! connector or a listener lives.

use std::io;
use std::time::Duration;

use dwcp_hugepages::arena::BackingPolicy;
use thiserror::Error;

use super::connect::Connector;
use super::device::Devices;
use super::lanes::RdmaLanes;
use crate::MAX_FRAME_BYTES;
use crate::port::{
    Capabilities, ConfigError, DrainError, Life, OpenError, Port, PortConfig, PortState,
    ProbeError, WrongState,
};
use crate::slots::LANES_MAX;

/// What only the RDMA port knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RdmaOptions {
    /// Memory behind the message slots: half a MiB per lane.
    pub backing: BackingPolicy,
}

impl Default for RdmaOptions {
    fn default() -> Self {
        Self {
            backing: BackingPolicy::PreferHuge,
        }
    }
}

/// Why a worker got no lanes.
#[derive(Debug, Error)]
pub enum RdmaLanesError {
    /// Open and start the port first.
    #[error(transparent)]
    State(#[from] WrongState),
    /// No descriptors for this worker.
    #[error("no epoll for this worker: {0}; raise RLIMIT_NOFILE")]
    Epoll(#[from] io::Error),
}

/// The RDMA back end of this process.
pub struct RdmaPort {
    options: RdmaOptions,
    capabilities: Capabilities,
    life: Life,
    devices: Option<Devices>,
}

impl RdmaPort {
    /// A port that is closed yet.
    #[must_use]
    pub fn new(options: RdmaOptions) -> Self {
        Self {
            options,
            capabilities: Capabilities::default(),
            life: Life::new(),
            devices: None,
        }
    }

    /// The lanes of the calling worker; they stay on its thread.
    ///
    /// # Errors
    /// See [`RdmaLanesError`].
    pub fn lanes(&self) -> Result<RdmaLanes, RdmaLanesError> {
        let group = self.life.group()?;
        Ok(RdmaLanes::new(self.life.config(), group)?)
    }

    /// Makes connections, on whatever thread.
    ///
    /// # Errors
    /// Open the port first.
    pub fn connector(&self) -> Result<Connector, WrongState> {
        let devices = self.devices.clone().ok_or(WrongState {
            is: self.life.state(),
            needs: PortState::Open,
        })?;
        Ok(Connector {
            devices,
            backing: self.options.backing,
        })
    }

    /// The names of the devices that the port opened, such as `mlx5_0`.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().flat_map(Devices::names)
    }

    fn found() -> Result<Devices, ProbeError> {
        Devices::open().map_err(|cause| {
            let what = match cause.kind() {
                io::ErrorKind::PermissionDenied => {
                    "the right to use /dev/infiniband (run as root, or let this user read and write \
                     rdma_cm and uverbs* there)"
                }
                _ => "an RDMA device with rdma_cm (see `rdma link`; modules ib_uverbs, rdma_ucm)",
            };
            ProbeError::Missing { what, cause }
        })
    }
}

impl Port for RdmaPort {
    fn name(&self) -> &'static str {
        "rdma"
    }

    fn probe(&self) -> Result<Capabilities, ProbeError> {
        Self::found()?;
        Ok(Capabilities {
            zero_copy_send: true,
            registered_buffers: true,
            multishot_recv: false,
            park_fd: true,
            max_frame_bytes: MAX_FRAME_BYTES,
            missing: vec!["multishot_recv: verbs take one request per arrival".into()],
        })
    }

    fn validate(&self, config: &PortConfig) -> Result<(), ConfigError> {
        config.check(LANES_MAX)
    }

    fn open(&mut self, config: PortConfig) -> Result<(), OpenError> {
        self.life.may_open()?;
        self.validate(&config)?;
        self.capabilities = self.probe()?;
        self.devices = Some(Self::found()?);
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
        self.devices = None;
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn state(&self) -> PortState {
        self.life.state()
    }
}
