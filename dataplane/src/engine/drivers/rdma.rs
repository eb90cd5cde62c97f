//! Lanes over an RDMA device: the connections are made here, on threads that may wait.
//!
//! In: the table `[rdma]`, lanes that a handshake agreed on. Out: established connections, each to the worker
//! that has its session, or the news that there is none. Promises: a request without the token of a lane that
//! is expected is turned away; an expectation lasts a few seconds and there are at most so many.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use dwcp_api::Failure;
use dwcp_drivers::port::{Port as _, PortConfig};
use dwcp_drivers::rdma::{
    Connector, Endpoint, Listener, RdmaLanes, RdmaOptions, RdmaPort, TOKEN_BYTES,
};

use super::super::mailbox::Sender;
use super::super::messages::{LaneUp, ToWorker};
use super::LaneEnd;
use crate::config::{Hugepages, RdmaConfig};
use crate::transport::handshake::{LaneSecret, Way};

/// One worker's lanes.
pub type Group = RdmaLanes;

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Lanes that are waited for at once, at most.
const EXPECTED_MAX: usize = 1024;
/// The listener looks this often whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(200);

type Token = [u8; TOKEN_BYTES];

/// An established connection.
pub struct Established(Endpoint);

impl std::fmt::Debug for Established {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Established({})", self.0.device())
    }
}

struct Awaited {
    lane: LaneUp,
    worker: Sender<ToWorker>,
    until: Instant,
}

type Expected = Arc<Mutex<HashMap<Token, Awaited>>>;

/// A port that runs, and its listener.
pub struct Opened {
    port: Arc<RdmaPort>,
    connector: Connector,
    way: Way,
    expected: Expected,
    ends: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

/// What one worker makes its lanes of.
pub struct Seat(Arc<RdmaPort>);

fn token(secret: &LaneSecret) -> Token {
    blake3::derive_key("dwcp lane over RDMA: token", &secret.0)
}

impl Opened {
    /// Opens the devices and listens.
    ///
    /// # Errors
    /// What cannot be had, with its cure.
    pub fn open(config: &RdmaConfig, hugepages: Hugepages) -> Result<Self> {
        let mut port = RdmaPort::new(RdmaOptions {
            backing: hugepages.policy(),
        });
        port.open(PortConfig::default())?;
        port.start()?;
        let connector = port.connector()?;
        let listener = connector
            .listen(config.listen)
            .with_context(|| format!("listening on {}", config.listen))?;
        let way = Way::Rdma(listener.local_addr());
        let (expected, ends) = (Expected::default(), Arc::new(AtomicBool::new(false)));
        let (theirs, stop) = (Arc::clone(&expected), Arc::clone(&ends));
        let thread = std::thread::Builder::new()
            .name("rdma-door".to_owned())
            .spawn(move || listen(&listener, &theirs, &stop))?;
        Ok(Self {
            port: Arc::new(port),
            connector,
            way,
            expected,
            ends,
            listener: Some(thread),
        })
    }

    /// Where peers connect.
    pub const fn way(&self) -> Way {
        self.way
    }

    /// What a worker makes its lanes of.
    pub fn seat(&self) -> Seat {
        Seat(Arc::clone(&self.port))
    }

    /// The peer will connect for this lane.
    pub fn expect(&self, lane: LaneUp, worker: Sender<ToWorker>) {
        let now = Instant::now();
        let mut expected = lock(&self.expected);
        expected.retain(|_, awaited| awaited.until > now);
        if expected.len() < EXPECTED_MAX {
            let until = now + PATIENCE;
            let key = token(&lane.agreed.way.secret);
            expected.insert(
                key,
                Awaited {
                    lane,
                    worker,
                    until,
                },
            );
        }
    }

    /// Connects for this lane, and tells the worker how it went.
    pub fn connect(&self, mut lane: LaneUp, worker: Sender<ToWorker>) {
        let Way::Rdma(to) = lane.agreed.way.acceptor else {
            return;
        };
        let Way::Rdma(mut from) = self.way else {
            return;
        };
        from.set_port(0);
        let connector = self.connector.clone();
        let (session, number, over) = (lane.session, lane.lane, lane.agreed.way.initiator);
        let failed = move |detail: String| ToWorker::LaneFailed {
            session,
            lane: number,
            over,
            failure: Failure::PeerLost,
            detail,
            fatal: false,
        };
        let (told, told_failure) = (worker.clone(), failed);
        let connect = move || {
            let token = token(&lane.agreed.way.secret);
            let message = match connector.connect(Some(from), to, &token, PATIENCE) {
                Ok(endpoint) => {
                    lane.end = LaneEnd::Rdma(Box::new(Established(endpoint)));
                    ToWorker::LaneUp(Box::new(lane))
                }
                Err(error) => failed(error.to_string()),
            };
            let _ = worker.send(message);
        };
        let thread = std::thread::Builder::new().name("rdma-connect".to_owned());
        if let Err(error) = thread.spawn(connect) {
            let _ = told.send(told_failure(format!("no thread to connect on: {error}")));
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        if let Some(thread) = self.listener.take() {
            let _ = thread.join();
        }
    }
}

fn lock(expected: &Expected) -> std::sync::MutexGuard<'_, HashMap<Token, Awaited>> {
    expected.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen(listener: &Listener, expected: &Expected, ends: &AtomicBool) {
    while !ends.load(Ordering::Acquire) {
        let request = match listener.next(LOOK_EVERY) {
            Ok(Some(request)) => request,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(%error, "an RDMA request was lost");
                std::thread::sleep(LOOK_EVERY);
                continue;
            }
        };
        // The token is a secret of 256 bits and the table's hash is keyed: how long the look takes tells
        // nothing that helps to guess one.
        let awaited = lock(expected).remove(request.token());
        let Some(mut awaited) = awaited.filter(|awaited| awaited.until > Instant::now()) else {
            tracing::warn!("an RDMA request that nobody expects was turned away");
            request.reject();
            continue;
        };
        match request.accept(PATIENCE) {
            Ok(endpoint) => {
                awaited.lane.end = LaneEnd::Rdma(Box::new(Established(endpoint)));
                let _ = awaited
                    .worker
                    .send(ToWorker::LaneUp(Box::new(awaited.lane)));
            }
            // The peer learns it too, and dials again.
            Err(error) => tracing::warn!(%error, "an RDMA connection came to nothing"),
        }
    }
}

impl Seat {
    /// The calling worker's lanes.
    ///
    /// # Errors
    /// What cannot be had, with its cure.
    pub fn group(self) -> Result<Group> {
        Ok(self.0.lanes()?)
    }
}

/// What becomes a lane.
///
/// # Errors
/// None in this build.
#[expect(
    clippy::unnecessary_wraps,
    reason = "a build without RDMA has no endpoint to give"
)]
pub fn endpoint(end: Established) -> Result<Endpoint> {
    Ok(end.0)
}
