//! Samples a running process.
//!
//! In: a process, for how long and how often. Out: a [`Profile`]. Promises: memory is bounded, whatever
//! the process does; what was lost is said; it ends in time, or soon after it is told to.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::error::ProfileError;
use super::event::{Clock, Sampling, threads};
use super::folded::Folded;
use super::images::images;
use super::names::Names;
use super::ring::Ring;
use super::sample::{Record, parse};
use super::unwind::Unwinder;

/// Pause between two emptyings of the rings.
const DRAIN_EVERY: Duration = Duration::from_millis(20);
/// Different stacks of one thread that are kept.
const STACKS_MAX: usize = 16 << 10;
/// Threads that are sampled: a data plane has at most 64 workers, and few others.
const THREADS_MAX: usize = 128;

/// What to sample.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The process.
    pub pid: u32,
    /// For how long.
    pub duration: Duration,
    /// Samples of each thread in a second of its running time.
    pub hz: u32,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The stacks.
    pub folded: Folded,
    /// What drove the samples.
    pub clock: Clock,
    /// Whether the kernel's functions were seen.
    pub kernel: bool,
    /// Samples of each thread in a second of its running time.
    pub hz: u32,
    /// How long it took.
    pub duration: Duration,
    /// Samples that the kernel dropped, or that found no room here.
    pub lost: u64,
}

/// One thread that is sampled.
struct Watched {
    name: String,
    ring: Ring,
    stacks: HashMap<Vec<u64>, u64>,
}

/// Samples until the time is over or `stop` is set, then finds the names.
///
/// # Errors
/// [`ProfileError`].
pub fn record(request: Request, stop: &AtomicBool) -> Result<Profile, ProfileError> {
    let pid = request.pid;
    let mut unwinder = Unwinder::new(pid, images(pid)?);
    let found = threads(pid).map_err(|cause| ProfileError::Gone { pid, cause })?;
    let sampling = choose(pid, u64::from(request.hz))?;
    let mut watched = Vec::new();
    for (thread, name) in found.into_iter().take(THREADS_MAX) {
        let ring = sampling.open(thread).and_then(Ring::map);
        match ring {
            Ok(ring) => watched.push(Watched {
                name,
                ring,
                stacks: HashMap::new(),
            }),
            // A thread that ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(ProfileError::of(pid, "opening a thread's samples", error)),
        }
    }
    let mut lost = 0;
    let mut scratch = Vec::new();
    let set_running = |watched: &[Watched], running| {
        let all = watched
            .iter()
            .map(|thread| thread.ring.set_running(running));
        all.collect::<io::Result<()>>()
            .map_err(|error| ProfileError::of(pid, "starting or stopping", error))
    };
    let begun = Instant::now();
    set_running(&watched, true)?;
    // Relaxed: it says only that nobody waits any more.
    while begun.elapsed() < request.duration && !stop.load(Ordering::Relaxed) {
        let left = request.duration.saturating_sub(begun.elapsed());
        std::thread::sleep(DRAIN_EVERY.min(left));
        drain(&mut watched, &mut unwinder, &mut scratch, &mut lost);
    }
    set_running(&watched, false)?;
    let duration = begun.elapsed();
    drain(&mut watched, &mut unwinder, &mut scratch, &mut lost);

    let names = Names::new(unwinder.loaded());
    let sampled = watched.iter().flat_map(|thread| {
        let of = |(calls, count): (&'_ Vec<u64>, &u64)| (calls.clone(), *count);
        thread
            .stacks
            .iter()
            .map(move |stack| (thread.name.as_str(), of(stack)))
    });
    let sampled: Vec<(&str, (Vec<u64>, u64))> = sampled.collect();
    let folded = Folded::new(
        names,
        sampled
            .iter()
            .map(|(thread, (calls, count))| (*thread, calls.as_slice(), *count)),
    );
    Ok(Profile {
        folded,
        clock: sampling.clock,
        kernel: sampling.kernel,
        hz: request.hz,
        duration,
        lost,
    })
}

/// The best way to sample that this machine and our rights allow: by cycles before by the kernel's clock,
/// and the kernel's functions before without them.
fn choose(pid: u32, hz: u64) -> Result<Sampling, ProfileError> {
    let mut refused = None;
    for kernel in [true, false] {
        for clock in [Clock::Cycles, Clock::CpuClock] {
            let sampling = Sampling { clock, kernel, hz };
            match sampling.open(pid) {
                Ok(_) => return Ok(sampling),
                Err(error) => refused = Some(error),
            }
        }
    }
    // The last one is of the least that can be asked for.
    let error = refused.unwrap_or_else(|| io::Error::from_raw_os_error(libc::ENOSYS));
    Err(ProfileError::of(pid, "opening its samples", error))
}

fn drain(watched: &mut [Watched], unwinder: &mut Unwinder, scratch: &mut Vec<u8>, lost: &mut u64) {
    let mut calls = Vec::new();
    for thread in watched {
        let stacks = &mut thread.stacks;
        thread.ring.drain(scratch, |record| match parse(record) {
            Record::Sample(sample) => {
                calls.clear();
                unwinder.calls(&sample, &mut calls);
                if let Some(count) = stacks.get_mut(calls.as_slice()) {
                    *count += 1;
                } else if stacks.len() < STACKS_MAX {
                    stacks.insert(calls.clone(), 1);
                } else {
                    *lost += 1;
                }
            }
            Record::Lost(count) => *lost += count,
            Record::Unknown => {}
        });
    }
}
