//! The task that looks, decides and orders.
//!
//! In: the session table, twenty times a second while a session runs. Out: [`Command::SetMode`] to each session that
//! is not in its peer's mode. Promise: an order that the data plane did not take is given again, once a second.

use std::collections::HashMap;
use std::time::Duration;

use dwcp_api::command::Command;
use dwcp_api::session::SessionSnapshot;
use dwcp_api::{Mode, SessionId};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::Modes;
use crate::host::Host;

/// Pause between two looks: twice as often as there are samples.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The same while no session runs; a new one ends the pause.
const IDLE_EVERY: Duration = Duration::from_secs(1);
/// An order is given again after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Runs for ever.
pub async fn run(host: Host, modes: Modes) {
    let mut events = host.events();
    let mut given: HashMap<SessionId, (Mode, Instant)> = HashMap::new();
    loop {
        let sessions = host.sessions().unwrap_or_default();
        let orders = modes.observe(&sessions);
        given.retain(|id, _| orders.iter().any(|(session, _)| session == id));
        let now = Instant::now();
        let due = orders.into_iter().filter(|(session, mode)| {
            let again = given
                .get(session)
                .is_none_or(|(before, at)| before != mode || now - *at >= AGAIN_AFTER);
            if again {
                given.insert(*session, (*mode, now));
            }
            again
        });
        let sent = due.map(|(session, mode)| order(&host, session, mode));
        join_all(sent.collect::<Vec<_>>()).await;
        let running = |session: &SessionSnapshot| session.state().is_some_and(|s| !s.is_final());
        if sessions.iter().any(running) {
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                () = modes.inner.overridden.notified() => {}
            }
        } else {
            tokio::select! {
                () = sleep(IDLE_EVERY) => {}
                () = modes.inner.overridden.notified() => {}
                _ = events.recv() => {}
            }
        }
    }
}

async fn order(host: &Host, session: SessionId, mode: Mode) {
    let command = Command::SetMode { session, mode };
    if let Err(error) = host.command(command).await {
        // Mostly a session that has ended meanwhile.
        tracing::debug!(%session, %mode, %error, "the mode was not set");
    }
}
