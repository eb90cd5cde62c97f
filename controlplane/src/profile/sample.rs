//! Records of the sampling ring. In: a record's bytes. Out: what was sampled, or how much was lost.
//! Promise: every length is checked; what does not add up is [`Record::Unknown`].
//!
//! The layout is that of perf_event_open(2) for the kind of sample that [`super::event`] asks for: thread,
//! call chain, registers, stack.

use perf_event_open_sys::bindings::{PERF_CONTEXT_MAX, PERF_RECORD_LOST, PERF_RECORD_SAMPLE};

/// Addresses of a call chain that are looked at.
const CHAIN_MAX: u64 = 256;

/// Where a thread's own code was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) frame: u64,
    pub(super) stack: u64,
    pub(super) code: u64,
}

/// One sample.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sample<'r> {
    pub(super) thread: u32,
    /// Addresses inside the kernel, the innermost first, as they lie in the record.
    kernel: &'r [u8],
    /// None for a thread of the kernel itself.
    pub(super) registers: Option<Registers>,
    /// The stack from [`Registers::stack`] upwards.
    pub(super) stack: &'r [u8],
}

/// A record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record<'r> {
    /// A sample.
    Sample(Sample<'r>),
    /// So many records did not fit into the ring.
    Lost(u64),
    /// Another kind, or broken.
    Unknown,
}

impl Sample<'_> {
    /// Addresses inside the kernel, the innermost first.
    pub(super) fn kernel(&self) -> impl Iterator<Item = u64> + '_ {
        let words = self.kernel.chunks_exact(8);
        words
            .filter_map(|word| Some(u64::from_ne_bytes(word.try_into().ok()?)))
            // The largest numbers say whose addresses follow; ours are all the kernel's.
            .filter(|address| *address < PERF_CONTEXT_MAX)
    }
}

/// Reads numbers and bytes off the front.
struct Reader<'r>(&'r [u8]);

impl<'r> Reader<'r> {
    fn bytes(&mut self, count: u64) -> Option<&'r [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(count).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_ne_bytes(self.bytes(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.bytes(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.bytes(8)?.try_into().ok()?))
    }
}

/// Reads a record.
pub(super) fn parse(record: &[u8]) -> Record<'_> {
    let mut reader = Reader(record);
    let (Some(kind), Some(_misc), Some(_size)) = (reader.u32(), reader.u16(), reader.u16()) else {
        return Record::Unknown;
    };
    match kind {
        PERF_RECORD_SAMPLE => sample(&mut reader).map_or(Record::Unknown, Record::Sample),
        PERF_RECORD_LOST => {
            let _event = reader.u64();
            reader.u64().map_or(Record::Unknown, Record::Lost)
        }
        _ => Record::Unknown,
    }
}

fn sample<'r>(reader: &mut Reader<'r>) -> Option<Sample<'r>> {
    let _process = reader.u32()?;
    let thread = reader.u32()?;
    let count = reader.u64()?;
    if count > CHAIN_MAX {
        return None;
    }
    let kernel = reader.bytes(count * 8)?;
    let registers = match reader.u64()? {
        0 => None,
        // In the order of their numbers: BP 6, SP 7, IP 8.
        _ => Some(Registers {
            frame: reader.u64()?,
            stack: reader.u64()?,
            code: reader.u64()?,
        }),
    };
    let size = reader.u64()?;
    let stack = if size == 0 {
        &[]
    } else {
        let copied = reader.bytes(size)?;
        let filled = usize::try_from(reader.u64()?).ok()?;
        copied.get(..filled)?
    };
    Some(Sample {
        thread,
        kernel,
        registers,
        stack,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: u32, body: &[u64]) -> Vec<u8> {
        let bytes = 8 + 8 * body.len();
        let mut out = kind.to_ne_bytes().to_vec();
        out.extend(0u16.to_ne_bytes());
        out.extend(u16::try_from(bytes).unwrap().to_ne_bytes());
        out.extend(body.iter().flat_map(|word| word.to_ne_bytes()));
        out
    }

    /// Process 3, thread 4 in one word.
    const IDS: u64 = 3 | (4 << 32);

    #[test]
    fn a_sample_is_read_field_by_field() {
        let marker = PERF_CONTEXT_MAX + 5;
        let body = [IDS, 3, marker, 100, 101, 2, 60, 70, 80, 24, 1, 2, 3, 16];
        let bytes = record(PERF_RECORD_SAMPLE, &body);
        let Record::Sample(sample) = parse(&bytes) else {
            panic!("no sample")
        };
        assert_eq!(sample.thread, 4);
        assert_eq!(sample.kernel().collect::<Vec<_>>(), [100, 101]);
        let registers = Registers {
            frame: 60,
            stack: 70,
            code: 80,
        };
        assert_eq!(sample.registers, Some(registers));
        let stack: Vec<u8> = [1u64, 2].iter().flat_map(|w| w.to_ne_bytes()).collect();
        assert_eq!(sample.stack, stack);
    }

    #[test]
    fn a_thread_of_the_kernel_has_neither_registers_nor_stack() {
        let bytes = record(PERF_RECORD_SAMPLE, &[IDS, 0, 0, 0]);
        let Record::Sample(sample) = parse(&bytes) else {
            panic!("no sample")
        };
        assert_eq!((sample.registers, sample.stack.len()), (None, 0));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for body in [
            vec![IDS, 5, 1],
            vec![IDS, u64::MAX, 1],
            vec![IDS, 0, 2, 1, 2],
            vec![IDS, 0, 0, 8],
            vec![IDS, 0, 0, 8, 1, 9],
            vec![IDS, 0, 0, u64::MAX, 1, 1],
        ] {
            assert_eq!(parse(&record(PERF_RECORD_SAMPLE, &body)), Record::Unknown);
        }
        assert_eq!(parse(&record(PERF_RECORD_LOST, &[1, 17])), Record::Lost(17));
        assert_eq!(parse(&record(PERF_RECORD_LOST, &[1])), Record::Unknown);
        assert_eq!(parse(&record(77, &[1])), Record::Unknown);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(body in proptest::collection::vec(any::<u64>(), 0..40)) {
            for kind in [PERF_RECORD_SAMPLE, PERF_RECORD_LOST] {
                if let Record::Sample(sample) = parse(&record(kind, &body)) {
                    prop_assert!(sample.kernel().count() * 8 + sample.stack.len() <= body.len() * 8);
                }
            }
        }
    }
}
