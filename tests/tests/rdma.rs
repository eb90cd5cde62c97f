//! RDMA lanes between the two software devices of a virtual machine: the conformance suite, the driver's own
//! tests, and streams between two data planes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use dwcp_lab::vm::{Outcome, Shape, Vm, VmConfig};
use dwcp_tests::binary;

fn run(limit_s: u64, job: &str) -> Outcome {
    let config = VmConfig {
        limit: Duration::from_secs(limit_s),
        ..VmConfig::new(Shape::Rxe)
    };
    Vm::run(&config, Path::new("/tmp"), job).unwrap()
}

/// Tests of the suite, of faults and refusals, and of what frames cost.
const TESTS: usize = 24;
const REMOVAL: &str = "removal::a_device_that_is_taken_away_ends_its_lanes";

#[test]
fn rdma_lanes_conform_over_rxe() {
    let suite = binary::test("dwcp-drivers", "rdma", "rdma").unwrap();
    let units = binary::unit_tests("dwcp-drivers", "rdma").unwrap();
    let (suite, units) = (suite.display(), units.display());
    let job = format!(
        "mount -t tracefs nodev /sys/kernel/tracing\n\
         {suite} --test-threads 1 --nocapture --skip {REMOVAL} && {units} rdma:: \\\n\
         && {suite} --exact {REMOVAL}"
    );
    let outcome = run(450, &job);
    assert_eq!(outcome.status, 0, "{}", outcome.said);
    for said in [
        format!("{TESTS} passed; 0 failed; 0 ignored; 0 measured; 1 filtered out"),
        format!("test {REMOVAL} ... ok"),
        "a_queue_pair_in_error_ends_its_lane_on_both_sides ... ok".to_owned(),
    ] {
        assert!(
            outcome.said.contains(&said),
            "{said:?} is not in:\n{}",
            outcome.said
        );
    }
}

#[test]
fn streams_cross_rdma_devices() {
    let tests = binary::test("dwcp-tests", "dpdk,rdma", "in_machine").unwrap();
    let job = format!("{} --test-threads 1 rdma_", tests.display());
    let outcome = run(300, &job);
    assert_eq!(outcome.status, 0, "{}", outcome.said);
    assert!(outcome.said.contains("3 passed"), "{}", outcome.said);
}
