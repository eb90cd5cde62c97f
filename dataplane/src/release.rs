//! Verified bytes to a hypervisor's connection.
//!
//! In: frames whose digest agreed, with the range of raw bytes in each. Out: the same bytes, in order,
//! on a non-blocking stream socket. Promises: what is queued is bounded by the sender's credit; a
//! hypervisor that stops reading for good makes us discard, never block: its own answer tells the other
//! end.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use dwcp_drivers::frame::Frame;

/// Frames gathered into one write.
const GATHER_MAX: usize = 16;

#[derive(Debug)]
struct Piece {
    frame: Frame,
    range: Range<usize>,
}

/// One connection's outgoing side.
#[derive(Debug)]
pub struct Release {
    queue: VecDeque<Piece>,
    queued_bytes: usize,
    delivered_bytes: u64,
    end: bool,
    discarding: bool,
}

/// What writing achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrote {
    /// Bytes the hypervisor took, or that were discarded because it reads no more.
    pub bytes: usize,
    /// The socket is full.
    pub blocked: bool,
}

impl Default for Release {
    fn default() -> Self {
        Self::new()
    }
}

impl Release {
    /// The outgoing side of a connection, at its first byte.
    #[must_use]
    pub fn new() -> Self {
        Self {
            queue: VecDeque::with_capacity(crate::transport::MAX_IN_FLIGHT),
            queued_bytes: 0,
            delivered_bytes: 0,
            end: false,
            discarding: false,
        }
    }

    /// Queues `range` of a frame's bytes; a range outside the frame queues nothing.
    pub fn push(&mut self, frame: Frame, range: Range<usize>) {
        let bytes = frame.bytes().get(range.clone()).map_or(0, <[u8]>::len);
        if bytes > 0 {
            self.queued_bytes += bytes;
            self.queue.push_back(Piece { frame, range });
        }
    }

    /// No bytes will follow.
    pub fn push_end(&mut self) {
        self.end = true;
    }

    /// Bytes queued.
    #[must_use]
    pub const fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Bytes that left so far.
    #[must_use]
    pub const fn delivered_bytes(&self) -> u64 {
        self.delivered_bytes
    }

    /// Everything is written and the peer's side has ended: shut our side down.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.end && self.queue.is_empty()
    }

    /// The hypervisor has closed: what comes for it is discarded.
    #[must_use]
    pub const fn is_refused(&self) -> bool {
        self.discarding
    }

    /// Drops everything queued, as when the session fails closed.
    pub fn abandon(&mut self) {
        self.queue.clear();
        self.queued_bytes = 0;
    }

    /// Writes what the socket takes.
    ///
    /// # Errors
    /// What the system said, but for a hypervisor that has closed: that one makes us discard.
    pub fn write(&mut self, fd: impl AsFd) -> io::Result<Wrote> {
        let mut total = 0;
        while !self.queue.is_empty() {
            let bytes = if self.discarding {
                self.queued_bytes
            } else {
                match self.write_once(&fd) {
                    Ok(bytes) => bytes,
                    Err(rustix::io::Errno::AGAIN) => {
                        return Ok(Wrote {
                            bytes: total,
                            blocked: true,
                        });
                    }
                    Err(rustix::io::Errno::INTR) => 0,
                    Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => {
                        self.discarding = true;
                        0
                    }
                    Err(error) => return Err(error.into()),
                }
            };
            self.consume(bytes);
            total += bytes;
        }
        Ok(Wrote {
            bytes: total,
            blocked: false,
        })
    }

    fn write_once(&self, fd: &impl AsFd) -> Result<usize, rustix::io::Errno> {
        let mut slices = [io::IoSlice::new(&[]); GATHER_MAX];
        let mut used = 0;
        for (slot, piece) in slices.iter_mut().zip(&self.queue) {
            *slot = io::IoSlice::new(&piece.frame.bytes()[piece.range.clone()]);
            used += 1;
        }
        let mut no_control = rustix::net::SendAncillaryBuffer::default();
        // NOSIGNAL: a hypervisor that went away is an error to handle, not a signal to die of.
        rustix::net::sendmsg(
            fd,
            &slices[..used],
            &mut no_control,
            rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT,
        )
    }

    fn consume(&mut self, mut bytes: usize) {
        self.queued_bytes -= bytes;
        self.delivered_bytes += bytes as u64;
        while bytes > 0 {
            let Some(front) = self.queue.front_mut() else {
                return;
            };
            let step = bytes.min(front.range.len());
            front.range.start += step;
            bytes -= step;
            if front.range.is_empty() {
                self.queue.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_drivers::frame::{FramePools, FramePoolsConfig};
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn pools() -> FramePools {
        FramePools::new(&FramePoolsConfig {
            small: 8,
            medium: 8,
            large: 2,
            backing: dwcp_hugepages::arena::BackingPolicy::Ordinary,
        })
        .unwrap()
    }

    #[test]
    fn bytes_leave_in_order_across_full_sockets() {
        let pools = pools();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut release = Release::new();
        let mut expected = Vec::new();
        for round in 0..8u8 {
            let bytes: Vec<u8> = (0..60_000u32).map(|i| (i as u8) ^ round).collect();
            let frame = pools.copy(&bytes).unwrap();
            release.push(frame, 10..50_000);
            expected.extend_from_slice(&bytes[10..50_000]);
        }
        release.push_end();
        let mut got = Vec::new();
        let mut was_blocked = false;
        while !release.is_done() {
            was_blocked |= release.write(&ours).unwrap().blocked;
            let mut chunk = [0; 70_000];
            let bytes = theirs.read(&mut chunk).unwrap();
            got.extend_from_slice(&chunk[..bytes]);
        }
        drop(ours);
        theirs.read_to_end(&mut got).unwrap();
        assert!(was_blocked, "the test never filled the socket");
        assert!(got == expected, "bytes differ");
    }

    #[test]
    fn a_hypervisor_that_closed_is_discarded_to_and_does_not_kill_us() {
        let pools = pools();
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        drop(theirs);
        let mut release = Release::new();
        release.push(pools.copy(&[1; 100]).unwrap(), 0..100);
        let wrote = release.write(&ours).unwrap();
        assert_eq!(
            wrote,
            Wrote {
                bytes: 100,
                blocked: false
            }
        );
    }

    #[test]
    fn a_range_outside_the_frame_releases_nothing() {
        let mut release = Release::new();
        release.push(pools().copy(&[1; 100]).unwrap(), 50..101);
        assert_eq!(release.queued_bytes(), 0);
    }
}
