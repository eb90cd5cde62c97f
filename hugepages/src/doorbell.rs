//! How a parked consumer is woken, and a busy one is left alone.
//!
//! In: a flag in shared memory and an eventfd. Out: a wake-up for everything published before
//! [`Doorbell::ring`]. It promises that no wake-up is lost and that the system call is made only
//! when somebody sleeps. A wake-up for nothing may happen; the consumer looks at its rings anyway.
//!
//! ```text
//! consumer                              producer
//!   parked = 1                            publish (Release)
//!   fence(SeqCst)  ---------- one -----   fence(SeqCst)
//!   look at every ring                    if swap(parked, 0) == 1: write the eventfd
//!   empty: wait on the eventfd
//! ```
//!
//! The two fences are the ordering that matters. Whichever comes first in the single order of
//! all SeqCst fences, the other side sees what was written before it: the consumer sees the
//! record, or the producer sees `parked`. Without either fence both may miss.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use thiserror::Error;

use crate::shared_pod::SharedRef;
use crate::sync::{AtomicU32, Ordering, fence};

const AWAKE: u32 = 0;
const PARKED: u32 = 1;

/// "I sleep": written by the consumer, taken by the producer. On a cache line of its own.
#[derive(Debug, Default)]
#[cfg_attr(not(loom), derive(zerocopy::FromBytes))]
#[repr(C, align(64))]
pub struct ParkFlag {
    parked: AtomicU32,
}

// SAFETY: needed by the trait. Sound because it is one atomic word and padding.
#[cfg(not(loom))]
unsafe impl crate::shared_pod::SharedPod for ParkFlag {}

impl ParkFlag {
    /// Consumer: says that it is about to sleep. It must look at its rings after this.
    #[inline]
    fn prepare(&self) {
        self.parked.store(PARKED, Ordering::SeqCst);
        // Partner: the fence in `take`.
        fence(Ordering::SeqCst);
    }

    /// Consumer: awake again. A producer that took the flag meanwhile has rung or will ring;
    /// that wakes the next park for nothing, which is harmless.
    #[inline]
    fn clear(&self) {
        self.parked.store(AWAKE, Ordering::Relaxed);
    }

    /// Producer: true if the consumer sleeps and this caller is the one to wake it.
    #[inline]
    fn take(&self) -> bool {
        // Partner: the fence in `prepare`. It orders the publication before the load.
        fence(Ordering::SeqCst);
        // The load spares a busy consumer's cache line the exclusive access of a swap.
        self.parked.load(Ordering::Relaxed) == PARKED
            && self.parked.swap(AWAKE, Ordering::Relaxed) == PARKED
    }
}

/// Why there is no doorbell, or why it could not be waited on.
#[derive(Debug, Error)]
pub enum DoorbellError {
    /// The descriptor that came from a peer is something else.
    #[error("the descriptor is {found:?}, not an eventfd; let the peer send the one it made")]
    NotEventFd {
        /// What the kernel calls it.
        found: String,
    },
    /// A system call failed.
    #[error("could not {step}: {source}; check the descriptor limit of this process")]
    Os {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: Errno,
    },
}

/// Why a park ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Somebody rang.
    Rung,
    /// The time was up.
    TimedOut,
    /// A signal arrived.
    Interrupted,
}

/// One doorbell: a consumer on one side, one or more producers on the other.
#[derive(Debug)]
pub struct Doorbell {
    flag: SharedRef<ParkFlag>,
    event: OwnedFd,
}

impl Doorbell {
    /// A doorbell inside this process.
    ///
    /// # Errors
    /// [`DoorbellError::Os`].
    pub fn new() -> Result<Self, DoorbellError> {
        Self::with_flag(SharedRef::from(Arc::new(ParkFlag::default())))
    }

    /// A doorbell whose flag lies in a segment; [`Doorbell::fd`] goes to the peer.
    ///
    /// # Errors
    /// [`DoorbellError::Os`].
    pub fn with_flag(flag: SharedRef<ParkFlag>) -> Result<Self, DoorbellError> {
        let event =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|source| {
                DoorbellError::Os {
                    step: "create an eventfd",
                    source,
                }
            })?;
        Ok(Self { flag, event })
    }

    /// A doorbell that a peer made: its flag in the segment and its descriptor.
    ///
    /// # Errors
    /// [`DoorbellError::NotEventFd`] if the descriptor is anything else: writing to it could
    /// block or fill a file.
    pub fn attach(flag: SharedRef<ParkFlag>, event: OwnedFd) -> Result<Self, DoorbellError> {
        let link = format!("/proc/self/fd/{}", event.as_raw_fd());
        let found = fs::read_link(link).map_or_else(
            |error| format!("unknown ({error})"),
            |target| target.to_string_lossy().into_owned(),
        );
        if found != "anon_inode:[eventfd]" {
            return Err(DoorbellError::NotEventFd { found });
        }
        let os = |source| DoorbellError::Os {
            step: "make the eventfd non-blocking",
            source,
        };
        let flags = fcntl_getfl(&event).map_err(os)?;
        fcntl_setfl(&event, flags | OFlags::NONBLOCK).map_err(os)?;
        Ok(Self { flag, event })
    }

    /// Consumer: announces the sleep. Look at every ring after this call; then
    /// [`Doorbell::park`] if all are empty, else [`Doorbell::cancel_park`].
    #[inline]
    pub fn prepare_park(&self) {
        self.flag.prepare();
    }

    /// Consumer: a ring was not empty after all.
    #[inline]
    pub fn cancel_park(&self) {
        self.flag.clear();
    }

    /// Consumer: sleeps until rung, at most `timeout`. Awake and drained when it returns.
    ///
    /// # Errors
    /// [`DoorbellError::Os`].
    pub fn park(&self, timeout: Duration) -> Result<Wake, DoorbellError> {
        // A timeout that the kernel cannot express is as good as none.
        let timeout = Timespec::try_from(timeout).ok();
        let mut fds = [PollFd::new(&self.event, PollFlags::IN)];
        let outcome = poll(&mut fds, timeout.as_ref());
        self.flag.clear();
        match outcome {
            Ok(0) => Ok(Wake::TimedOut),
            Ok(_) => {
                self.drain();
                Ok(Wake::Rung)
            }
            Err(Errno::INTR) => Ok(Wake::Interrupted),
            Err(source) => Err(DoorbellError::Os {
                step: "wait on the eventfd",
                source,
            }),
        }
    }

    /// Consumer: empties the eventfd. For those who wait on [`Doorbell::fd`] by other means.
    pub fn drain(&self) {
        // Nothing to read is fine: the eventfd is non-blocking and says EAGAIN.
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
    }

    /// Producer: wakes the consumer if it sleeps. Call it after publishing. True if it slept.
    #[inline]
    pub fn ring(&self) -> bool {
        let asleep = self.flag.take();
        if asleep {
            self.signal();
        }
        asleep
    }

    #[cold]
    fn signal(&self) {
        // EAGAIN means that the counter is full, hence readable: the consumer wakes anyway. No
        // other failure is possible on a non-blocking eventfd.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// The descriptor that becomes readable when rung: for an epoll set, or for the peer.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn nobody_asleep_no_system_call() {
        let bell = Doorbell::new().unwrap();
        assert!(!bell.ring());
        assert_eq!(bell.park(Duration::ZERO).unwrap(), Wake::TimedOut);
        bell.prepare_park();
        bell.cancel_park();
        assert!(!bell.ring());
    }

    #[test]
    fn one_ring_wakes_once() {
        let bell = Doorbell::new().unwrap();
        bell.prepare_park();
        assert!(bell.ring());
        assert!(!bell.ring(), "the flag is taken by the first");
        assert_eq!(bell.park(LONG).unwrap(), Wake::Rung);
        assert_eq!(bell.park(Duration::ZERO).unwrap(), Wake::TimedOut);
    }

    #[test]
    fn a_descriptor_that_is_no_eventfd_is_refused() {
        let (read_end, _write_end) = rustix::pipe::pipe().unwrap();
        let flag = SharedRef::from(Arc::new(ParkFlag::default()));
        let refused = Doorbell::attach(flag, read_end);
        assert!(matches!(refused, Err(DoorbellError::NotEventFd { .. })));
    }

    #[test]
    fn an_attached_doorbell_wakes_its_maker() {
        let flag = SharedRef::from(Arc::new(ParkFlag::default()));
        let maker = Doorbell::with_flag(flag.clone()).unwrap();
        let peer = Doorbell::attach(flag, maker.fd().try_clone_to_owned().unwrap()).unwrap();
        maker.prepare_park();
        assert!(peer.ring());
        assert_eq!(maker.park(LONG).unwrap(), Wake::Rung);
    }

    #[test]
    fn a_full_eventfd_does_not_block_the_producer() {
        let bell = Doorbell::new().unwrap();
        rustix::io::write(&bell.event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        bell.prepare_park();
        assert!(bell.ring());
        assert_eq!(bell.park(LONG).unwrap(), Wake::Rung);
    }

    /// Every item must be seen although the consumer parks whenever it can; a lost wake-up shows
    /// as a park that ends by time.
    #[test]
    fn no_wake_up_is_lost_between_threads() {
        const ITEMS: u64 = 30_000;
        let bell = Doorbell::new().unwrap();
        let published = AtomicU64::new(0);
        let seen = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for item in 1..=ITEMS {
                    // One at a time, so that each one meets the consumer about to park.
                    while seen.load(Ordering::Acquire) + 1 < item {
                        std::hint::spin_loop();
                    }
                    published.store(item, Ordering::Release);
                    bell.ring();
                }
            });
            while seen.load(Ordering::Relaxed) < ITEMS {
                bell.prepare_park();
                let now = published.load(Ordering::Acquire);
                if now > seen.load(Ordering::Relaxed) {
                    bell.cancel_park();
                    seen.store(now, Ordering::Release);
                    continue;
                }
                assert_ne!(bell.park(LONG).unwrap(), Wake::TimedOut, "lost at {now}");
            }
        });
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::AtomicU64;
    use loom::sync::{Arc, Condvar, Mutex};

    /// An eventfd as loom can see it: a count that a sleeper waits for.
    #[derive(Default)]
    struct ModelEvent {
        count: Mutex<u64>,
        changed: Condvar,
    }

    impl ModelEvent {
        fn write(&self) {
            *self.count.lock().unwrap() += 1;
            self.changed.notify_one();
        }

        fn wait_and_drain(&self) {
            let mut count = self.count.lock().unwrap();
            while *count == 0 {
                count = self.changed.wait(count).unwrap();
            }
            *count = 0;
        }
    }

    #[derive(Default)]
    struct Scene {
        flag: ParkFlag,
        event: ModelEvent,
        published: AtomicU64,
    }

    /// A consumer that sleeps without a timeout until it has seen all items. A lost wake-up leaves
    /// it asleep for ever, which loom reports as a deadlock.
    fn consume(scene: &Scene, items: u64, prepare: impl Fn(&ParkFlag)) {
        let mut seen = 0;
        while seen < items {
            prepare(&scene.flag);
            let now = scene.published.load(Ordering::Acquire);
            if now > seen {
                scene.flag.clear();
                seen = now;
                continue;
            }
            scene.event.wait_and_drain();
            scene.flag.clear();
        }
    }

    fn model(prepare: impl Fn(&ParkFlag) + Copy + Send + Sync + 'static) {
        const ITEMS: u64 = 2;
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(move || {
            let scene = Arc::new(Scene::default());
            let producer = {
                let scene = Arc::clone(&scene);
                loom::thread::spawn(move || {
                    for item in 1..=ITEMS {
                        scene.published.store(item, Ordering::Release);
                        if scene.flag.take() {
                            scene.event.write();
                        }
                    }
                })
            };
            consume(&scene, ITEMS, prepare);
            producer.join().unwrap();
        });
    }

    #[test]
    fn loom_doorbell_loses_no_wake_up() {
        model(ParkFlag::prepare);
    }

    /// The model must be able to fail: without the consumer's fence it finds the lost wake-up.
    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_doorbell_without_fence_is_caught() {
        model(|flag| flag.parked.store(PARKED, Ordering::Release));
    }
}
