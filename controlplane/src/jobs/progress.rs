//! How far, how fast, how long still. In: the hypervisor's account and the data plane's snapshot, some
//! times a second. Out: the figures of the view. Nothing is invented: no figure before there are two
//! measurements, no end while the guest dirties faster than the link carries.

use std::time::Instant;

use dwcp_api::Version;
use dwcp_api::session::SessionSnapshot;

use crate::qmp::MigrationInfo;

use super::view::{
    BytesView, LaneDriver, LanesView, MigrationView, PagesView, RatesView, RollbackView,
};

/// Time constant of the rates.
const RATE_SMOOTHING_S: f64 = 1.0;

/// Turns totals into rates.
#[derive(Debug, Default)]
pub struct Progress {
    last: Option<Sample>,
    hypervisor_bytes_per_s: Option<f64>,
    wire_bytes_per_s: Option<f64>,
    transferred_bytes_per_s: Option<f64>,
}

#[derive(Debug)]
struct Sample {
    at: Instant,
    hypervisor: u64,
    wire: u64,
    transferred: Option<u64>,
}

// Byte counts stay far below 2^53, so the conversion is exact enough for rates and shares.
#[allow(clippy::cast_precision_loss)]
const fn float(value: u64) -> f64 {
    value as f64
}

impl Progress {
    /// Takes one measurement and writes every figure that follows from it.
    pub fn measure(
        &mut self,
        at: Instant,
        info: Option<&MigrationInfo>,
        snapshot: Option<&SessionSnapshot>,
        view: &mut MigrationView,
    ) {
        if let Some(snapshot) = snapshot {
            copy_snapshot(snapshot, view);
        }
        if let Some(info) = info {
            view.downtime_ms = info.downtime_ms.or(view.downtime_ms);
            view.expected_downtime_ms = info.expected_downtime_ms.or(view.expected_downtime_ms);
            view.setup_ms = info.setup_ms.or(view.setup_ms);
            view.remaining_bytes = info.ram_remaining_bytes.or(view.remaining_bytes);
            view.rounds = view.rounds.max(info.rounds.unwrap_or(0));
            if let (Some(total), Some(remaining)) = (info.ram_total_bytes, info.ram_remaining_bytes)
                && total > 0
            {
                let share = float(total.saturating_sub(remaining)) / float(total);
                // Later passes send pages again; what was reached once is not taken back.
                view.progress = Some(view.progress.unwrap_or(0.0).max(share.clamp(0.0, 1.0)));
            }
        }
        self.rates(at, info, view);
        view.expected_finish_s = info.and_then(|info| self.expected_finish_s(info, view));
    }

    fn rates(&mut self, at: Instant, info: Option<&MigrationInfo>, view: &mut MigrationView) {
        let sample = Sample {
            at,
            hypervisor: view.bytes.hypervisor,
            wire: view.bytes.wire,
            transferred: info.and_then(|info| info.ram_transferred_bytes),
        };
        if let Some(last) = &self.last {
            let seconds = at.saturating_duration_since(last.at).as_secs_f64();
            if seconds < 0.01 {
                return;
            }
            let weight = 1.0 - (-seconds / RATE_SMOOTHING_S).exp();
            let smooth = |rate: &mut Option<f64>, now: u64, before: u64| {
                let measured = float(now.saturating_sub(before)) / seconds;
                *rate = Some(rate.map_or(measured, |old| old + weight * (measured - old)));
            };
            smooth(
                &mut self.hypervisor_bytes_per_s,
                sample.hypervisor,
                last.hypervisor,
            );
            smooth(&mut self.wire_bytes_per_s, sample.wire, last.wire);
            if let (Some(now), Some(before)) = (sample.transferred, last.transferred) {
                smooth(&mut self.transferred_bytes_per_s, now, before);
            }
        }
        self.last = Some(sample);
        view.rates = RatesView {
            hypervisor_bytes_per_s: self.hypervisor_bytes_per_s.unwrap_or(0.0),
            wire_bytes_per_s: self.wire_bytes_per_s.unwrap_or(0.0),
            dirty_bytes_per_s: info.and_then(dirty),
        };
    }

    /// Seconds until what remains is sent: it shrinks by what is delivered and grows by what the guest
    /// dirties meanwhile.
    fn expected_finish_s(&self, info: &MigrationInfo, view: &MigrationView) -> Option<f64> {
        let remaining = float(info.ram_remaining_bytes?);
        let delivered = self
            .transferred_bytes_per_s?
            .max(view.rates.hypervisor_bytes_per_s);
        let gained = delivered - info.dirty_bytes_per_s.unwrap_or(0.0);
        (gained > 0.0).then(|| remaining / gained)
    }
}

/// Before its first pass is over a hypervisor says zero, which it has not measured.
fn dirty(info: &MigrationInfo) -> Option<f64> {
    let measured = info.rounds.unwrap_or(0) > 1;
    info.dirty_bytes_per_s
        .filter(|rate| measured || *rate > 0.0)
}

fn version_word(code: u64) -> Option<String> {
    Version::from_code(u32::try_from(code).ok()?).map(|version| version.as_str().to_owned())
}

fn copy_snapshot(from: &SessionSnapshot, view: &mut MigrationView) {
    view.version = version_word(from.batch_version).or_else(|| view.version.take());
    view.negotiated_version =
        version_word(from.negotiated_version).or_else(|| view.negotiated_version.take());
    let mode = from.mode().map(|mode| mode.as_str().to_owned());
    view.mode = mode.or_else(|| view.mode.take());
    let hypervisor = from.hypervisor_bytes_in;
    view.bytes = BytesView {
        hypervisor,
        wire: from.wire_bytes_sent,
        delivered: hypervisor.saturating_sub(from.held_bytes),
        saved_fraction: (hypervisor > 0)
            .then(|| 1.0 - float(from.wire_bytes_sent) / float(hypervisor)),
    };
    view.held_bytes = from.held_bytes;
    view.held_bytes_max = from.held_bytes_max;
    view.held_bytes_limit = from.held_bytes_limit;
    view.rtt_us = from.rtt_us;
    view.rounds = view.rounds.max(from.rounds);
    view.pages = PagesView {
        total: from.pages,
        zero: from.pages_zero,
        duplicate: from.pages_duplicate,
        known: from.pages_known,
        delta: from.pages_delta,
    };
    view.lanes = LanesView {
        up: from.lanes_up,
        wanted: from.lanes_wanted,
        replaced: from.lanes_replaced,
        driver: LaneDriver::from_code(from.driver),
        fallbacks: from.driver_fallbacks,
    };
    if from.switch_thrown_ns != 0 {
        let some = |value: u64| (value != 0).then_some(value);
        let first = some(from.first_v1_batch_ns).filter(|first| *first >= from.switch_thrown_ns);
        view.rollback = Some(RollbackView {
            thrown_ns: from.switch_thrown_ns,
            first_v1_batch_ns: first,
            last_v3_batch_ns: some(from.last_v3_batch_ns),
            rollback_us: first.map(|first| (first - from.switch_thrown_ns) / 1000),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::record::tests::view;
    use std::time::Duration;

    fn info(remaining: u64, transferred: u64, dirty: f64) -> MigrationInfo {
        MigrationInfo {
            ram_total_bytes: Some(1000),
            ram_remaining_bytes: Some(remaining),
            ram_transferred_bytes: Some(transferred),
            dirty_bytes_per_s: Some(dirty),
            ..MigrationInfo::default()
        }
    }

    #[test]
    fn the_end_is_told_only_if_it_comes() {
        let start = Instant::now();
        let mut progress = Progress::default();
        let mut view = view();
        progress.measure(start, Some(&info(900, 100, 0.0)), None, &mut view);
        assert_eq!((view.progress, view.expected_finish_s), (Some(0.1), None));
        let later = start + Duration::from_secs(1);
        progress.measure(later, Some(&info(800, 200, 0.0)), None, &mut view);
        assert_eq!(view.expected_finish_s.map(f64::round), Some(8.0));
        let later = start + Duration::from_secs(2);
        progress.measure(later, Some(&info(800, 300, 5000.0)), None, &mut view);
        assert_eq!(
            view.expected_finish_s, None,
            "the guest dirties faster than the link carries"
        );
        progress.measure(later, Some(&info(950, 300, 0.0)), None, &mut view);
        assert_eq!(view.progress, Some(0.2), "progress is not taken back");
    }

    #[test]
    fn a_snapshot_becomes_figures() {
        let mut snapshot = SessionSnapshot::FREE;
        snapshot.hypervisor_bytes_in = 1000;
        snapshot.wire_bytes_sent = 250;
        snapshot.held_bytes = 100;
        snapshot.batch_version = 3;
        snapshot.mode = dwcp_api::Mode::Internet.code().into();
        snapshot.switch_thrown_ns = 5_000;
        snapshot.first_v1_batch_ns = 12_000;
        let mut view = view();
        Progress::default().measure(Instant::now(), None, Some(&snapshot), &mut view);
        assert_eq!(view.bytes.delivered, 900);
        assert_eq!(view.bytes.saved_fraction, Some(0.75));
        assert_eq!(view.version.as_deref(), Some("v3"));
        assert_eq!(view.mode.as_deref(), Some("internet"));
        assert_eq!(
            view.rollback.and_then(|rollback| rollback.rollback_us),
            Some(7)
        );
        // A v1 batch from before the throw is no rollback.
        snapshot.first_v1_batch_ns = 4_000;
        Progress::default().measure(Instant::now(), None, Some(&snapshot), &mut view);
        assert_eq!(
            view.rollback.and_then(|rollback| rollback.rollback_us),
            None
        );
    }
}
