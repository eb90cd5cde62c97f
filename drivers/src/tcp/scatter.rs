//! One receive into two places: the missing part of a frame, and a chunk for what follows it.
//!
//! Comes in: the lane's page, and the two places. Goes out: the request. Promises: the kernel tries it
//! only once the socket is readable, and not before; what it reads about the places lies in that page
//! until the completion.

use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::types::Fd;
use io_uring::{opcode, squeue};

/// `IORING_RECVSEND_POLL_FIRST`: wait until the socket is readable before the first try.
const POLL_FIRST: u16 = 1;

/// What the kernel reads and, in the header, also writes.
#[repr(C)]
struct Scatter {
    places: [libc::iovec; 2],
    header: libc::msghdr,
}

/// Bytes that [`request`] needs in the lane's page.
pub(super) const SCATTER_BYTES: usize = size_of::<Scatter>();

/// The request that fills `first` and then `second`, each an address and a length in bytes.
///
/// # Safety
/// `page` is aligned for pointers, has [`SCATTER_BYTES`], and belongs to this request alone until its
/// completion.
pub(super) unsafe fn request(
    page: *mut u8,
    fd: BorrowedFd<'_>,
    first: (*mut u8, usize),
    second: (*mut u8, usize),
) -> squeue::Entry {
    let scatter = page.cast::<Scatter>();
    // SAFETY: needed because the kernel reads these words later, through their address, and writes
    // into the header; so no reference to them may exist. The caller gives the page to this request.
    let header = unsafe {
        let places = &raw mut (*scatter).places;
        places.write([first, second].map(|(start, len)| libc::iovec {
            iov_base: start.cast(),
            iov_len: len,
        }));
        let header = &raw mut (*scatter).header;
        // All zeros are a header without name, control data and flags.
        header.write_bytes(0, 1);
        (*header).msg_iov = places.cast();
        (*header).msg_iovlen = 2;
        header
    };
    opcode::RecvMsg::new(Fd(fd.as_raw_fd()), header)
        .ioprio(POLL_FIRST)
        .build()
}
