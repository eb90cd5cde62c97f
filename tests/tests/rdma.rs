//! RDMA lanes between the two software devices of a virtual machine: the conformance suite, the driver's own
//! tests, and streams between two data planes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use dwcp_lab::vm::{Shape, Vm, VmConfig};
use dwcp_tests::{binary, recorded};

/// Tests of the suite, of faults and refusals, and of what frames cost.
const TESTS: usize = 25;
/// It takes the device away, so it comes last of them.
const REMOVAL: &str = "removal::a_device_that_is_taken_away_ends_its_lanes";

#[test]
fn rdma_lanes_conform_and_carry_streams_over_rxe() {
    let suite = binary::test("dwcp-drivers", "rdma").unwrap();
    let units = binary::unit_tests("dwcp-drivers").unwrap();
    let streams = binary::test("dwcp-tests", "in_machine").unwrap();
    let (suite, units, streams) = (suite.display(), units.display(), streams.display());
    let job = format!(
        "mount -t tracefs nodev /sys/kernel/tracing; export {}={}\n\
         {suite} --test-threads 1 --nocapture --skip {REMOVAL} && {units} rdma:: \\\n\
         && {streams} --test-threads 1 rdma_ \\\n\
         && ip link set veth0 up && {suite} --exact {REMOVAL}",
        recorded::FILE,
        recorded::file().display()
    );
    let config = VmConfig {
        limit: Duration::from_secs(450),
        ..VmConfig::new(Shape::Rxe)
    };
    let outcome = Vm::run(&config, Path::new("/tmp"), &job).unwrap();
    let said = &outcome.said;
    assert_eq!(outcome.status, 0, "{said}");
    for wanted in [
        format!("{TESTS} passed; 0 failed; 0 ignored; 0 measured; 1 filtered out"),
        "a_queue_pair_in_error_ends_its_lane_on_both_sides ... ok".to_owned(),
        "3 passed; 0 failed; 0 ignored".to_owned(),
        format!("test {REMOVAL} ... ok"),
    ] {
        assert!(said.contains(&wanted), "{wanted:?} is not in:\n{said}");
    }
}
