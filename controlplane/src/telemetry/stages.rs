//! One worker's counters, arranged by stage.
//!
//! In: a worker's figures by name. Out: what each stage cost and moved. A quantity that a stage does not
//! have is absent, not zero.

use dwcp_api::Stage;
use serde::Serialize;

use super::picture::{WorkerFigures, figure};

/// One stage of one worker, totals since the data plane started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StageFigures {
    /// Its name.
    pub stage: &'static str,
    /// Time spent in it, without the stages inside it.
    pub busy_ns: u64,
    /// Bytes that came into it.
    pub bytes_in: Option<u64>,
    /// Bytes that went on from it.
    pub bytes_out: Option<u64>,
    /// Batches it handled; for lanes frames, both ways.
    pub batches: Option<u64>,
}

/// The name of the counter that holds a stage's time.
#[must_use]
pub fn time_counter(stage: Stage) -> String {
    format!("stage_{stage}_ns_total")
}

/// Every stage of a worker, in the order of a page's way.
#[must_use]
pub fn stages(worker: &WorkerFigures) -> Vec<StageFigures> {
    let sum = |names: &[&str]| -> Option<u64> {
        let total = names.iter().map(|name| figure(worker, name)).sum();
        (!names.is_empty()).then_some(total)
    };
    let raw = ["raw_bytes_v1_total", "raw_bytes_v3_total"];
    let encoded = ["encoded_bytes_v1_total", "encoded_bytes_v3_total"];
    let moved = |stage| -> [&[&str]; 3] {
        match stage {
            Stage::Intake => [&["hypervisor_bytes_in_total"], &[], &[]],
            Stage::Stream => [&[], &raw, &["batches_encoded_total"]],
            Stage::Codec => [&raw, &encoded, &["batches_encoded_total"]],
            Stage::Transport => [
                &[],
                &[],
                &["batches_encoded_total", "batches_decoded_total"],
            ],
            Stage::Lanes => [
                &["wire_bytes_received_total"],
                &["wire_bytes_sent_total"],
                &["frames_sent_total", "frames_received_total"],
            ],
            Stage::Decode => [
                &["decoded_bytes_in_total"],
                &["decoded_bytes_out_total"],
                &["batches_decoded_total"],
            ],
            Stage::Release => [&[], &["hypervisor_bytes_out_total"], &[]],
            Stage::Engine => [&[], &[], &[]],
        }
    };
    let each = Stage::ALL.iter().map(|stage| {
        let [bytes_in, bytes_out, batches] = moved(*stage).map(sum);
        StageFigures {
            stage: stage.as_str(),
            busy_ns: figure(worker, &time_counter(*stage)),
            bytes_in,
            bytes_out,
            batches,
        }
    });
    each.collect()
}

/// Time of turns that found work.
#[must_use]
pub fn busy_ns(worker: &WorkerFigures) -> u64 {
    stages(worker).iter().map(|stage| stage.busy_ns).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_api::worker::WorkerCounters;

    /// A block whose every counter holds a value of its own.
    fn figures() -> WorkerFigures {
        (1u64..)
            .zip(WorkerCounters::NAMES)
            .map(|(at, name)| (*name, 1 << (at % 60)))
            .collect()
    }

    #[test]
    fn each_stage_has_its_own_time() {
        let worker = figures();
        let mut names: Vec<String> = Stage::ALL.iter().map(|s| time_counter(*s)).collect();
        for name in &names {
            assert!(WorkerCounters::NAMES.contains(&name.as_str()), "{name}");
        }
        let expected: u64 = names.iter().map(|name| figure(&worker, name)).sum();
        assert_eq!(busy_ns(&worker), expected);
        names.dedup();
        assert_eq!(names.len(), Stage::ALL.len());
    }

    #[test]
    fn what_a_stage_moves_is_counted_somewhere() {
        for stage in stages(&figures()) {
            // A name that the data plane does not have would read as zero.
            for moved in [stage.bytes_in, stage.bytes_out, stage.batches] {
                assert_ne!(moved, Some(0), "{stage:?}");
            }
        }
        let codec = stages(&figures())[Stage::Codec.code() as usize];
        assert_ne!(codec.bytes_in, codec.bytes_out);
    }
}
