//! The cold half of a back end: from "can this host do it" to "it is closed".
//!
//! Comes in: a configuration. Goes out: capabilities, and errors that name the cure. Promises: no
//! call is made while frames flow, except `capabilities`; the states are walked one way,
//! closed → open → started → draining → closed.
//!
//! How lanes come out of a port differs by back end (a socket, a queue pair), so that part is on the
//! concrete types; each makes [`crate::lane::LaneGroup`]s.

use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

/// What a back end can do on this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Frames leave without a copy by the kernel, where the device can.
    pub zero_copy_send: bool,
    /// Frame memory is registered once, not per send.
    pub registered_buffers: bool,
    /// One receive request serves many arrivals.
    pub multishot_recv: bool,
    /// A parked worker can sleep on a descriptor.
    pub park_fd: bool,
    /// The longest frame.
    pub max_frame_bytes: usize,
    /// For each of the above that is missing: which, and the kernel's reason.
    pub missing: Vec<String>,
}

/// What a port is opened with. Units are in the names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// Lanes of one worker, at most.
    pub lanes_max: u16,
    /// Frames that wait on one lane, at most.
    pub queue_frames_max: u16,
    /// Bytes that wait on one lane, at most; one frame always fits.
    pub queue_bytes_max: usize,
}

impl Default for PortConfig {
    fn default() -> Self {
        Self {
            lanes_max: 64,
            queue_frames_max: 16,
            queue_bytes_max: 4 << 20,
        }
    }
}

/// The host cannot run this back end.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// Something that it needs is missing.
    #[error("{what} is missing on this host: {cause}")]
    Missing {
        /// Which.
        what: &'static str,
        /// The kernel's reason.
        cause: std::io::Error,
    },
}

/// A configuration that this port cannot run with.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A figure is outside its range.
    #[error("{name} = {value} is outside {min}..={max}")]
    OutOfRange {
        /// Field of [`PortConfig`].
        name: &'static str,
        /// What it was.
        value: usize,
        /// Least.
        min: usize,
        /// Most.
        max: usize,
    },
}

/// Why a port did not open.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The host.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// It is open.
    #[error("the port is open already: close it first")]
    Already,
}

/// A step that the port's state does not allow.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the port is {is:?}, and this step needs it to be {needs:?}")]
pub struct WrongState {
    /// Where it is.
    pub is: PortState,
    /// Where it would have to be.
    pub needs: PortState,
}

/// Why draining did not end well.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DrainError {
    /// Not started.
    #[error(transparent)]
    State(#[from] WrongState),
    /// Workers still hold lane groups.
    #[error("{groups} lane groups are still in use after the deadline: stop their workers")]
    Deadline {
        /// How many.
        groups: usize,
    },
}

/// Where a port is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortState {
    /// Nothing is held.
    Closed,
    /// Configured.
    Open,
    /// Gives out lane groups.
    Started,
    /// Gives out no more.
    Draining,
}

/// A figure of a configuration inside its range.
pub(crate) fn within(
    name: &'static str,
    value: usize,
    min: usize,
    max: usize,
) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::OutOfRange {
        name,
        value,
        min,
        max,
    })
}

impl PortConfig {
    /// Checks every figure, for a back end with at most so many lanes in a group.
    pub(crate) fn check(&self, lanes_max: u16) -> Result<(), ConfigError> {
        within("lanes_max", self.lanes_max.into(), 1, lanes_max.into())?;
        within("queue_frames_max", self.queue_frames_max.into(), 1, 4096)?;
        within("queue_bytes_max", self.queue_bytes_max, 1, 1 << 30)
    }
}

/// Held by each lane group; how its port counts them.
#[derive(Clone)]
pub(crate) struct GroupToken(#[allow(dead_code)] Arc<()>); // only its count is read

/// A port's way through its states, the same for every back end that gives out lane groups.
pub(crate) struct Life {
    state: PortState,
    config: PortConfig,
    groups: Arc<()>,
}

impl Life {
    /// Closed.
    pub(crate) fn new() -> Self {
        Self {
            state: PortState::Closed,
            config: PortConfig::default(),
            groups: Arc::new(()),
        }
    }

    pub(crate) const fn state(&self) -> PortState {
        self.state
    }

    /// What it was opened with.
    pub(crate) const fn config(&self) -> &PortConfig {
        &self.config
    }

    pub(crate) fn need(&self, needs: PortState) -> Result<(), WrongState> {
        let is = self.state;
        if is == needs {
            Ok(())
        } else {
            Err(WrongState { is, needs })
        }
    }

    /// A token for one more group, while it gives out any.
    pub(crate) fn group(&self) -> Result<GroupToken, WrongState> {
        self.need(PortState::Started)?;
        Ok(GroupToken(Arc::clone(&self.groups)))
    }

    /// Only a closed port opens.
    pub(crate) fn may_open(&self) -> Result<(), OpenError> {
        match self.state {
            PortState::Closed => Ok(()),
            _ => Err(OpenError::Already),
        }
    }

    /// All that was needed is there.
    pub(crate) fn opened(&mut self, config: PortConfig) {
        self.config = config;
        self.state = PortState::Open;
    }

    pub(crate) fn start(&mut self) -> Result<(), WrongState> {
        self.need(PortState::Open)?;
        self.state = PortState::Started;
        Ok(())
    }

    /// Waits until the groups that exist are gone.
    pub(crate) fn drain(&mut self, deadline: Duration) -> Result<(), DrainError> {
        if self.state != PortState::Draining {
            self.need(PortState::Started)?;
        }
        self.state = PortState::Draining;
        let start = Instant::now();
        loop {
            let groups = Arc::strong_count(&self.groups) - 1;
            if groups == 0 {
                return Ok(());
            }
            if start.elapsed() >= deadline {
                return Err(DrainError::Deadline { groups });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn close(&mut self) {
        self.state = PortState::Closed;
    }
}

/// The cold life of a back end; one object per back end and process.
pub trait Port: Send {
    /// The back end's name, as configuration and counters write it.
    fn name(&self) -> &'static str;
    /// Asks the host what it can do, without leaving anything behind.
    ///
    /// # Errors
    /// When this back end cannot run here at all.
    fn probe(&self) -> Result<Capabilities, ProbeError>;
    /// Checks a configuration without using it.
    ///
    /// # Errors
    /// The first figure that is wrong.
    fn validate(&self, config: &PortConfig) -> Result<(), ConfigError>;
    /// Takes a configuration.
    ///
    /// # Errors
    /// See [`OpenError`]; the port stays closed.
    fn open(&mut self, config: PortConfig) -> Result<(), OpenError>;
    /// Allows lane groups.
    ///
    /// # Errors
    /// When not open.
    fn start(&mut self) -> Result<(), WrongState>;
    /// Allows no more lane groups, and waits until those that exist are gone.
    ///
    /// # Errors
    /// [`DrainError::Deadline`] when some are left; the port stays draining.
    fn drain(&mut self, deadline: Duration) -> Result<(), DrainError>;
    /// Gives everything back. Lane groups that still exist live on until they are dropped.
    fn close(&mut self);
    /// What `open` found; the default before that.
    fn capabilities(&self) -> &Capabilities;
    /// Where the port is.
    fn state(&self) -> PortState;
}
