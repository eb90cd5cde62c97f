//! How many bytes may be read from the hypervisor now.
//!
//! In: bytes read, by channel; bytes that the far hypervisor took, from ACKs. Out: an allowance by
//! channel. Promise: bytes held (read here and not taken there) never exceed
//! `window limit + 64 KiB × open channels`, and every open channel may always hold 64 KiB,
//! whatever the others hold.

use super::super::{CHANNEL_GUARANTEE_BYTES, ChannelId, MAX_CHANNELS, TransportError};

#[derive(Debug, Clone, Copy, Default)]
struct Channel {
    open: bool,
    read_bytes: u64,
    delivered_bytes: u64,
}

impl Channel {
    fn held(self) -> u64 {
        self.read_bytes - self.delivered_bytes
    }

    /// What it holds beyond its guarantee, out of the shared window.
    fn shared(self) -> u64 {
        self.held().saturating_sub(CHANNEL_GUARANTEE_BYTES)
    }
}

/// See the module. The size of the shared window is given with each question, for it adapts.
#[derive(Debug)]
pub struct Credit {
    channels: Box<[Channel]>,
    read_bytes: u64,
    held_bytes: u64,
    shared_bytes: u64,
}

impl Credit {
    /// Nothing open, nothing held.
    #[must_use]
    pub fn new() -> Self {
        let channels = vec![Channel::default(); MAX_CHANNELS].into_boxed_slice();
        Self {
            channels,
            read_bytes: 0,
            held_bytes: 0,
            shared_bytes: 0,
        }
    }

    /// Opens `channel` for reading.
    ///
    /// # Errors
    /// [`TransportError::ChannelOpenTwice`]; [`TransportError::Misuse`] for a number out of range.
    pub fn open_channel(&mut self, channel: ChannelId) -> Result<(), TransportError> {
        let what = "opened a channel that is out of range";
        let state = self
            .channels
            .get_mut(usize::from(channel.0))
            .ok_or(TransportError::Misuse { what })?;
        if std::mem::replace(&mut state.open, true) {
            return Err(TransportError::ChannelOpenTwice { channel });
        }
        Ok(())
    }

    /// Bytes that may be read from `channel` now; 0 when it is not open.
    #[must_use]
    pub fn may_read(&self, channel: ChannelId, window_bytes: u64) -> u64 {
        let Some(state) = self
            .channels
            .get(usize::from(channel.0))
            .filter(|state| state.open)
        else {
            return 0;
        };
        CHANNEL_GUARANTEE_BYTES.saturating_sub(state.held())
            + window_bytes.saturating_sub(self.shared_bytes)
    }

    /// `bytes` were read from the hypervisor's `channel`.
    ///
    /// # Errors
    /// [`TransportError::CreditExceeded`] when that is more than was allowed.
    pub fn on_read(
        &mut self,
        channel: ChannelId,
        bytes: u64,
        window_bytes: u64,
    ) -> Result<(), TransportError> {
        let allowed_bytes = self.may_read(channel, window_bytes);
        if bytes > allowed_bytes {
            let read_bytes = bytes;
            return Err(TransportError::CreditExceeded {
                channel,
                read_bytes,
                allowed_bytes,
            });
        }
        self.read_bytes += bytes;
        self.update(channel, |state| state.read_bytes += bytes);
        Ok(())
    }

    /// The far hypervisor has taken `total_bytes` of `channel` so far.
    ///
    /// # Errors
    /// [`TransportError::BadAck`] when that is more than was read, or less than was said before.
    pub fn on_delivered(
        &mut self,
        channel: ChannelId,
        total_bytes: u64,
    ) -> Result<(), TransportError> {
        let what = "bytes delivered do not fit bytes sent";
        self.channels
            .get(usize::from(channel.0))
            .filter(|s| (s.delivered_bytes..=s.read_bytes).contains(&total_bytes))
            .ok_or(TransportError::BadAck { what })?;
        self.update(channel, |state| state.delivered_bytes = total_bytes);
        Ok(())
    }

    fn update(&mut self, channel: ChannelId, change: impl FnOnce(&mut Channel)) {
        let state = &mut self.channels[usize::from(channel.0)];
        let before = *state;
        change(state);
        self.held_bytes = self.held_bytes - before.held() + state.held();
        self.shared_bytes = self.shared_bytes - before.shared() + state.shared();
    }

    /// Bytes of `channel` that the far hypervisor has taken.
    #[must_use]
    pub fn delivered_bytes(&self, channel: ChannelId) -> u64 {
        let state = self.channels.get(usize::from(channel.0));
        state.map_or(0, |state| state.delivered_bytes)
    }

    /// Bytes read here since the session began.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// Bytes read here and not yet known to be taken there.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }
}

impl Default for Credit {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u64 = 1 << 20;

    #[test]
    fn a_greedy_channel_leaves_the_guarantee_of_another() {
        let mut credit = Credit::new();
        let (a, b) = (ChannelId(0), ChannelId(1));
        assert_eq!(credit.may_read(a, WINDOW), 0);
        credit.open_channel(a).unwrap();
        credit.open_channel(b).unwrap();
        assert!(credit.open_channel(a).is_err());
        let all = credit.may_read(a, WINDOW);
        assert_eq!(all, WINDOW + CHANNEL_GUARANTEE_BYTES);
        credit.on_read(a, all, WINDOW).unwrap();
        assert_eq!(credit.may_read(a, WINDOW), 0);
        assert_eq!(credit.may_read(b, WINDOW), CHANNEL_GUARANTEE_BYTES);
        credit.on_read(b, CHANNEL_GUARANTEE_BYTES, WINDOW).unwrap();
        assert_eq!(credit.held_bytes(), WINDOW + 2 * CHANNEL_GUARANTEE_BYTES);
        assert!(credit.on_read(b, 1, WINDOW).is_err());
        credit.on_delivered(b, 1).unwrap();
        credit.on_read(b, 1, WINDOW).unwrap();
    }

    #[test]
    fn a_smaller_window_takes_nothing_back() {
        let mut credit = Credit::new();
        let a = ChannelId(0);
        credit.open_channel(a).unwrap();
        credit.on_read(a, WINDOW, WINDOW).unwrap();
        assert_eq!(credit.may_read(a, WINDOW / 4), 0);
        credit.on_delivered(a, WINDOW).unwrap();
        assert_eq!(
            credit.may_read(a, WINDOW / 4),
            WINDOW / 4 + CHANNEL_GUARANTEE_BYTES
        );
    }

    #[test]
    fn impossible_deliveries_are_refused() {
        let mut credit = Credit::new();
        credit.open_channel(ChannelId(0)).unwrap();
        credit.on_read(ChannelId(0), 10, WINDOW).unwrap();
        credit.on_delivered(ChannelId(0), 6).unwrap();
        assert!(credit.on_delivered(ChannelId(0), 5).is_err());
        assert!(credit.on_delivered(ChannelId(0), 11).is_err());
        assert!(credit.on_delivered(ChannelId(9), 1).is_err());
        assert_eq!(credit.held_bytes(), 4);
    }
}
