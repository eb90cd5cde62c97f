//! RDMA lanes between the two software devices of a virtual machine: the conformance suite, the driver's own
//! tests, and streams between two data planes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use dwcp_lab::vm::{Shape, Vm, VmConfig};
use dwcp_tests::binary;

#[test]
fn rdma_lanes_conform_and_carry_streams_over_rxe() {
    let suite = binary::test("dwcp-drivers", "rdma").unwrap();
    let streams = binary::test("dwcp-tests", "in_machine").unwrap();
    let config = VmConfig {
        limit: Duration::from_secs(450),
        ..VmConfig::new(Shape::Rxe)
    };
    let job = format!(
        "{} --test-threads 1 && {} --test-threads 1 rdma_",
        suite.display(),
        streams.display()
    );
    let outcome = Vm::run(&config, Path::new("/tmp"), &job).unwrap();
    let said = &outcome.said;
    assert_eq!(outcome.status, 0, "{said}");
    let (conformed, carried) = said.split_once("test result: ok").expect(said);
    let passed = conformed.matches(" ... ok").count();
    assert!(passed >= 19, "only {passed} tests ran");
    assert!(
        carried.contains(" 0 ignored; 0 measured; 0 filtered out"),
        "{said}"
    );
    assert!(carried.contains("2 passed"), "{said}");
}
