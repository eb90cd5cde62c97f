//! RDMA lanes between the two software devices of a virtual machine: the conformance suite, the driver's own
//! tests, and streams between two data planes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use dwcp_lab::vm::{Outcome, Shape, Vm, VmConfig};
use dwcp_tests::{binary, recorded};

/// Tests of the suite, of faults and refusals, and of what frames cost.
const TESTS: usize = 25;
/// It takes the device away, so it comes last of them.
const REMOVAL: &str = "removal::a_device_that_is_taken_away_ends_its_lanes";

fn in_machine(job: &str) -> Outcome {
    let config = VmConfig {
        limit: Duration::from_secs(450),
        ..VmConfig::new(Shape::Rxe)
    };
    Vm::run(&config, Path::new("/tmp"), job).unwrap()
}

#[test]
fn rdma_lanes_conform_over_rxe() {
    let suite = binary::test("dwcp-drivers", "rdma").unwrap();
    let units = binary::unit_tests("dwcp-drivers").unwrap();
    let (suite, units) = (suite.display(), units.display());
    let outcome = in_machine(&format!(
        "mount -t tracefs nodev /sys/kernel/tracing\n\
         {suite} --test-threads 1 --nocapture --skip {REMOVAL} && {units} rdma:: \\\n\
         && {suite} --exact {REMOVAL}"
    ));
    let said = &outcome.said;
    assert_eq!(outcome.status, 0, "{said}");
    for wanted in [
        format!("{TESTS} passed; 0 failed; 0 ignored; 0 measured; 1 filtered out"),
        "a_queue_pair_in_error_ends_its_lane_on_both_sides ... ok".to_owned(),
        format!("test {REMOVAL} ... ok"),
    ] {
        assert!(said.contains(&wanted), "{wanted:?} is not in:\n{said}");
    }
}

/// In a machine of their own: the last of them cuts its cable.
#[test]
fn streams_cross_rdma_devices() {
    let streams = binary::test("dwcp-tests", "in_machine").unwrap();
    let outcome = in_machine(&format!(
        "export {}={}\n{} --test-threads 1 rdma_",
        recorded::FILE,
        recorded::file().display(),
        streams.display()
    ));
    let said = &outcome.said;
    assert_eq!(outcome.status, 0, "{said}");
    assert!(said.contains("3 passed; 0 failed; 0 ignored"), "{said}");
}
