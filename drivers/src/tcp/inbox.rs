//! One lane's receive side: the memory that the kernel fills, and the stream cut from it.
//!
//! Comes in: completions of receive requests. Goes out: whole frames, and the next request.
//! Promises: a lane holds its own chunks and at most one frame buffer, so one that is starved or
//! slow takes nothing from the others; while it holds all its chunks nothing more is read, and TCP
//! tells the peer.
//!
//! Two ways of receiving. Multishot: one request fills chunk after chunk from the lane's buffer
//! ring, until all are full. Single shot: one request per arrival, and the long rest of a frame goes
//! straight into the frame's buffer.
//!
//! The kernel calls a socket readable when it holds as many bytes as are wanted: all of a long rest,
//! so that it is one wake-up and one completion, else a single byte. That number is set anew for
//! every request, also when less than it came (the kernel hands over early when its memory is
//! short, and at the end of the stream): a number above what is still to come would wait for ever.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{cqueue, opcode, squeue};

use super::reassembly::{Reassembler, Step};
use super::ring::{Op, user_data};
use super::scatter::{self, SCATTER_BYTES};
use super::socket;
use crate::frame::{FramePools, Relief};
use crate::lane::{LaneClosed, LaneEvent, LaneId};

/// Chunks of one lane; a power of two, as the kernel wants it for its ring.
pub(super) const CHUNKS: u16 = 4;
/// Bytes of a chunk.
pub(super) const CHUNK_BYTES: usize = 64 << 10;
/// The page in front of the chunks: the buffer ring, or what a receive into two places is told by.
pub(super) const RING_BYTES: usize = 4096;
const _: () = assert!(SCATTER_BYTES <= RING_BYTES);
/// All memory of one lane's receive side.
pub(super) const INBOX_BYTES: usize = RING_BYTES + CHUNKS as usize * CHUNK_BYTES;
/// A rest shorter than this is read along with what follows it.
const DIRECT_BYTES_MIN: usize = 16 << 10;
/// Read behind the rest of a frame: the next one's length, so that a stream of long frames is one
/// receive each. Short, for it is copied once more.
const BEHIND_BYTES: usize = 4 << 10;

/// Bytes that were received and not cut yet.
struct Received {
    chunk: u16,
    start: usize,
    end: usize,
}

/// Why the stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Peer,
    Errno(i32),
}

/// What [`Inbox::cut`] stopped at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// Nothing is left.
    Empty,
    /// The caller has no room for more frames.
    NoRoom,
    /// The pools are empty; look again after [`FramePools::relieved`].
    Starved(Relief),
    /// The stream has ended, and all of it was cut.
    Ended(LaneClosed),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Armed {
    No,
    /// Into a chunk or chunks.
    Chunks,
    /// Straight into the frame, which lacks this many bytes, and what follows into a chunk.
    Direct {
        missing_bytes: usize,
    },
}

pub(super) struct Inbox {
    /// The lane's memory: `RING_BYTES`, then the chunks. Owned by the group.
    base: *mut u8,
    multishot: bool,
    armed: Armed,
    /// How many bytes make the socket readable, as far as we set it; 0 before.
    readable_bytes: usize,
    received: VecDeque<Received>,
    /// What the buffer ring's tail is, as far as we wrote it.
    tail: u16,
    /// Chunks that the kernel may fill.
    lent: u16,
    reassembler: Reassembler,
    end: Option<End>,
    pub(super) received_bytes: u64,
}

impl Inbox {
    /// Over `base`, which is `INBOX_BYTES` long, page-aligned and this lane's alone until the last
    /// request completed. For multishot the caller registers it as the lane's buffer ring.
    pub(super) fn new(base: *mut u8, multishot: bool) -> Self {
        let mut inbox = Self {
            base,
            multishot,
            armed: Armed::No,
            readable_bytes: 0,
            received: VecDeque::with_capacity(CHUNKS as usize),
            tail: 0,
            lent: 0,
            reassembler: Reassembler::new(),
            end: None,
            received_bytes: 0,
        };
        if multishot {
            inbox.tail_word().store(0, Ordering::Relaxed);
            for chunk in 0..CHUNKS {
                inbox.lend(chunk);
            }
        }
        inbox
    }

    pub(super) fn armed(&self) -> bool {
        self.armed != Armed::No
    }

    /// Whether the peer ended its side between two frames, and all of them were cut.
    pub(super) fn finished(&self) -> bool {
        self.end == Some(End::Peer) && self.received.is_empty() && !self.reassembler.mid_frame()
    }

    fn chunk(&self, chunk: u16) -> *mut u8 {
        // SAFETY: needed to compute an address in the lane's memory; `chunk` is below `CHUNKS`.
        unsafe {
            self.base
                .add(RING_BYTES + usize::from(chunk % CHUNKS) * CHUNK_BYTES)
        }
    }

    fn tail_word(&self) -> &AtomicU16 {
        // SAFETY: needed to write what the kernel reads at the same time. The tail lies in the
        // first entry of the page-aligned ring, is two-byte aligned, and only we write it.
        unsafe {
            AtomicU16::from_ptr(
                BufRingEntry::tail(self.base.cast::<BufRingEntry>().cast_const()).cast_mut(),
            )
        }
    }

    /// Gives a chunk to the kernel.
    fn lend(&mut self, chunk: u16) {
        let at = usize::from(self.tail % CHUNKS);
        // SAFETY: needed to write an entry of the kernel's buffer ring. The entry lies in the
        // lane's first page; the kernel does not read it before the tail passes it, and the tail
        // cannot lap it, for there are as many entries as chunks.
        unsafe {
            let entry = &mut *self.base.cast::<BufRingEntry>().add(at);
            entry.set_addr(self.chunk(chunk) as u64);
            entry.set_len(CHUNK_BYTES as u32);
            entry.set_bid(chunk);
        }
        self.tail = self.tail.wrapping_add(1);
        self.lent += 1;
        // Release: the kernel, which loads the tail with acquire, sees the entry.
        self.tail_word().store(self.tail, Ordering::Release);
    }

    /// The next request, if there is one to make.
    ///
    /// # Errors
    /// The kernel's, when it does not take the number of bytes to wait for.
    pub(super) fn request(
        &mut self,
        lane: LaneId,
        fd: BorrowedFd<'_>,
    ) -> io::Result<Option<squeue::Entry>> {
        let nowhere = if self.multishot {
            self.lent == 0
        } else {
            !self.received.is_empty()
        };
        if self.armed() || self.end.is_some() || nowhere {
            return Ok(None);
        }
        let rest = self
            .reassembler
            .missing()
            .filter(|rest| rest.len() >= DIRECT_BYTES_MIN)
            .map(|rest| (rest.as_mut_ptr(), rest.len()));
        let (request, armed) = match rest {
            _ if self.multishot => {
                self.readable_at(fd, 1)?;
                let recv = opcode::RecvMulti::new(Fd(fd.as_raw_fd()), group_of(lane));
                (recv.build(), Armed::Chunks)
            }
            Some((start, missing_bytes)) => {
                self.readable_at(fd, missing_bytes)?;
                let behind = (self.chunk(0), BEHIND_BYTES);
                // SAFETY: the page is the lane's, page-aligned and long enough; without multishot
                // only such requests use it, and there is one request at a time.
                let recv =
                    unsafe { scatter::request(self.base, fd, (start, missing_bytes), behind) };
                (recv, Armed::Direct { missing_bytes })
            }
            None => {
                self.readable_at(fd, 1)?;
                let len = CHUNK_BYTES as u32;
                let recv = opcode::Recv::new(Fd(fd.as_raw_fd()), self.chunk(0), len);
                (recv.build(), Armed::Chunks)
            }
        };
        self.armed = armed;
        Ok(Some(request.user_data(user_data(lane, Op::Recv))))
    }

    /// Has the socket readable from this many bytes on, at the cost of a system call if that is new.
    fn readable_at(&mut self, fd: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
        if self.readable_bytes != bytes {
            socket::readable_at(fd, bytes)?;
            self.readable_bytes = bytes;
        }
        Ok(())
    }

    /// The request of the last [`Inbox::request`] did not reach the kernel.
    pub(super) fn not_requested(&mut self) {
        self.armed = Armed::No;
    }

    /// Takes a completion of the request. True when the request is over.
    pub(super) fn completed(&mut self, result: i32, flags: u32) -> bool {
        let how = self.armed;
        let over = !cqueue::more(flags);
        if over {
            self.armed = Armed::No;
        }
        let chunk = cqueue::buffer_select(flags);
        let Ok(bytes) = usize::try_from(result) else {
            match -result {
                // Chunks ran out, or the kernel wants to be asked again.
                libc::ENOBUFS | libc::EAGAIN | libc::EINTR => {}
                errno => self.end = Some(End::Errno(errno)),
            }
            return over;
        };
        self.received_bytes += bytes as u64;
        if bytes == 0 {
            self.end = Some(End::Peer);
        }
        match (how, chunk) {
            (Armed::Direct { missing_bytes }, _) => {
                self.reassembler.filled(bytes.min(missing_bytes));
                if bytes > missing_bytes {
                    self.received.push_back(Received {
                        chunk: 0,
                        start: 0,
                        end: bytes - missing_bytes,
                    });
                }
            }
            (_, Some(chunk)) => {
                self.lent = self.lent.saturating_sub(1);
                if bytes == 0 {
                    self.lend(chunk);
                } else {
                    self.received.push_back(Received {
                        chunk,
                        start: 0,
                        end: bytes,
                    });
                }
            }
            (_, None) if bytes > 0 => {
                self.received.push_back(Received {
                    chunk: 0,
                    start: 0,
                    end: bytes,
                });
            }
            (_, None) => {}
        }
        over
    }

    /// Cuts what was received into at most `room` frames and pushes them to `out`.
    pub(super) fn cut(
        &mut self,
        lane: LaneId,
        pools: &FramePools,
        room: &mut usize,
        out: &mut Vec<LaneEvent>,
    ) -> Cut {
        // The kernel may be writing into the frame.
        if matches!(self.armed, Armed::Direct { .. }) {
            return Cut::Empty;
        }
        loop {
            let (chunk, start, end) = match self.received.front() {
                Some(front) => (front.chunk, front.start, front.end.min(CHUNK_BYTES)),
                None => (0, 0, 0),
            };
            // SAFETY: needed to read what the kernel wrote. The kernel said that it filled the
            // chunk up to `end`, which is within it, and does not touch it until it is lent again.
            let mut input =
                unsafe { std::slice::from_raw_parts(self.chunk(chunk).add(start), end - start) };
            if *room == 0 && (!input.is_empty() || self.reassembler.complete()) {
                return Cut::NoRoom;
            }
            let mut starving_since = None;
            let mut step = self.reassembler.step(&mut input, pools);
            if matches!(step, Ok(Step::NoBuffer)) {
                // Once more after saying that we starve: a buffer that came back before that woke
                // nobody.
                starving_since = Some(pools.starve());
                step = self.reassembler.step(&mut input, pools);
            }
            let taken = end - start - input.len();
            if let Some(front) = self.received.front_mut() {
                front.start += taken;
                if front.start >= end {
                    let done = front.chunk;
                    self.received.pop_front();
                    if self.multishot {
                        self.lend(done);
                    }
                }
            }
            match step {
                Err(reason) => return Cut::Ended(reason),
                Ok(Step::Frame(frame)) => {
                    *room = room.saturating_sub(1);
                    out.push(LaneEvent::Frame { lane, frame });
                }
                Ok(Step::NoBuffer) => {
                    return Cut::Starved(starving_since.unwrap_or_else(|| pools.starve()));
                }
                Ok(Step::NeedInput) if !self.received.is_empty() => {}
                Ok(Step::NeedInput) => return self.at_end(),
            }
        }
    }

    fn at_end(&self) -> Cut {
        match self.end {
            None => Cut::Empty,
            Some(End::Errno(errno)) => Cut::Ended(LaneClosed::Failed { errno }),
            Some(End::Peer) if self.reassembler.mid_frame() => Cut::Ended(LaneClosed::Truncated),
            Some(End::Peer) => Cut::Ended(LaneClosed::Finished),
        }
    }
}

/// The number of a lane's buffer ring: its slot.
pub(super) fn group_of(lane: LaneId) -> u16 {
    crate::slots::slot_of(lane) as u16
}
