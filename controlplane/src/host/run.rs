//! The task that keeps the connection. In: packets, doorbells and the end of the data plane's process.
//! Out: the shared state behind every [`Host`] handle. It never ends by itself.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dwcp_api::attach::{DROP_MAGIC, Escrow, KEEP_MAGIC};
use dwcp_api::event::EventRecord;
use dwcp_hugepages::ring::{Consumer, RingError};
use dwcp_hugepages::scm::ScmError;
use tokio::time::{sleep, timeout};
use zerocopy::FromBytes;

use super::attach::{Attached, attach};
use super::error::AttachError;
use super::handle::{Host, HostStatus};

/// Pause between two attaches.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// A process closes its sockets before its end can be seen; this long we wait for the second.
const DEATH_LIMIT: Duration = Duration::from_secs(1);

/// Attaches for ever.
pub(super) async fn run(path: PathBuf, host: Host) {
    loop {
        match attach(&path).await {
            Ok(attached) => {
                let instance = attached.greeting.instance;
                let (reason, dead) = serve(attached, &host).await;
                tracing::warn!(%reason, dead, "data plane lost");
                host.shared
                    .disconnected(reason, dead.then_some(instance), false);
            }
            Err(error) => {
                report(&path, &error, &host);
                let absent = matches!(
                    &error,
                    AttachError::Connect { problem, .. } if matches!(
                        problem.kind(),
                        ErrorKind::ConnectionRefused | ErrorKind::NotFound
                    )
                );
                host.shared.disconnected(error.to_string(), None, absent);
            }
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// Once for each reason, not twice a second.
fn report(path: &Path, error: &AttachError, host: &Host) {
    let same = matches!(
        host.status(),
        HostStatus::Disconnected { reason, .. } if reason == error.to_string()
    );
    if !same {
        tracing::warn!(path = %path.display(), %error, "attach failed, trying on");
    }
}

/// Serves one attach until it is lost. Returns why, and whether the data plane has died.
async fn serve(attached: Attached, host: &Host) -> (String, bool) {
    let Attached {
        greeting,
        packets,
        process,
        link,
        mut events,
        bell,
    } = attached;
    let status = HostStatus::Connected {
        generation: greeting.generation,
        instance: greeting.instance,
        // The kernel's word counts before the data plane's own.
        pid: process.pid().unwrap_or(greeting.pid),
        workers: greeting.workers,
        max_version: greeting.max_version,
        listen: greeting.listen.as_str().to_owned(),
        node: greeting.node.as_str().to_owned(),
    };
    tracing::info!(
        pid = greeting.pid,
        generation = greeting.generation,
        "data plane attached"
    );
    host.shared.connected(link, status);

    let packet_loop = async {
        let mut buf = [0; size_of::<Escrow>() + 1];
        loop {
            match packets.next(&mut buf, 1).await {
                Ok((length, fds)) => escrow_packet(&buf[..length], fds, host),
                // A process that dies with packets of ours unread resets the connection.
                Err(ScmError::Eof) => return "it closed the attach socket".to_owned(),
                Err(error @ (ScmError::FdsTruncated { .. } | ScmError::TooManyFds { .. })) => {
                    tracing::error!(%error, "a descriptor could not be kept");
                }
                Err(error) => return error.to_string(),
            }
        }
    };
    let event_loop = async {
        loop {
            bell.prepare();
            match drain(&mut events, host) {
                Err(error) => return error.to_string(),
                Ok(0) => {
                    if let Err(error) = bell.rung().await {
                        return error.to_string();
                    }
                }
                Ok(_) => {
                    bell.cancel();
                    // Events come in bursts; others shall get their turn too.
                    tokio::task::yield_now().await;
                }
            }
        }
    };
    tokio::pin!(packet_loop);
    let reason = tokio::select! {
        reason = &mut packet_loop => reason,
        reason = event_loop => reason,
        () = process.ended() => {
            // What it handed over before it died still lies in the socket.
            let _ = timeout(DEATH_LIMIT, &mut packet_loop).await;
            "it died".to_owned()
        }
    };
    let dead = timeout(DEATH_LIMIT, process.ended()).await.is_ok();
    // Its last answers and states may still lie in the ring.
    let _ = drain(&mut events, host);
    (reason, dead)
}

/// Hands on what lies in the ring. Returns how much it was.
fn drain(events: &mut Consumer<EventRecord>, host: &Host) -> Result<usize, RingError> {
    let mut count = 0;
    // One ring's worth at most, so that a data plane that never rests starves nobody.
    for _ in 0..events.capacity() {
        let Some(record) = events.pop()? else { break };
        count += 1;
        match record.decode() {
            Ok(event) => host.shared.event(event),
            Err(error) => tracing::warn!(%error, "event skipped"),
        }
    }
    Ok(count)
}

fn escrow_packet(packet: &[u8], mut fds: Vec<std::os::fd::OwnedFd>, host: &Host) {
    let Ok(escrow) = Escrow::read_from_bytes(packet) else {
        tracing::warn!(bytes = packet.len(), "packet of unknown length skipped");
        return;
    };
    match (escrow.magic, fds.pop()) {
        (KEEP_MAGIC, Some(fd)) => {
            if !host
                .shared
                .escrow()
                .keep(escrow.session, escrow.channel, escrow.role, fd)
            {
                tracing::error!(session = %escrow.session, "escrow is full: descriptor not kept");
            }
        }
        (DROP_MAGIC, _) => {
            host.shared.escrow().release(escrow.session);
        }
        _ => tracing::warn!(magic = escrow.magic, "packet of unknown kind skipped"),
    }
}
