//! The shared ring against rtrb: 64-byte records, one by one and in batches, on one thread and across
//! two pinned ones. In: how many pairs. Out: millions of records a second. Promises: every record that
//! arrives is looked at, in order, on both sides of the comparison; both wait in the same way; a sample
//! is its fastest slice, a millisecond or so, for what else runs on the cores only ever slows one down.

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use core_affinity::CoreId;
use dwcp_hugepages::ring::{self, RingMem};
use dwcp_hugepages::segment::{PeerAccess, Segment, SegmentLayout};

use crate::row::Row;

type Record = [u64; 8];

const SLOTS: u32 = 1024;
const BATCH: usize = 32;
const PAIRS: usize = 51;
/// Records of one sample.
const RECORDS: u64 = 1 << 19;
/// Records of one slice: many rings full, so that what lay in the ring at its start counts for little.
const SLICE: u64 = 1 << 16;
/// Looks at a full or an empty ring before the core is given to others.
const SPINS: u32 = 4096;

/// The writing side.
trait Push: Send {
    fn push(&mut self, record: &Record) -> bool;
    /// How many of them went in, from the first.
    fn push_batch(&mut self, records: &[Record]) -> usize;
}

/// The reading side.
trait Pop: Send {
    fn pop(&mut self) -> Option<Record>;
    /// The records that came, at most `out.len()`.
    fn pop_batch<'out>(&mut self, out: &'out mut [MaybeUninit<Record>]) -> &'out [Record];
}

impl Push for ring::Producer<Record> {
    #[inline]
    fn push(&mut self, record: &Record) -> bool {
        Self::push(self, record).is_ok()
    }

    #[inline]
    fn push_batch(&mut self, records: &[Record]) -> usize {
        self.push_slice(records)
    }
}

impl Pop for ring::Consumer<Record> {
    #[inline]
    fn pop(&mut self) -> Option<Record> {
        Self::pop(self).ok().flatten()
    }

    #[inline]
    fn pop_batch<'out>(&mut self, out: &'out mut [MaybeUninit<Record>]) -> &'out [Record] {
        self.pop_into(out).map_or(&[], |popped| &*popped)
    }
}

impl Push for rtrb::Producer<Record> {
    #[inline]
    fn push(&mut self, record: &Record) -> bool {
        Self::push(self, *record).is_ok()
    }

    #[inline]
    fn push_batch(&mut self, records: &[Record]) -> usize {
        self.push_partial_slice(records).0.len()
    }
}

impl Pop for rtrb::Consumer<Record> {
    #[inline]
    fn pop(&mut self) -> Option<Record> {
        Self::pop(self).ok()
    }

    #[inline]
    fn pop_batch<'out>(&mut self, out: &'out mut [MaybeUninit<Record>]) -> &'out [Record] {
        self.pop_partial_slice_uninit(out).0
    }
}

#[derive(Clone, Copy)]
enum How {
    Single,
    Batches,
}

pub(super) fn run(runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let cores = core_affinity::get_core_ids().context("the system does not say its cores")?;
    let first = *cores.first().context("the system has no core for us")?;
    let last = *cores.last().unwrap_or(&first);
    let pairs = runs.unwrap_or(PAIRS);
    let mut rows = Vec::new();
    for (how, what) in [(How::Single, "one by one"), (How::Batches, "batches of 32")] {
        let name = format!("ring, one thread, {what}");
        rows.push(compare(
            &name,
            pairs,
            || alone(ours()?, how, first),
            || alone(theirs(), how, first),
        )?);
        let name = format!("ring, two threads, {what}");
        let mut row = compare(
            &name,
            pairs,
            || across(ours()?, how, [first, last]),
            || across(theirs(), how, [first, last]),
        )?;
        if first.id == last.id {
            row = row.noted("both threads share the only core");
        }
        rows.push(row);
    }
    Ok(rows)
}

/// As the planes have it: in a sealed segment that another process could map.
fn ours() -> anyhow::Result<(ring::Producer<Record>, ring::Consumer<Record>)> {
    let body_bytes = RingMem::bytes_needed::<Record>(SLOTS);
    let layout = SegmentLayout {
        magic: 1,
        abi: 1,
        layout_hash: 1,
        body_bytes,
    };
    let segment = Arc::new(Segment::create(
        "ring bench",
        layout,
        1,
        PeerAccess::ReadWrite,
    )?);
    let mem = || RingMem::in_segment(Arc::clone(&segment), 0);
    Ok((
        ring::Producer::new(mem(), SLOTS)?,
        ring::Consumer::new(mem(), SLOTS)?,
    ))
}

fn theirs() -> (rtrb::Producer<Record>, rtrb::Consumer<Record>) {
    rtrb::RingBuffer::new(SLOTS as usize)
}

/// Takes turns; who begins changes from pair to pair.
fn compare(
    name: &str,
    pairs: usize,
    ours: impl Fn() -> anyhow::Result<f64>,
    theirs: impl Fn() -> anyhow::Result<f64>,
) -> anyhow::Result<Row> {
    // Pages and caches warm for both.
    ours()?;
    theirs()?;
    let (mut of_us, mut of_them) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        if pair % 2 == 0 {
            of_us.push(ours()?);
            of_them.push(theirs()?);
        } else {
            of_them.push(theirs()?);
            of_us.push(ours()?);
        }
    }
    Ok(Row::new(name, "M/s", &of_us, &of_them))
}

fn record(number: u64) -> Record {
    [number, 1, 2, 3, 4, 5, 6, !number]
}

/// Finds the fastest slice.
struct Slices {
    began: Instant,
    done: u64,
    best: f64,
}

impl Slices {
    fn start() -> Self {
        Self {
            began: Instant::now(),
            done: 0,
            best: 0.0,
        }
    }

    /// `done` records are through.
    #[inline]
    fn note(&mut self, done: u64) {
        let records = done - self.done;
        if records >= SLICE {
            let rate = records as f64 / self.began.elapsed().as_secs_f64() / 1e6;
            *self = Self {
                began: Instant::now(),
                done,
                best: self.best.max(rate),
            };
        }
    }
}

/// Half a ring in, half a ring out, on one thread.
fn alone<P: Push, C: Pop>(
    (mut producer, mut consumer): (P, C),
    how: How,
    core: CoreId,
) -> anyhow::Result<f64> {
    const BURST: u64 = SLOTS as u64 / 2;
    core_affinity::set_for_current(core);
    let mut wrong = 0;
    let mut slices = Slices::start();
    let mut done = 0;
    while done < RECORDS {
        match how {
            How::Single => {
                for number in done..done + BURST {
                    wrong += u64::from(!producer.push(black_box(&record(number))));
                }
                for number in done..done + BURST {
                    wrong += consumer.pop().map_or(1, |got| judge(&got, number));
                }
                done += BURST;
            }
            How::Batches => {
                let batch: [Record; BATCH] = std::array::from_fn(|at| record(done + at as u64));
                let pushed = producer.push_batch(black_box(&batch));
                let mut out = [MaybeUninit::uninit(); BATCH];
                let popped = consumer.pop_batch(&mut out);
                wrong += u64::from(pushed != BATCH || popped.len() != BATCH);
                for (at, got) in popped.iter().enumerate() {
                    wrong += judge(got, done + at as u64);
                }
                done += BATCH as u64;
            }
        }
        slices.note(done);
    }
    ensure!(wrong == 0, "{wrong} records were lost or wrong");
    Ok(slices.best)
}

#[inline]
fn judge(got: &Record, number: u64) -> u64 {
    let got = black_box(got);
    u64::from(got[0] != number || got[7] != !number)
}

/// From one core to another.
fn across<P: Push, C: Pop>(
    (mut producer, mut consumer): (P, C),
    how: How,
    cores: [CoreId; 2],
) -> anyhow::Result<f64> {
    let start_line = std::sync::Barrier::new(2);
    let (rate, wrong) = std::thread::scope(|scope| {
        scope.spawn(|| {
            core_affinity::set_for_current(cores[0]);
            start_line.wait();
            feed(&mut producer, how);
        });
        core_affinity::set_for_current(cores[1]);
        start_line.wait();
        drain(&mut consumer, how)
    });
    ensure!(wrong == 0, "{wrong} records were lost or wrong");
    Ok(rate)
}

fn feed(producer: &mut impl Push, how: How) {
    let (mut next, mut idle) = (0, 0);
    while next < RECORDS {
        let pushed = match how {
            How::Single => u64::from(producer.push(black_box(&record(next)))),
            How::Batches => {
                let batch: [Record; BATCH] = std::array::from_fn(|at| record(next + at as u64));
                let some = BATCH.min((RECORDS - next) as usize);
                producer.push_batch(black_box(&batch[..some])) as u64
            }
        };
        next += pushed;
        wait(pushed > 0, &mut idle);
    }
}

fn drain(consumer: &mut impl Pop, how: How) -> (f64, u64) {
    let (mut next, mut idle, mut wrong) = (0, 0, 0);
    let mut slices = Slices::start();
    let mut out = [MaybeUninit::uninit(); BATCH];
    while next < RECORDS {
        let before = next;
        match how {
            How::Single => {
                if let Some(got) = consumer.pop() {
                    wrong += judge(&got, next);
                    next += 1;
                }
            }
            How::Batches => {
                for got in consumer.pop_batch(&mut out) {
                    wrong += judge(got, next);
                    next += 1;
                }
            }
        }
        slices.note(next);
        wait(next > before, &mut idle);
    }
    (slices.best, wrong)
}

#[inline]
fn wait(moved: bool, idle: &mut u32) {
    if moved {
        *idle = 0;
    } else if *idle < SPINS {
        *idle += 1;
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}
