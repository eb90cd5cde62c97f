//! Once datagrams flow, they cost no allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dwcp_drivers::dpdk::device::MemifRole;

use crate::scene::{Other, PATIENCE, Side, given_socket, host, memif, plan, role};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: needed to count; everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn datagrams_cost_no_allocation() {
    if role().is_some() {
        let device = memif(&given_socket(), MemifRole::Client);
        return Side::open(&device, &plan(), 2).echo();
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("memif.sock");
    let mut near = Side::open(&memif(&socket, MemifRole::Server), &plan(), 1);
    let test = "steady_state::datagrams_cost_no_allocation";
    let mut other = Other::start(test, "echo", &socket);
    let payload = [7; 4000];
    let mut exchange = |times: u16| {
        for _ in 0..times {
            for six in [false, true] {
                assert!(near.ask(host(2, six), &payload, PATIENCE));
            }
        }
    };
    exchange(10);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    exchange(500);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
    near.ask(host(2, false), b"end", Duration::from_secs(1));
    assert!(other.wait().success());
}
