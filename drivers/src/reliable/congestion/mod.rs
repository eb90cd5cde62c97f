//! How much may be on the way, and how fast it goes out.
//!
//! Comes in: what was sent, acknowledged and lost. Goes out: a window in bytes and a rate. The rules
//! are one of [`Congestion`]'s two kinds, which know nothing of packets' content or numbers.

mod bbr;
mod cubic;
mod filter;
#[cfg(test)]
mod tests;

pub(super) use bbr::Bbr;
pub(super) use cubic::Cubic;

use super::sent::RateSample;

/// Which rules a lane follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Congestion {
    /// CUBIC (RFC 9438): fills the path until it loses. For networks that lose only when full.
    Cubic,
    /// BBR: keeps to the rate that the path delivers. For long paths that lose at random.
    Bbr,
}

/// Datagrams that may be on the way before anything is known of the path.
pub(super) const WINDOW_INITIAL_DATAGRAMS: u64 = 32;
/// Datagrams that may be on the way however bad the path is.
pub(super) const WINDOW_MIN_DATAGRAMS: u64 = 4;

/// An acknowledgement, as congestion control sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Acked {
    pub(super) now_ns: u64,
    /// Datagram bytes that it settled.
    pub(super) bytes: u64,
    /// When the last-sent of them was sent.
    pub(super) newest_sent_ns: u64,
    /// Datagram bytes delivered in all, and when the last-sent of these was sent.
    pub(super) delivered: u64,
    pub(super) prior_delivered: u64,
    /// Still on the way.
    pub(super) in_flight_bytes: u64,
    pub(super) rate: Option<RateSample>,
    pub(super) rtt_latest_ns: u64,
    pub(super) rtt_smoothed_ns: u64,
    /// The window was what kept the sender back.
    pub(super) window_limited: bool,
}

/// A loss, as congestion control sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Losses {
    pub(super) now_ns: u64,
    /// Datagram bytes.
    pub(super) bytes: u64,
    pub(super) packets: u32,
    /// When the last-sent of them was sent.
    pub(super) newest_sent_ns: u64,
    /// Nothing was acknowledged for several probe timeouts before.
    pub(super) persistent: bool,
}

/// The rules of one lane.
pub(super) trait Controller {
    /// An acknowledgement settled something.
    fn on_acked(&mut self, acked: &Acked);
    /// Something was lost.
    fn on_lost(&mut self, losses: &Losses);
    /// Some packets that were held for lost were only late.
    fn on_spurious(&mut self, packets: u32);
    /// Datagram bytes that may be on the way.
    fn window_bytes(&self) -> u64;
    /// How fast they go out. None: as fast as they come, because nothing is known yet.
    fn pacing_bytes_per_s(&self) -> Option<u64>;
    /// As [`crate::lane::LaneStats`] shows it.
    fn name(&self) -> &'static str;
}

/// Rules of this kind, for datagrams of `datagram_bytes`.
pub(super) fn controller(kind: Congestion, datagram_bytes: u64) -> Box<dyn Controller> {
    match kind {
        Congestion::Cubic => Box::new(Cubic::new(datagram_bytes)),
        Congestion::Bbr => Box::new(Bbr::new(datagram_bytes)),
    }
}

/// `bytes_per_s` over `ns`, in bytes.
fn product(bytes_per_s: u64, ns: u64) -> u64 {
    let bytes = u128::from(bytes_per_s) * u128::from(ns) / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// `bytes` in `ns`, in bytes per second.
fn rate(bytes: u64, ns: u64) -> u64 {
    let bytes_per_s = u128::from(bytes) * 1_000_000_000 / u128::from(ns.max(1));
    u64::try_from(bytes_per_s).unwrap_or(u64::MAX)
}
