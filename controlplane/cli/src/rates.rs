//! Two readings of the data plane's counters, and what happened between them.
//!
//! In: answers of `/v1/perf/counters`. Out: rates, as a table for people or as JSON. Promise: a data plane
//! that was started again in between shows no rate, rather than a wrong one.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// One answer of `/v1/perf/counters`.
#[derive(Clone, Debug, Deserialize)]
pub struct Reading {
    taken_ns: u64,
    workers: Vec<Worker>,
}

#[derive(Clone, Debug, Deserialize)]
struct Worker {
    worker: usize,
    busy_ns: u64,
    stages: Vec<Stage>,
    counters: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Deserialize)]
struct Stage {
    stage: String,
    busy_ns: u64,
    bytes_in: Option<u64>,
    bytes_out: Option<u64>,
    batches: Option<u64>,
}

/// What happened between two readings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Time between them.
    pub interval_s: f64,
    /// Each worker.
    pub workers: Vec<WorkerRates>,
    /// All workers together, by stage.
    pub stages: Vec<StageRates>,
    /// Pages encoded a second, by how.
    pub pages_per_s: BTreeMap<&'static str, f64>,
    /// Sessions now.
    pub sessions: u64,
    /// Bytes held between hypervisors now.
    pub held_bytes: u64,
    /// Windows in force now, hypervisor bytes.
    pub window_bytes: u64,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkerRates {
    /// Its number.
    pub worker: usize,
    /// Share of the time in turns that found work.
    pub busy: f64,
    /// Share in turns that found none.
    pub idle: f64,
    /// Share asleep.
    pub parked: f64,
    /// Batches sent a second.
    pub batches_sent_per_s: f64,
    /// Batches decoded a second.
    pub batches_decoded_per_s: f64,
    /// Bytes a second from hypervisors.
    pub hypervisor_in_bytes_per_s: f64,
    /// Bytes a second to hypervisors.
    pub hypervisor_out_bytes_per_s: f64,
    /// Bytes a second to the wire.
    pub wire_sent_bytes_per_s: f64,
    /// Bytes a second from the wire.
    pub wire_received_bytes_per_s: f64,
    /// Batches sent again.
    pub batches_resent: u64,
    /// Segments that the network sent again.
    pub lane_retransmits: u64,
    /// Times it parked, a second.
    pub parks_per_s: f64,
    /// Times it was woken, a second.
    pub wakeups_per_s: f64,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageRates {
    /// Its name.
    pub stage: String,
    /// Share of one processor: the time of all workers in it.
    pub busy: f64,
    /// Bytes a second into it.
    pub in_bytes_per_s: Option<f64>,
    /// Bytes a second out of it.
    pub out_bytes_per_s: Option<f64>,
    /// Batches a second; of lanes, frames.
    pub batches_per_s: Option<f64>,
}

const PAGES: [(&str, &str); 5] = [
    ("zero", "pages_zero_total"),
    ("duplicate", "pages_duplicate_total"),
    ("known", "pages_known_total"),
    ("delta", "pages_delta_total"),
    ("whole", "pages_literal_total"),
];

impl Worker {
    fn figure(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }
}

impl Reading {
    fn total(&self, name: &str) -> u64 {
        self.workers.iter().map(|worker| worker.figure(name)).sum()
    }

    /// What happened since an earlier reading; none if it is of another data plane.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<Rates> {
        let interval_ns = self
            .taken_ns
            .checked_sub(before.taken_ns)
            .filter(|ns| *ns > 0)?;
        let interval_s = interval_ns as f64 / 1e9;
        if self.workers.len() != before.workers.len() {
            return None;
        }
        let pairs: Vec<(&Worker, &Worker)> = self.workers.iter().zip(&before.workers).collect();
        // A counter never falls while its data plane lives.
        let fell = |(now, then): &(&Worker, &Worker)| {
            let totals = then
                .counters
                .iter()
                .filter(|(name, _)| name.ends_with("_total"));
            now.busy_ns < then.busy_ns
                || totals
                    .into_iter()
                    .any(|(name, value)| now.figure(name) < *value)
        };
        if pairs.iter().any(fell) {
            return None;
        }
        let per_s = |amount: u64| amount as f64 / interval_s;
        let share = |spent_ns: u64| spent_ns as f64 / interval_ns as f64;
        let workers = pairs.iter().map(|(now, then)| {
            let more = |name: &str| now.figure(name).saturating_sub(then.figure(name));
            WorkerRates {
                worker: now.worker,
                busy: share(now.busy_ns - then.busy_ns),
                idle: share(more("idle_ns_total")),
                parked: share(more("parked_ns_total")),
                batches_sent_per_s: per_s(more("batches_v1_total") + more("batches_v3_total")),
                batches_decoded_per_s: per_s(more("batches_decoded_total")),
                hypervisor_in_bytes_per_s: per_s(more("hypervisor_bytes_in_total")),
                hypervisor_out_bytes_per_s: per_s(more("hypervisor_bytes_out_total")),
                wire_sent_bytes_per_s: per_s(more("wire_bytes_sent_total")),
                wire_received_bytes_per_s: per_s(more("wire_bytes_received_total")),
                batches_resent: more("batches_resent_total"),
                lane_retransmits: more("lane_retransmits_total"),
                parks_per_s: per_s(more("parks")),
                wakeups_per_s: per_s(more("wakeups")),
            }
        });
        let pages = PAGES.iter().map(|(kind, name)| {
            let more = self.total(name).saturating_sub(before.total(name));
            (*kind, per_s(more))
        });
        Some(Rates {
            interval_s,
            workers: workers.collect(),
            stages: stage_rates(&pairs, &per_s, &share),
            pages_per_s: pages.collect(),
            sessions: self.total("sessions"),
            held_bytes: self.total("held_bytes"),
            window_bytes: self.total("window_bytes"),
        })
    }
}

fn stage_rates(
    pairs: &[(&Worker, &Worker)],
    per_s: &dyn Fn(u64) -> f64,
    share: &dyn Fn(u64) -> f64,
) -> Vec<StageRates> {
    let Some((first, _)) = pairs.first() else {
        return Vec::new();
    };
    let of = |place: usize, name: &str| {
        let more = |pick: fn(&Stage) -> Option<u64>| -> Option<u64> {
            let each = pairs.iter().map(|(now, then)| {
                let (now, then) = (now.stages.get(place)?, then.stages.get(place)?);
                pick(now)?.checked_sub(pick(then)?)
            });
            each.sum()
        };
        StageRates {
            stage: name.to_owned(),
            busy: share(more(|stage| Some(stage.busy_ns)).unwrap_or(0)),
            in_bytes_per_s: more(|stage| stage.bytes_in).map(per_s),
            out_bytes_per_s: more(|stage| stage.bytes_out).map(per_s),
            batches_per_s: more(|stage| stage.batches).map(per_s),
        }
    };
    let names = first.stages.iter().map(|stage| stage.stage.as_str());
    names
        .enumerate()
        .map(|(place, name)| of(place, name))
        .collect()
}

/// Megabytes with one digit behind the point.
fn mb(bytes: f64) -> String {
    format!("{:.1}", bytes / 1e6)
}

impl Rates {
    /// A table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{:.1} s   sessions {}   held {} MB   window {} MB",
            self.interval_s,
            self.sessions,
            mb(self.held_bytes as f64),
            mb(self.window_bytes as f64),
        );
        let _ = writeln!(
            text,
            "\n{:>6} {:>6} {:>6} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6} {:>7} {:>8} {:>8}",
            "worker",
            "busy%",
            "idle%",
            "park%",
            "batch/s>",
            "batch/s<",
            "vm MB/s>",
            "vm MB/s<",
            "wire>",
            "wire<",
            "resent",
            "retrans",
            "parks/s",
            "wakes/s",
        );
        for w in &self.workers {
            let _ = writeln!(
                text,
                "{:>6} {:>6.1} {:>6.1} {:>6.1} {:>9.0} {:>9.0} {:>9} {:>9} {:>9} {:>9} {:>6} {:>7} {:>8.0} {:>8.0}",
                w.worker,
                100.0 * w.busy,
                100.0 * w.idle,
                100.0 * w.parked,
                w.batches_sent_per_s,
                w.batches_decoded_per_s,
                mb(w.hypervisor_in_bytes_per_s),
                mb(w.hypervisor_out_bytes_per_s),
                mb(w.wire_sent_bytes_per_s),
                mb(w.wire_received_bytes_per_s),
                w.batches_resent,
                w.lane_retransmits,
                w.parks_per_s,
                w.wakeups_per_s,
            );
        }
        let _ = writeln!(
            text,
            "\n{:<10} {:>6} {:>10} {:>10} {:>10}",
            "stage", "busy%", "MB/s in", "MB/s out", "batches/s"
        );
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        for stage in &self.stages {
            let _ = writeln!(
                text,
                "{:<10} {:>6.1} {:>10} {:>10} {:>10}",
                crate::progress::printable(&stage.stage),
                100.0 * stage.busy,
                or_dash(stage.in_bytes_per_s.map(mb)),
                or_dash(stage.out_bytes_per_s.map(mb)),
                or_dash(stage.batches_per_s.map(|rate| format!("{rate:.0}"))),
            );
        }
        let _ = write!(text, "\npages/s   ");
        for (kind, rate) in &self.pages_per_s {
            let _ = write!(text, " {kind} {rate:.0}  ");
        }
        text.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn reading(taken_ns: u64, scale: u64) -> Reading {
        let stage = |name: &str, busy_ns: u64| {
            json!({
                "stage": name, "busy_ns": busy_ns * scale,
                "bytes_in": 1_000_000 * scale, "bytes_out": null, "batches": 10 * scale,
            })
        };
        let worker = |number: u64| {
            json!({
                "worker": number,
                "busy_ns": 400_000_000 * scale,
                "stages": [stage("intake", 100_000_000), stage("codec", 300_000_000)],
                "counters": {
                    "idle_ns_total": 100_000_000 * scale,
                    "parked_ns_total": 500_000_000 * scale,
                    "batches_v3_total": 7 * scale,
                    "pages_delta_total": 3 * scale,
                    "held_bytes": 50,
                    "last_turn_ns": 1_000 - scale,
                },
            })
        };
        let all = json!({ "taken_ns": taken_ns, "workers": [worker(0), worker(1)] });
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn rates_are_what_happened_between_two_readings() {
        let (before, after) = (reading(1_000_000_000, 1), reading(3_000_000_000, 3));
        let rates = after.since(&before).unwrap();
        assert!((rates.interval_s - 2.0).abs() < 1e-9);
        let worker = &rates.workers[1];
        assert!((worker.busy - 0.4).abs() < 1e-9 && (worker.parked - 0.5).abs() < 1e-9);
        assert!((worker.batches_sent_per_s - 7.0).abs() < 1e-9);
        let codec = &rates.stages[1];
        assert_eq!(
            (codec.stage.as_str(), codec.out_bytes_per_s),
            ("codec", None)
        );
        // Two workers, each 300 ms in every second.
        assert!((codec.busy - 0.6).abs() < 1e-9);
        assert!((codec.in_bytes_per_s.unwrap() - 2e6).abs() < 1e-3);
        assert!((rates.pages_per_s["delta"] - 6.0).abs() < 1e-9);
        assert_eq!(rates.held_bytes, 100);
        let table = rates.table();
        assert!(
            table.contains("codec") && table.contains("delta 6"),
            "{table}"
        );
    }

    #[test]
    fn another_data_plane_shows_no_rate() {
        let (before, after) = (reading(1, 3), reading(2_000_000_000, 1));
        assert_eq!(after.since(&before), None);
        assert_eq!(before.since(&before), None);
    }
}
