//! The format of a datagram. All numbers are little-endian.
//!
//! ```text
//! every datagram     version u8 = 1 | kind u8 | flags u16 | connection u64 | number u64 | … | tag [16]
//!   once keys are    behind the number, if the protection is of heads alone: head u16 | sum u32, see `seal`
//! HELLO, WELCOME     max_payload u16 | window u32 | nonce [16] | zeros up to max_payload
//! PACKET             floor_back u32 | acknowledgement, if flag ACK | data, if flag DATA
//!   acknowledgement  largest u64 | delay_us u32 | contiguous u64 | window u32 | restarts u16
//!                    | count u8 | first_len u32 | (count - 1) × (gap u32 | len u32)
//!   data             offset u64 | back u32 | frame_len u32 | len u16 | len bytes
//! CLOSE              code u16
//! DONE               nothing
//! ```
//!
//! `number` counts the datagrams of one direction, below 2^62, and never comes twice with other content. A lane's
//! bytes are one stream: each frame is its length (u32) and its payload. `offset` is the place of the
//! data in that stream; `back` says how far before it its first frame began, and `frame_len` how long
//! that frame's payload is, so that a receiver can place data whatever is missing before it. Data never
//! begins or ends within a length. `contiguous` is how much of the stream the receiver has without a
//! gap and keeps for good; it has memory for `window` bytes beyond that, which may become less: the
//! newest acknowledgement counts, for new data and for data that is sent again. Ranges of packet numbers go
//! downward from `largest`: `gap` numbers are missing, then `len` were received. `restarts` counts how
//! often the receiver had to forget data beyond `contiguous`: when it changes, that data is sent again.
//! `floor_back`: the sender no longer cares for acknowledgements of numbers below `number - floor_back`.
//!
//! Comes in: bytes from anybody. Goes out: parts whose every length was checked. Writing is into
//! memory that the caller found to be large enough with the `*_BYTES` constants.

/// The only version there is.
const VERSION: u8 = 1;
/// Bytes of what every datagram begins with.
pub(super) const HEADER_BYTES: usize = 20;
/// Bytes of the authentication tag that every datagram ends with.
pub(super) const TAG_BYTES: usize = 16;
/// Bytes of a PACKET before its sections.
pub(super) const FLOOR_BYTES: usize = 4;
/// Bytes of the data section before the data.
pub(super) const DATA_HEAD_BYTES: usize = 18;
/// Bytes of an acknowledgement with one range.
pub(super) const ACK_BYTES_MIN: usize = 31;
/// Bytes of each further range.
pub(super) const ACK_RANGE_BYTES: usize = 8;
/// Numbers end here: no lane lives to send as many, and sums of numbers below do not overflow.
const NUMBERS_END: u64 = 1 << 62;
/// Ranges of one acknowledgement, at most.
pub(super) const ACK_RANGES_MAX: usize = 64;
/// Bytes behind the header that say what the tag covers, where that is not all.
pub(super) const COVER_BYTES: usize = 6;
/// Bytes of a whole CLOSE datagram, the longest of those that end a lane.
pub(super) const CLOSE_DATAGRAM_BYTES: usize = HEADER_BYTES + COVER_BYTES + 2 + TAG_BYTES;

/// What a datagram is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The first word of the side that connects.
    Hello,
    /// The answer.
    Welcome,
    /// Data, acknowledgements, or nothing but a request to be acknowledged.
    Packet,
    /// The lane is gone.
    Close,
    /// Both directions were finished and acknowledged.
    Done,
}

impl Kind {
    const ALL: [(u8, Self); 5] = [
        (1, Self::Hello),
        (2, Self::Welcome),
        (3, Self::Packet),
        (4, Self::Close),
        (5, Self::Done),
    ];

    fn of(code: u8) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, _)| *known == code)
            .map(|(_, kind)| *kind)
    }

    fn code(self) -> u8 {
        Self::ALL
            .iter()
            .find(|(_, known)| *known == self)
            .map_or(0, |(code, _)| *code)
    }
}

/// What a datagram holds and asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Flags(u16);

impl Flags {
    /// It has a data section.
    pub(super) const DATA: Self = Self(1);
    /// It has an acknowledgement.
    pub(super) const ACK: Self = Self(2);
    /// The data section's end is the end of the stream.
    pub(super) const FIN: Self = Self(4);
    /// It is to be acknowledged, though it may hold no data.
    pub(super) const PING: Self = Self(8);
    /// It is to be acknowledged at once: the sender has nothing else to send, or may not.
    pub(super) const PROMPT: Self = Self(16);
    /// A CLOSE under the key of the set-up, because there is no other yet.
    pub(super) const SETUP: Self = Self(32);
    const KNOWN: u16 = 63;

    pub(super) fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    pub(super) fn set(&mut self, flag: Self) {
        self.0 |= flag.0;
    }
}

/// What every datagram begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) flags: Flags,
    pub(super) connection: u64,
    pub(super) number: u64,
}

/// Why a datagram is none of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// Shorter than a header and a tag.
    Short,
    /// Another version, an unknown kind, unknown flags, or a number that no lane reaches.
    Unknown,
}

impl Header {
    pub(super) fn parse(datagram: &[u8]) -> Result<Self, BadHeader> {
        if datagram.len() < HEADER_BYTES + TAG_BYTES {
            return Err(BadHeader::Short);
        }
        let mut reader = Reader(datagram);
        let known = (|| {
            let [version, code] = reader.take()?;
            let flags = Flags(u16::from_le_bytes(reader.take()?));
            let header = Self {
                kind: Kind::of(code)?,
                flags,
                connection: reader.u64()?,
                number: reader.u64()?,
            };
            let known = version == VERSION && flags.0 & !Flags::KNOWN == 0;
            (known && header.number < NUMBERS_END).then_some(header)
        })();
        known.ok_or(BadHeader::Unknown)
    }

    pub(super) fn write(&self, writer: &mut Writer<'_>) {
        writer.put([VERSION, self.kind.code()]);
        writer.put(self.flags.0.to_le_bytes());
        writer.put(self.connection.to_le_bytes());
        writer.put(self.number.to_le_bytes());
    }
}

/// What each side says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Setup {
    /// The longest datagram that this side receives, in bytes.
    pub(super) max_payload: u16,
    /// Stream bytes that it takes before it says more.
    pub(super) window: u32,
    /// Random, so that the keys are fresh.
    pub(super) nonce: [u8; 16],
}

impl Setup {
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let mut reader = Reader(body);
        Some(Self {
            max_payload: u16::from_le_bytes(reader.take()?),
            window: reader.u32()?,
            nonce: reader.take()?,
        })
    }

    /// Writes it and zeros, so that the datagram with its tag has `datagram_bytes`.
    pub(super) fn write(&self, writer: &mut Writer<'_>, datagram_bytes: usize) {
        writer.put(self.max_payload.to_le_bytes());
        writer.put(self.window.to_le_bytes());
        writer.put(self.nonce);
        let zeros = datagram_bytes.saturating_sub(writer.at + TAG_BYTES);
        writer.space(zeros).fill(0);
    }
}

/// The start of an acknowledgement; its ranges follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) largest: u64,
    pub(super) delay_us: u32,
    pub(super) contiguous: u64,
    pub(super) window: u32,
    pub(super) restarts: u16,
}

/// Inclusive ranges of packet numbers, highest first, not touching.
#[derive(Debug)]
pub(super) struct AckRanges {
    ranges: [(u64, u64); ACK_RANGES_MAX],
    count: usize,
}

impl AckRanges {
    pub(super) const EMPTY: Self = Self {
        ranges: [(0, 0); ACK_RANGES_MAX],
        count: 0,
    };

    /// Each as (lowest, highest).
    pub(super) fn descending(&self) -> &[(u64, u64)] {
        &self.ranges[..self.count]
    }

    /// Adds a range below all others.
    pub(super) fn push(&mut self, low: u64, high: u64) {
        if let Some(space) = self.ranges.get_mut(self.count) {
            *space = (low, high);
            self.count += 1;
        }
    }

    /// Whether `number` is in one of them.
    pub(super) fn contains(&self, number: u64) -> bool {
        let ranges = self.descending();
        let at = ranges.partition_point(|(low, _)| *low > number);
        ranges.get(at).is_some_and(|(_, high)| number <= *high)
    }
}

impl Ack {
    /// Reads an acknowledgement, its ranges into `ranges`. None: it contradicts itself.
    pub(super) fn parse(reader: &mut Reader<'_>, ranges: &mut AckRanges) -> Option<Self> {
        let ack = Self {
            largest: reader.u64()?,
            delay_us: reader.u32()?,
            contiguous: reader.u64()?,
            window: reader.u32()?,
            restarts: u16::from_le_bytes(reader.take()?),
        };
        let [count] = reader.take()?;
        if !(1..=ACK_RANGES_MAX).contains(&usize::from(count)) {
            return None;
        }
        ranges.count = 0;
        let mut high = ack.largest;
        for at in 0..count {
            if at > 0 {
                let gap = u64::from(reader.u32()?);
                let (lowest, _) = *ranges.descending().last()?;
                high = lowest.checked_sub(gap)?.checked_sub(1)?;
                if gap == 0 {
                    return None;
                }
            }
            let len = u64::from(reader.u32()?);
            let low = high.checked_sub(len.checked_sub(1)?)?;
            ranges.push(low, high);
        }
        Some(ack)
    }

    /// Writes it with as many of `ranges`, which begin with `largest`, as `room` bytes hold.
    pub(super) fn write(
        &self,
        writer: &mut Writer<'_>,
        ranges: impl Iterator<Item = (u64, u64)>,
        room: usize,
    ) {
        writer.put(self.largest.to_le_bytes());
        writer.put(self.delay_us.to_le_bytes());
        writer.put(self.contiguous.to_le_bytes());
        writer.put(self.window.to_le_bytes());
        writer.put(self.restarts.to_le_bytes());
        let count_at = writer.at;
        writer.put([0u8]);
        let fit = 1 + room.saturating_sub(ACK_BYTES_MIN) / ACK_RANGE_BYTES;
        let mut below = 0;
        let mut count = 0u8;
        for (low, high) in ranges.take(fit.min(ACK_RANGES_MAX)) {
            // More than 2^32 in a row or missing cannot be said: the rest is said another time.
            let (Ok(len), Ok(gap)) = (
                u32::try_from(high - low + 1),
                u32::try_from(if count == 0 { 0 } else { below - high - 1 }),
            ) else {
                break;
            };
            if count > 0 {
                writer.put(gap.to_le_bytes());
            }
            writer.put(len.to_le_bytes());
            below = low;
            count += 1;
        }
        writer.buf[count_at] = count;
    }
}

/// The start of a data section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DataHead {
    pub(super) offset: u64,
    pub(super) back: u32,
    pub(super) frame_len: u32,
    pub(super) len: u16,
}

impl DataHead {
    pub(super) fn write(&self, writer: &mut Writer<'_>) {
        writer.put(self.offset.to_le_bytes());
        writer.put(self.back.to_le_bytes());
        writer.put(self.frame_len.to_le_bytes());
        writer.put(self.len.to_le_bytes());
    }

    /// Reads the head, and the bytes behind it, which must be all that is left.
    pub(super) fn parse<'a>(reader: &mut Reader<'a>) -> Option<(Self, &'a [u8])> {
        let head = Self {
            offset: reader.u64()?,
            back: reader.u32()?,
            frame_len: reader.u32()?,
            len: u16::from_le_bytes(reader.take()?),
        };
        let data = std::mem::take(&mut reader.0);
        (data.len() == usize::from(head.len)).then_some((head, data))
    }
}

/// What is left to read.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

/// A datagram that is being written.
pub(super) struct Writer<'a> {
    buf: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(buf: &'a mut [u8]) -> Self {
        Self { buf, at: 0 }
    }

    pub(super) fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.space(N).copy_from_slice(&bytes);
    }

    /// The next `len` bytes, to be written by the caller.
    pub(super) fn space(&mut self, len: usize) -> &mut [u8] {
        let from = self.at;
        self.at += len;
        &mut self.buf[from..self.at]
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> usize {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_come_back_and_strangers_are_refused() {
        let mut flags = Flags::default();
        flags.set(Flags::DATA);
        flags.set(Flags::PROMPT);
        for (_, kind) in Kind::ALL {
            let header = Header {
                kind,
                flags,
                connection: 0x0123_4567_89ab_cdef,
                number: NUMBERS_END - 1,
            };
            let mut datagram = [0u8; 40];
            let mut writer = Writer::new(&mut datagram);
            header.write(&mut writer);
            assert_eq!(writer.written(), HEADER_BYTES);
            assert_eq!(Header::parse(&datagram), Ok(header));
            assert_eq!(Header::parse(&datagram[..35]), Err(BadHeader::Short));
            // The last makes its number 2^62.
            for (at, bad) in [
                (0, 0),
                (0, 2),
                (1, 0),
                (1, 6),
                (3, 0x80),
                (2, 0x80),
                (HEADER_BYTES - 1, 0x40),
            ] {
                let mut bent = datagram;
                bent[at] = bad;
                assert_eq!(Header::parse(&bent), Err(BadHeader::Unknown), "byte {at}");
            }
        }
    }

    #[test]
    fn a_setup_fills_its_datagram() {
        let setup = Setup {
            max_payload: 1472,
            window: 6 << 20,
            nonce: [7; 16],
        };
        let mut datagram = [0xffu8; 1472];
        let mut writer = Writer::new(&mut datagram);
        setup.write(&mut writer, 1472);
        assert_eq!(writer.written(), 1472 - TAG_BYTES);
        assert_eq!(Setup::parse(&datagram), Some(setup));
        assert!(datagram[22..1456].iter().all(|byte| *byte == 0));
        assert_eq!(Setup::parse(&datagram[..21]), None);
    }

    fn round_trip(ranges: &[(u64, u64)], room: usize) -> (Ack, Vec<(u64, u64)>) {
        let ack = Ack {
            largest: ranges[0].1,
            delay_us: 77,
            contiguous: 1 << 40,
            window: 3 << 20,
            restarts: 9,
        };
        let mut bytes = vec![0; 1000];
        let mut writer = Writer::new(&mut bytes);
        ack.write(&mut writer, ranges.iter().copied(), room);
        let written = writer.written();
        assert!(written <= room.max(ACK_BYTES_MIN));
        let mut reader = Reader(&bytes[..written]);
        let mut got = AckRanges::EMPTY;
        let read = Ack::parse(&mut reader, &mut got).unwrap();
        assert!(reader.0.is_empty());
        assert_eq!(read, ack);
        (read, got.descending().to_vec())
    }

    proptest! {
        #[test]
        fn acknowledgements_come_back(
            top in 1u64 << 33..1 << 60,
            cuts in prop::collection::vec((1u64..5000, 1u64..5000), 1..100),
            room in 0usize..900,
        ) {
            let mut ranges = Vec::new();
            let mut high = top;
            for (len, gap) in cuts {
                ranges.push((high + 1 - len, high));
                high = high - len - gap;
            }
            let (_, got) = round_trip(&ranges, room);
            let fit = 1 + room.saturating_sub(ACK_BYTES_MIN) / ACK_RANGE_BYTES;
            let fit = fit.min(ACK_RANGES_MAX).min(ranges.len());
            prop_assert_eq!(&got[..], &ranges[..fit]);
            let mut set = AckRanges::EMPTY;
            got.iter().for_each(|(low, high)| set.push(*low, *high));
            for (low, high) in &got {
                prop_assert!(set.contains(*low) && set.contains(*high) && !set.contains(high + 1));
            }
        }

        #[test]
        fn hostile_bytes_parse_to_nothing_or_to_ranges_in_order(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let mut ranges = AckRanges::EMPTY;
            if let Some(ack) = Ack::parse(&mut Reader(&bytes), &mut ranges) {
                let got = ranges.descending();
                prop_assert_eq!(got[0].1, ack.largest);
                prop_assert!(got.iter().all(|(low, high)| low <= high));
                prop_assert!(got.windows(2).all(|pair| pair[1].1 + 1 < pair[0].0));
            }
            if let Some((head, data)) = DataHead::parse(&mut Reader(&bytes)) {
                prop_assert_eq!(usize::from(head.len), data.len());
            }
            let _ = Header::parse(&bytes);
        }
    }

    #[test]
    fn ranges_that_contradict_themselves_are_refused() {
        let ack = |first_len: u32, more: &[(u32, u32)]| {
            let mut bytes = vec![0u8; ACK_BYTES_MIN - 5];
            bytes[0] = 100; // largest
            bytes.push(1 + more.len() as u8);
            bytes.extend(first_len.to_le_bytes());
            for (gap, len) in more {
                bytes.extend(gap.to_le_bytes());
                bytes.extend(len.to_le_bytes());
            }
            let mut ranges = AckRanges::EMPTY;
            Ack::parse(&mut Reader(&bytes), &mut ranges).map(|_| ranges.descending().to_vec())
        };
        assert_eq!(ack(101, &[]), Some(vec![(0, 100)]));
        assert_eq!(ack(1, &[(1, 99)]), Some(vec![(100, 100), (0, 98)]));
        assert_eq!(ack(0, &[]), None, "an empty range");
        assert_eq!(ack(102, &[]), None, "numbers below zero");
        assert_eq!(ack(1, &[(0, 5)]), None, "ranges that touch");
        assert_eq!(ack(1, &[(100, 1)]), None, "a gap beyond zero");
        assert_eq!(ack(1, &[(1, 100)]), None, "numbers below zero");
    }

    #[test]
    fn data_must_be_all_that_is_left() {
        let head = DataHead {
            offset: 12345,
            back: 6,
            frame_len: 700,
            len: 3,
        };
        let mut bytes = [0u8; DATA_HEAD_BYTES + 3];
        let mut writer = Writer::new(&mut bytes);
        head.write(&mut writer);
        writer.put(*b"abc");
        assert_eq!(
            DataHead::parse(&mut Reader(&bytes)),
            Some((head, &b"abc"[..]))
        );
        assert_eq!(
            DataHead::parse(&mut Reader(&bytes[..DATA_HEAD_BYTES + 2])),
            None
        );
        let mut long = bytes.to_vec();
        long.push(0);
        assert_eq!(DataHead::parse(&mut Reader(&long)), None);
    }
}
