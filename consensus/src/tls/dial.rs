//! Asking a peer.
//!
//! In: an envelope and whom it is for. Out: the answer. Promises: a connection carries one question at a
//! time and is used again only after its answer came whole; who answers has the name that was meant.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::credentials::Credentials;
use super::frame;
use super::trust::node_in;
use crate::conf::Peer;
use crate::wire::{Answer, Boxed, Envelope, FRAME_BYTES_MAX, Wire, WireError};

const CONNECT: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(15);
/// Connections to one peer that wait for the next question.
const IDLE_MAX: usize = 16;

type Stream = TlsStream<TcpStream>;

/// Asks peers over TLS; a clone is the same.
#[derive(Clone)]
pub struct Dialer {
    credentials: Credentials,
    idle: Arc<Mutex<BTreeMap<Peer, Vec<Stream>>>>,
    budget: Arc<Semaphore>,
}

impl Dialer {
    /// Asks with this certificate.
    #[must_use]
    pub fn new(credentials: Credentials) -> Self {
        Self {
            credentials,
            idle: Arc::default(),
            budget: Arc::new(Semaphore::new(frame::pieces(4 * FRAME_BYTES_MAX))),
        }
    }

    fn take(&self, peer: &Peer) -> Option<Stream> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.get_mut(peer)?.pop()
    }

    fn give(&self, peer: Peer, stream: Stream) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = idle.entry(peer).or_default();
        if waiting.len() < IDLE_MAX {
            waiting.push(stream);
        }
    }

    async fn connect(&self, peer: &Peer) -> Result<Stream, Failed> {
        let tcp = TcpStream::connect(&peer.address)
            .await
            .map_err(Failed::Unreachable)?;
        tcp.set_nodelay(true).map_err(Failed::Unreachable)?;
        // Names are checked by the trust and below; what is asked for here is not looked at.
        let name =
            ServerName::try_from("dwcp").map_err(|error| Failed::Refused(error.to_string()))?;
        let connector = TlsConnector::from(self.credentials.client.clone());
        let stream = connector
            .connect(name, tcp)
            .await
            .map_err(|error| Failed::Refused(error.to_string()))?;
        let certificates = stream.get_ref().1.peer_certificates();
        let named = certificates
            .and_then(|chain| chain.first())
            .and_then(node_in);
        if named.as_deref() != Some(&peer.name) {
            return Err(Failed::Refused(format!(
                "it is {}, not {}",
                named.as_deref().unwrap_or("nobody"),
                peer.name
            )));
        }
        Ok(stream)
    }

    async fn ask_on(&self, stream: &mut Stream, envelope: &Envelope) -> io::Result<Answer> {
        frame::write(stream, envelope).await?;
        let answer = frame::read(stream, &self.budget).await?;
        answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    async fn ask_peer(&self, peer: &Peer, envelope: &Envelope) -> Result<Answer, Failed> {
        if let Some(mut stream) = self.take(peer) {
            // It may have been closed while it waited: then a new one is tried. Messages may come twice.
            if let Ok(answer) = self.ask_on(&mut stream, envelope).await {
                self.give(peer.clone(), stream);
                return Ok(answer);
            }
        }
        let connected = tokio::time::timeout(CONNECT, self.connect(peer)).await;
        let mut stream = connected
            .unwrap_or_else(|_| Err(Failed::Unreachable(io::ErrorKind::TimedOut.into())))?;
        let answer = self.ask_on(&mut stream, envelope).await;
        let answer = answer.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => Failed::Garbled(error.to_string()),
            _ => Failed::Unreachable(error),
        })?;
        self.give(peer.clone(), stream);
        Ok(answer)
    }
}

enum Failed {
    Unreachable(io::Error),
    Refused(String),
    Garbled(String),
}

impl Wire for Dialer {
    fn ask(&self, peer: &Peer, envelope: Envelope) -> Boxed<Result<Answer, WireError>> {
        let (dialer, peer) = (self.clone(), peer.clone());
        Box::pin(async move {
            let asked = tokio::time::timeout(ANSWER, dialer.ask_peer(&peer, &envelope)).await;
            let asked =
                asked.unwrap_or_else(|_| Err(Failed::Unreachable(io::ErrorKind::TimedOut.into())));
            let (to, address) = (envelope.to, peer.address);
            asked.map_err(|failed| match failed {
                Failed::Unreachable(error) => WireError::Unreachable {
                    to,
                    address,
                    reason: error.to_string(),
                },
                Failed::Refused(reason) => WireError::Refused {
                    to,
                    address,
                    reason,
                },
                Failed::Garbled(reason) => WireError::Garbled {
                    to,
                    address,
                    reason,
                },
            })
        })
    }
}
