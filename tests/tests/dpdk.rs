//! DPDK's own drivers on emulated NICs behind an IOMMU, in a virtual machine: streams between two data planes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use dwcp_lab::vm::{E1000E, IGB, Shape, Vm, VmConfig};
use dwcp_tests::binary;

#[test]
fn streams_cross_nics_that_dpdk_drives() {
    let tests = binary::test("dwcp-tests", "dpdk,rdma", "in_machine").unwrap();
    let config = VmConfig {
        limit: Duration::from_secs(300),
        ..VmConfig::new(Shape::Vfio)
    };
    let job = format!(
        "bind_to_vfio {E1000E} && bind_to_vfio {IGB} && {} --test-threads 1 vfio_",
        tests.display()
    );
    let outcome = Vm::run(&config, Path::new("/tmp"), &job).unwrap();
    assert_eq!(outcome.status, 0, "{}", outcome.said);
    assert!(outcome.said.contains("1 passed"), "{}", outcome.said);
}
