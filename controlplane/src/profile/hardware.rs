//! What the processor and the kernel count about each thread of a process: cycles, instructions, misses,
//! context switches.
//!
//! In: a process and for how long. Out: counts by thread, and for every counter that this machine does not
//! have, that it is absent and why. Promises: a counter that shared its register with another is scaled
//! by the time it had; one that never ran is absent, not zero.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use perf_event_open_sys::bindings::{
    PERF_COUNT_HW_BRANCH_MISSES, PERF_COUNT_HW_CACHE_MISSES, PERF_COUNT_HW_CACHE_REFERENCES,
    PERF_COUNT_HW_CPU_CYCLES, PERF_COUNT_HW_INSTRUCTIONS, PERF_COUNT_SW_CONTEXT_SWITCHES,
    PERF_COUNT_SW_CPU_MIGRATIONS, PERF_COUNT_SW_PAGE_FAULTS, PERF_COUNT_SW_TASK_CLOCK,
    PERF_FORMAT_TOTAL_TIME_ENABLED, PERF_FORMAT_TOTAL_TIME_RUNNING, PERF_TYPE_HARDWARE,
    PERF_TYPE_SOFTWARE, perf_event_attr,
};
use serde::Serialize;

use super::error::ProfileError;
use super::event::{open, set_running, threads};

/// Pause between two looks at whether anybody still waits.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Threads that are counted, each with a descriptor for every counter.
const THREADS_MAX: usize = 128;

/// The counters: name, kind, number.
const COUNTERS: [(&str, u32, u32); 9] = [
    ("cycles", PERF_TYPE_HARDWARE, PERF_COUNT_HW_CPU_CYCLES),
    (
        "instructions",
        PERF_TYPE_HARDWARE,
        PERF_COUNT_HW_INSTRUCTIONS,
    ),
    (
        "cache_references",
        PERF_TYPE_HARDWARE,
        PERF_COUNT_HW_CACHE_REFERENCES,
    ),
    (
        "cache_misses",
        PERF_TYPE_HARDWARE,
        PERF_COUNT_HW_CACHE_MISSES,
    ),
    (
        "branch_misses",
        PERF_TYPE_HARDWARE,
        PERF_COUNT_HW_BRANCH_MISSES,
    ),
    ("running_ns", PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK),
    (
        "context_switches",
        PERF_TYPE_SOFTWARE,
        PERF_COUNT_SW_CONTEXT_SWITCHES,
    ),
    (
        "migrations",
        PERF_TYPE_SOFTWARE,
        PERF_COUNT_SW_CPU_MIGRATIONS,
    ),
    ("page_faults", PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS),
];

/// Counts of one thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThreadCounts {
    /// Its number in the system.
    pub thread: u32,
    /// Its name.
    pub name: String,
    /// What was counted.
    pub counts: BTreeMap<&'static str, u64>,
}

/// Counts of a process.
#[derive(Clone, Debug, Serialize)]
pub struct Counts {
    /// How long was counted.
    pub window_ns: u64,
    /// Each thread.
    pub threads: Vec<ThreadCounts>,
    /// What this machine does not count, and why.
    pub absent: BTreeMap<&'static str, String>,
}

/// Counts until the time is over or `stop` is set.
///
/// # Errors
/// [`ProfileError`] if not even the kernel's own counters can be had.
pub fn count(pid: u32, window: Duration, stop: &AtomicBool) -> Result<Counts, ProfileError> {
    let found = threads(pid).map_err(|cause| ProfileError::Gone { pid, cause })?;
    let mut absent = BTreeMap::new();
    let mut opened: Vec<(ThreadCounts, Vec<(&'static str, OwnedFd)>)> = Vec::new();
    for (thread, name) in found.into_iter().take(THREADS_MAX) {
        let mut events = Vec::new();
        for (counter, kind, number) in COUNTERS {
            match open(attr(kind, number), thread) {
                Ok(event) => events.push((counter, event)),
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) if kind == PERF_TYPE_HARDWARE => {
                    absent.entry(counter).or_insert_with(|| why_absent(&error));
                }
                Err(error) => return Err(ProfileError::of(pid, "opening its counters", error)),
            }
        }
        let counts = BTreeMap::new();
        opened.push((
            ThreadCounts {
                thread,
                name,
                counts,
            },
            events,
        ));
    }
    let each = |running| {
        for (_, event) in opened.iter().flat_map(|(_, events)| events) {
            set_running(event, running)
                .map_err(|error| ProfileError::of(pid, "starting or stopping", error))?;
        }
        Ok(())
    };
    let begun = Instant::now();
    each(true)?;
    // Relaxed: it says only that nobody waits any more.
    while begun.elapsed() < window && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK_EVERY.min(window.saturating_sub(begun.elapsed())));
    }
    each(false)?;
    let window_ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut threads = Vec::new();
    for (mut thread, events) in opened {
        for (counter, event) in events {
            if let Some(value) = value(&event)
                .map_err(|error| ProfileError::of(pid, "reading its counters", error))?
            {
                thread.counts.insert(counter, value);
            }
        }
        threads.push(thread);
    }
    Ok(Counts {
        window_ns,
        threads,
        absent,
    })
}

fn attr(kind: u32, number: u32) -> perf_event_attr {
    let mut attr = perf_event_attr::default();
    (attr.type_, attr.config) = (kind, u64::from(number));
    attr.read_format = u64::from(PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING);
    attr
}

fn why_absent(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::ENODEV) => {
            "this machine has no such counter; a virtual machine needs one that its host gives it"
                .to_owned()
        }
        Some(libc::EACCES | libc::EPERM) => {
            "not allowed: give dwcp-controlplane CAP_PERFMON".to_owned()
        }
        _ => error.to_string(),
    }
}

/// What an event counted; none if it never had a register.
fn value(event: &OwnedFd) -> io::Result<Option<u64>> {
    let mut bytes = [0; 24];
    let read = rustix::io::read(event, &mut bytes)?;
    if read != bytes.len() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    let (words, _) = bytes.as_chunks::<8>();
    let [counted, enabled_ns, running_ns] = [0, 1, 2].map(|at| u64::from_ne_bytes(words[at]));
    Ok(scaled(counted, enabled_ns, running_ns))
}

fn scaled(counted: u64, enabled_ns: u64, running_ns: u64) -> Option<u64> {
    if running_ns == 0 {
        // A thread that slept all the time was never counted, and did nothing either.
        return (enabled_ns == 0).then_some(0);
    }
    let whole = u128::from(counted) * u128::from(enabled_ns) / u128::from(running_ns);
    Some(u64::try_from(whole).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_counter_is_scaled_and_one_that_never_ran_is_absent() {
        assert_eq!(scaled(10, 100, 100), Some(10));
        assert_eq!(scaled(10, 100, 50), Some(20));
        assert_eq!(scaled(0, 100, 0), None);
        assert_eq!(scaled(0, 0, 0), Some(0));
    }

    #[test]
    fn this_process_is_counted_and_what_is_absent_says_why() {
        let stop = AtomicBool::new(false);
        let counted = std::thread::scope(|scope| {
            let (up, is_up) = std::sync::mpsc::channel();
            let done = &stop;
            let spin = std::thread::Builder::new().name("spin".to_owned());
            let spinner = spin.spawn_scoped(scope, move || {
                up.send(()).unwrap();
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            // A thread gives itself its name.
            is_up.recv().unwrap();
            let window = Duration::from_millis(200);
            let counted = count(std::process::id(), window, &AtomicBool::new(false));
            stop.store(true, Ordering::Relaxed);
            spinner.unwrap().join().unwrap();
            counted
        });
        let counts = match counted {
            Ok(counts) => counts,
            Err(error) => {
                // A machine that forbids it says so in a word; nothing else is accepted.
                assert_eq!(error.code(), "profile_forbidden", "{error}");
                return;
            }
        };
        let spin = counts.threads.iter().find(|t| t.name == "spin").unwrap();
        assert!(spin.counts["running_ns"] > 10_000_000, "{counts:?}");
        for (counter, _, _) in COUNTERS {
            let known = spin.counts.contains_key(counter);
            let said = counts
                .absent
                .get(counter)
                .is_some_and(|why| !why.is_empty());
            assert!(known || said, "{counter}: {counts:?}");
        }
    }
}
