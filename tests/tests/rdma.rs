//! RDMA lanes between the two software devices of a virtual machine: the conformance suite, the driver's own
//! tests, and streams between two data planes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use dwcp_lab::vm::{Outcome, Shape, Vm, VmConfig};
use dwcp_tests::{binary, recorded};

fn run(limit_s: u64, job: &str) -> Outcome {
    let config = VmConfig {
        limit: Duration::from_secs(limit_s),
        ..VmConfig::new(Shape::Rxe)
    };
    Vm::run(&config, Path::new("/tmp"), job).unwrap()
}

#[test]
fn rdma_lanes_conform_over_rxe() {
    let suite = binary::test("dwcp-drivers", "rdma", "rdma").unwrap();
    let job = format!("{} --test-threads 1", suite.display());
    let outcome = run(420, &job);
    assert_eq!(outcome.status, 0, "{}", outcome.said);
    let passed = outcome.said.matches(" ... ok").count();
    assert!(passed >= 19, "only {passed} tests ran");
    assert!(
        outcome
            .said
            .contains(" 0 ignored; 0 measured; 0 filtered out")
    );
}

#[test]
fn streams_cross_rdma_devices() {
    let tests = binary::test("dwcp-tests", "dpdk,rdma", "in_machine").unwrap();
    let recorded = recorded::file();
    let job = format!(
        "export {}={}; {} --test-threads 1 rdma_",
        recorded::FILE,
        recorded.display(),
        tests.display()
    );
    let outcome = run(300, &job);
    assert_eq!(outcome.status, 0, "{}", outcome.said);
    assert!(outcome.said.contains("2 passed"), "{}", outcome.said);
}
