//! Ten thousand worlds, each from its seed; planted bugs; one world told step by step.
//!
//! Two numbers may be set from outside: `DWCP_SEEDS`, how many worlds are run, and `DWCP_SEED`,
//! the one that is told. A world that breaks names the command that tells it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::bug::Bug;
use super::plan::Plan;
use super::trace::Trace;
use super::truth::Broken;
use super::world::{End, World};

const SEEDS: u64 = 10_000;
/// Each planted bug must show within so many worlds.
const SEEDS_TO_FIND: u64 = 300;

/// Runs one world and says whether it ended as its plan must.
fn run(seed: u64, bug: Option<Bug>) -> Result<End, Broken> {
    let world = || {
        let plan = Plan::from_seed(seed);
        let fatal_cut = plan.fatal_cut();
        let end = World::new(plan, bug, Trace::off()).run()?;
        judge(&end, fatal_cut)?;
        Ok(end)
    };
    // An overflow or an index out of range inside the transport is a finding as well.
    catch_unwind(AssertUnwindSafe(world)).unwrap_or_else(|_| Err(Broken::new("it panicked")))
}

fn judge(end: &End, fatal_cut: Option<u64>) -> Result<(), Broken> {
    match fatal_cut {
        None => Broken::unless(end.finished, || "given up though the link came back".into()),
        Some(at_ns) => Broken::unless(end.expired || end.ended_at.0 <= at_ns, || {
            "finished while the link was gone".into()
        }),
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn how_to_replay(seed: u64) -> String {
    format!(
        "DWCP_SEED={seed} cargo test -p dwcp-dataplane --lib \
         transport::simulation::seeds::one_world_told_twice -- --nocapture"
    )
}

#[test]
fn ten_thousand_worlds_end_as_they_must() {
    let seeds = number("DWCP_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let work = || {
        let (mut ends, mut broken) = (Vec::new(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return (ends, broken);
            }
            match run(seed, None) {
                Ok(end) => ends.push(end),
                Err(Broken(what)) => broken.push((seed, what)),
            }
        }
    };
    let (mut ends, mut broken) = (Vec::new(), Vec::new());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (more_ends, more_broken) = worker.join().unwrap();
            ends.extend(more_ends);
            broken.extend(more_broken);
        }
    });
    broken.sort();
    for (seed, what) in broken.iter().take(10) {
        println!("seed {seed}: {what}\n    {}", how_to_replay(*seed));
    }
    assert!(
        broken.is_empty(),
        "{} of {seeds} worlds broke",
        broken.len()
    );
    // The worlds must have met what they are for.
    let sum = |what: fn(&End) -> u64| ends.iter().map(what).sum::<u64>();
    let met = [
        ("finished", sum(|end| u64::from(end.finished))),
        ("expired", sum(|end| u64::from(end.expired))),
        ("lanes lost", sum(|end| end.lanes_lost)),
        ("batches resent", sum(|end| end.resent)),
        ("batches encoded again", sum(|end| end.transcoded)),
        ("duplicates", sum(|end| end.duplicates)),
        ("lanes suspected", sum(|end| end.suspects)),
        ("links dialled anew", sum(|end| end.redials)),
    ];
    println!("{seeds} worlds, {} turns: {met:?}", sum(|end| end.turns));
    for (what, count) in met {
        assert!(
            count > seeds / 100,
            "{what}: only {count} in {seeds} worlds"
        );
    }
}

#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        let found = (0..SEEDS_TO_FIND).find_map(|seed| Some((seed, run(seed, Some(bug)).err()?)));
        match found {
            Some((seed, Broken(what))) => println!("{bug:?}: seed {seed}: {what}"),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn one_world_told_twice_is_the_same_world() {
    let seed = number("DWCP_SEED").unwrap_or(4711);
    let tell = || {
        let mut world = World::new(Plan::from_seed(seed), None, Trace::on());
        let end = world.run();
        (end, world.now, world.trace.lines().to_vec())
    };
    let (end, now, lines) = tell();
    println!("{:#?}", Plan::from_seed(seed));
    lines.iter().for_each(|line| println!("{line}"));
    println!("ended at {now:?}: {end:?}");
    assert!(lines.len() > 10, "{} lines", lines.len());
    assert_eq!(tell(), (end, now, lines));
}
