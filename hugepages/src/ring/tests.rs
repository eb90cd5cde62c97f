//! The ring against an oracle, and against a peer that lies.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::segment::{PeerAccess, Segment, SegmentLayout};

const SLOTS: u32 = 8;
const PRODUCER_INDEX: usize = 0;
const CONSUMER_INDEX: usize = 128;

fn segment() -> Arc<Segment> {
    let body_bytes = RingMem::bytes_needed::<[u64; 8]>(SLOTS);
    let layout = SegmentLayout {
        magic: 1,
        abi: 1,
        layout_hash: 1,
        body_bytes,
    };
    Arc::new(Segment::create("ring test", layout, 1, PeerAccess::ReadWrite).unwrap())
}

fn mem(segment: &Arc<Segment>) -> RingMem {
    RingMem::in_segment(Arc::clone(segment), 0)
}

fn lie(segment: &Segment, index: usize, value: u64) {
    segment
        .body()
        .at::<AtomicU64>(index)
        .unwrap()
        .store(value, Ordering::Release);
}

#[derive(Clone, Debug)]
enum Step {
    Push,
    PushSlice(usize),
    Pop,
    PopInto(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        Just(Step::Push),
        (0..20usize).prop_map(Step::PushSlice),
        Just(Step::Pop),
        (0..20usize).prop_map(Step::PopInto),
    ];
    prop::collection::vec(step, 0..200)
}

fn record(number: u64) -> [u64; 8] {
    std::array::from_fn(|word| number.wrapping_mul(31).wrapping_add(word as u64))
}

proptest! {
    #[test]
    fn behaves_like_a_bounded_queue(steps in steps(), slots_log2 in 0..5u32) {
        let slots = 1 << slots_log2;
        let (mut producer, mut consumer) = private(slots).unwrap();
        let mut oracle = VecDeque::new();
        let mut numbers = 0u64..;
        for step in steps {
            let room = slots as usize - oracle.len();
            match step {
                Step::Push => {
                    let next = record(numbers.next().unwrap());
                    let pushed = producer.push(&next);
                    prop_assert_eq!(pushed.is_ok(), room > 0);
                    if room > 0 {
                        oracle.push_back(next);
                    }
                }
                Step::PushSlice(count) => {
                    let batch: Vec<_> = numbers.by_ref().take(count).map(record).collect();
                    let pushed = producer.push_slice(&batch);
                    prop_assert_eq!(pushed, count.min(room));
                    oracle.extend(&batch[..pushed]);
                }
                Step::Pop => prop_assert_eq!(consumer.pop().unwrap(), oracle.pop_front()),
                Step::PopInto(count) => {
                    let mut out = vec![MaybeUninit::uninit(); count];
                    let popped = consumer.pop_into(&mut out).unwrap();
                    let expected: Vec<_> = oracle.drain(..count.min(oracle.len())).collect();
                    prop_assert_eq!(&*popped, &expected[..]);
                }
            }
            prop_assert_eq!(consumer.is_empty(), oracle.is_empty());
            prop_assert_eq!(producer.free_slots() as usize, slots as usize - oracle.len());
        }
    }

    /// Whatever index the producer stores: a record from inside the ring, or the error. Never a
    /// read beyond the slots (which end with the mapping), and never a recovery.
    #[test]
    fn consumer_survives_any_index(honest in 0..30u64, garbage: u64) {
        let segment = segment();
        let mut producer = Producer::<[u64; 8]>::new(mem(&segment), SLOTS).unwrap();
        let mut consumer = Consumer::<[u64; 8]>::new(mem(&segment), SLOTS).unwrap();
        for number in 0..honest {
            producer.push(&record(number)).unwrap();
            prop_assert_eq!(consumer.pop().unwrap(), Some(record(number)));
        }
        lie(&segment, PRODUCER_INDEX, garbage);
        let ready = garbage.wrapping_sub(honest);
        if ready <= u64::from(SLOTS) {
            for _ in 0..ready {
                prop_assert!(consumer.pop().unwrap().is_some());
            }
            prop_assert_eq!(consumer.pop().unwrap(), None);
        } else {
            let corrupt = RingError::CorruptIndex {
                side: Side::Producer,
                found: garbage,
                own: honest,
                capacity: u64::from(SLOTS),
            };
            prop_assert!(!consumer.is_empty());
            prop_assert_eq!(consumer.pop(), Err(corrupt.clone()));
            lie(&segment, PRODUCER_INDEX, honest + 1);
            let mut out = [MaybeUninit::uninit()];
            prop_assert_eq!(consumer.pop_into(&mut out), Err(corrupt.clone()));
            prop_assert_eq!(consumer.pop(), Err(corrupt));
        }
    }

    #[test]
    fn producer_survives_any_index(honest in 0..30u64, garbage: u64) {
        let segment = segment();
        let mut producer = Producer::<[u64; 8]>::new(mem(&segment), SLOTS).unwrap();
        let mut consumer = Consumer::<[u64; 8]>::new(mem(&segment), SLOTS).unwrap();
        for number in 0..honest {
            producer.push(&record(number)).unwrap();
            consumer.pop().unwrap();
        }
        lie(&segment, CONSUMER_INDEX, garbage);
        let used = honest.wrapping_sub(garbage);
        let batch = [record(0); 2 * SLOTS as usize];
        let pushed = producer.push_slice(&batch);
        if used <= u64::from(SLOTS) {
            prop_assert_eq!(pushed as u64, u64::from(SLOTS) - used);
            prop_assert_eq!(producer.check(), Ok(()));
        } else {
            prop_assert_eq!(pushed, 0);
            let corrupt = producer.check();
            let capacity = u64::from(SLOTS);
            let (side, found, own) = (Side::Consumer, garbage, honest);
            let expected = RingError::CorruptIndex { side, found, own, capacity };
            prop_assert_eq!(&corrupt, &Err(expected));
            lie(&segment, CONSUMER_INDEX, honest);
            prop_assert_eq!(producer.push(&record(1)), Err(Full));
            prop_assert_eq!(producer.check(), corrupt);
        }
    }
}

#[test]
fn indices_may_wrap() {
    let (mut producer, mut consumer) = private(SLOTS).unwrap();
    producer.skip_to(u64::MAX - 3);
    consumer.skip_to(u64::MAX - 3);
    for number in 0..40 {
        assert_eq!(
            producer.push_slice(&[record(number), record(number + 1)]),
            2
        );
        assert_eq!(consumer.pop(), Ok(Some(record(number))));
        assert_eq!(consumer.pop(), Ok(Some(record(number + 1))));
    }
    assert_eq!(producer.push_slice(&[record(9); 20]), SLOTS as usize);
    assert_eq!(producer.push(&record(9)), Err(Full));
}

#[test]
fn rings_that_do_not_fit_are_refused() {
    let segment = segment();
    let bad = |slots| Producer::<[u64; 8]>::new(mem(&segment), slots).unwrap_err();
    for slots in [0, 3, SLOTS + 1, u32::MAX] {
        assert_eq!(bad(slots), RingError::BadCapacity { slots });
    }
    for slots in [SLOTS * 2, 1 << 31] {
        assert!(matches!(
            bad(slots),
            RingError::Memory(SegmentError::OutOfBounds { .. })
        ));
    }
    for (offset, slots) in [(8, 1), (1, 1), (usize::MAX, 1), (64, SLOTS)] {
        let region = RingMem::in_segment(Arc::clone(&segment), offset);
        assert!(matches!(
            Consumer::<[u64; 8]>::new(region, slots),
            Err(RingError::Memory(_))
        ));
    }
}

#[test]
fn a_ring_serves_one_life_of_each_side() {
    let segment = segment();
    let mut producer = Producer::<[u64; 8]>::new(mem(&segment), SLOTS).unwrap();
    producer.push(&record(1)).unwrap();
    drop(producer);
    let again = Producer::<[u64; 8]>::new(mem(&segment), SLOTS);
    assert_eq!(
        again.unwrap_err(),
        RingError::NotFresh {
            side: Side::Producer,
            found: 1
        }
    );
    // The consumer may come late: what was published before is there.
    let mut consumer = Consumer::<[u64; 8]>::new(mem(&segment), SLOTS).unwrap();
    assert_eq!(consumer.pop(), Ok(Some(record(1))));
}

#[test]
fn threads_pass_everything_in_order() {
    const RECORDS: u64 = 300_000;
    let (mut producer, mut consumer) = private(64).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut next = 0;
            while next < RECORDS {
                let batch: [_; 5] = std::array::from_fn(|place| record(next + place as u64));
                let pushed =
                    producer.push_slice(&batch[..batch.len().min((RECORDS - next) as usize)]);
                if pushed == 0 {
                    std::thread::yield_now();
                }
                next += pushed as u64;
            }
        });
        let mut out = [MaybeUninit::uninit(); 7];
        let mut next = 0;
        while next < RECORDS {
            let popped = consumer.pop_into(&mut out).unwrap();
            if popped.is_empty() {
                std::thread::yield_now();
            }
            for got in popped {
                assert_eq!(*got, record(next));
                next += 1;
            }
        }
    });
}
