//! Counters of one worker: where its time went and what it refused.

use dwcp_hugepages::counters::Counter;
use dwcp_hugepages::impl_shared_pod;
use zerocopy::FromBytes;

use crate::stage::Stage;

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
    /// Nanoseconds of turns that found none, spinning and yielding included.
    idle_ns_total,
    /// Nanoseconds parked.
    parked_ns_total,
    /// Nanoseconds of turns that found work, in [`Stage::Intake`] and so on, each without the others.
    stage_intake_ns_total,
    /// See `stage_intake_ns_total`.
    stage_stream_ns_total,
    /// See `stage_intake_ns_total`.
    stage_codec_ns_total,
    /// See `stage_intake_ns_total`.
    stage_transport_ns_total,
    /// See `stage_intake_ns_total`.
    stage_lanes_ns_total,
    /// See `stage_intake_ns_total`.
    stage_decode_ns_total,
    /// See `stage_intake_ns_total`.
    stage_release_ns_total,
    /// See `stage_intake_ns_total`.
    stage_engine_ns_total,
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
    /// Bytes read from hypervisors.
    hypervisor_bytes_in_total,
    /// Bytes written to hypervisors.
    hypervisor_bytes_out_total,
    /// Pages encoded that were all zero.
    pages_zero_total,
    /// Pages encoded as a reference to an equal stored page.
    pages_duplicate_total,
    /// Pages encoded as a reference to a block of a baseline.
    pages_known_total,
    /// Batches that came again in v1 because a block of a baseline was damaged.
    baseline_misses_total,
    /// Pages encoded as a delta.
    pages_delta_total,
    /// Pages sent whole.
    pages_literal_total,
    /// Batches encoded.
    batches_encoded_total,
    /// Those of them that were compressed on another core than the worker's.
    batches_encoded_aside_total,
    /// Batches sent a second time because a lane was lost or stalled.
    batches_resent_total,
    /// Batches decoded.
    batches_decoded_total,
    /// Payload bytes of decoded batches.
    decoded_bytes_in_total,
    /// Hypervisor bytes of decoded batches.
    decoded_bytes_out_total,
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
    /// Frames handed to lanes.
    frames_sent_total,
    /// Frames that came from lanes.
    frames_received_total,
    /// What the network below the lanes sent again: TCP segments, as last seen on each lane.
    lane_retransmits_total,
    /// Windows in force of this worker's source sessions together, hypervisor bytes.
    window_bytes,
    /// Bytes held between hypervisors by this worker's source sessions.
    held_bytes,
    /// Memory that is reserved for the sessions of all workers; said by the first.
    memory_reserved_bytes,
    /// What may be, at most; said by the first.
    memory_limit_bytes,
    /// Frames and batches refused: digest, tag, length or order was wrong.
    corrupted_total,
    /// Arenas that fell back to ordinary pages.
    hugepage_fallbacks_total,
}

impl WorkerCounters {
    /// Where the time of `stage` is counted.
    #[must_use]
    pub const fn stage_ns(&self, stage: Stage) -> &Counter {
        match stage {
            Stage::Intake => &self.stage_intake_ns_total,
            Stage::Stream => &self.stage_stream_ns_total,
            Stage::Codec => &self.stage_codec_ns_total,
            Stage::Transport => &self.stage_transport_ns_total,
            Stage::Lanes => &self.stage_lanes_ns_total,
            Stage::Decode => &self.stage_decode_ns_total,
            Stage::Release => &self.stage_release_ns_total,
            Stage::Engine => &self.stage_engine_ns_total,
        }
    }
}
