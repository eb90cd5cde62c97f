//! What becomes a reliable lane, and how lanes are tuned.
//!
//! Comes in: what both sides agreed on over an authenticated connection. Goes out: the same, checked.

use std::net::SocketAddr;
use std::time::Duration;

use super::congestion::Congestion;
use super::seal::Protection;
use crate::port::{ConfigError, within};
use crate::slots::LANES_MAX;

/// Who speaks first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meeting {
    /// This side, to the peer at this address.
    Connect(SocketAddr),
    /// The peer, from wherever it is.
    Accept,
}

/// One end of a lane to be.
pub struct ReliableEndpoint {
    /// Who speaks first.
    pub meeting: Meeting,
    /// Names the lane on both sides; no other lane of either group may have it.
    pub connection: u64,
    /// Known to both sides and nobody else, made for this lane alone.
    pub secret: [u8; 32],
    /// What an eavesdropper may see; both sides say the same.
    pub protection: Protection,
}

/// How the lanes of one group behave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReliableConfig {
    /// Lanes of the group, at most: 1 to 1,024.
    pub lanes_max: u16,
    /// Frames that wait on one lane to be sent, at most: 1 to 1,024.
    pub queue_frames_max: u16,
    /// Bytes that wait on one lane, at most; one frame always fits.
    pub queue_bytes_max: usize,
    /// Bytes of one lane that were sent and that the peer has not, at most, each way; one frame always
    /// fits. A lane is no faster than this per round trip. 64 KiB to 1 GiB.
    pub window_bytes_max: usize,
    /// How much of that is used.
    pub congestion: Congestion,
    /// A peer that is silent for this long is gone: 1 to 600 seconds. Idle lanes ask four times in it.
    pub silence_max: Duration,
}

impl Default for ReliableConfig {
    fn default() -> Self {
        Self {
            lanes_max: 64,
            queue_frames_max: 16,
            queue_bytes_max: 4 << 20,
            window_bytes_max: 6 << 20,
            congestion: Congestion::Cubic,
            silence_max: Duration::from_secs(10),
        }
    }
}

impl ReliableConfig {
    /// Checks every figure.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let silence_ms = usize::try_from(self.silence_max.as_millis()).unwrap_or(usize::MAX);
        within("lanes_max", self.lanes_max.into(), 1, LANES_MAX.into())?;
        within("queue_frames_max", self.queue_frames_max.into(), 1, 1024)?;
        within("queue_bytes_max", self.queue_bytes_max, 1, 1 << 30)?;
        within("window_bytes_max", self.window_bytes_max, 64 << 10, 1 << 30)?;
        within("silence_max (milliseconds)", silence_ms, 1000, 600_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_bounds() {
        assert_eq!(ReliableConfig::default().validate(), Ok(()));
        let refused = |change: fn(&mut ReliableConfig)| {
            let mut config = ReliableConfig::default();
            change(&mut config);
            match config.validate() {
                Err(ConfigError::OutOfRange { name, .. }) => name,
                Ok(()) => "nothing",
            }
        };
        assert_eq!(refused(|config| config.lanes_max = 0), "lanes_max");
        assert_eq!(refused(|config| config.lanes_max = 1025), "lanes_max");
        assert_eq!(
            refused(|config| config.queue_frames_max = 0),
            "queue_frames_max"
        );
        assert_eq!(
            refused(|config| config.queue_bytes_max = 0),
            "queue_bytes_max"
        );
        assert_eq!(
            refused(|config| config.window_bytes_max = 1),
            "window_bytes_max"
        );
        let name = refused(|config| config.silence_max = Duration::from_millis(10));
        assert_eq!(name, "silence_max (milliseconds)");
    }
}
