//! The guest as its user sees it: ticks with host time stamps.
//!
//! In: lines from the serial ports of the source and the destination. Out: gaps, lost and doubled
//! ticks. Promise: a doubled tick is a guest that ran twice, and it is reported.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The end of a migration a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the guest began.
    Source,
    /// Where it moved.
    Destination,
}

/// One tick.
#[derive(Clone, Copy, Debug)]
pub struct Tick {
    /// Number since the guest started, one every 10 ms of guest time.
    pub seq: u64,
    /// The guest's own clock in microseconds.
    pub guest_us: u64,
    /// Page edits the guest had made.
    pub edits: u64,
    /// Which QEMU said it.
    pub side: Side,
    /// When the host read it.
    pub at: Instant,
}

#[derive(Default)]
struct Log {
    ticks: Vec<Tick>,
    /// Lines that are no ticks, with a number that only grows.
    lines: Vec<(Side, String)>,
    /// Sides whose QEMU ended: nothing more will come.
    ended: Vec<Side>,
}

/// The ticks of one guest, whichever side it runs on. Clones share the log.
#[derive(Clone, Default)]
pub struct TickLog(Arc<(Mutex<Log>, Condvar)>);

impl TickLog {
    /// An empty log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All ticks in the order in which the host read them.
    #[must_use]
    pub fn ticks(&self) -> Vec<Tick> {
        self.log().ticks.clone()
    }

    /// The last tick from `side`.
    #[must_use]
    pub fn last(&self, side: Side) -> Option<Tick> {
        self.log()
            .ticks
            .iter()
            .rev()
            .find(|tick| tick.side == side)
            .copied()
    }

    /// The longest time without a tick between `from` and `to`, in milliseconds; the window's ends
    /// count, so a guest that never came back shows.
    #[must_use]
    pub fn longest_gap_ms(&self, from: Instant, to: Instant) -> f64 {
        let log = self.log();
        let inside = log
            .ticks
            .iter()
            .map(|tick| tick.at)
            .filter(|at| (from..=to).contains(at));
        let mut last = from;
        let mut longest = Duration::ZERO;
        for at in inside.chain([to]) {
            longest = longest.max(at.saturating_duration_since(last));
            last = at;
        }
        longest.as_secs_f64() * 1e3
    }

    /// Ticks that came more than once: the guest ran on both sides, or went back in time.
    #[must_use]
    pub fn doubled(&self) -> u64 {
        let mut seqs: Vec<u64> = self.log().ticks.iter().map(|tick| tick.seq).collect();
        seqs.sort_unstable();
        seqs.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64
    }

    /// Numbers missing between the first and the last tick. One may be missing per switchover: the
    /// line that was cut in two.
    #[must_use]
    pub fn missing(&self) -> u64 {
        let log = self.log();
        let mut seqs: Vec<u64> = log.ticks.iter().map(|tick| tick.seq).collect();
        seqs.sort_unstable();
        seqs.windows(2)
            .map(|pair| (pair[1] - pair[0]).saturating_sub(1))
            .sum()
    }

    /// Waits for a tick from `side` after now; `None` at the limit or when that QEMU ended.
    #[must_use]
    pub fn wait_tick(&self, side: Side, limit: Duration) -> Option<Tick> {
        let asked = Instant::now();
        self.wait(side, limit, |log| {
            log.ticks
                .iter()
                .rev()
                .find(|tick| tick.side == side && tick.at > asked)
                .copied()
        })
    }

    /// Number of other lines so far; a mark for [`TickLog::wait_line`].
    #[must_use]
    pub fn mark(&self) -> usize {
        self.log().lines.len()
    }

    /// Waits for a line from `side` after `mark` that starts with `prefix`.
    #[must_use]
    pub fn wait_line(
        &self,
        side: Side,
        mark: usize,
        prefix: &str,
        limit: Duration,
    ) -> Option<String> {
        self.wait(side, limit, |log| {
            let fresh = log.lines.get(mark..).unwrap_or_default();
            let fits = |(from, line): &&(Side, String)| *from == side && line.starts_with(prefix);
            fresh.iter().find(fits).map(|(_, line)| line.clone())
        })
    }

    /// All lines from `side` after `mark` that start with `prefix`.
    #[must_use]
    pub fn lines(&self, side: Side, mark: usize, prefix: &str) -> Vec<String> {
        let log = self.log();
        let fresh = log.lines.get(mark..).unwrap_or_default();
        fresh
            .iter()
            .filter(|(from, line)| *from == side && line.starts_with(prefix))
            .map(|(_, line)| line.clone())
            .collect()
    }

    fn wait<T>(
        &self,
        side: Side,
        limit: Duration,
        mut find: impl FnMut(&Log) -> Option<T>,
    ) -> Option<T> {
        let end = Instant::now() + limit;
        let mut log = self.log();
        loop {
            if let Some(found) = find(&log) {
                return Some(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || log.ended.contains(&side) {
                return None;
            }
            log = self
                .0
                .1
                .wait_timeout(log, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn end(&self, side: Side) {
        self.log().ended.push(side);
        self.0.1.notify_all();
    }

    pub(crate) fn push(&self, side: Side, line: &str) {
        let at = Instant::now();
        let mut log = self.log();
        match parse(line) {
            Some((seq, guest_us, edits)) => {
                log.ticks.push(Tick {
                    seq,
                    guest_us,
                    edits,
                    side,
                    at,
                });
            }
            None => log.lines.push((side, line.to_owned())),
        }
        drop(log);
        self.0.1.notify_all();
    }
}

/// `T SEQ CLOCK_US EDITS`, all of it: half a line from a switchover is no tick.
fn parse(line: &str) -> Option<(u64, u64, u64)> {
    let numbers: Vec<u64> = line
        .strip_prefix("T ")?
        .split(' ')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    match numbers[..] {
        [seq, clock_us, edits] => Some((seq, clock_us, edits)),
        _ => None,
    }
}

/// A guest's second serial port.
pub(crate) struct Serial(UnixStream);

impl Serial {
    /// Connects and reads into `log` until QEMU ends: a port nobody reads would stall the guest.
    pub(crate) fn connect(
        path: &Path,
        side: Side,
        log: TickLog,
        limit: Duration,
    ) -> std::io::Result<Self> {
        let end = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
                Err(error) => return Err(error),
            }
        };
        let mut reader = BufReader::new(stream.try_clone()?);
        std::thread::spawn(move || {
            let mut line = Vec::new();
            while reader
                .read_until(b'\n', &mut line)
                .is_ok_and(|count| count > 0)
            {
                log.push(side, String::from_utf8_lossy(&line).trim());
                line.clear();
            }
            log.end(side);
        });
        Ok(Self(stream))
    }

    pub(crate) fn send(&self, line: &str) -> std::io::Result<()> {
        (&self.0).write_all(format!("{line}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_count_the_ends_of_the_window() {
        let log = TickLog::new();
        let start = Instant::now();
        log.push(Side::Source, "T 1 10000 0");
        std::thread::sleep(Duration::from_millis(50));
        log.push(Side::Destination, "T 2 20000 0");
        let seen = log.longest_gap_ms(start, Instant::now());
        assert!(seen >= 50.0, "{seen}");
        let never = log.longest_gap_ms(start, Instant::now() + Duration::from_secs(9));
        assert!(never >= 8_900.0, "{never}");
    }

    #[test]
    fn a_guest_that_runs_twice_is_seen() {
        let log = TickLog::new();
        for line in ["T 1 1 0", "T 2 2 0", "T 3 3 0"] {
            log.push(Side::Source, line);
        }
        assert_eq!((log.doubled(), log.missing()), (0, 0));
        log.push(Side::Destination, "T 3 3 0");
        log.push(Side::Destination, "T 6 6 0");
        assert_eq!((log.doubled(), log.missing()), (1, 2));
    }

    #[test]
    fn a_qemu_that_ended_is_not_waited_for() {
        let log = TickLog::new();
        log.push(Side::Source, "READY");
        log.end(Side::Source);
        let day = Duration::from_secs(86_400);
        assert!(
            log.wait_line(Side::Source, 0, "READY", day).is_some(),
            "what came counts"
        );
        assert!(log.wait_tick(Side::Source, day).is_none());
    }

    #[test]
    fn half_lines_are_no_ticks() {
        let log = TickLog::new();
        for line in ["T 1 1", "T 1 1 0 0", "T x 1 0", "", "READY pages=4"] {
            log.push(Side::Source, line);
        }
        assert!(log.ticks().is_empty());
        let found = log.wait_line(Side::Source, 0, "READY", Duration::from_secs(1));
        assert_eq!(found.as_deref(), Some("READY pages=4"));
        assert!(
            log.wait_line(Side::Destination, 0, "READY", Duration::ZERO)
                .is_none()
        );
    }
}
