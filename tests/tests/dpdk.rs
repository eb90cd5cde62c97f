//! DPDK where it needs more than two processes: the conformance suite over AF_XDP between the ends of a cable,
//! and over DPDK's own drivers on emulated NICs behind an IOMMU, in a virtual machine; streams between two data
//! planes over the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use dwcp_lab::netns::{Cable, Host};
use dwcp_lab::vm::{E1000E, IGB, Outcome, Shape, Vm, VmConfig};
use dwcp_tests::binary;

/// Checks of the conformance suite.
const CHECKS: usize = 17;

fn in_machine(job: &str) -> Outcome {
    let config = VmConfig {
        limit: Duration::from_secs(300),
        ..VmConfig::new(Shape::Vfio)
    };
    let job = format!("bind_to_vfio {E1000E} && bind_to_vfio {IGB} && {job}");
    Vm::run(&config, Path::new("/tmp"), &job).unwrap()
}

fn all_passed(said: &str, tests: usize) {
    let wanted = format!("{tests} passed; 0 failed; 0 ignored");
    assert!(said.contains(&wanted), "{said}");
}

#[test]
fn dpdk_lanes_conform_over_emulated_nics() {
    let suite = binary::test("dwcp-drivers", "dpdk", "dpdk_conformance").unwrap();
    let job = format!(
        "DWCP_DPDK_NEAR=pci:{E1000E} DWCP_DPDK_FAR=pci:{IGB} {} --test-threads 1",
        suite.display()
    );
    let outcome = in_machine(&job);
    assert_eq!(outcome.status, 0, "{}", outcome.said);
    all_passed(&outcome.said, CHECKS);
}

#[test]
fn dpdk_lanes_conform_over_af_xdp() {
    let suite = binary::test("dwcp-drivers", "dpdk", "dpdk_conformance").unwrap();
    let (near, far) = (Host::new("xdp-a").unwrap(), Host::new("xdp-b").unwrap());
    let cable = Cable::lan(&near, &far, 5).unwrap();
    // One process has both ends, so both must be on its host; its packets cross the cable all the same.
    let moved = far
        .command("ip")
        .args(["link", "set", "lan5", "name", "lan6"])
        .status()
        .unwrap();
    assert!(moved.success());
    let name = near.name().to_owned();
    let moved = far
        .command("ip")
        .args(["link", "set", "lan6", "netns", &name])
        .status()
        .unwrap();
    assert!(moved.success());
    let up = near
        .command("ip")
        .args(["link", "set", "lan6", "up"])
        .status()
        .unwrap();
    assert!(up.success());
    let output = near
        .command(&suite)
        .args(["--test-threads", "1"])
        .env("DWCP_DPDK_NEAR", "af_xdp:lan5")
        .env("DWCP_DPDK_FAR", "af_xdp:lan6")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    all_passed(&said, CHECKS);
    drop(cable);
}

#[test]
fn streams_cross_nics_that_dpdk_drives() {
    let tests = binary::test("dwcp-tests", "dpdk,rdma", "in_machine").unwrap();
    let outcome = in_machine(&format!("{} --test-threads 1 vfio_", tests.display()));
    assert_eq!(outcome.status, 0, "{}", outcome.said);
    all_passed(&outcome.said, 1);
}
