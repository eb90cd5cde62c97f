//! What a worker sleeps on while its lanes wait: arrivals, buffers that come back, and the time.
//!
//! Comes in: the port's descriptor if it has one, and when the next timer is due. Goes out: one
//! descriptor that is readable when any of them is. Promises: no system call while nobody parks.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::wake::Waker;

/// How long a worker sleeps at most when its port can only be polled.
const POLLED_NS: u64 = 500_000;

/// One group's sleep.
pub(super) struct Parking {
    epoll: OwnedFd,
    timer: OwnedFd,
    waker: Arc<Waker>,
    polled: bool,
    armed: bool,
}

impl Parking {
    pub(super) fn new(port: Option<BorrowedFd<'_>>) -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let waker = Arc::new(Waker::new()?);
        let watch = |fd: BorrowedFd<'_>| {
            epoll::add(
                &epoll,
                fd,
                epoll::EventData::new_u64(0),
                epoll::EventFlags::IN,
            )
        };
        watch(timer.as_fd())?;
        watch(waker.as_fd())?;
        if let Some(port) = port {
            watch(port)?;
        }
        Ok(Self {
            timer,
            waker,
            polled: port.is_none(),
            armed: false,
            epoll,
        })
    }

    /// Rung by buffers that come back.
    pub(super) fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Forgets rings so far. What happens from now on makes the descriptor readable.
    pub(super) fn clear(&mut self) {
        self.waker.clear();
    }

    /// Makes the descriptor readable in `wait_ns`. False: the kernel refused, so do not sleep.
    pub(super) fn arm(&mut self, wait_ns: u64) -> bool {
        let wait_ns = if self.polled {
            wait_ns.min(POLLED_NS)
        } else {
            wait_ns
        };
        self.armed = true;
        self.set(Duration::from_nanos(wait_ns.max(1)))
    }

    /// The worker is awake.
    pub(super) fn disarm(&mut self) {
        if self.armed {
            self.armed = false;
            // Refused only for a bad time, which zero is not.
            self.set(Duration::ZERO);
        }
    }

    fn set(&self, wait: Duration) -> bool {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let time = Itimerspec {
            it_interval: zero,
            it_value: Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time).is_ok()
    }
}
