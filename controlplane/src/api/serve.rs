//! Serves the API on a TCP socket, over TLS or without.
//!
//! In: connections from anybody. Out: requests for the router. Promises: at most [`CONNECTIONS_MAX`]
//! connections at once, plus [`LOCAL_RESERVE`] for this host itself, so that no crowd outside keeps its
//! operator from the kill switch; a head or a handshake that does not end within [`HEAD_TIME_MAX`] ends its
//! connection, idle ones included; a client that stops reading is cut off by the kernel after
//! [`STALL_TIME_MAX`]. On shutdown requests in progress get [`GRACE`] to finish.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::auth::{Encrypted, PeerAddress};

/// Connections served at once.
pub const CONNECTIONS_MAX: usize = 256;
/// Further connections that only this host itself may open.
pub const LOCAL_RESERVE: usize = 32;
/// Longest wait for a request's head, and longest idle time of a connection.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest head.
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// Most headers of a request.
const HEADERS_MAX: usize = 64;
/// Longest time that sent bytes may stay unacknowledged or the client's window closed.
pub const STALL_TIME_MAX: Duration = Duration::from_secs(30);
/// How long requests in progress may go on after a shutdown began.
pub const GRACE: Duration = Duration::from_secs(5);

/// Counts a connection while it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves until `stop` becomes true, then lets requests in progress finish.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let tls = tls.map(TlsAcceptor::from);
    let open = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => break,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                // Out of descriptors, as a rule: some will be free again.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let limit = CONNECTIONS_MAX
            + if peer.ip().is_loopback() {
                LOCAL_RESERVE
            } else {
                0
            };
        if open.load(Ordering::Relaxed) >= limit {
            tracing::warn!(%peer, limit, "too many connections, this one is closed");
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(open.clone());
        let (tls, router, stop) = (tls.clone(), router.clone(), stop.clone());
        connections.spawn(async move {
            let _counted = counted;
            let stall_ms = u32::try_from(STALL_TIME_MAX.as_millis()).unwrap_or(u32::MAX);
            if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(&stream, stall_ms) {
                tracing::warn!(%peer, %error, "a client that stops reading will not be noticed");
            }
            let Some(tls) = tls else {
                return connection(stream, peer, None, router, stop).await;
            };
            match tokio::time::timeout(HEAD_TIME_MAX, tls.accept(stream)).await {
                Ok(Ok(stream)) => connection(stream, peer, Some(Encrypted), router, stop).await,
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
                Err(_) => tracing::debug!(%peer, "no TLS in time"),
            }
        });
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, drained).await.is_err() {
        tracing::warn!("requests still in progress are cut off");
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    encrypted: Option<Encrypted>,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let router = TowerToHyperService::new(router);
    // Put into each request, so that the check of the token already sees the address, and not by a layer: that
    // would make every route anew for every connection.
    let service = service_fn(move |mut request: Request<Incoming>| {
        let extensions = request.extensions_mut();
        extensions.insert(PeerAddress(peer));
        encrypted.map(|encrypted| extensions.insert(encrypted));
        router.call(request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stopped(&mut stop) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// Waits for the stop.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}
