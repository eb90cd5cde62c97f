//! Ends a hang: a test never asserts how long something takes at most, it only must not wait for
//! ever.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Aborts the process with a message unless dropped in time.
pub struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    /// Starts a watchdog. Children die with the process, stale namespaces are removed by the next.
    #[must_use]
    pub fn new(what: &str, limit: Duration) -> Self {
        let (alive, watched) = channel::<()>();
        let what = what.to_owned();
        std::thread::spawn(move || {
            if watched.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("watchdog: {what} was not done after {} s", limit.as_secs());
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}

/// Polls until `ready` returns a value; `None` when the deadline passes first.
pub fn poll_until<T>(limit: Duration, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = ready() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_returns_the_value_or_nothing() {
        let mut count = 0;
        let third = poll_until(Duration::from_secs(30), || {
            count += 1;
            (count == 3).then_some(count)
        });
        assert_eq!(third, Some(3));
        assert_eq!(poll_until(Duration::from_millis(10), || None::<()>), None);
    }
}
