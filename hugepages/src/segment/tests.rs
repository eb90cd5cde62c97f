//! What a stranger may hand us and what we say to it.

use std::mem::size_of;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use rustix::io::pwrite;

use super::*;

const LAYOUT: SegmentLayout = SegmentLayout {
    magic: 0x4457_4350,
    abi: 3,
    layout_hash: 0xfeed,
    body_bytes: 10_000,
};

fn created(access: PeerAccess) -> Segment {
    Segment::create("test", LAYOUT, 42, access).unwrap()
}

fn attach_to(segment: &Segment, access: PeerAccess) -> Result<Segment, SegmentError> {
    Segment::attach(segment.fd().try_clone_to_owned().unwrap(), LAYOUT, access)
}

/// A memfd of our own making: `bytes` long, `header` at its front, sealed as told.
fn forged(header: &[u8], bytes: usize, seals: SealFlags) -> OwnedFd {
    let file = memfd_create("forged", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, bytes as u64).unwrap();
    assert_eq!(pwrite(&file, header, 0), Ok(header.len()));
    fcntl_add_seals(&file, seals).unwrap();
    file
}

fn header(magic: u64, abi: u32, hash: u64, total: u64) -> Vec<u8> {
    let mut bytes = magic.to_le_bytes().to_vec();
    bytes.extend(abi.to_le_bytes());
    bytes.extend(77u32.to_le_bytes());
    bytes.extend(hash.to_le_bytes());
    bytes.extend(total.to_le_bytes());
    bytes.extend(5u64.to_le_bytes());
    bytes
}

fn refused(header: &[u8], bytes: usize, seals: SealFlags) -> SegmentError {
    let file = forged(header, bytes, seals);
    Segment::attach(file, LAYOUT, PeerAccess::ReadWrite).unwrap_err()
}

const TOTAL: u64 = 10_064;
const FILE_BYTES: usize = 12_288;

#[test]
fn both_sides_see_one_memory() {
    let ours = created(PeerAccess::ReadWrite);
    let theirs = attach_to(&ours, PeerAccess::ReadWrite).unwrap();
    assert_eq!(
        (theirs.generation(), theirs.creator_pid()),
        (42, std::process::id())
    );
    theirs
        .body()
        .at::<AtomicU64>(64)
        .unwrap()
        .store(9, Ordering::Release);
    assert_eq!(
        ours.body()
            .at::<AtomicU64>(64)
            .unwrap()
            .load(Ordering::Acquire),
        9
    );
}

#[test]
fn the_format_is_the_one_written_down() {
    let good = header(LAYOUT.magic, LAYOUT.abi, LAYOUT.layout_hash, TOTAL);
    let file = forged(&good, FILE_BYTES, SEALS_ALWAYS);
    let segment = Segment::attach(file, LAYOUT, PeerAccess::ReadWrite).unwrap();
    assert_eq!((segment.generation(), segment.creator_pid()), (5, 77));
}

#[test]
fn every_lie_in_a_header_has_its_error() {
    let SegmentLayout {
        magic,
        abi,
        layout_hash: hash,
        ..
    } = LAYOUT;
    let cases = [
        (header(magic, 0, hash, TOTAL), SegmentError::NotReady),
        (vec![0; 64], SegmentError::NotReady),
        (
            header(1, abi, hash, TOTAL),
            SegmentError::WrongMagic {
                found: 1,
                expected: magic,
            },
        ),
        (
            header(magic, 4, hash, TOTAL),
            SegmentError::VersionMismatch {
                found: 4,
                expected: abi,
            },
        ),
        (
            header(magic, abi, 6, TOTAL),
            SegmentError::LayoutMismatch {
                found: 6,
                expected: hash,
            },
        ),
        (
            header(magic, abi, hash, TOTAL + 1),
            SegmentError::LengthMismatch {
                found: TOTAL + 1,
                expected: TOTAL,
            },
        ),
    ];
    for (forgery, expected) in cases {
        assert_eq!(refused(&forgery, FILE_BYTES, SEALS_ALWAYS), expected);
    }
}

proptest! {
    #[test]
    fn garbage_headers_are_refused(garbage: [u8; 64]) {
        let error = refused(&garbage, FILE_BYTES, SEALS_ALWAYS);
        let known = matches!(error, SegmentError::NotReady | SegmentError::WrongMagic { .. });
        prop_assert!(known, "{}", error);
    }
}

#[test]
fn a_file_that_could_change_is_refused() {
    let good = header(LAYOUT.magic, LAYOUT.abi, LAYOUT.layout_hash, TOTAL);
    let partial = [
        SealFlags::empty(),
        SealFlags::SHRINK | SealFlags::GROW,
        SealFlags::SHRINK | SealFlags::SEAL,
        SealFlags::GROW | SealFlags::SEAL,
    ];
    for seals in partial {
        let error = refused(&good, FILE_BYTES, seals);
        assert!(
            matches!(error, SegmentError::NotSealed { .. }),
            "{seals:?}: {error}"
        );
    }
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let error = Segment::attach(pipe, LAYOUT, PeerAccess::ReadWrite).unwrap_err();
    assert!(
        matches!(error, SegmentError::NotSealed { found: 0, .. }),
        "{error}"
    );
}

#[test]
fn a_file_of_another_length_is_refused() {
    let good = header(LAYOUT.magic, LAYOUT.abi, LAYOUT.layout_hash, TOTAL);
    for bytes in [64, 8192, 10_064, FILE_BYTES - 1, FILE_BYTES + 4096] {
        let error = refused(&good, bytes, SEALS_ALWAYS);
        let expected = SegmentError::FileLength {
            found: bytes as u64,
            expected: TOTAL,
        };
        assert_eq!(error, expected);
    }
}

#[test]
fn a_sealed_segment_stays_as_it_is() {
    let segment = created(PeerAccess::ReadWrite);
    assert_eq!(ftruncate(segment.fd(), 0), Err(Errno::PERM));
    assert_eq!(ftruncate(segment.fd(), 1 << 20), Err(Errno::PERM));
    assert_eq!(
        fcntl_add_seals(segment.fd(), SealFlags::WRITE),
        Err(Errno::PERM)
    );
}

/// Every road to a write through the descriptor of a read-only segment.
fn assert_peer_cannot_write(ours: &Segment) {
    let theirs = attach_to(ours, PeerAccess::ReadOnly).unwrap();
    let word = ours.body().at::<AtomicU64>(0).unwrap();
    word.store(11, Ordering::Release);
    assert_eq!(
        theirs
            .body()
            .at::<AtomicU64>(0)
            .unwrap()
            .load(Ordering::Relaxed),
        11
    );

    assert_eq!(
        pwrite(theirs.fd(), b"lie", HEADER_BYTES as u64),
        Err(Errno::PERM)
    );
    let mapped = Mapping::of_file(theirs.fd(), ours.mapping.bytes(), Protection::ReadWrite);
    assert_eq!(mapped.unwrap_err(), Errno::PERM);
    let base = theirs.mapping.base().as_ptr();
    // SAFETY: only asks for a protection that must be refused; the range is the mapping's own.
    let raised = unsafe {
        let protection = rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE;
        rustix::mm::mprotect(base.cast(), theirs.mapping.bytes(), protection)
    };
    assert_eq!(raised, Err(Errno::ACCESS));
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    assert_eq!(
        rustix::fs::fallocate(theirs.fd(), punch, 0, PAGE_BYTES as u64),
        Err(Errno::PERM)
    );
    let refused = attach_to(ours, PeerAccess::ReadWrite).unwrap_err();
    assert_eq!(refused, SegmentError::SealedReadOnly);
    // And none of that touched what the creator wrote.
    assert_eq!(word.load(Ordering::Acquire), 11);
}

#[test]
fn a_read_only_peer_cannot_write() {
    assert_peer_cannot_write(&created(PeerAccess::ReadOnly));
}

#[test]
fn a_read_only_attach_insists_on_the_seal() {
    let error = attach_to(&created(PeerAccess::ReadWrite), PeerAccess::ReadOnly).unwrap_err();
    assert!(matches!(error, SegmentError::NotSealed { .. }), "{error}");
}

#[test]
fn large_read_only_segments_use_hugepages_where_there_are_any() {
    let layout = SegmentLayout {
        body_bytes: HUGE_PAGE_BYTES,
        ..LAYOUT
    };
    let room_before = huge_pool::has_room_for(2 * HUGE_PAGE_BYTES);
    let ours = Segment::create("large", layout, 1, PeerAccess::ReadOnly).unwrap();
    let huge = *ours.backing() == Backing::Huge2M;
    if !huge {
        // Unless another process was faster, there was room at no time.
        let room_after = huge_pool::has_room_for(2 * HUGE_PAGE_BYTES);
        assert!(
            !(room_before && room_after),
            "hugepages left unused: {:?}",
            ours.backing()
        );
        println!("on ordinary pages only: no two free hugepages; sysctl -w vm.nr_hugepages=4");
    }
    let fd = ours.fd().try_clone_to_owned().unwrap();
    let theirs = Segment::attach(fd, layout, PeerAccess::ReadOnly).unwrap();
    let last = HUGE_PAGE_BYTES - size_of::<AtomicU64>();
    ours.body()
        .at::<AtomicU64>(last)
        .unwrap()
        .store(3, Ordering::Release);
    assert_eq!(
        theirs
            .body()
            .at::<AtomicU64>(last)
            .unwrap()
            .load(Ordering::Relaxed),
        3
    );
    assert_eq!(*theirs.backing() == Backing::Huge2M, huge);
    assert!(pwrite(theirs.fd(), b"lie", HEADER_BYTES as u64).is_err());
    let mapped = Mapping::of_file(theirs.fd(), ours.mapping.bytes(), Protection::ReadWrite);
    assert_eq!(mapped.unwrap_err(), Errno::PERM);
}

#[test]
fn access_is_checked() {
    let segment = created(PeerAccess::ReadWrite);
    let body = segment.body();
    assert!(body.at::<AtomicU64>(LAYOUT.body_bytes - 8).is_ok());
    for offset in [
        LAYOUT.body_bytes - 7,
        LAYOUT.body_bytes,
        usize::MAX,
        usize::MAX - 7,
    ] {
        let error = body.at::<AtomicU64>(offset).unwrap_err();
        assert!(
            matches!(error, SegmentError::OutOfBounds { .. }),
            "{offset}: {error}"
        );
    }
    let misaligned = body.at::<AtomicU64>(4).unwrap_err();
    assert_eq!(
        misaligned,
        SegmentError::Misaligned {
            offset: 4,
            align: 8
        }
    );
    assert_eq!(body.slice_at::<AtomicU64>(8, 1249).unwrap().len(), 1249);
    for count in [1250, usize::MAX, usize::MAX / 8 + 1] {
        let error = body.slice_at::<AtomicU64>(8, count).unwrap_err();
        assert!(
            matches!(error, SegmentError::OutOfBounds { .. }),
            "{count}: {error}"
        );
    }
}

#[test]
fn layouts_that_cannot_be_are_refused() {
    for body_bytes in [0, usize::MAX, isize::MAX as usize] {
        let layout = SegmentLayout {
            body_bytes,
            ..LAYOUT
        };
        let error = Segment::create("bad", layout, 1, PeerAccess::ReadWrite).unwrap_err();
        assert_eq!(error, SegmentError::BadLength { body_bytes });
    }
    let layout = SegmentLayout { abi: 0, ..LAYOUT };
    let error = Segment::create("bad", layout, 1, PeerAccess::ReadWrite).unwrap_err();
    assert_eq!(error, SegmentError::ReservedAbi);
}

#[test]
fn layout_hash_sees_every_change() {
    const HASH: u64 = layout_hash(&[("a", 0, 8), ("b", 8, 8)]);
    // By an independent implementation of FNV-1a over the bytes in its documentation.
    assert_eq!(layout_hash(&[]), 0xcbf2_9ce4_8422_2325);
    let others = [
        layout_hash(&[("a", 0, 8), ("c", 8, 8)]),
        layout_hash(&[("b", 8, 8), ("a", 0, 8)]),
        layout_hash(&[("a", 0, 8), ("b", 16, 8)]),
        layout_hash(&[("a", 0, 8), ("b", 8, 4)]),
        layout_hash(&[("a", 0, 8)]),
        layout_hash(&[("ab", 0, 8), ("", 8, 8)]),
    ];
    assert!(others.iter().all(|other| *other != HASH));
}
