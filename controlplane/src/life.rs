//! Tells the service manager that the control plane lives.
//!
//! In: the way to the manager. Out: signs of life. Promise: a sign is given only by the runtime that also serves
//! requests, so none comes from a process that serves none.

use std::time::{SystemTime, UNIX_EPOCH};

use dwcp_service::notify::Notifier;
use tokio::time::MissedTickBehavior;

/// Gives signs of life for ever, three in the manager's patience; ends at once if the manager asks for none.
pub async fn give_signs(manager: Notifier) {
    let Some(patience) = manager.watchdog() else {
        return;
    };
    let mut ticks = tokio::time::interval(patience / 3);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        manager.alive();
    }
}

/// Milliseconds since 1970, by this host's clock.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
