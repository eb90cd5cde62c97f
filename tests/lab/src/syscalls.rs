//! System calls of one thread, counted by the kernel at full speed.
//!
//! In: the thread that asks. Out: how many calls it made between two looks. Promises: a look does not
//! count itself; a machine that does not count is an error that names the cure, never a zero.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::FromRawFd;

use perf_event_open_sys::bindings::{PERF_FLAG_FD_CLOEXEC, PERF_TYPE_TRACEPOINT, perf_event_attr};
use perf_event_open_sys::perf_event_open;

/// Where the kernel tells the number of the tracepoint that every system call passes.
const TRACEPOINTS: [&str; 2] = [
    "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id",
    "/sys/kernel/debug/tracing/events/raw_syscalls/sys_enter/id",
];

/// Why system calls cannot be counted here.
#[derive(Debug, thiserror::Error)]
pub enum SyscallsError {
    /// There is no tracefs, or it may not be read.
    #[error(
        "no tracepoint for system calls: run as root, with tracefs mounted \
         (mount -t tracefs nodev /sys/kernel/tracing)"
    )]
    NoTracepoint,
    /// The kernel does not count for this process.
    #[error(
        "the kernel does not count system calls ({0}): run as root or with CAP_PERFMON, and not \
         inside a container that forbids perf events"
    )]
    Refused(#[source] io::Error),
}

/// Counts the calls of the thread that made it.
pub struct SyscallCounter {
    event: File,
    seen: u64,
}

impl SyscallCounter {
    /// Counts from now on.
    pub fn of_this_thread() -> Result<Self, SyscallsError> {
        let id = TRACEPOINTS
            .iter()
            .find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
            .ok_or(SyscallsError::NoTracepoint)?;
        let mut attr = perf_event_attr {
            type_: PERF_TYPE_TRACEPOINT,
            config: id,
            size: u32::try_from(size_of::<perf_event_attr>()).unwrap_or(u32::MAX),
            ..perf_event_attr::default()
        };
        let (this_thread, any_processor, no_group) = (0, -1, -1);
        // SAFETY: needed because the standard library has no such call. Sound because `attr` is a
        // whole structure that tells its size and lives until the call returns; counting changes
        // nothing in the thread's memory.
        let fd = unsafe {
            perf_event_open(
                &raw mut attr,
                this_thread,
                any_processor,
                no_group,
                u64::from(PERF_FLAG_FD_CLOEXEC),
            )
        };
        if fd < 0 {
            return Err(SyscallsError::Refused(io::Error::last_os_error()));
        }
        // SAFETY: needed to own what the call returned. Sound because it is a new descriptor of ours.
        let event = unsafe { File::from_raw_fd(fd) };
        let mut counter = Self { event, seen: 0 };
        counter.since_last_look()?;
        Ok(counter)
    }

    /// How many calls the thread made since the last look, this one not counted. Only the thread
    /// itself may look.
    pub fn since_last_look(&mut self) -> Result<u64, SyscallsError> {
        let mut bytes = [0; 8];
        self.event
            .read_exact(&mut bytes)
            .map_err(SyscallsError::Refused)?;
        let now = u64::from_ne_bytes(bytes);
        let calls = now - self.seen;
        self.seen = now;
        // The kernel counts a call as it is entered, so a look sees itself.
        Ok(calls.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_of_this_thread_and_no_other_is_counted() {
        let mut counter = SyscallCounter::of_this_thread().unwrap();
        assert_eq!(counter.since_last_look().unwrap(), 0);
        for calls in [1, 7, 1000] {
            for _ in 0..calls {
                // SAFETY: needed for a call that no library answers by itself; it takes nothing.
                unsafe { libc::syscall(libc::SYS_getppid) };
            }
            assert_eq!(counter.since_last_look().unwrap(), calls);
        }
        let (mut started, mut ended) = (0, 0);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                for _ in 0..100_000 {
                    // SAFETY: as above.
                    unsafe { libc::syscall(libc::SYS_getppid) };
                }
            });
            started = counter.since_last_look().unwrap();
            let _ = other.join();
            ended = counter.since_last_look().unwrap();
        });
        // Starting a thread and waiting for it are calls too, but few.
        assert!(started + ended < 1000, "{started} and {ended}");
    }
}
