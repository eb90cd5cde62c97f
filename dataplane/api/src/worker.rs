//! Counters of one worker: where its time went and what it refused.

use dwcp_hugepages::counters::Counter;
use dwcp_hugepages::impl_shared_pod;
use zerocopy::FromBytes;

/// Workers a data plane runs at most.
pub const WORKERS_MAX: usize = 64;

/// Declares the block and the list of its names from one place.
macro_rules! worker_counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// One worker's counters, written by that worker alone.
        #[repr(C)]
        #[derive(Debug, Default, FromBytes)]
        pub struct WorkerCounters { $($(#[$doc])* pub $name: Counter,)+ }

        impl_shared_pod!(WorkerCounters { $($name),+ });

        impl WorkerCounters {
            /// Names of the counters, in the order of the block.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)+];

            /// Every counter with its name.
            pub fn read(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
                [$((stringify!($name), self.$name.get()),)+].into_iter()
            }
        }
    };
}

worker_counters! {
    /// Turns of the loop that found work.
    turns_busy,
    /// Turns that found none and spun.
    turns_spun,
    /// Turns that found none and yielded.
    turns_yielded,
    /// Times the worker parked.
    parks,
    /// Times it was woken by its doorbell.
    wakeups,
    /// When the last turn ended, `CLOCK_MONOTONIC` nanoseconds: alive, idle or stuck.
    last_turn_ns,
    /// Sessions held now.
    sessions,
    /// Sessions opened.
    sessions_opened_total,
    /// Sessions that completed.
    sessions_completed_total,
    /// Sessions that failed.
    sessions_failed_total,
    /// Batches sent in v1.
    batches_v1_total,
    /// Batches sent in v3.
    batches_v3_total,
    /// Hypervisor bytes in v1 batches.
    raw_bytes_v1_total,
    /// Hypervisor bytes in v3 batches.
    raw_bytes_v3_total,
    /// Encoded bytes of v1 batches.
    encoded_bytes_v1_total,
    /// Encoded bytes of v3 batches.
    encoded_bytes_v3_total,
    /// Nanoseconds spent encoding v1 batches.
    encode_v1_ns_total,
    /// Nanoseconds spent encoding v3 batches.
    encode_v3_ns_total,
    /// Nanoseconds spent decoding.
    decode_ns_total,
    /// Bytes handed to lanes.
    wire_bytes_sent_total,
    /// Bytes that came from lanes.
    wire_bytes_received_total,
    /// Bytes held between hypervisors by this worker's source sessions.
    held_bytes,
    /// Frames, batches or handshakes refused: digest, tag, length or order was wrong.
    corrupted_total,
    /// Peers refused at the door.
    refused_total,
    /// Arenas that fell back to ordinary pages.
    hugepage_fallbacks_total,
}
