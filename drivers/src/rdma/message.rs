//! The records of a message.
//!
//! Comes in: records to send, or the bytes of a slot that a peer filled. Goes out: the bytes, or the
//! records. Promises: whatever a peer sends is either records within their bounds or [`Malformed`];
//! nothing is read beyond what arrived.
//!
//! A message is a header of four bytes (version, flags, credits given back, number of records) and
//! its records, all little-endian:
//!
//! | record | bytes |
//! |---|---|
//! | frame | 1, 0, length (2), payload |
//! | long | 2, 0, 0 (2), length of a frame to be written (4) |
//! | buffer | 3, 0, 0 (2), key (4), address (8): where the oldest long frame without one goes |
//! | fin | 4, 0, 0 (2): no frame follows |
//! | done | 5, 0, 0 (2): all frames and the fin arrived |

use thiserror::Error;

/// Bytes of a slot, and of the longest message.
pub(super) const MESSAGE_BYTES: usize = 4096;
/// Frames and announcements in one message, at most: bounds what a receiver must remember.
pub(super) const FRAMES_PER_MESSAGE_MAX: usize = 32;
/// The longest frame that travels inside a message, in bytes.
pub(super) const INLINE_BYTES_MAX: usize = 2048;

const VERSION: u8 = 1;
/// The message takes one credit: it holds frames or announcements.
const COUNTED: u8 = 1;
const HEADER_BYTES: usize = 4;
const RECORD_BYTES: usize = 4;
const LONG_BYTES: usize = 8;
const BUFFER_BYTES: usize = 16;

const FRAME: u8 = 1;
const LONG: u8 = 2;
const BUFFER: u8 = 3;
const FIN: u8 = 4;
const DONE: u8 = 5;

/// The bytes that a frame counts for on a lane, with its framing.
pub(super) fn wire_bytes(frame_bytes: usize) -> usize {
    if frame_bytes <= INLINE_BYTES_MAX {
        RECORD_BYTES + frame_bytes
    } else {
        LONG_BYTES + frame_bytes
    }
}

/// Where the peer wants a long frame written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Buffer {
    /// In the peer's memory.
    pub(super) addr: u64,
    /// The peer's key for it.
    pub(super) rkey: u32,
}

/// One record of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    /// A short frame: `len` bytes of the message from `at` on.
    Frame { at: u16, len: u16 },
    /// A long frame is ready to be written.
    Long { len: u32 },
    /// It may be written here.
    Buffer(Buffer),
    /// No frame follows.
    Fin,
    /// Everything up to the fin arrived.
    Done,
}

/// A message that no peer of ours sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a malformed message: the peer runs something else")]
pub(super) struct Malformed;

/// Builds one message in a slot.
pub(super) struct Writer<'a> {
    slot: &'a mut [u8; MESSAGE_BYTES],
    used: usize,
    records: u8,
    frames: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(slot: &'a mut [u8; MESSAGE_BYTES]) -> Self {
        Self {
            slot,
            used: HEADER_BYTES,
            records: 0,
            frames: 0,
        }
    }

    /// Whether nothing was put in yet.
    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }

    fn record(&mut self, kind: u8, value: u16, rest: usize) -> Option<&mut [u8]> {
        let end = self.used + RECORD_BYTES + rest;
        if end > MESSAGE_BYTES || self.records == u8::MAX {
            return None;
        }
        let (head, tail) = self.slot[self.used..end].split_at_mut(RECORD_BYTES);
        head[0] = kind;
        head[1] = 0;
        head[2..].copy_from_slice(&value.to_le_bytes());
        self.used = end;
        self.records += 1;
        Some(tail)
    }

    fn frame_record(&mut self, kind: u8, value: u16, rest: usize) -> Option<&mut [u8]> {
        if self.frames == FRAMES_PER_MESSAGE_MAX {
            return None;
        }
        self.frames += 1;
        self.record(kind, value, rest)
    }

    /// Copies a short frame. False when there is no room for it.
    pub(super) fn frame(&mut self, bytes: &[u8]) -> bool {
        let Ok(len) = u16::try_from(bytes.len()) else {
            return false;
        };
        let room = self.frame_record(FRAME, len, bytes.len());
        room.map(|room| room.copy_from_slice(bytes)).is_some()
    }

    /// Announces a long frame. False when there is no room.
    pub(super) fn long(&mut self, len: u32) -> bool {
        let room = self.frame_record(LONG, 0, LONG_BYTES - RECORD_BYTES);
        room.map(|room| room.copy_from_slice(&len.to_le_bytes()))
            .is_some()
    }

    /// Advertises a buffer. False when there is no room.
    pub(super) fn buffer(&mut self, buffer: Buffer) -> bool {
        let room = self.record(BUFFER, 0, BUFFER_BYTES - RECORD_BYTES);
        room.map(|room| {
            room[..4].copy_from_slice(&buffer.rkey.to_le_bytes());
            room[4..].copy_from_slice(&buffer.addr.to_le_bytes());
        })
        .is_some()
    }

    /// Says that no frame follows. False when there is no room.
    pub(super) fn fin(&mut self) -> bool {
        self.record(FIN, 0, 0).is_some()
    }

    /// Says that everything arrived. False when there is no room.
    pub(super) fn done(&mut self) -> bool {
        self.record(DONE, 0, 0).is_some()
    }

    /// Writes the header. Returns the message's length, and whether it takes a credit.
    pub(super) fn finish(self, credits_back: u8) -> (usize, bool) {
        let counted = self.frames > 0;
        self.slot[0] = VERSION;
        self.slot[1] = if counted { COUNTED } else { 0 };
        self.slot[2] = credits_back;
        self.slot[3] = self.records;
        (self.used, counted)
    }
}

/// What the header of a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// It took one of the credits that this side gave.
    pub(super) counted: bool,
    /// Credits that come back to this side.
    pub(super) credits_back: u8,
}

/// Reads one message, record by record.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    left: u8,
    frames: usize,
    counted: bool,
}

impl<'a> Reader<'a> {
    /// Over the bytes that arrived.
    pub(super) fn new(bytes: &'a [u8]) -> Result<(Header, Self), Malformed> {
        let Some(&[version, flags, credits_back, records]) = bytes.first_chunk() else {
            return Err(Malformed);
        };
        if version != VERSION || flags & !COUNTED != 0 || bytes.len() > MESSAGE_BYTES {
            return Err(Malformed);
        }
        let counted = flags & COUNTED != 0;
        let reader = Self {
            bytes,
            at: HEADER_BYTES,
            left: records,
            frames: 0,
            counted,
        };
        Ok((
            Header {
                counted,
                credits_back,
            },
            reader,
        ))
    }

    /// The next record, or none behind the last one.
    pub(super) fn next(&mut self) -> Result<Option<Record>, Malformed> {
        if self.left == 0 {
            let whole = self.at == self.bytes.len() && self.counted == (self.frames > 0);
            return if whole { Ok(None) } else { Err(Malformed) };
        }
        self.left -= 1;
        let &[kind, zero, low, high] = self.take::<RECORD_BYTES>()?;
        let value = u16::from_le_bytes([low, high]);
        if zero != 0 || (kind != FRAME && value != 0) {
            return Err(Malformed);
        }
        let record = match kind {
            FRAME => {
                let at = self.at;
                self.skip(usize::from(value))?;
                if value == 0 || usize::from(value) > INLINE_BYTES_MAX {
                    return Err(Malformed);
                }
                Record::Frame {
                    at: u16::try_from(at).map_err(|_| Malformed)?,
                    len: value,
                }
            }
            LONG => Record::Long {
                len: u32::from_le_bytes(*self.take()?),
            },
            BUFFER => Record::Buffer(Buffer {
                rkey: u32::from_le_bytes(*self.take()?),
                addr: u64::from_le_bytes(*self.take()?),
            }),
            FIN => Record::Fin,
            DONE => Record::Done,
            _ => return Err(Malformed),
        };
        if matches!(record, Record::Frame { .. } | Record::Long { .. }) {
            self.frames += 1;
            if self.frames > FRAMES_PER_MESSAGE_MAX {
                return Err(Malformed);
            }
        }
        Ok(Some(record))
    }

    fn skip(&mut self, count: usize) -> Result<(), Malformed> {
        self.at += count;
        if self.at <= self.bytes.len() {
            Ok(())
        } else {
            Err(Malformed)
        }
    }

    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], Malformed> {
        let at = self.at;
        self.skip(N)?;
        self.bytes[at..].first_chunk().ok_or(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records(bytes: &[u8]) -> Result<(Header, Vec<Record>), Malformed> {
        let (header, mut reader) = Reader::new(bytes)?;
        let mut all = Vec::new();
        while let Some(record) = reader.next()? {
            all.push(record);
        }
        Ok((header, all))
    }

    #[test]
    fn every_record_comes_out_as_it_went_in() {
        let mut slot = [0xaa; MESSAGE_BYTES];
        let mut writer = Writer::new(&mut slot);
        assert!(writer.is_empty());
        let buffer = Buffer {
            addr: 0x0123_4567_89ab_cdef,
            rkey: 0xfeed_beef,
        };
        assert!(writer.frame(b"abc") && writer.long(70_000) && writer.buffer(buffer));
        assert!(writer.fin() && writer.done() && !writer.is_empty());
        let (len, counted) = writer.finish(9);
        assert!(counted);
        let (header, all) = records(&slot[..len]).unwrap();
        assert_eq!(
            header,
            Header {
                counted: true,
                credits_back: 9
            }
        );
        assert_eq!(
            all,
            [
                Record::Frame { at: 8, len: 3 },
                Record::Long { len: 70_000 },
                Record::Buffer(buffer),
                Record::Fin,
                Record::Done
            ]
        );
        assert_eq!(&slot[8..11], b"abc");
        for cut in 0..len {
            assert_eq!(records(&slot[..cut]), Err(Malformed), "cut after {cut}");
        }
        assert_eq!(records(&slot[..len + 1]), Err(Malformed), "bytes behind it");
    }

    #[test]
    fn a_message_is_full_at_its_bounds() {
        let mut slot = [0; MESSAGE_BYTES];
        let mut writer = Writer::new(&mut slot);
        assert!(writer.frame(&[1; INLINE_BYTES_MAX]));
        assert!(!writer.frame(&[1; INLINE_BYTES_MAX]), "no room for two");
        assert!(writer.frame(&[1; 100]), "yet room for this");
        let mut writer = Writer::new(&mut slot);
        let taken = (0..100).filter(|_| writer.frame(b"x")).count();
        assert_eq!(taken, FRAMES_PER_MESSAGE_MAX);
        assert!(writer.fin(), "records that are no frames still fit");
        let (len, _) = writer.finish(0);
        assert_eq!(records(&slot[..len]).unwrap().1.len(), taken + 1);
    }

    #[test]
    fn only_credits_is_a_message_that_takes_none() {
        let mut slot = [0; MESSAGE_BYTES];
        assert_eq!(Writer::new(&mut slot).finish(12), (4, false));
        let header = records(&slot[..4]).unwrap().0;
        assert_eq!((header.counted, header.credits_back), (false, 12));
    }

    proptest! {
        #[test]
        fn any_bytes_are_records_within_them_or_malformed(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
            plausible in any::<bool>(),
        ) {
            if plausible && bytes.len() > 4 {
                bytes[0] = VERSION;
                bytes[1] &= COUNTED;
                bytes[3] %= 4;
                bytes[4] %= 6;
            }
            if let Ok((_, all)) = records(&bytes) {
                for record in all {
                    if let Record::Frame { at, len } = record {
                        prop_assert!(len > 0 && usize::from(at) + usize::from(len) <= bytes.len());
                    }
                }
            }
        }
    }
}
