//! Any bytes as shared memory: a segment from a stranger is refused with its reason or used without
//! leaving it, and a ring or a cell inside it believes no word of it unchecked.
//!
//! Input: a byte of flags, body length (16 bits), 64 bytes laid over a right header by XOR (missing ones
//! are zero), operations of 5 bytes each up to the first of kind 0, and the rest as the body.

#![no_main]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dwcp_hugepages::counters::SeqCell;
use dwcp_hugepages::ring::{Consumer, Producer, RingError, RingMem};
use dwcp_hugepages::segment::{HEADER_BYTES, PeerAccess, Segment, SegmentError, SegmentLayout};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

const MAGIC: u64 = 0x1122_3344_5566_7788;
const ABI: u32 = 3;
const HASH: u64 = 0x99aa_bbcc_ddee_ff00;
const PAGE_BYTES: usize = 4096;

/// Bits of the flags.
const UNSEALED: u8 = 1;
const READ_ONLY: u8 = 2;
const SEALED_AGAINST_WRITES: u8 = 4;
const PAGE_TOO_MANY: u8 = 8;
const PAGE_TOO_FEW: u8 = 16;

type Record = [u64; 2];

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let count = N.min(self.0.len());
        let (now, later) = self.0.split_at(count);
        self.0 = later;
        let mut bytes = [0; N];
        bytes[..count].copy_from_slice(now);
        bytes
    }
}

fn right_header(total_bytes: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC.to_le_bytes());
    header[8..12].copy_from_slice(&ABI.to_le_bytes());
    header[16..24].copy_from_slice(&HASH.to_le_bytes());
    header[24..32].copy_from_slice(&(total_bytes as u64).to_le_bytes());
    header
}

fn file(flags: u8, file_bytes: usize, header: &[u8], body: &[u8]) -> Option<OwnedFd> {
    let file = memfd_create("fuzz", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).ok()?;
    ftruncate(&file, file_bytes as u64).ok()?;
    let content = [header, body].concat();
    let content = &content[..content.len().min(file_bytes)];
    if !content.is_empty() {
        rustix::io::pwrite(&file, content, 0).ok()?;
    }
    if flags & UNSEALED == 0 {
        let mut seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        if flags & SEALED_AGAINST_WRITES != 0 {
            seals |= SealFlags::FUTURE_WRITE;
        }
        fcntl_add_seals(&file, seals).ok()?;
    }
    Some(file)
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let [flags] = input.bytes();
    let body_bytes = 1 + usize::from(u16::from_le_bytes(input.bytes()));
    let change: [u8; HEADER_BYTES] = input.bytes();
    let mut operations = Vec::new();
    loop {
        let operation: [u8; 5] = input.bytes();
        if operation[0] == 0 {
            break;
        }
        operations.push(operation);
    }
    let total_bytes = HEADER_BYTES + body_bytes;
    let mut header = right_header(total_bytes);
    header
        .iter_mut()
        .zip(change)
        .for_each(|(byte, change)| *byte ^= change);
    let whole = total_bytes.next_multiple_of(PAGE_BYTES);
    let file_bytes = match (flags & PAGE_TOO_MANY != 0, flags & PAGE_TOO_FEW != 0) {
        (true, false) => whole + PAGE_BYTES,
        (false, true) => whole - PAGE_BYTES,
        _ => whole,
    };
    let body = &input.0[..input.0.len().min(body_bytes)];
    let Some(file) = file(flags, file_bytes, &header, body) else {
        return;
    };
    let access = if flags & READ_ONLY != 0 {
        PeerAccess::ReadOnly
    } else {
        PeerAccess::ReadWrite
    };
    let layout = SegmentLayout {
        magic: MAGIC,
        abi: ABI,
        layout_hash: HASH,
        body_bytes,
    };
    let write_sealed = flags & SEALED_AGAINST_WRITES != 0;
    let sealed = flags & UNSEALED == 0 && (access == PeerAccess::ReadWrite || write_sealed);
    let agrees = change[..12]
        .iter()
        .chain(&change[16..32])
        .all(|byte| *byte == 0);
    match Segment::attach(file, layout, access) {
        Ok(segment) => {
            assert!(
                sealed && agrees && file_bytes == whole,
                "{flags:#x} was let in"
            );
            assert!(access == PeerAccess::ReadOnly || !write_sealed);
            use_it(Arc::new(segment), access, body, &operations);
        }
        Err(SegmentError::NotSealed { .. }) => assert!(!sealed),
        Err(SegmentError::SealedReadOnly) => {
            assert!(access == PeerAccess::ReadWrite && write_sealed)
        }
        Err(SegmentError::FileLength { .. }) => assert_ne!(file_bytes, whole),
        Err(SegmentError::NotReady) => assert_eq!(header[8..12], [0; 4]),
        Err(
            SegmentError::WrongMagic { .. }
            | SegmentError::VersionMismatch { .. }
            | SegmentError::LayoutMismatch { .. }
            | SegmentError::LengthMismatch { .. },
        ) => assert!(!agrees),
        Err(error) => panic!("{error}"),
    }
});

/// Reads and writes wherever the operations say.
fn use_it(segment: Arc<Segment>, access: PeerAccess, given: &[u8], operations: &[[u8; 5]]) {
    let body = segment.body();
    for (at, byte) in given.iter().enumerate() {
        let place = body.slice_at::<std::sync::atomic::AtomicU8>(at, 1);
        assert_eq!(place.expect("inside")[0].load(Ordering::Relaxed), *byte);
    }
    for &[kind, a, b, c, d] in operations {
        let (offset, count) = (
            usize::from(u16::from_le_bytes([a, b])),
            usize::from(u16::from_le_bytes([c, d])),
        );
        // The far end of the address space, where a sum of offset and length would wrap.
        let offset = if kind & 0x80 == 0 {
            offset
        } else {
            usize::MAX - offset
        };
        let inside = |bytes: usize| {
            offset
                .checked_add(bytes)
                .is_some_and(|end| end <= body.len())
                && offset.is_multiple_of(8)
        };
        match kind & 0x7f {
            1 => assert_eq!(body.at::<AtomicU64>(offset).is_ok(), inside(8)),
            2 => {
                let words = body.slice_at::<AtomicU64>(offset, count);
                assert_eq!(words.is_ok(), inside(8 * count));
                let sum = |words: &[AtomicU64]| {
                    words.iter().fold(0u64, |sum, word| {
                        sum.wrapping_add(word.load(Ordering::Relaxed))
                    })
                };
                std::hint::black_box(words.map(sum).ok());
            }
            3 => {
                let cell = body.at::<SeqCell<[u64; 5]>>(offset);
                assert_eq!(cell.is_ok(), inside(88));
                if let Ok(cell) = cell {
                    cell.read().expect("nobody writes");
                }
            }
            4 => assert!(
                body.slice_at::<AtomicU64>(offset, usize::MAX - count)
                    .is_err()
            ),
            // A store to memory that is mapped read-only ends the process, as it should.
            5 if access == PeerAccess::ReadWrite => consume(&segment, offset, count, given),
            6 if access == PeerAccess::ReadWrite => produce(&segment, offset, count, given),
            _ => {}
        }
    }
}

fn slots_of(count: usize) -> u32 {
    let count = count as u32;
    if count & 0x8000 == 0 {
        1 << (count % 8)
    } else {
        count
    }
}

fn placed(segment: &Segment, offset: usize, slots: u32) -> bool {
    let bytes = RingMem::bytes_needed::<Record>(slots);
    let fits = offset
        .checked_add(bytes)
        .is_some_and(|end| end <= segment.body().len());
    // The body begins 64 bytes into a page.
    fits && offset.is_multiple_of(64) && slots.is_power_of_two()
}

fn word(segment: &Segment, offset: usize) -> &AtomicU64 {
    segment
        .body()
        .at::<AtomicU64>(offset)
        .expect("inside a ring that was placed")
}

/// A consumer whose producer stores any index at any time, against the plain arithmetic.
fn consume(segment: &Arc<Segment>, offset: usize, count: usize, lies: &[u8]) {
    let slots = slots_of(count);
    let memory = RingMem::in_segment(Arc::clone(segment), offset);
    let consumer = Consumer::<Record>::new(memory, slots);
    if !placed(segment, offset, slots) {
        assert!(matches!(
            consumer,
            Err(RingError::Memory(_) | RingError::BadCapacity { .. })
        ));
        return;
    }
    let mut consumer = match consumer {
        Ok(consumer) => consumer,
        Err(error) => {
            assert!(matches!(error, RingError::NotFresh { .. }), "{error}");
            assert_ne!(word(segment, offset + 128).load(Ordering::Relaxed), 0);
            return;
        }
    };
    let capacity = u64::from(slots);
    let (mut own, mut limit, mut corrupt) = (0u64, 0u64, false);
    for lie in lies.chunks(2).take(200) {
        let producer = word(segment, offset);
        let step = u64::from(lie[0] & 0x0f);
        match lie[0] >> 6 {
            0 => producer.store(own.wrapping_add(step), Ordering::Relaxed),
            1 => producer.store(own.wrapping_sub(step), Ordering::Relaxed),
            2 => producer.store(u64::MAX - step, Ordering::Relaxed),
            _ => {}
        }
        let found = producer.load(Ordering::Relaxed);
        if own == limit && !corrupt {
            corrupt = found.wrapping_sub(own) > capacity;
            limit = if corrupt { own } else { found };
        }
        let popped = consumer.pop();
        if own != limit {
            let place = offset + RingMem::RECORDS_OFFSET + (own & (capacity - 1)) as usize * 16;
            let expected = [0, 8].map(|at| word(segment, place + at).load(Ordering::Relaxed));
            assert_eq!(popped, Ok(Some(expected)));
            own = own.wrapping_add(1);
        } else if corrupt {
            assert!(matches!(popped, Err(RingError::CorruptIndex { .. })));
            assert!(!consumer.is_empty());
        } else {
            assert_eq!(popped, Ok(None));
        }
    }
}

/// A producer whose consumer stores any index at any time: it never laps what it has not been given.
fn produce(segment: &Arc<Segment>, offset: usize, count: usize, lies: &[u8]) {
    let slots = slots_of(count);
    let memory = RingMem::in_segment(Arc::clone(segment), offset);
    let Ok(mut producer) = Producer::<Record>::new(memory, slots) else {
        return;
    };
    assert!(placed(segment, offset, slots));
    let capacity = u64::from(slots);
    let (mut own, mut believed) = (0u64, 0u64);
    for lie in lies.iter().take(200) {
        let consumer = word(segment, offset + 128);
        if lie & 0x40 != 0 {
            consumer.store(
                believed.wrapping_add(u64::from(lie & 0x1f)),
                Ordering::Relaxed,
            );
        } else if lie & 0x80 != 0 {
            consumer.store(
                u64::from(*lie).wrapping_mul(0x0123_4567_89ab_cdef),
                Ordering::Relaxed,
            );
        }
        let found = consumer.load(Ordering::Relaxed);
        if producer.push(&[own, !own]).is_ok() {
            if own.wrapping_sub(believed) >= capacity {
                assert!(
                    own.wrapping_sub(found) < capacity,
                    "it overwrote what was not given back"
                );
                believed = found;
            }
            own = own.wrapping_add(1);
            assert_eq!(word(segment, offset).load(Ordering::Relaxed), own);
        }
    }
}
