//! Lets a thread answer soon on a core that it shares.
//!
//! In: the calling thread. Out: shorter turns for it, and for threads that it starts later. Promises: its share of the
//! core stays as it was, and no privilege is needed; a thread of another policy than the ordinary one is left alone.
//! Linux 6.12 and newer let a thread that wakes with short turns interrupt one with long turns; older ones take the
//! wish and change nothing.

use std::io;

/// The shortest turn that the kernel grants.
const SLICE_NS: u64 = 100_000;

/// Asks for short turns for the calling thread.
///
/// # Errors
/// What the system says, where it forbids the call.
pub fn shorten() -> io::Result<()> {
    let mut attr = own()?;
    if attr.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attr.sched_runtime = SLICE_NS;
    // SAFETY: no wrapper exists for this system call. The kernel reads `size` bytes of a structure that lives until
    // the call returns, and changes the calling thread only (0).
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })
}

/// What holds for the calling thread now: its niceness, for one, is set along with the slice.
fn own() -> io::Result<libc::sched_attr> {
    let size = size_of::<libc::sched_attr>() as u32;
    let mut attr = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: no wrapper exists for this system call. The kernel writes at most `size` bytes, the size of the
    // structure, which is only ours.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) })?;
    Ok(attr)
}

fn check(answer: libc::c_long) -> io::Result<()> {
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_get_short_and_nothing_else_changes() {
        let before = own().unwrap();
        shorten().unwrap();
        let after = own().unwrap();
        assert_eq!(after.sched_nice, before.sched_nice);
        assert_eq!(after.sched_policy, before.sched_policy);
        // What an older kernel tells is no slice.
        assert!(after.sched_runtime == SLICE_NS || before.sched_runtime == 0);
        let started = std::thread::spawn(|| own().unwrap().sched_runtime);
        assert_eq!(started.join().unwrap(), after.sched_runtime);
    }
}
