//! Clocks that are wrong by an hour, and clocks that run too fast or too slow: they decide nothing.
//!
//! The programs run under libfaketime. A clock that is wrong is the wall clock alone, as when an operator sets it; one
//! that runs at another speed is the monotonic one too, so that time-outs come early or late.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use dwcp_lab::watchdog::{Watchdog, poll_until};

use super::clients::REGISTER;
use super::kit::{Cluster, Kind, PATIENCE};
use super::rest::{self, Said};
use super::trial::Trial;

/// Certificates are good from an hour before they were made.
const BACK_S: i64 = -50 * 60;
const AHEAD_S: i64 = 60 * 60;
const FAST: f64 = 1.3;
const SLOW: f64 = 0.8;

#[derive(Clone, Copy)]
enum Clock {
    Off(i64),
    Speed(f64),
}

fn library() -> String {
    let found = std::fs::read_dir("/usr/lib").unwrap().find_map(|entry| {
        let path: PathBuf = entry.unwrap().path().join("faketime/libfaketimeMT.so.1");
        path.exists().then(|| path.display().to_string())
    });
    found.expect("no libfaketime: run tests/setup.sh")
}

impl Clock {
    fn kind(self) -> Kind {
        let mut environment = vec![("LD_PRELOAD", library())];
        match self {
            Self::Off(seconds) => {
                environment.push(("FAKETIME", format!("{seconds:+}")));
                environment.push(("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()));
            }
            Self::Speed(speed) => environment.push(("FAKETIME", format!("+0 x{speed}"))),
        }
        Kind {
            environment,
            ..Kind::default()
        }
    }
}

/// Milliseconds since 1970 at which a node's own clock saw the register change.
fn changed_ms(trial: &Trial, at: usize) -> i64 {
    let path = format!("/v1/feature-flags/{REGISTER}?agreed=true");
    let read = poll_until(PATIENCE, || {
        match trial.cluster.ask(at, || rest::get(&path, PATIENCE)) {
            Said::Answer(200, flag, _) => flag["changed_unix_ms"].as_i64(),
            _ => None,
        }
    });
    read.unwrap()
}

/// Seconds that a node thinks it has been running.
fn uptime_s(trial: &Trial, at: usize) -> f64 {
    let said = trial
        .cluster
        .ask(at, || rest::get("/v1/health/detailed", PATIENCE));
    let Said::Answer(_, health, _) = said else {
        panic!("{said:?}");
    };
    health["uptime_s"].as_f64().unwrap()
}

/// The clocks are what they are to be, or nothing is shown.
fn are_wrong(trial: &Trial, clocks: &[Clock]) {
    let uptimes = || -> Vec<f64> {
        let all = trial.all();
        all.iter().map(|at| uptime_s(trial, *at)).collect()
    };
    let (began, before) = (Instant::now(), uptimes());
    std::thread::sleep(Duration::from_secs(8));
    let (after, passed) = (uptimes(), began.elapsed().as_secs_f64());
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    for (at, clock) in clocks.iter().enumerate() {
        match clock {
            Clock::Off(seconds) => {
                let off = changed_ms(trial, at) / 1_000 - now.as_secs() as i64;
                assert!((off - seconds).abs() < 60, "node {at} is {off} s off");
            }
            Clock::Speed(speed) => {
                // Whole seconds: one more or less.
                let off = after[at] - before[at] - speed * passed;
                assert!(off.abs() < 1.1, "node {at} is {off} s off its speed");
            }
        }
    }
}

fn kill_the_leader(trial: &mut Trial) {
    let old = trial.leader();
    let killed = Instant::now();
    trial.cluster.kill(old);
    trial.new_leader("clocks, leader killed", &trial.others(&[old]), killed);
    trial.cluster.start(old);
}

fn ordeal(clocks: &[Clock]) {
    let _watchdog = Watchdog::new("clocks", Duration::from_secs(240));
    let kinds: Vec<Kind> = clocks.iter().map(|clock| clock.kind()).collect();
    let mut trial = Trial::begin(Cluster::of(&kinds));
    trial.phase("wrong clocks", |trial| are_wrong(trial, clocks));
    // Whoever leads, with whatever clock.
    for _ in 0..2 {
        trial.phase("leader killed", kill_the_leader);
    }
    trial.phase("all killed", Trial::all_killed);
}

#[test]
fn three_nodes_outlive_wrong_clocks() {
    ordeal(&[Clock::Off(AHEAD_S), Clock::Off(BACK_S), Clock::Speed(FAST)]);
}

#[test]
fn five_nodes_outlive_wrong_clocks() {
    ordeal(&[
        Clock::Off(AHEAD_S),
        Clock::Off(BACK_S),
        Clock::Speed(FAST),
        Clock::Speed(SLOW),
        Clock::Off(0),
    ]);
}
