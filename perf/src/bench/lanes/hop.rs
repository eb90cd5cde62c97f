//! How near two cores are. In: two cores. Out: how long a cache line takes from one to the other and back. Promise:
//! 50 ms, on threads of its own.
//!
//! The cores of a virtual machine are at one time on one die and at another on two, and whatever goes from core
//! to core through memory then takes several times as long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::anyhow;

use super::end::pin;

const DURATION: Duration = Duration::from_millis(50);
const TURNS: u64 = 1000;
/// Cores of one die are nearer than this, those of two dies are not.
pub(super) const FAR_NS: f64 = 150.0;
/// The last turn.
const OVER: u64 = u64::MAX;

/// A counter that shares its cache line, and the one fetched with it, with nothing.
#[repr(align(128))]
struct Line(AtomicU64);

/// A round trip, in nanoseconds; none for a core with itself.
pub(super) fn round_trip_ns(cores: [usize; 2]) -> anyhow::Result<f64> {
    if cores[0] == cores[1] {
        return Ok(f64::NAN);
    }
    let line = Arc::new(Line(AtomicU64::new(0)));
    let far = Arc::clone(&line);
    let answering = std::thread::spawn(move || {
        pin(cores[1])?;
        loop {
            match far.0.load(Ordering::Acquire) {
                OVER => return anyhow::Ok(()),
                odd if odd % 2 == 1 => far.0.store(odd + 1, Ordering::Release),
                _ => std::hint::spin_loop(),
            }
        }
    });
    let asking = std::thread::spawn(move || {
        let pinned = pin(cores[0]);
        let (begun, mut turns) = (Instant::now(), 0);
        let mut best_ns = f64::INFINITY;
        while pinned.is_ok() && begun.elapsed() < DURATION {
            let start = Instant::now();
            for turn in turns..turns + TURNS {
                line.0.store(2 * turn + 1, Ordering::Release);
                while line.0.load(Ordering::Acquire) != 2 * turn + 2 {
                    std::hint::spin_loop();
                }
            }
            turns += TURNS;
            best_ns = best_ns.min(start.elapsed().as_nanos() as f64 / TURNS as f64);
        }
        line.0.store(OVER, Ordering::Release);
        pinned.map(|()| best_ns)
    });
    let broken = |_| anyhow!("a thread that looks how near the cores are ended");
    let best_ns = asking.join().map_err(broken)??;
    answering.join().map_err(broken)??;
    Ok(best_ns)
}
