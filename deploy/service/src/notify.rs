//! Tells the service manager how the process is, by the protocol of sd_notify(3).
//!
//! In: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` of the environment. Out: datagrams. Promise: without a
//! service manager, or when it does not listen, nothing happens and nothing waits.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager.
#[derive(Debug)]
pub struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says.
    #[must_use]
    pub fn from_env() -> Self {
        let var = |name| std::env::var(name).ok();
        Self::new(
            var("NOTIFY_SOCKET").as_deref(),
            var("WATCHDOG_USEC").as_deref(),
            var("WATCHDOG_PID").as_deref(),
        )
    }

    fn new(socket: Option<&str>, usec: Option<&str>, pid: Option<&str>) -> Self {
        let address = socket.and_then(|name| match name.strip_prefix('@') {
            Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name).ok(),
            None => SocketAddr::from_pathname(name).ok(),
        });
        let to = address.and_then(|address| {
            let socket = UnixDatagram::unbound().ok()?;
            // A manager that does not read must not hold the process up.
            socket.set_nonblocking(true).ok()?;
            Some((socket, address))
        });
        let mine = pid.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
        let usec = usec.and_then(|usec| usec.parse().ok()).filter(|_| mine);
        Self {
            watchdog: usec
                .filter(|usec| *usec > 0 && to.is_some())
                .map(Duration::from_micros),
            to,
        }
    }

    /// How long the manager waits for a sign of life; `None`: it does not.
    #[must_use]
    pub const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The service takes work now.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}\n"));
    }

    /// A sign of life.
    pub fn alive(&self) {
        self.send("WATCHDOG=1\n");
    }

    /// What the service does, in words for a person.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={status}\n"));
    }

    /// The service ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1\n");
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.to {
            // Who does not listen need not be told.
            let _ = socket.send_to_addr(message.as_bytes(), address);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_manager_is_told_in_its_own_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let pid = std::process::id().to_string();
        let told = Notifier::new(path.to_str(), Some("3000000"), Some(&pid));
        assert_eq!(told.watchdog(), Some(Duration::from_secs(3)));
        let heard = || {
            let mut bytes = [0; 100];
            let length = manager.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..length].to_vec()).unwrap()
        };
        told.ready("listening");
        assert_eq!(heard(), "READY=1\nSTATUS=listening\n");
        told.alive();
        assert_eq!(heard(), "WATCHDOG=1\n");
        told.stopping();
        assert_eq!(heard(), "STOPPING=1\n");
    }

    #[test]
    fn another_process_s_watchdog_is_not_fed_and_no_manager_is_no_trouble() {
        let path = Some("/nonexistent/notify");
        assert_eq!(
            Notifier::new(path, Some("3000000"), Some("1")).watchdog(),
            None
        );
        assert_eq!(Notifier::new(path, Some("0"), None).watchdog(), None);
        let none = Notifier::new(None, Some("3000000"), None);
        assert_eq!(none.watchdog(), None);
        none.ready("x");
        Notifier::new(path, None, None).alive();
    }
}
