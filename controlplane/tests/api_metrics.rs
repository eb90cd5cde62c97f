//! `/metrics`: both formats are well formed, names keep the rules, figures are those of the picture.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api_support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use api_support::{Server, watchdog};
use dwcp_api::session::{SESSIONS_MAX, SessionSnapshot};
use dwcp_api::worker::WorkerCounters;
use dwcp_api::{Failure, Mode, PathLoad, Role, SessionId, SessionState};
use dwcp_controlplane::flags::{Flags, NodeId, NotAttached, SwitchBoard};
use dwcp_controlplane::host::DoorFigures;
use dwcp_controlplane::mode::Figures;
use dwcp_controlplane::store::Store;
use dwcp_controlplane::telemetry::exposition::{openmetrics, prometheus};
use dwcp_controlplane::telemetry::picture::Picture;
use dwcp_controlplane::telemetry::tally::Tally;

struct Nobody;

impl SwitchBoard for Nobody {
    fn with(&self, _: &mut dyn FnMut(&dwcp_api::switches::Switches)) -> Result<(), NotAttached> {
        Err(NotAttached)
    }

    fn hurry(&self) {}
}

/// Workers whose counters are all different, and a full table.
fn picture(workers: u64) -> Picture {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("s.redb")).unwrap();
    let flags = Flags::open(store, NodeId::new("n-1").unwrap(), Box::new(Nobody)).unwrap();
    let names = WorkerCounters::NAMES;
    let figures = |worker: u64| {
        (1u64..)
            .zip(names)
            .map(|(at, name)| (*name, 1_000_000 * (worker + 1) + at))
            .collect()
    };
    let sessions: Vec<SessionSnapshot> = (1..=SESSIONS_MAX)
        .map(|id| SessionSnapshot {
            id: SessionId([u8::try_from(id).unwrap(); 16]),
            role: Role::Source.code().into(),
            state: SessionState::Active.code().into(),
            batch_version: 3,
            held_bytes: 10,
            held_bytes_limit: 100,
            rtt_us: 2_000,
            mode: Mode::Internet.code().into(),
            path_load: PathLoad::Full.code().into(),
            path_bytes_per_s: 1_000,
            delivery_bytes_per_s: 5,
            lanes_up: 7,
            lanes_wanted: 8,
            ..SessionSnapshot::FREE
        })
        .collect();
    let tally = Tally::default();
    let failed = SessionSnapshot {
        id: SessionId([200; 16]),
        state: SessionState::Failed.code().into(),
        failure: Failure::Corrupted.code().into(),
        batch_version: 3,
        ..SessionSnapshot::FREE
    };
    tally.observe_sessions(&[failed]);
    Picture {
        taken_ns: 3_000_000_000,
        taken_unix_s: 1_000.0,
        workers: (workers > 0).then(|| (0..workers).map(figures).collect()),
        door: (workers > 0).then(|| DoorFigures {
            under_way: 7,
            admitted: 6,
            pool_ready: 16,
            pool_parked: 11,
            pool_lanes: [12, 13],
            pool_padding_bytes: 14,
            reloads: 8,
            reload_failures: 9,
            refused: vec![("expired", 5), ("revoked", 0)],
        }),
        sessions,
        flags: flags.view(),
        switch_changes: (2, 1),
        modes: Figures {
            changes: [4, 5, 6],
            peers: [1, 0, 2],
        },
        tally,
    }
}

/// Samples by name and labels, after checking the form of every line.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut kinds: BTreeMap<String, String> = BTreeMap::new();
    let mut helps = BTreeSet::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        assert_ne!(line, "# EOF");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(helps.insert(name.to_owned()), "two helps for {name}");
            assert!(help.len() > 5, "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(helps.contains(name), "no help before {line}");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none());
            lint(name, kind);
        } else {
            assert!(!line.starts_with('#'), "{line}");
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| {
                    name.strip_suffix(end)
                        .filter(|base| kinds.contains_key(*base))
                })
                .unwrap_or(name);
            assert!(kinds.contains_key(base), "no type for {line}");
            if let Some(labels) = series.strip_prefix(name).filter(|rest| !rest.is_empty()) {
                let inner = labels.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
                for label in inner.split(',') {
                    let (key, value) = label.split_once('=').unwrap();
                    assert!(
                        key.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                        "{line}"
                    );
                    assert!(value.starts_with('"') && value.ends_with('"'), "{line}");
                }
            }
            let number: f64 = value.parse().unwrap();
            assert!(
                samples.insert(series.to_owned(), number).is_none(),
                "twice: {series}"
            );
        }
    }
    samples
}

/// The rules of Prometheus for names.
fn lint(name: &str, kind: &str) {
    assert!(name.starts_with("dwcp_"), "{name}");
    assert!(
        name.chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'),
        "{name}"
    );
    assert_eq!(
        kind == "counter",
        name.ends_with("_total"),
        "{name} is a {kind}"
    );
    for suffix in ["_count", "_sum", "_bucket"] {
        assert!(!name.ends_with(suffix), "{name}: reserved");
    }
    let words: Vec<&str> = name.split('_').collect();
    for word in &words {
        let short = [
            "ms",
            "us",
            "ns",
            "s",
            "sec",
            "secs",
            "msec",
            "usec",
            "min",
            "kb",
            "mb",
            "gb",
            "kib",
            "mib",
            "gib",
            "b",
            "bit",
            "bits",
            "pct",
            "percent",
            "percentage",
            "milliseconds",
            "microseconds",
            "nanoseconds",
            "kilobytes",
            "megabytes",
            "minutes",
            "hours",
        ];
        assert!(!short.contains(word), "{name}: {word} is no base unit");
        for kind in ["counter", "gauge", "histogram", "summary", "info"] {
            assert!(
                *word != kind || name == "dwcp_build_info",
                "{name} names its type"
            );
        }
    }
    // A unit stands at the end, before `_total` or `_per_second`; `bytes_processed` is the product's name.
    let rest = name.strip_suffix("_total").unwrap_or(name);
    let rest = rest.strip_suffix("_per_second").unwrap_or(rest);
    for unit in ["seconds", "bytes"] {
        let inside = rest.split('_').any(|word| word == unit) && !rest.ends_with(unit);
        assert!(
            !inside || rest.ends_with("bytes_processed"),
            "{name}: {unit} stands inside"
        );
    }
}

#[test]
fn figures_are_those_of_the_workers_and_the_table() {
    let samples = parse(&prometheus(&openmetrics(picture(2)).unwrap()));
    let at = |name: &str| {
        (1u64..)
            .zip(WorkerCounters::NAMES)
            .find(|(_, known)| **known == name)
            .unwrap()
            .0
    };
    // Two workers: 1_000_000 + at, and 2_000_000 + at.
    let sum = |name: &str| (3_000_000 + 2 * at(name)) as f64;
    for (series, value) in [
        (
            "dwcp_v3_bytes_processed_total{direction=\"in\"}",
            sum("raw_bytes_v3_total"),
        ),
        (
            "dwcp_v3_bytes_processed_total{direction=\"out\"}",
            sum("encoded_bytes_v3_total"),
        ),
        (
            "dwcp_v1_bytes_processed_total{direction=\"in\"}",
            sum("raw_bytes_v1_total"),
        ),
        ("dwcp_v1_batches_total", sum("batches_v1_total")),
        (
            "dwcp_v3_encode_seconds_total",
            sum("encode_v3_ns_total") / 1e9,
        ),
        (
            "dwcp_v3_compression_ratio{mode=\"auto\"}",
            sum("raw_bytes_v3_total") / sum("encoded_bytes_v3_total"),
        ),
        ("dwcp_held_bytes", sum("held_bytes")),
        ("dwcp_memory_reserved_bytes", sum("memory_reserved_bytes")),
        ("dwcp_memory_limit_bytes", sum("memory_limit_bytes")),
        ("dwcp_frames_refused_total", sum("corrupted_total")),
        ("dwcp_peers_refused_total{reason=\"expired\"}", 5.0),
        ("dwcp_peers_refused_total{reason=\"revoked\"}", 0.0),
        ("dwcp_lanes_admitted_total", 6.0),
        ("dwcp_handshakes_under_way", 7.0),
        ("dwcp_pool_connections{dialled_by=\"us\"}", 16.0),
        ("dwcp_pool_connections{dialled_by=\"peers\"}", 11.0),
        ("dwcp_pool_lanes_total{outcome=\"hit\"}", 12.0),
        ("dwcp_pool_lanes_total{outcome=\"miss\"}", 13.0),
        ("dwcp_pool_padding_bytes_total", 14.0),
        ("dwcp_certificate_reloads_total{outcome=\"refused\"}", 9.0),
        (
            "dwcp_hugepage_fallbacks_total",
            sum("hugepage_fallbacks_total"),
        ),
        (
            "dwcp_wire_bytes_total{direction=\"received\"}",
            sum("wire_bytes_received_total"),
        ),
        (
            "dwcp_stage_seconds_total{stage=\"codec\"}",
            sum("stage_codec_ns_total") / 1e9,
        ),
        (
            "dwcp_worker_seconds_total{worker=\"1\",state=\"parked\"}",
            (2_000_000 + at("parked_ns_total")) as f64 / 1e9,
        ),
        ("dwcp_pages_total{kind=\"delta\"}", sum("pages_delta_total")),
        ("dwcp_batches_resent_total", sum("batches_resent_total")),
        (
            "dwcp_worker_parks_total{worker=\"1\"}",
            (2_000_000 + at("parks")) as f64,
        ),
        (
            "dwcp_worker_wakeups_total{worker=\"0\"}",
            (1_000_000 + at("wakeups")) as f64,
        ),
        (
            "dwcp_v3_throughput_bytes_per_second",
            5.0 * SESSIONS_MAX as f64,
        ),
        ("dwcp_v1_throughput_bytes_per_second", 0.0),
        ("dwcp_held_limit_bytes", 100.0 * SESSIONS_MAX as f64),
        ("dwcp_lanes_up", 7.0 * SESSIONS_MAX as f64),
        ("dwcp_lanes_wanted", 8.0 * SESSIONS_MAX as f64),
        (
            "dwcp_sessions{role=\"source\",state=\"active\"}",
            SESSIONS_MAX as f64,
        ),
        ("dwcp_sessions{role=\"destination\",state=\"failed\"}", 0.0),
        ("dwcp_v3_errors_total{reason=\"corrupted\"}", 1.0),
        ("dwcp_v1_errors_total{reason=\"corrupted\"}", 0.0),
        ("dwcp_v3_data_loss_detected_total", 1.0),
        ("dwcp_v3_byzantine_successful_total", 1.0),
        ("dwcp_v1_byzantine_successful_total", 0.0),
        ("dwcp_v3_byzantine_attempts_total{kind=\"expired\"}", 5.0),
        (
            "dwcp_v3_byzantine_attempts_total{kind=\"tampered_frame\"}",
            sum("corrupted_total"),
        ),
        ("dwcp_force_v1_active", 0.0),
        ("dwcp_force_v1_changes_total{to=\"on\"}", 2.0),
        ("dwcp_flag_rollout_ratio{feature=\"dwcp_v3_hde\"}", 1.0),
        ("dwcp_flag_v3_here{feature=\"dwcp_v3_pba\"}", 0.0),
        ("dwcp_data_plane_up", 1.0),
        ("dwcp_v3_latency_seconds_count", 0.0),
        (
            "dwcp_session_round_trip_seconds{session=\"01010101010101010101010101010101\"}",
            0.002,
        ),
        ("dwcp_mode_sessions{mode=\"internet\"}", SESSIONS_MAX as f64),
        (
            "dwcp_session_path_bytes_per_second{session=\"01010101010101010101010101010101\",load=\"full\"}",
            1_000.0,
        ),
        ("dwcp_mode_changes_total{mode=\"internet\"}", 5.0),
        ("dwcp_mode_peers{mode=\"hybrid\"}", 2.0),
    ] {
        let found = samples
            .get(series)
            .unwrap_or_else(|| panic!("{series} is missing"));
        assert!(
            (found - value).abs() <= value.abs() * 1e-9,
            "{series}: {found}, not {value}"
        );
    }
    // Worker 0 turned last at 1_000_000 + at nanoseconds, the picture is of second 3.
    let turned = samples["dwcp_worker_last_turn_timestamp_seconds{worker=\"0\"}"];
    assert!((turned - 997.001).abs() < 0.001, "{turned}");
}

#[test]
fn without_a_data_plane_its_series_are_absent_not_zero() {
    let text = prometheus(&openmetrics(picture(0)).unwrap());
    let samples = parse(&text);
    assert!((samples["dwcp_data_plane_up"]).abs() < 0.1);
    assert!(!text.contains("bytes_processed") && !text.contains("dwcp_worker"));
    assert!(samples.contains_key("dwcp_v3_errors_total{reason=\"peer_lost\"}"));
    assert!(!text.contains("reason=\"cancelled\"") && !text.contains("reason=\"none\""));
}

#[test]
fn the_number_of_series_is_bounded() {
    let series = parse(&prometheus(&openmetrics(picture(64)).unwrap())).len();
    assert!(
        series < 1_000,
        "{series} series with 64 workers and a full table"
    );
}

#[tokio::test]
async fn a_scraper_gets_the_format_it_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let plain = watchdog(server.request("GET", "/metrics").send())
        .await
        .unwrap();
    let kind = plain.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    parse(&plain.text().await.unwrap());
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
    let open = watchdog(
        server
            .request("GET", "/metrics")
            .header("accept", accept)
            .send(),
    );
    let open = open.await.unwrap();
    let kind = open.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    assert!(open.text().await.unwrap().ends_with("# EOF\n"));
    server.stop().await;
}

/// Prometheus' own tool; Debian has it in its package `prometheus`.
fn promtool(arguments: &[&str], input: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/prometheus");
    let mut tool = Command::new("promtool")
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is missing: bash tests/setup.sh installs it");
    tool.stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let done = tool.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let told = text(&done.stdout) + &text(&done.stderr);
    assert!(done.status.success(), "promtool {arguments:?}: {told}");
    told
}

#[test]
fn the_tool_of_prometheus_finds_nothing_wrong() {
    let text = prometheus(&openmetrics(picture(2)).unwrap());
    assert_eq!(promtool(&["check", "metrics"], &text), "");
    let rules = [
        "check",
        "rules",
        "--lint=all",
        "--lint-fatal",
        "dwcp.rules.yml",
    ];
    promtool(&rules, "");
    promtool(&["test", "rules", "dwcp.test.yml"], "");
}

#[test]
fn rules_name_only_metrics_that_there_are() {
    let rules = include_str!("../../deploy/prometheus/dwcp.rules.yml");
    let samples = parse(&prometheus(&openmetrics(picture(2)).unwrap()));
    let there: BTreeSet<&str> = samples
        .keys()
        .map(|series| series.split('{').next().unwrap())
        .collect();
    let mut named = BTreeSet::new();
    for line in rules
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
    {
        // Words in prose are not queried.
        if ["summary:", "description:"]
            .iter()
            .any(|key| line.contains(key))
        {
            continue;
        }
        let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        named.extend(
            words
                .filter(|word| word.starts_with("dwcp_"))
                .map(ToOwned::to_owned),
        );
    }
    assert!(named.len() > 12, "{named:?}");
    for name in &named {
        assert!(there.contains(name.as_str()), "{name} is no metric");
    }
    // And every alert is one that the tests make fire or keep silent.
    let tests = include_str!("../../deploy/prometheus/dwcp.test.yml");
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert_eq!(alerts.len(), 6);
    for alert in alerts {
        assert!(tests.contains(alert), "{alert} is not tested");
    }
}
