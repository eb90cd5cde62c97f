//! Processor time of processes that run. In: process ids. Out: milliseconds used so far, user and
//! system, all threads. Promise: a process that is gone counts as nothing; the kernel's own work on
//! behalf of nobody is not seen.

use std::fs;

/// Length of a clock tick in `/proc`, milliseconds: `USER_HZ` is 100 on every Linux of this day.
const TICK_MS: u64 = 10;

/// Processor time of all these processes together, milliseconds.
#[must_use]
pub fn cpu_ms(pids: &[u32]) -> u64 {
    pids.iter().map(|pid| one(*pid)).sum()
}

fn one(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Fields are counted from behind the command's name, which may hold blanks (proc(5)).
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|f| f.parse::<u64>().ok())
        .sum();
    ticks * TICK_MS
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn work_is_seen_and_the_dead_count_nothing() {
        let me = std::process::id();
        let before = cpu_ms(&[me]);
        let start = Instant::now();
        while cpu_ms(&[me]) < before + 30 {
            assert!(start.elapsed().as_secs() < 60, "no processor time is seen");
        }
        assert_eq!(cpu_ms(&[u32::MAX]), 0);
    }
}
