//! Seeds, and bugs that seeds must find.
//!
//! In: `DWCP_SEED` (one seed), `DWCP_SEEDS` (how many; 1,000 in CI). Out: the violation with its seed.
//! Promise: each planted bug is found by one of the first [`BUG_SEEDS`] seeds.

use super::world::{Report, run};
use crate::plant::{Bug, plant};

/// Seeds within which each planted bug must be found.
const BUG_SEEDS: u64 = 300;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn sound(seed: u64) -> Report {
    run(seed).unwrap_or_else(|what| panic!("seed {seed}: {what}\nreplay it with DWCP_SEED={seed}"))
}

#[test]
fn replay() {
    let seed = number("DWCP_SEED", 1);
    println!("seed {seed}: {:?}", sound(seed));
}

#[test]
fn seeds_hold() {
    let seeds = number("DWCP_SEEDS", 100);
    let reports: Vec<Report> = (0..seeds).map(sound).collect();
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    let acknowledged = sum(|report| report.acknowledged as u64);
    println!(
        "{seeds} seeds: {acknowledged} writes acknowledged, {} reads, {} epochs",
        sum(|report| report.reads as u64),
        sum(|report| report.epochs)
    );
    assert!(acknowledged > seeds, "hardly anything was acknowledged");
    assert!(sum(|report| report.epochs) > seeds, "no epoch was sealed");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..5 {
        assert_eq!(sound(seed), sound(seed), "seed {seed}");
    }
}

/// Plants a bug until a seed finds it.
fn found(bug: Bug) {
    plant(Some(bug));
    let by = (0..BUG_SEEDS).find_map(|seed| run(seed).err().map(|what| (seed, what)));
    plant(None);
    let (seed, what) = by.unwrap_or_else(|| panic!("{bug:?} was not found"));
    println!(
        "{bug:?}: seed {seed}: {}",
        what.chars().take(160).collect::<String>()
    );
}

macro_rules! bugs {
    ($($name:ident: $bug:ident,)*) => {
        $(
            #[test]
            fn $name() {
                found(Bug::$bug);
            }
        )*
    };
}

bugs! {
    finds_a_vote_that_is_not_saved: VoteNotSaved,
    finds_a_skipped_fsync: FsyncSkipped,
    finds_elections_by_a_minority: SilenceIsAVote,
    finds_commits_by_half: SilenceIsAnAck,
    finds_a_leader_that_goes_on_after_a_restart: LeaderRestored,
    finds_stale_reads: StaleRead,
    finds_reads_before_they_are_applied: ReadBeforeApplied,
    finds_an_ignored_seal: SealIgnored,
    finds_an_empty_genesis: GenesisEmpty,
    finds_sessions_not_handed_over: SessionsNotHandedOver,
    finds_sessions_missing_in_a_snapshot: SessionsNotInSnapshot,
    finds_a_retry_that_runs_again: RetryRunsAgain,
    finds_a_retry_with_a_new_number: RetryGetsNewNumber,
    finds_a_snapshot_without_last_index: SnapshotWithoutLastIndex,
    finds_a_snapshot_that_is_not_synced: SnapshotNotSynced,
    finds_a_truncation_that_is_not_saved: TruncateNotSaved,
    finds_a_checkpoint_without_entries: CheckpointWithoutEntries,
    finds_a_checkpoint_that_is_too_old: CheckpointTooOld,
    finds_an_ignored_checksum: ChecksumIgnored,
}
