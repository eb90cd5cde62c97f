//! Perf events of one thread: how they are asked for.
//!
//! In: a thread and what is to be counted or sampled. Out: the event's descriptor, or the system's error.
//! Promise: nothing is asked of the thread itself; it runs the same code, with or without us.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use perf_event_open_sys::bindings::{
    PERF_COUNT_HW_CPU_CYCLES, PERF_COUNT_SW_CPU_CLOCK, PERF_FLAG_FD_CLOEXEC, PERF_REG_X86_BP,
    PERF_REG_X86_IP, PERF_REG_X86_SP, PERF_SAMPLE_CALLCHAIN, PERF_SAMPLE_REGS_USER,
    PERF_SAMPLE_STACK_USER, PERF_SAMPLE_TID, PERF_TYPE_HARDWARE, PERF_TYPE_SOFTWARE,
    perf_event_attr,
};
use perf_event_open_sys::{ioctls, perf_event_open};
use serde::Serialize;

/// Bytes of a thread's stack that come with each sample: deeper than a worker's deepest call by far.
pub(super) const STACK_BYTES: u32 = 16 << 10;

/// What drives the samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// The processor's own counter of cycles.
    Cycles,
    /// A timer of the kernel, while the thread runs: where the machine shows no counter, as in most
    /// virtual machines.
    CpuClock,
}

impl Clock {
    /// For people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cycles => "the processor's cycles",
            Self::CpuClock => "the kernel's processor clock",
        }
    }
}

/// How a thread is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sampling {
    pub(super) clock: Clock,
    /// The kernel's own functions are seen too.
    pub(super) kernel: bool,
    /// Samples a second of running time.
    pub(super) hz: u64,
}

impl Sampling {
    fn attr(self) -> perf_event_attr {
        let mut attr = perf_event_attr::default();
        (attr.type_, attr.config) = match self.clock {
            Clock::Cycles => (PERF_TYPE_HARDWARE, u64::from(PERF_COUNT_HW_CPU_CYCLES)),
            Clock::CpuClock => (PERF_TYPE_SOFTWARE, u64::from(PERF_COUNT_SW_CPU_CLOCK)),
        };
        attr.set_freq(1);
        attr.sample_freq = self.hz;
        attr.sample_type = u64::from(
            PERF_SAMPLE_TID
                | PERF_SAMPLE_CALLCHAIN
                | PERF_SAMPLE_REGS_USER
                | PERF_SAMPLE_STACK_USER,
        );
        attr.sample_regs_user =
            (1 << PERF_REG_X86_BP) | (1 << PERF_REG_X86_SP) | (1 << PERF_REG_X86_IP);
        attr.sample_stack_user = STACK_BYTES;
        // Our own unwinding finds more than the kernel's, which needs frame pointers everywhere.
        attr.set_exclude_callchain_user(1);
        attr.set_exclude_kernel(u64::from(!self.kernel));
        attr
    }

    /// Opens the event on a thread, not yet running.
    pub(super) fn open(self, thread: u32) -> io::Result<OwnedFd> {
        open(self.attr(), thread)
    }
}

/// Opens an event on a thread, not yet running.
pub(super) fn open(mut attr: perf_event_attr, thread: u32) -> io::Result<OwnedFd> {
    attr.size = u32::try_from(size_of::<perf_event_attr>()).unwrap_or(u32::MAX);
    attr.set_disabled(1);
    attr.set_exclude_hv(1);
    let thread = i32::try_from(thread).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    let (any_processor, no_group) = (-1, -1);
    // SAFETY: needed because the standard library has no such call. Sound because `attr` is a whole
    // structure that tells its size, and lives until the call returns; counting and sampling change
    // nothing in the thread's memory.
    let fd = unsafe {
        perf_event_open(
            &raw mut attr,
            thread,
            any_processor,
            no_group,
            u64::from(PERF_FLAG_FD_CLOEXEC),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: needed to own what the call returned. Sound because it is a new descriptor of ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Starts an event or stops it.
pub(super) fn set_running(event: &OwnedFd, running: bool) -> io::Result<()> {
    let event = event.as_raw_fd();
    // SAFETY: needed because the standard library has no ioctl. Sound because these two take a number and
    // touch no memory of ours.
    let outcome = unsafe {
        if running {
            ioctls::ENABLE(event, 0)
        } else {
            ioctls::DISABLE(event, 0)
        }
    };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The threads of a process with their names.
pub(super) fn threads(pid: u32) -> io::Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        let Some(thread) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // One that ends meanwhile has nothing to show.
        if let Ok(name) = fs::read_to_string(entry.path().join("comm")) {
            found.push((thread, name.trim_end().to_owned()));
        }
    }
    found.sort_unstable();
    Ok(found)
}
