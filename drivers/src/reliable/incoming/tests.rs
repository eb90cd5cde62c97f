use proptest::prelude::*;

use super::super::testing::{bytes_of, pools};
use super::*;

const WINDOW: u64 = 4 << 20;

/// The stream of frames with these payload lengths, and where each begins.
fn stream(lens: &[usize]) -> (Vec<u8>, Vec<u64>) {
    let (mut stream, mut starts) = (Vec::new(), Vec::new());
    for (seed, len) in lens.iter().enumerate() {
        starts.push(stream.len() as u64);
        stream.extend_from_slice(&(*len as u32).to_le_bytes());
        stream.extend_from_slice(&bytes_of(seed as u64, *len));
    }
    (stream, starts)
}

/// Hands `range` of the stream over as one packet would.
fn give(
    incoming: &mut Incoming,
    lens: &[usize],
    range: Range<usize>,
    fin: bool,
) -> Result<Taken, Violation> {
    let (stream, starts) = stream(lens);
    give_of(incoming, (&stream, &starts, lens), range, fin)
}

/// The same of a stream that was made before: its bytes, where its frames start, how long they are.
fn give_of(
    incoming: &mut Incoming,
    (stream, starts, lens): (&[u8], &[u64], &[usize]),
    range: Range<usize>,
    fin: bool,
) -> Result<Taken, Violation> {
    let at = starts.partition_point(|start| *start <= range.start as u64);
    let at = at.saturating_sub(1);
    let head = DataHead {
        offset: range.start as u64,
        back: (range.start as u64 - starts[at]) as u32,
        frame_len: lens[at] as u32,
        len: range.len() as u16,
    };
    incoming.take(&head, &stream[range], fin)
}

fn incoming(pools: &FramePools) -> Incoming {
    let mut incoming = Incoming::new(pools.clone(), WINDOW);
    incoming.promise_window();
    incoming
}

/// Ranges of `len` bytes that cut no frame's length.
fn cuts(lens: &[usize], len: usize) -> Vec<Range<usize>> {
    let (stream, starts) = stream(lens);
    let mut borders = vec![0];
    while let Some(last) = borders.last().copied().filter(|last| *last < stream.len()) {
        let mut next = (last + len).min(stream.len());
        for start in &starts {
            let start = *start as usize;
            if next > start && next < start + 5 {
                next = if start > last { start } else { start + 5 };
            }
        }
        borders.push(next.min(stream.len()));
    }
    borders.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

proptest! {
    #[test]
    fn any_order_and_any_memory_gives_the_frames(
        lens in prop::collection::vec(1usize..3000, 1..10),
        len in 64usize..2000,
        seed in 1u64..,
        buffers in 1usize..12,
    ) {
        let pools = pools(buffers, buffers, 0);
        let mut incoming = incoming(&pools);
        let pieces = cuts(&lens, len);
        let (bytes, starts) = stream(&lens);
        let mut order = seed;
        let mut got = 0;
        let mut missing: Vec<usize> = (0..pieces.len()).collect();
        let mut restarts = incoming.restarts();
        for _ in 0..100_000 {
            if got == lens.len() {
                break;
            }
            if missing.is_empty() || incoming.restarts() != restarts {
                restarts = incoming.restarts();
                let from = incoming.contiguous() as usize;
                missing = (0..pieces.len()).filter(|at| pieces[*at].end > from).collect();
            }
            order ^= order << 13;
            order ^= order >> 7;
            order ^= order << 17;
            let at = order as usize % missing.len();
            let piece = pieces[missing[at]].clone();
            let taken = give_of(&mut incoming, (&bytes, &starts, &lens), piece, false).unwrap();
            if taken == Taken::Kept {
                missing.swap_remove(at);
            }
            while let Some(frame) = incoming.deliver() {
                prop_assert_eq!(frame.bytes(), &bytes_of(got as u64, lens[got])[..]);
                got += 1;
            }
            incoming.relieve();
            incoming.promise_window();
        }
        prop_assert_eq!(got, lens.len());
        prop_assert_eq!(pools.available().small + pools.available().medium, 2 * buffers);
    }

    #[test]
    fn hostile_data_never_panics_and_never_gives_a_frame_that_was_not_whole(
        packets in prop::collection::vec(
            (0u64..6000, 0u32..40, 0u32..1500, prop::collection::vec(0u8..3, 0..60), any::<bool>()),
            1..60,
        ),
    ) {
        let pools = pools(8, 2, 1);
        let mut incoming = incoming(&pools);
        for (offset, back, frame_len, data, fin) in packets {
            let head = DataHead { offset, back, frame_len, len: data.len() as u16 };
            if incoming.take(&head, &data, fin).is_err() {
                break;
            }
            let whole = incoming.contiguous();
            while let Some(frame) = incoming.deliver() {
                prop_assert!(incoming.delivered <= whole && frame.len() <= 1500);
            }
            prop_assert!(incoming.islands.len() <= ISLANDS_MAX);
        }
        incoming.clear();
        prop_assert_eq!(pools.available().small, 8);
    }
}

#[test]
fn what_lies_behind_a_gap_is_in_place_when_the_gap_closes() {
    let lens = [4096, 4096, 4096];
    let pools = pools(0, 4, 0);
    let mut incoming = incoming(&pools);
    for at in [2, 1] {
        let range = at * 4100..(at + 1) * 4100;
        assert_eq!(give(&mut incoming, &lens, range, at == 2), Ok(Taken::Kept));
        assert!(incoming.deliver().is_none());
    }
    assert_eq!(pools.available().medium, 2);
    assert_eq!(give(&mut incoming, &lens, 0..4100, false), Ok(Taken::Kept));
    for seed in 0..3 {
        assert_eq!(incoming.has_ended(), Ok(false));
        assert!(incoming.has_whole_frame());
        assert_eq!(incoming.deliver().unwrap().bytes(), bytes_of(seed, 4096));
    }
    assert_eq!(incoming.has_ended(), Ok(true));
}

#[test]
fn the_first_frame_gets_a_buffer_before_those_behind_it() {
    let lens = [1000, 1000, 1000];
    let pools = pools(2, 0, 0);
    let mut incoming = incoming(&pools);
    for at in [2, 1] {
        let range = at * 1004..(at + 1) * 1004;
        assert_eq!(give(&mut incoming, &lens, range, false), Ok(Taken::Kept));
    }
    assert_eq!(pools.available().small, 0);
    let before = incoming.restarts();
    assert_eq!(give(&mut incoming, &lens, 0..1004, false), Ok(Taken::Kept));
    assert_eq!(
        incoming.restarts(),
        before + 1,
        "the last one was forgotten"
    );
    assert!(incoming.deliver().is_some() && incoming.deliver().is_some());
    assert!(incoming.deliver().is_none());
    assert_eq!(incoming.contiguous(), 2008);
}

#[test]
fn an_empty_pool_closes_the_window_and_relief_opens_it() {
    let lens = [100, 1500];
    let pools = pools(1, 0, 0);
    let mut incoming = incoming(&pools);
    assert_eq!(
        give(&mut incoming, &lens, 0..1608, false),
        Ok(Taken::NoMemory)
    );
    let held = incoming.deliver().unwrap();
    assert_eq!(incoming.contiguous(), 104, "the first frame counts");
    assert_eq!(incoming.promise_window(), 0);
    assert!(!incoming.relieve());
    drop(held);
    assert!(incoming.relieve());
    assert_eq!(incoming.restarts(), 1);
    let window = incoming.promise_window();
    assert!(window >= 5, "{window}");
    // The start of the frame shows its length, and the window follows.
    let start = 104..104 + window as usize;
    assert_eq!(give(&mut incoming, &lens, start, false), Ok(Taken::Kept));
    assert_eq!(incoming.promise_window(), 1504 - window);
}

#[test]
fn a_peer_that_breaks_the_rules_is_found_out() {
    let pools = pools(4, 4, 4);
    let fresh = || incoming(&pools);
    let head = |offset, back, frame_len, len| DataHead {
        offset,
        back,
        frame_len,
        len,
    };
    let frame = |len: u32, bytes: usize| {
        let mut data = len.to_le_bytes().to_vec();
        data.resize(4 + bytes, 7);
        data
    };
    for announced_bytes in [0, MAX_FRAME_BYTES as u32 + 1, u32::MAX] {
        let got = fresh().take(
            &head(0, 0, announced_bytes, 9),
            &frame(announced_bytes, 5),
            false,
        );
        assert_eq!(got, Err(Violation::BadLength { announced_bytes }));
    }
    let cases = [
        (head(0, 0, 6, 9), frame(5, 5), "two lengths"),
        (head(0, 0, 6, 2), vec![6, 0], "a length that is cut"),
        (head(2, 2, 6, 2), vec![6, 0], "a start within a length"),
        (head(3, 4, 6, 2), vec![6, 0], "a frame before the stream"),
        (head(10, 10, 6, 2), vec![6, 0], "data behind its frame"),
        (head(WINDOW, 0, 5, 9), frame(5, 5), "beyond the window"),
        (head(u64::MAX, 0, 5, 9), frame(5, 5), "beyond all numbers"),
    ];
    for (head, data, what) in cases {
        assert_eq!(
            fresh().take(&head, &data, false),
            Err(Violation::Nonsense),
            "{what}"
        );
    }
    // Two frames in one place.
    let mut incoming = fresh();
    incoming
        .take(&head(0, 0, 100, 14), &frame(100, 10), false)
        .unwrap();
    let got = incoming.take(&head(50, 0, 6, 9), &frame(6, 5), false);
    assert_eq!(got, Err(Violation::BadLength { announced_bytes: 6 }));
    // An end within a frame, before what is there, and two ends.
    let got = incoming.take(&head(20, 0, 0, 0), &[], true);
    assert_eq!(got, Err(Violation::Truncated));
    let got = incoming.take(&head(5, 0, 0, 0), &[], true);
    assert_eq!(got, Err(Violation::Nonsense));
    incoming.clear();
    let mut incoming = fresh();
    incoming.take(&head(200, 0, 0, 0), &[], true).unwrap();
    assert_eq!(
        incoming.take(&head(300, 0, 0, 0), &[], true),
        Err(Violation::Nonsense)
    );
    let got = incoming.take(&head(198, 0, 100, 14), &frame(100, 10), false);
    assert_eq!(got, Err(Violation::Nonsense), "data behind the end");
    assert_eq!(pools.available().small, 4);
}
