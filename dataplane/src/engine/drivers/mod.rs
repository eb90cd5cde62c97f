//! The back ends of a data plane: opened once, shared out to the workers, looked after.
//!
//! In: the configuration. Out: for each worker what its lanes may run over, and the lanes themselves, made on
//! its thread. Promises: TCP is always there; a back end that is configured and cannot run is an error at the
//! start that names the cure, never a silent way round.

#[cfg_attr(not(feature = "dpdk"), path = "dpdk_absent.rs")]
mod dpdk;
#[cfg_attr(not(feature = "rdma"), path = "rdma_absent.rs")]
mod rdma;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use dwcp_drivers::beside::{Beside, Either};
use dwcp_drivers::lane::LaneGroup;
use dwcp_drivers::port::{Port as _, PortConfig};
use dwcp_drivers::tcp::{TcpLanes, TcpOptions, TcpPort};
use dwcp_hugepages::arena::BackingPolicy;

use super::mailbox::Sender;
use super::messages::{LaneUp, ToWorker, Ways};
use crate::config::{Config, Driver, LANES_OF_A_WORKER};
use crate::transport::handshake::{Agreed, Guard, Way};

/// One worker's lanes of all back ends.
pub type Lanes = Beside<TcpLanes, Beside<Option<dpdk::Group>, Option<rdma::Group>>>;
/// What becomes one of them.
pub type LaneEndpoint = <Lanes as LaneGroup>::Endpoint;
use rdma::Established;

/// See the module.
pub struct Drivers {
    tcp: Arc<TcpPort>,
    dpdk: Option<dpdk::Opened>,
    rdma: Option<rdma::Opened>,
    preferred: Driver,
}

/// What one worker takes to its thread to make its lanes of.
pub struct Seat {
    tcp: Arc<TcpPort>,
    dpdk: Option<dpdk::Seat>,
    rdma: Option<rdma::Seat>,
}

impl Drivers {
    /// Opens what is configured, for so many workers.
    ///
    /// # Errors
    /// The first that cannot run, with what to do about it.
    pub fn open(config: &Config, workers: usize) -> Result<Self> {
        let mut tcp = TcpPort::new(TcpOptions {
            // A place for every lane there may be, few of which there are: ordinary pages cost
            // nothing until they are used.
            backing: BackingPolicy::Ordinary,
            ..TcpOptions::default()
        });
        tcp.open(PortConfig {
            lanes_max: LANES_OF_A_WORKER,
            ..PortConfig::default()
        })
        .context("TCP port")?;
        tcp.start().context("TCP port")?;
        let dpdk = match &config.dpdk {
            Some(dpdk) => {
                Some(dpdk::Opened::open(dpdk, config.hugepages, workers).context("[dpdk]")?)
            }
            None => None,
        };
        let rdma = match &config.rdma {
            Some(rdma) => Some(rdma::Opened::open(rdma, config.hugepages).context("[rdma]")?),
            None => None,
        };
        let there = match config.driver {
            Driver::Tcp => true,
            Driver::Dpdk => dpdk.is_some(),
            Driver::Rdma => rdma.is_some(),
        };
        if !there {
            bail!(
                "driver = \"{0}\" needs a table [{0}]: add it, or set driver = \"tcp\"",
                config.driver
            );
        }
        Ok(Self {
            tcp: Arc::new(tcp),
            dpdk,
            rdma,
            preferred: config.driver,
        })
    }

    /// What lanes of `worker` may run over.
    pub fn ways(&self, worker: usize) -> Ways {
        Ways {
            dpdk: self.dpdk.as_ref().and_then(|dpdk| dpdk.way(worker)),
            rdma: self.rdma.as_ref().map(rdma::Opened::way),
        }
    }

    /// What the lanes that `worker` opens are to run over.
    pub fn preferred(&self, worker: usize) -> Way {
        let ways = self.ways(worker);
        match self.preferred {
            Driver::Tcp => None,
            Driver::Dpdk => ways.dpdk,
            Driver::Rdma => ways.rdma,
        }
        .unwrap_or(Way::Tcp)
    }

    /// The seats of the workers, each once, first to last.
    pub fn seats(&mut self, workers: usize) -> Vec<Seat> {
        let mut dpdk = self.dpdk.as_mut().map(dpdk::Opened::seats);
        (0..workers)
            .map(|_| Seat {
                tcp: Arc::clone(&self.tcp),
                dpdk: dpdk.as_mut().and_then(Iterator::next),
                rdma: self.rdma.as_ref().map(rdma::Opened::seat),
            })
            .collect()
    }

    /// The peer will make this RDMA lane's connection.
    pub fn expect(&self, lane: LaneUp, worker: Sender<ToWorker>) {
        if let Some(rdma) = &self.rdma {
            rdma.expect(lane, worker);
        }
    }

    /// Makes this RDMA lane's connection; the worker is told how it went.
    pub fn connect(&self, lane: LaneUp, worker: Sender<ToWorker>) {
        if let Some(rdma) = &self.rdma {
            rdma.connect(lane, worker);
        }
    }

    /// Looks after what nobody else does; call it several times a second.
    pub fn tend(&mut self) {
        if let Some(dpdk) = &mut self.dpdk {
            dpdk.tend();
        }
    }
}

impl Seat {
    /// The calling worker's lanes.
    ///
    /// # Errors
    /// The back end that has none to give, with what to do about it.
    pub fn lanes(self) -> Result<Lanes> {
        let dpdk = self.dpdk.map(dpdk::Seat::group).transpose()?;
        let rdma = self.rdma.map(rdma::Seat::group).transpose()?;
        let more = Beside::new(dpdk, rdma).context("a descriptor to park on")?;
        Beside::new(self.tcp.lanes()?, more).context("a descriptor to park on")
    }
}

/// What a handshake left: the connection it ran on, and what came of the driver that was agreed.
#[derive(Debug)]
pub enum LaneEnd {
    /// The lane runs over the handshake's connection.
    Socket(OwnedFd),
    /// The lane is made of what was agreed.
    Agreed,
    /// The lane runs over this.
    Rdma(Box<Established>),
}

/// The endpoint of a lane whose handshake is done. `dialled` says whether this side dialled.
///
/// # Errors
/// When this build has no such driver, which it should not have agreed to.
pub fn endpoint(end: LaneEnd, agreed: &Agreed, dialled: bool) -> Result<LaneEndpoint> {
    let way = &agreed.way;
    match (end, way.initiator, way.acceptor) {
        (LaneEnd::Socket(socket), Way::Tcp, Way::Tcp) => Ok(Either::First(socket)),
        (LaneEnd::Agreed, Way::Dpdk { guard: asked, .. }, Way::Dpdk { address, guard }) => {
            let peer = dialled.then_some(address);
            let end = dpdk::endpoint(peer, &way.secret, Guard::agreed(asked, guard))?;
            Ok(Either::Second(Either::First(end)))
        }
        (LaneEnd::Rdma(end), Way::Rdma(_), Way::Rdma(_)) => {
            rdma::endpoint(*end).map(|end| Either::Second(Either::Second(end)))
        }
        _ => bail!("the lane's driver is not the one that was agreed"),
    }
}
