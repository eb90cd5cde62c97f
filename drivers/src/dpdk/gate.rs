//! Keeps a device from being stopped under a worker's hands.
//!
//! Comes in: workers before and after each burst; the cold side before it stops a device. Goes out:
//! whether a burst may be done. Promises: between [`Gate::close`] and [`Gate::open`] no worker is
//! inside a burst; a worker never waits.
//!
//! DPDK swaps a port's burst functions and their queues in several steps when it starts or stops a
//! port, so a burst in between calls one with the other's data.

use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::utils::CachePadded;

/// One gate per port, with a lane through it for each queue.
#[derive(Debug)]
pub(super) struct Gate {
    open: AtomicBool,
    inside: Box<[CachePadded<AtomicBool>]>,
}

/// A worker inside; leaves when dropped.
pub(super) struct Pass<'a>(&'a AtomicBool);

impl Gate {
    /// A closed gate for this many queues.
    pub(super) fn new(queues: u16) -> Self {
        Self {
            open: AtomicBool::new(false),
            inside: (0..queues).map(|_| CachePadded::default()).collect(),
        }
    }

    /// Lets the worker of `queue` in; none while the gate is closed.
    #[inline]
    pub(super) fn enter(&self, queue: u16) -> Option<Pass<'_>> {
        let inside = self.inside.get(usize::from(queue))?;
        // Sequentially consistent with the store and load in `close`: of a worker that enters and
        // a side that closes, at least one sees the other.
        inside.store(true, Ordering::SeqCst);
        let pass = Pass(inside);
        self.open.load(Ordering::SeqCst).then_some(pass)
    }

    /// Closes the gate and waits until all are outside: a burst is over in microseconds.
    pub(super) fn close(&self) {
        self.open.store(false, Ordering::SeqCst);
        for inside in &self.inside {
            while inside.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        }
    }

    /// Opens the gate.
    pub(super) fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}

impl Drop for Pass<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release, read by `close`: the burst is over before the cold side goes on.
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn nobody_is_inside_while_it_is_closed() {
        let gate = Gate::new(2);
        let (stopped, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let bursts = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for queue in 0..2 {
                let (gate, stopped, stop, bursts) = (&gate, &stopped, &stop, &bursts);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        if let Some(_pass) = gate.enter(queue) {
                            assert!(!stopped.load(Ordering::Relaxed), "in a stopped device");
                            bursts.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            for _ in 0..500 {
                gate.open();
                let before = bursts.load(Ordering::Relaxed);
                while bursts.load(Ordering::Relaxed) < before + 3 {
                    std::thread::yield_now();
                }
                gate.close();
                stopped.store(true, Ordering::Relaxed);
                std::thread::yield_now();
                stopped.store(false, Ordering::Relaxed);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
