//! Disks that are full: a follower's, then the leader's, then under a start.
//!
//! The disk is a small tmpfs, filled to its last page. A log has room for some more in its file; here that room is
//! taken away first, so that its next writes fail.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use dwcp_lab::watchdog::{Watchdog, poll_until};
use rustix::fs::{FallocateFlags, fallocate};

use super::kit::{Cluster, Kind, PATIENCE};
use super::trial::Trial;

const PAGE: u64 = 4096;

/// A file system of a few megabytes.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    pub fn at(path: &Path) -> Self {
        std::fs::create_dir(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=32m", "tmpfs"]);
        assert!(mount.arg(path).status().unwrap().success(), "mount tmpfs");
        Self {
            path: path.to_owned(),
        }
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Nothing more can be written.
    fn fill(&self) {
        for entry in std::fs::read_dir(self.path.join("cluster")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == "log") {
                take_room(&path).unwrap();
            }
        }
        let mut filler = File::create(self.filler()).unwrap();
        for block in [1 << 20, PAGE as usize] {
            let block = vec![1; block];
            let full = loop {
                if let Err(error) = filler.write_all(&block) {
                    break error;
                }
            };
            assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: it goes though a log is still being read.
        let gone = Command::new("umount").arg("-l").arg(&self.path).status();
        if !gone.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.path.display());
        }
    }
}

/// Gives back the zeros at the end of a file of the log.
fn take_room(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)?;
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64;
    let end = (written / PAGE + 1) * PAGE;
    if end < length {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, hole, end, length - end)?;
    }
    Ok(())
}

/// Returns when a node's log has failed.
fn fails(trial: &Trial, at: usize) {
    let failed = poll_until(PATIENCE, || {
        let status = trial.cluster.status(at)?;
        (status["role"] == "waiting").then_some(())
    });
    let log = || trial.cluster.log(at);
    assert!(failed.is_some(), "its disk is not full: {}", log());
}

fn a_follower(trial: &mut Trial) {
    let leader = trial.leader();
    let full = trial.others(&[leader])[0];
    trial.cluster.disk(full).fill();
    fails(trial, full);
    trial.serves(&trial.others(&[full]));
    assert_eq!(trial.cluster.status(leader).unwrap()["role"], "leader");
    // It takes part again by itself.
    trial.cluster.disk(full).empty();
}

fn the_leader(trial: &mut Trial) {
    let full = trial.leader();
    let since = Instant::now();
    trial.cluster.disk(full).fill();
    trial.new_leader("leader's disk full", &trial.others(&[full]), since);
    fails(trial, full);
    trial.cluster.disk(full).empty();
}

fn a_node_that_starts(trial: &mut Trial) {
    let full = trial.others(&[trial.leader()])[0];
    trial.cluster.disk(full).fill();
    trial.cluster.kill(full);
    trial.cluster.start(full);
    let ended = poll_until(PATIENCE, || trial.cluster.process(full).ended());
    let log = trial.cluster.log(full);
    assert!(!ended.unwrap().success(), "{log}");
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains("space"), "no cure: {last}");
    trial.cluster.disk(full).empty();
    // As systemd does.
    trial.cluster.start(full);
}

fn ordeal(size: usize) {
    let _watchdog = Watchdog::new("disks", Duration::from_secs(240));
    let small = Kind {
        small_disk: true,
        ..Kind::default()
    };
    let mut trial = Trial::begin(Cluster::of(&vec![small; size]));
    trial.phase("a follower's disk full", a_follower);
    trial.phase("the leader's disk full", the_leader);
    trial.phase("started with a full disk", a_node_that_starts);
    trial.phase("all killed", Trial::all_killed);
}

#[test]
fn three_nodes_outlive_full_disks() {
    ordeal(3);
}

#[test]
fn five_nodes_outlive_full_disks() {
    ordeal(5);
}
