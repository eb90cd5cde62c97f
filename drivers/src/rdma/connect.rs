//! From an address to an established queue pair, on the thread of a handshake.
//!
//! Comes in: a peer's address and a token. Goes out: [`Endpoint`]s for
//! [`crate::lane::LaneGroup::add`]. Promises: no wait is without a deadline; whatever fails leaves
//! nothing behind.
//!
//! The token tells the listener which session a connection is for. Both sides have it from a
//! handshake that was authenticated elsewhere; here it travels in the clear.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_hugepages::arena::BackingPolicy;
use rdma_sys::{
    rdma_accept, rdma_bind_addr, rdma_cm_event_type, rdma_conn_param, rdma_connect,
    rdma_get_src_port, rdma_listen, rdma_reject, rdma_resolve_addr, rdma_resolve_route,
};
use thiserror::Error;

use super::cm::{Event, Id, PRIVATE_BYTES, check, sockaddr};
use super::device::{Device, Devices};
use super::queue_pair::{MakeError, QueuePair};

/// Bytes of a token.
pub const TOKEN_BYTES: usize = 32;
/// Stands in front of the token, so that a stranger's request is told from ours.
const MAGIC: [u8; 4] = *b"DWR1";
/// Connections that wait for a listener, at most.
const BACKLOG: i32 = 64;

/// How long one search for a peer's address takes.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(2);
const RDMA_CM: &str = "reach rdma_cm (is rdma_ucm loaded?)";

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The kernel or the device refused a step.
    #[error("RDMA: cannot {step}: {cause}")]
    Refused {
        /// Which step.
        step: &'static str,
        /// The answer.
        cause: io::Error,
    },
    /// A step took too long.
    #[error("RDMA: no answer in time to: {step}; is the peer reachable over its RDMA device?")]
    Deadline {
        /// Which step.
        step: &'static str,
    },
    /// The peer, or the way to it, said no.
    #[error(
        "RDMA: {step} failed ({what}, status {status}); use TCP, or see `rdma link` on both hosts"
    )]
    Failed {
        /// Which step.
        step: &'static str,
        /// What rdma_cm calls it.
        what: &'static str,
        /// An errno, or InfiniBand's reason of a rejection.
        status: i32,
    },
    /// The device came after the port was opened.
    #[error("RDMA: the way to the peer is over a device that is new here; open the port again")]
    NewDevice,
}

impl From<MakeError> for ConnectError {
    fn from(error: MakeError) -> Self {
        match error {
            MakeError::Verb(step, cause) => Self::Refused { step, cause },
            MakeError::Slots(slots) => Self::Refused {
                step: "make message slots",
                cause: io::Error::other(slots),
            },
        }
    }
}

fn refused(step: &'static str) -> impl Fn(io::Error) -> ConnectError {
    move |cause| ConnectError::Refused { step, cause }
}

/// An established connection; becomes a lane. Dropping it ends the connection.
pub struct Endpoint(pub(super) QueuePair);

impl Endpoint {
    /// The device that carries it, such as `mlx5_0`.
    #[must_use]
    pub fn device(&self) -> &str {
        self.0.device().name()
    }
}

/// Makes connections to peers. A clone does the same.
#[derive(Clone)]
pub struct Connector {
    pub(super) devices: Devices,
    pub(super) backing: BackingPolicy,
}

impl Connector {
    /// Connects to a listener at `to`, from the address `from` if the way matters.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn connect(
        &self,
        from: Option<SocketAddr>,
        to: SocketAddr,
        token: &[u8; TOKEN_BYTES],
        patience: Duration,
    ) -> Result<Endpoint, ConnectError> {
        let deadline = Instant::now() + patience;
        let id = self.resolved(from, to, deadline)?;
        let patience_ms = millis(patience);
        let step = "find the way to the peer";
        // SAFETY: needed to start the search; the identifier lives.
        check(unsafe { rdma_resolve_route(id.as_ptr(), patience_ms) }).map_err(refused(step))?;
        wait(
            &id,
            step,
            rdma_cm_event_type::RDMA_CM_EVENT_ROUTE_RESOLVED,
            deadline,
        )?;
        let pair = self.pair(id)?;
        let step = "connect";
        let mut private = [0u8; MAGIC.len() + TOKEN_BYTES];
        private[..MAGIC.len()].copy_from_slice(&MAGIC);
        private[MAGIC.len()..].copy_from_slice(token);
        let mut wanted = parameters(&private);
        // SAFETY: needed to ask for the connection; the identifier has a queue pair, and the library
        // copies the parameters and what they point to.
        check(unsafe { rdma_connect(pair.id().as_ptr(), &raw mut wanted) })
            .map_err(refused(step))?;
        established(&pair, step, deadline)?;
        Ok(Endpoint(pair))
    }

    /// An identifier that knows the peer's address and the device that leads there. The kernel asks
    /// for the peer's hardware address a few times only, so it is made to ask again.
    fn resolved(
        &self,
        from: Option<SocketAddr>,
        to: SocketAddr,
        deadline: Instant,
    ) -> Result<Id, ConnectError> {
        let step = "find the peer's address";
        let wanted = rdma_cm_event_type::RDMA_CM_EVENT_ADDR_RESOLVED;
        loop {
            let id = Id::new().map_err(refused(RDMA_CM))?;
            let until = deadline.min(Instant::now() + ADDRESS_PATIENCE);
            let mut source = from.map(sockaddr);
            let mut target = sockaddr(to);
            let source = source
                .as_mut()
                .map_or(null_mut(), |address| (&raw mut *address).cast());
            // SAFETY: needed to start the search; the identifier lives, and the library copies both
            // addresses, which live until after the call.
            let started = unsafe {
                rdma_resolve_addr(
                    id.as_ptr(),
                    source,
                    (&raw mut target).cast(),
                    millis(ADDRESS_PATIENCE),
                )
            };
            check(started).map_err(refused(step))?;
            match wait(&id, step, wanted, until) {
                Ok(()) => return Ok(id),
                Err(cause) if Instant::now() >= deadline => return Err(cause),
                Err(_) => {}
            }
        }
    }

    /// Waits for peers at `at`; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn listen(&self, at: SocketAddr) -> Result<Listener, ConnectError> {
        let id = Id::new().map_err(refused(RDMA_CM))?;
        let mut address = sockaddr(at);
        // SAFETY: needed to bind; the identifier lives, and the library copies the address.
        check(unsafe { rdma_bind_addr(id.as_ptr(), (&raw mut address).cast()) })
            .map_err(refused("take the address (is it one of an RDMA device?)"))?;
        // SAFETY: needed to listen; the identifier lives.
        check(unsafe { rdma_listen(id.as_ptr(), BACKLOG) }).map_err(refused("listen"))?;
        // SAFETY: needed to read the port; the identifier is bound.
        let port = u16::from_be(unsafe { rdma_get_src_port(id.as_ptr()) });
        Ok(Listener {
            id,
            at: SocketAddr::new(at.ip(), port),
            connector: self.clone(),
        })
    }

    fn device_of(&self, id: &Id) -> Result<&Arc<Device>, ConnectError> {
        self.devices.of(id.device()).ok_or(ConnectError::NewDevice)
    }

    fn pair(&self, id: Id) -> Result<QueuePair, ConnectError> {
        let device = Arc::clone(self.device_of(&id)?);
        Ok(QueuePair::new(id, &device, self.backing)?)
    }
}

/// Where peers connect to.
pub struct Listener {
    id: Id,
    at: SocketAddr,
    connector: Connector,
}

impl Listener {
    /// Where it listens, with the port that the kernel chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.at
    }

    /// The next request, or none within `patience`. Strangers' requests are turned away here.
    ///
    /// # Errors
    /// See [`ConnectError`]; the listener goes on.
    pub fn next(&self, patience: Duration) -> Result<Option<Request<'_>>, ConnectError> {
        let deadline = Instant::now() + patience;
        loop {
            let event = match self.id.channel().wait(deadline) {
                Ok(event) => event,
                Err(cause) if cause.kind() == io::ErrorKind::TimedOut => return Ok(None),
                Err(cause) => return Err(refused("wait for a peer")(cause)),
            };
            if event.kind != rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_REQUEST {
                continue;
            }
            // SAFETY: needed to own the new identifier; it came with this event and nobody else has it.
            let id = unsafe { Id::adopt(event.id) }.map_err(refused("take a request"))?;
            match token_of(&event) {
                Some(token) => {
                    return Ok(Some(Request {
                        id,
                        token,
                        connector: &self.connector,
                    }));
                }
                None => reject(&id),
            }
        }
    }
}

impl AsFd for Listener {
    /// Readable when there is a request.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.id.channel().as_fd()
    }
}

/// A peer that wants to connect. Dropping it turns the peer away.
pub struct Request<'a> {
    id: Id,
    token: [u8; TOKEN_BYTES],
    connector: &'a Connector,
}

impl Request<'_> {
    /// What the peer said which session it is for. Compare it in constant time.
    #[must_use]
    pub fn token(&self) -> &[u8; TOKEN_BYTES] {
        &self.token
    }

    /// Makes the connection.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn accept(self, patience: Duration) -> Result<Endpoint, ConnectError> {
        let deadline = Instant::now() + patience;
        let pair = self.connector.pair(self.id)?;
        let mut wanted = parameters(&[]);
        let step = "accept";
        // SAFETY: needed to answer; the identifier has a queue pair, and the library copies the
        // parameters.
        check(unsafe { rdma_accept(pair.id().as_ptr(), &raw mut wanted) })
            .map_err(refused(step))?;
        established(&pair, step, deadline)?;
        Ok(Endpoint(pair))
    }

    /// Turns the peer away.
    pub fn reject(self) {
        reject(&self.id);
    }
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

fn reject(id: &Id) {
    // SAFETY: needed to answer; the identifier came with a request. The peer that is gone already
    // needs no answer.
    unsafe { rdma_reject(id.as_ptr(), std::ptr::null(), 0) };
}

fn token_of(event: &Event) -> Option<[u8; TOKEN_BYTES]> {
    const _: () = assert!(MAGIC.len() + TOKEN_BYTES <= PRIVATE_BYTES);
    let rest = event.private.strip_prefix(&MAGIC)?;
    rest.first_chunk().copied()
}

/// What both sides ask for. The answer to "not ready" is to try for ever, for slots are always posted.
fn parameters(private: &[u8]) -> rdma_conn_param {
    // SAFETY: needed to fill a C structure; zeros are values for all of its fields.
    let mut wanted: rdma_conn_param = unsafe { std::mem::zeroed() };
    if !private.is_empty() {
        wanted.private_data = private.as_ptr().cast();
        wanted.private_data_len = private.len() as u8;
    }
    // Nothing is read from a peer; some devices do not take 0.
    wanted.responder_resources = 1;
    wanted.initiator_depth = 1;
    wanted.retry_count = 7;
    wanted.rnr_retry_count = 7;
    wanted
}

fn established(
    pair: &QueuePair,
    step: &'static str,
    deadline: Instant,
) -> Result<(), ConnectError> {
    let wanted = rdma_cm_event_type::RDMA_CM_EVENT_ESTABLISHED;
    wait(pair.id(), step, wanted, deadline)
}

/// Waits for one event; any other is a failure.
fn wait(
    id: &Id,
    step: &'static str,
    wanted: rdma_cm_event_type::Type,
    deadline: Instant,
) -> Result<(), ConnectError> {
    let event = match id.channel().wait(deadline) {
        Ok(event) => event,
        Err(cause) if cause.kind() == io::ErrorKind::TimedOut => {
            return Err(ConnectError::Deadline { step });
        }
        Err(cause) => return Err(refused(step)(cause)),
    };
    if event.kind == wanted && event.status == 0 {
        return Ok(());
    }
    Err(ConnectError::Failed {
        step,
        what: name_of(event.kind),
        status: event.status,
    })
}

fn name_of(kind: rdma_cm_event_type::Type) -> &'static str {
    match kind {
        rdma_cm_event_type::RDMA_CM_EVENT_ADDR_ERROR => "address error",
        rdma_cm_event_type::RDMA_CM_EVENT_ROUTE_ERROR => "route error",
        rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_ERROR => "connect error",
        rdma_cm_event_type::RDMA_CM_EVENT_UNREACHABLE => "unreachable",
        rdma_cm_event_type::RDMA_CM_EVENT_REJECTED => "rejected",
        rdma_cm_event_type::RDMA_CM_EVENT_DISCONNECTED => "disconnected",
        rdma_cm_event_type::RDMA_CM_EVENT_DEVICE_REMOVAL => "device removed",
        _ => "another event",
    }
}
