//! A picture as metric families.
//!
//! In: a [`Picture`]. Out: families for the encoder. The names are those of SPEC section "Monitoring":
//! base units, counters ending in `_total`, v1 and v3 each with its own name; labels hold closed sets,
//! a worker's number, or the id of a session that is running. A family that the data plane feeds is
//! absent while none is attached: a zero would look like a reset of the counter.

use std::fmt;

use dwcp_api::session::SessionSnapshot;
use dwcp_api::{Failure, Mode, PathLoad, Role, SessionState, Stage, Version};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeMetric, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;

use super::picture::{Picture, WorkerFigures, figure};
use super::stages;
use super::tally::is_error;
use crate::host::DoorFigures;

/// Labels of one series.
type Labels = Vec<(&'static str, String)>;

/// Writes families one after the other.
struct Families<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Families<'_> {
    /// A counter; `name` without its `_total`, which the encoder adds.
    fn counters<N: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        rows: Vec<(Labels, N)>,
    ) -> fmt::Result {
        let mut family = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in rows {
            if labels.is_empty() {
                family.encode_counter::<NoLabelSet, N, f64>(&value, None)?;
            } else {
                let mut series = family.encode_family(&labels)?;
                series.encode_counter::<NoLabelSet, N, f64>(&value, None)?;
            }
        }
        Ok(())
    }

    fn counter<N: EncodeCounterValue>(&mut self, name: &str, help: &str, value: N) -> fmt::Result {
        self.counters(name, help, vec![(Vec::new(), value)])
    }

    fn gauges(&mut self, name: &str, help: &str, rows: Vec<(Labels, f64)>) -> fmt::Result {
        let mut family = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in rows {
            if labels.is_empty() {
                family.encode_gauge(&value)?;
            } else {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.gauges(name, help, vec![(Vec::new(), value)])
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) -> fmt::Result {
        let family = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        histogram.encode(family)
    }
}

fn label(key: &'static str, value: impl Into<String>) -> Labels {
    vec![(key, value.into())]
}

/// Seconds of a counter that holds nanoseconds.
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

impl Collector for Picture {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Families { encoder };
        self.node_families(&mut out)?;
        self.flag_families(&mut out)?;
        self.mode_families(&mut out)?;
        self.session_families(&mut out)?;
        for version in Version::ALL {
            self.version_families(&mut out, *version)?;
        }
        if let Some(workers) = &self.workers {
            self.data_plane_families(&mut out)?;
            worker_families(&mut out, self, workers)?;
        }
        if let Some(door) = &self.door {
            door_families(&mut out, door)?;
            self.attempt_family(&mut out, door)?;
        }
        Ok(())
    }
}

impl Picture {
    fn node_families(&self, out: &mut Families<'_>) -> fmt::Result {
        let build = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("node", self.flags.node.as_str().to_owned()),
        ];
        out.gauges(
            "dwcp_build_info",
            "Always 1; what runs on this node",
            vec![(build, 1.0)],
        )?;
        out.gauge(
            "dwcp_data_plane_up",
            "1 while a data plane is attached",
            f64::from(u8::from(self.workers.is_some())),
        )
    }

    fn flag_families(&self, out: &mut Families<'_>) -> fmt::Result {
        out.gauge(
            "dwcp_force_v1_active",
            "1 while the kill switch sends everything back to v1",
            f64::from(u8::from(self.flags.force_v1)),
        )?;
        let (thrown, released) = self.switch_changes;
        out.counters(
            "dwcp_force_v1_changes",
            "Changes of the kill switch since the control plane started",
            vec![(label("to", "on"), thrown), (label("to", "off"), released)],
        )?;
        let rows = |value: &dyn Fn(&crate::flags::FlagView) -> f64| {
            self.flags
                .flags
                .iter()
                .map(|f| (label("feature", f.feature), value(f)))
                .collect()
        };
        out.gauges(
            "dwcp_flag_enabled",
            "1 if the flag is enabled",
            rows(&|f| f64::from(u8::from(f.flag.enabled))),
        )?;
        out.gauges(
            "dwcp_flag_rollout_ratio",
            "Share of the nodes that the flag lets in, 0 to 1",
            rows(&|f| {
                f64::from(f.flag.percentage.buckets()) / f64::from(crate::flags::bucket::BUCKETS)
            }),
        )?;
        out.gauges(
            "dwcp_flag_v3_here",
            "1 if this node uses the component in v3 now",
            rows(&|f| f64::from(u8::from(f.version_here == Version::V3.as_str()))),
        )
    }

    fn mode_families(&self, out: &mut Families<'_>) -> fmt::Result {
        let by_mode = |figures: [u64; 3]| -> Vec<(Labels, u64)> {
            let modes = Mode::ALL.iter().zip(figures);
            modes
                .map(|(mode, figure)| (label("mode", mode.as_str()), figure))
                .collect()
        };
        out.counters(
            "dwcp_mode_changes",
            "Changes of a peer's mode since the control plane started, by the mode that came",
            by_mode(self.modes.changes),
        )?;
        let peers = by_mode(self.modes.peers);
        let peers = peers
            .into_iter()
            .map(|(labels, count)| (labels, count as f64));
        out.gauges("dwcp_mode_peers", "Peers in each mode", peers.collect())
    }

    fn running(&self) -> impl Iterator<Item = &SessionSnapshot> {
        self.sessions
            .iter()
            .filter(|session| session.state().is_some_and(|state| !state.is_final()))
    }

    fn session_families(&self, out: &mut Families<'_>) -> fmt::Result {
        if self.workers.is_none() {
            return Ok(());
        }
        let mut rows = Vec::new();
        for role in Role::ALL {
            for state in SessionState::ALL {
                let count = self
                    .sessions
                    .iter()
                    .filter(|s| s.role() == Some(*role) && s.state() == Some(*state))
                    .count();
                let labels = vec![("role", role.to_string()), ("state", state.to_string())];
                rows.push((labels, count as f64));
            }
        }
        out.gauges("dwcp_sessions", "Sessions in the data plane's table", rows)?;
        let sum = |value: fn(&SessionSnapshot) -> u64| -> f64 {
            self.running().map(value).sum::<u64>() as f64
        };
        out.gauge(
            "dwcp_held_limit_bytes",
            "What the bytes held by running sessions together never pass",
            sum(|s| s.held_bytes_limit),
        )?;
        out.gauge(
            "dwcp_lanes_up",
            "Lanes of running sessions that are up",
            sum(|s| s.lanes_up),
        )?;
        out.gauge(
            "dwcp_lanes_wanted",
            "Lanes of running sessions that should be up",
            sum(|s| s.lanes_wanted),
        )?;
        let each = |value: &dyn Fn(&SessionSnapshot) -> f64| {
            self.running()
                .map(|s| (label("session", s.id.to_string()), value(s)))
                .collect()
        };
        out.gauges(
            "dwcp_session_held_bytes",
            "Bytes taken from the hypervisor and not yet delivered, per running session",
            each(&|s| s.held_bytes as f64),
        )?;
        out.gauges(
            "dwcp_session_round_trip_seconds",
            "Smoothed round-trip time to the peer, per running session",
            each(&|s| s.rtt_us as f64 / 1e6),
        )?;
        let in_mode = |mode: &Mode| self.running().filter(|s| s.mode() == Some(*mode)).count();
        let modes = Mode::ALL
            .iter()
            .map(|mode| (label("mode", mode.as_str()), in_mode(mode) as f64));
        out.gauges(
            "dwcp_mode_sessions",
            "Running sessions in each mode, as it is in force in the data plane",
            modes.collect(),
        )?;
        // What an idle path carries is not known.
        let carried = self
            .running()
            .filter(|s| s.path_load() != PathLoad::Idle)
            .map(|s| {
                let labels = vec![
                    ("session", s.id.to_string()),
                    ("load", s.path_load().as_str().to_owned()),
                ];
                (labels, s.path_bytes_per_s as f64)
            });
        out.gauges(
            "dwcp_session_path_bytes_per_second",
            "Bytes the path carried in the last sample, all it can if its load is full, per running session",
            carried.collect(),
        )
    }

    /// What exists once per protocol version.
    fn version_families(&self, out: &mut Families<'_>, version: Version) -> fmt::Result {
        let v = version.as_str();
        let name = |rest: &str| format!("dwcp_{v}_{rest}");
        let total = |what: &str| self.total(&what.replace('#', v));
        if let (Some(raw), Some(encoded)) =
            (total("raw_bytes_#_total"), total("encoded_bytes_#_total"))
        {
            out.counters(
                &name("bytes_processed"),
                "Bytes through the encoder: in from hypervisors, out towards the wire",
                vec![
                    (label("direction", "in"), raw),
                    (label("direction", "out"), encoded),
                ],
            )?;
            // Nothing sent yet: nothing saved, nothing lost.
            let ratio = if encoded == 0 {
                1.0
            } else {
                raw as f64 / encoded as f64
            };
            out.gauges(
                &name("compression_ratio"),
                "Hypervisor bytes per encoded byte since the data plane started, 1 or more as a rule",
                vec![(label("mode", "auto"), ratio)],
            )?;
            out.counter(
                &name("batches"),
                "Batches sent",
                total("batches_#_total").unwrap_or_default(),
            )?;
            out.counter(
                &name("encode_seconds"),
                "Time spent encoding",
                seconds(total("encode_#_ns_total").unwrap_or_default()),
            )?;
            let throughput: u64 = self
                .running()
                .filter(|s| s.role() == Some(Role::Source) && s.batch_version() == Some(version))
                .map(|s| s.delivery_bytes_per_s)
                .sum();
            out.gauge(
                &name("throughput_bytes_per_second"),
                "Hypervisor bytes delivered a second by the running sessions that leave here",
                throughput as f64,
            )?;
        }
        let failures = Failure::ALL
            .iter()
            .filter(|failure| is_error(**failure))
            .map(|f| {
                (
                    label("reason", f.as_str()),
                    self.tally.failures(version, *f),
                )
            })
            .collect();
        out.counters(
            &name("errors"),
            "Sessions that failed, by reason; cancelled ones are no errors",
            failures,
        )?;
        out.counter(
            &name("data_loss_detected"),
            "Sessions failed closed because a digest did not vouch for their bytes",
            self.tally.failures(version, Failure::Corrupted),
        )?;
        let harmed = [Failure::Corrupted, Failure::Protocol]
            .map(|failure| self.tally.failures(version, failure));
        out.counter(
            &name("byzantine_successful"),
            "Sessions that a peer ended by what it sent after it had proved itself",
            harmed.iter().sum::<u64>(),
        )?;
        out.histogram(
            &name("latency_seconds"),
            "Downtime of the guest in completed migrations, by the hypervisor's own measure",
            self.tally.downtime(version),
        )?;
        out.histogram(
            &name("migration_duration_seconds"),
            "Time from the start to the end of completed migrations",
            self.tally.duration(version),
        )
    }

    /// What was tried against this node, whichever version it would have come to.
    fn attempt_family(&self, out: &mut Families<'_>, door: &DoorFigures) -> fmt::Result {
        let refused = door.refused.iter();
        let mut kinds: Vec<(Labels, u64)> = refused
            .map(|(reason, count)| (label("kind", *reason), *count))
            .collect();
        let tampered = self.total("corrupted_total").unwrap_or_default();
        kinds.push((label("kind", "tampered_frame"), tampered));
        out.counters(
            "dwcp_v3_byzantine_attempts",
            "Peers that did not prove themselves, by reason, and frames that were not what they claimed",
            kinds,
        )
    }

    /// What the data plane counts over all workers and both versions.
    fn data_plane_families(&self, out: &mut Families<'_>) -> fmt::Result {
        let total = |name: &str| self.total(name).unwrap_or_default();
        out.gauge(
            "dwcp_held_bytes",
            "Bytes taken from hypervisors and not yet delivered at the other end",
            total("held_bytes") as f64,
        )?;
        out.gauge(
            "dwcp_memory_reserved_bytes",
            "Memory reserved for sessions: page stores, windows, compressors",
            total("memory_reserved_bytes") as f64,
        )?;
        out.gauge(
            "dwcp_memory_limit_bytes",
            "What may be reserved for sessions at most (memory_limit_bytes)",
            total("memory_limit_bytes") as f64,
        )?;
        out.counters(
            "dwcp_wire_bytes",
            "Bytes exchanged with peers, headers included",
            vec![
                (label("direction", "sent"), total("wire_bytes_sent_total")),
                (
                    label("direction", "received"),
                    total("wire_bytes_received_total"),
                ),
            ],
        )?;
        let page = |kind: &str| {
            let name = format!("pages_{kind}_total");
            (label("kind", kind), total(&name))
        };
        out.counters(
            "dwcp_pages",
            "Pages encoded, by how: all zero, equal to a stored one, equal to a block of a baseline, as a delta, whole",
            ["zero", "duplicate", "known", "delta", "literal"].map(page).into(),
        )?;
        out.counter(
            "dwcp_decode_seconds",
            "Time spent decoding",
            seconds(total("decode_ns_total")),
        )?;
        for (name, help, counter) in [
            (
                "dwcp_batches_resent",
                "Batches sent a second time because a lane was lost or stalled",
                "batches_resent_total",
            ),
            (
                "dwcp_lane_retransmits",
                "Segments that the network below the lanes sent again",
                "lane_retransmits_total",
            ),
            (
                "dwcp_sessions_opened",
                "Sessions opened",
                "sessions_opened_total",
            ),
            (
                "dwcp_sessions_completed",
                "Sessions completed",
                "sessions_completed_total",
            ),
            (
                "dwcp_sessions_failed",
                "Sessions that failed",
                "sessions_failed_total",
            ),
            (
                "dwcp_frames_refused",
                "Frames and batches whose digest, tag, length or order was wrong",
                "corrupted_total",
            ),
            (
                "dwcp_hugepage_fallbacks",
                "Arenas that had to use ordinary pages",
                "hugepage_fallbacks_total",
            ),
        ] {
            out.counter(name, help, total(counter))?;
        }
        Ok(())
    }
}

/// What the door counts.
fn door_families(out: &mut Families<'_>, door: &DoorFigures) -> fmt::Result {
    let refused = door
        .refused
        .iter()
        .map(|(reason, count)| (label("reason", *reason), *count));
    out.counters(
        "dwcp_peers_refused",
        "Peers turned away in the handshake, by reason",
        refused.collect(),
    )?;
    out.counter(
        "dwcp_lanes_admitted",
        "Lanes of peers that proved themselves and were let in",
        door.admitted,
    )?;
    out.gauge(
        "dwcp_handshakes_under_way",
        "Handshakes with peers that dialled this node and have not proved themselves yet",
        door.under_way as f64,
    )?;
    out.gauges(
        "dwcp_pool_connections",
        "Connections made before a session wants them, by which side dialled them",
        vec![
            (label("dialled_by", "us"), door.pool_ready as f64),
            (label("dialled_by", "peers"), door.pool_parked as f64),
        ],
    )?;
    let [hits, misses] = door.pool_lanes;
    out.counters(
        "dwcp_pool_lanes",
        "Lanes wanted, by whether a connection was ready",
        vec![
            (label("outcome", "hit"), hits),
            (label("outcome", "miss"), misses),
        ],
    )?;
    out.counter(
        "dwcp_pool_padding_bytes",
        "Bytes sent so that connections in the pool find out what their path carries",
        door.pool_padding_bytes,
    )?;
    out.counters(
        "dwcp_certificate_reloads",
        "Times that the certificate files changed and were read anew, by outcome",
        vec![
            (label("outcome", "in_use"), door.reloads),
            (label("outcome", "refused"), door.reload_failures),
        ],
    )
}

/// What exists once per worker.
fn worker_families(
    out: &mut Families<'_>,
    picture: &Picture,
    workers: &[WorkerFigures],
) -> fmt::Result {
    let each = |name: &str| -> Vec<(Labels, u64)> {
        workers
            .iter()
            .enumerate()
            .map(|(n, w)| (label("worker", n.to_string()), figure(w, name)))
            .collect()
    };
    let mut turns = Vec::new();
    for (kind, counter) in [
        ("busy", "turns_busy"),
        ("spun", "turns_spun"),
        ("yielded", "turns_yielded"),
    ] {
        for (mut labels, value) in each(counter) {
            labels.push(("kind", kind.to_owned()));
            turns.push((labels, value));
        }
    }
    out.counters(
        "dwcp_worker_turns",
        "Turns of a worker's loop, by what they found",
        turns,
    )?;
    let mut time = Vec::new();
    for (n, worker) in workers.iter().enumerate() {
        for (state, spent_ns) in [
            ("busy", stages::busy_ns(worker)),
            ("idle", figure(worker, "idle_ns_total")),
            ("parked", figure(worker, "parked_ns_total")),
        ] {
            let labels = vec![("worker", n.to_string()), ("state", state.to_owned())];
            time.push((labels, seconds(spent_ns)));
        }
    }
    out.counters(
        "dwcp_worker_seconds",
        "Where a worker's time went: turns that found work, turns that found none, sleep",
        time,
    )?;
    let stage_time = |stage: &Stage| {
        let spent_ns = picture.total(&stages::time_counter(*stage)).unwrap_or(0);
        (label("stage", stage.as_str()), seconds(spent_ns))
    };
    out.counters(
        "dwcp_stage_seconds",
        "Time of all workers in turns that found work, by stage",
        Stage::ALL.iter().map(stage_time).collect(),
    )?;
    out.counters("dwcp_worker_parks", "Times a worker parked", each("parks"))?;
    out.counters(
        "dwcp_worker_wakeups",
        "Times a doorbell woke a worker",
        each("wakeups"),
    )?;
    let last = each("last_turn_ns")
        .into_iter()
        .map(|(labels, at_ns)| {
            let age_s = seconds(picture.taken_ns.saturating_sub(at_ns));
            (labels, picture.taken_unix_s - age_s)
        })
        .collect();
    out.gauges(
        "dwcp_worker_last_turn_timestamp_seconds",
        "When a worker's last turn ended, seconds since 1970",
        last,
    )
}
