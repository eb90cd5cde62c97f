//! Keeps a device from being taken apart under a worker's hands.
//!
//! Comes in: workers before and after each burst; whoever takes a device apart, before it does. Goes
//! out: whether a burst may be done. Promises: between [`Gate::close`] and [`Gate::open`] no worker is
//! inside a burst; no worker that was inside when memif's driver gave its rings up is inside when they
//! are unmapped; a worker never waits.
//!
//! Two things take a device apart. Starting and stopping a port: DPDK swaps its burst functions and
//! their queues in several steps, so a burst in between calls one with the other's data. And a memif
//! peer that leaves: a thread of DPDK's marks the rings as gone, and unmaps them though a worker that
//! came before the mark may still read them. Between the two steps the driver unregisters its socket;
//! the shim stands in front of that function and calls [`before_unmapping`].

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};

use crossbeam::utils::CachePadded;

/// All gates of this process.
static GATES: Mutex<Vec<Weak<Gate>>> = Mutex::new(Vec::new());
static WAITED: AtomicU64 = AtomicU64::new(0);

/// How often workers were waited for before memif's rings were unmapped.
#[must_use]
pub fn waited_before_unmapping() -> u64 {
    WAITED.load(Ordering::Relaxed)
}

/// One gate per port, with a way through it for each queue.
#[derive(Debug)]
pub(super) struct Gate {
    open: AtomicBool,
    /// Odd while the worker is inside.
    turns: Box<[CachePadded<AtomicU32>]>,
}

/// A worker inside; leaves when dropped.
pub(super) struct Pass<'a> {
    turns: &'a AtomicU32,
    inside: u32,
}

impl Gate {
    /// A closed gate for this many queues.
    pub(super) fn new(queues: u16) -> Arc<Self> {
        static SHIM: Once = Once::new();
        // SAFETY: needed so that the shim calls us; the function may be called from any thread at any
        // time, and lives for ever.
        SHIM.call_once(|| unsafe { dpdk_sys::dwcp_shim_before_unregister(Some(before_unmapping)) });
        let gate = Arc::new(Self {
            open: AtomicBool::new(false),
            turns: (0..queues).map(|_| CachePadded::default()).collect(),
        });
        let mut gates = GATES.lock().unwrap_or_else(PoisonError::into_inner);
        gates.retain(|gate| gate.strong_count() > 0);
        gates.push(Arc::downgrade(&gate));
        gate
    }

    /// Lets the worker of `queue` in; none while the gate is closed.
    #[inline]
    pub(super) fn enter(&self, queue: u16) -> Option<Pass<'_>> {
        let turns: &AtomicU32 = self.turns.get(usize::from(queue))?;
        // Only this worker writes it.
        let inside = turns.load(Ordering::Relaxed).wrapping_add(1);
        turns.store(inside, Ordering::Relaxed);
        // With the fence in `wait`: of a worker that enters and a side that has closed the gate or
        // marked the rings, at least one sees the other. It orders the driver's own reads too.
        fence(Ordering::SeqCst);
        let pass = Pass { turns, inside };
        self.open.load(Ordering::Relaxed).then_some(pass)
    }

    /// Closes the gate and waits until all are outside: a burst is over in microseconds.
    pub(super) fn close(&self) {
        self.open.store(false, Ordering::Relaxed);
        self.wait();
    }

    /// Opens the gate.
    pub(super) fn open(&self) {
        // Release, for what was done to the device while it was closed; a worker that goes in reads
        // the device's state behind its own fence.
        self.open.store(true, Ordering::Release);
    }

    /// Waits until each worker that is inside has left once.
    fn wait(&self) {
        fence(Ordering::SeqCst);
        for turns in &self.turns {
            let seen = turns.load(Ordering::Acquire);
            // Acquire, of the store in `Pass::drop`: its burst is over.
            while seen % 2 == 1 && turns.load(Ordering::Acquire) == seen {
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for Pass<'_> {
    #[inline]
    fn drop(&mut self) {
        self.turns
            .store(self.inside.wrapping_add(1), Ordering::Release);
    }
}

/// Called by the shim, from DPDK's own thread or from one that stops a port.
extern "C" fn before_unmapping() {
    let gates = GATES.lock().unwrap_or_else(PoisonError::into_inner);
    for gate in gates.iter().filter_map(Weak::upgrade) {
        gate.wait();
    }
    WAITED.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// As memif's driver does it: a mark, a wait, and what the mark protected is gone.
    #[test]
    fn who_came_before_the_mark_has_left_when_the_rings_go() {
        let gate = Gate::new(1);
        gate.open();
        let (marked, gone) = (AtomicBool::new(false), AtomicBool::new(false));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if let Some(_pass) = gate.enter(0)
                        && !marked.load(Ordering::Acquire)
                    {
                        assert!(!gone.load(Ordering::Relaxed), "reads what is unmapped");
                    }
                }
            });
            for _ in 0..2000 {
                marked.store(true, Ordering::Relaxed);
                before_unmapping();
                gone.store(true, Ordering::Relaxed);
                std::hint::spin_loop();
                gone.store(false, Ordering::Relaxed);
                marked.store(false, Ordering::Release);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
