//! The ring under every interleaving that loom can think of. Loom's cells report a record that is
//! read while it is written, its atomics deliver stale values wherever the orderings allow them.

use super::*;
use loom::thread;

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn loom_ring_keeps_order_when_slots_are_reused() {
    check(|| {
        const ITEMS: u64 = 3;
        let (mut producer, mut consumer) = private::<u64>(2).unwrap();
        let pusher = thread::spawn(move || {
            for item in 1..=ITEMS {
                while producer.push(&item).is_err() {
                    thread::yield_now();
                }
            }
            producer.check().unwrap();
        });
        for item in 1..=ITEMS {
            let popped = loop {
                if let Some(popped) = consumer.pop().unwrap() {
                    break popped;
                }
                thread::yield_now();
            };
            assert_eq!(popped, item);
        }
        assert_eq!(consumer.pop(), Ok(None));
        pusher.join().unwrap();
    });
}

#[test]
fn loom_ring_batches_arrive_whole() {
    check(|| {
        let (mut producer, mut consumer) = private::<u64>(2).unwrap();
        let pusher = thread::spawn(move || {
            let pushed = producer.push_slice(&[1, 2, 3]);
            (pushed, producer.push_slice(&[10, 20]))
        });
        let mut seen = Vec::new();
        let mut out = [std::mem::MaybeUninit::uninit(); 2];
        for _ in 0..2 {
            seen.extend_from_slice(consumer.pop_into(&mut out).unwrap());
        }
        let (first, second) = pusher.join().unwrap();
        for _ in 0..2 {
            seen.extend_from_slice(consumer.pop_into(&mut out).unwrap());
        }
        let sent: Vec<u64> = [1, 2, 3]
            .into_iter()
            .take(first)
            .chain([10, 20].into_iter().take(second))
            .collect();
        assert_eq!(seen, sent);
    });
}
