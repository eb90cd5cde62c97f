//! Answering peers.
//!
//! In: connections. Out: calls of an [`Answerer`]. Promises: at most [`CONNECTIONS_MAX`] connections, each
//! with a limited time for its handshake, for a message and between messages; one that speaks for
//! another node than its certificate names is closed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::credentials::Credentials;
use super::frame;
use super::trust::node_in;
use crate::wire::{Answerer, Envelope, FRAME_BYTES_MAX};

/// Connections that are answered at a time; more wait.
pub const CONNECTIONS_MAX: usize = 256;
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Between two messages, and for each of them.
const IDLE: Duration = Duration::from_secs(120);
const WRITE: Duration = Duration::from_secs(30);

/// Answers until `stop` becomes true.
pub async fn listen(
    listener: TcpListener,
    credentials: Credentials,
    answerer: Arc<dyn Answerer>,
    mut stop: watch::Receiver<bool>,
) {
    let acceptor = TlsAcceptor::from(credentials.server);
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let budget = Arc::new(Semaphore::new(frame::pieces(4 * FRAME_BYTES_MAX)));
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let (stream, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a peer's connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, answerer) = (acceptor.clone(), answerer.clone());
        let (budget, mut stop) = (budget.clone(), stop.clone());
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                ended = serve(stream, &acceptor, &answerer, &budget) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a peer's connection ended");
                    }
                }
                _ = stop.wait_for(|stop| *stop) => {}
            }
        });
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = connections.clone().acquire_owned().await;
    let place = place.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

async fn serve(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    answerer: &Arc<dyn Answerer>,
    budget: &Semaphore,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = timeout(HANDSHAKE, acceptor.accept(stream)).await??;
    let certificates = stream.get_ref().1.peer_certificates();
    let named = certificates
        .and_then(|chain| chain.first())
        .and_then(node_in)
        .ok_or_else(|| io::Error::other("a certificate without a node's name"))?;
    while let Some(envelope) = timeout(IDLE, frame::read::<Envelope>(&mut stream, budget)).await?? {
        if envelope.sender.name != named {
            return Err(io::Error::other(format!(
                "{named} speaks for {}",
                envelope.sender.name
            )));
        }
        let answer = answerer.clone().answer(envelope).await;
        timeout(WRITE, frame::write(&mut stream, &answer)).await??;
    }
    Ok(())
}
