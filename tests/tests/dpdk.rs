//! DPDK where it needs more than two processes: the conformance suite over AF_XDP between the ends of a cable,
//! and over DPDK's own drivers on emulated NICs behind an IOMMU, in a virtual machine; there profiles on those
//! NICs too, and a stream between two data planes over what `dwcpctl` bound.
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
    Vm::run(&config, Path::new("/tmp"), job).unwrap()
}

/// Runs each check in a process of its own: DPDK is started once in one.
fn each_alone(suite: &Path) -> String {
    let suite = suite.display();
    format!(
        "for check in $({suite} --list | sed -n 's/: test$//p'); do {suite} --exact $check || exit 1; done"
    )
}

fn all_passed(said: &str) {
    let passed = said.matches("1 passed; 0 failed; 0 ignored").count();
    assert_eq!(passed, CHECKS, "{said}");
}

#[test]
fn dpdk_lanes_conform_over_emulated_nics() {
    let suite = binary::test("dwcp-drivers", "dpdk_conformance").unwrap();
    let job = format!(
        "bind_to_vfio {E1000E} && bind_to_vfio {IGB} || exit 1
        export DWCP_DPDK_NEAR=pci:{E1000E} DWCP_DPDK_FAR=pci:{IGB}
        {}",
        each_alone(&suite)
    );
    let outcome = in_machine(&job);
    assert_eq!(outcome.status, 0, "{}", outcome.said);
    all_passed(&outcome.said);
}

#[test]
fn dpdk_lanes_conform_over_af_xdp() {
    let suite = binary::test("dwcp-drivers", "dpdk_conformance").unwrap();
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
        .command("bash")
        .args(["-c", &each_alone(&suite)])
        .env("DWCP_DPDK_NEAR", "af_xdp:lan5")
        .env("DWCP_DPDK_FAR", "af_xdp:lan6")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    all_passed(&said);
    drop(cable);
}

#[test]
fn profiles_are_applied_to_nics_and_taken_back_and_dpdk_drives_what_they_bound() {
    let tests = binary::test("dwcp-tests", "in_machine").unwrap();
    let outcome = in_machine(&format!("{} --test-threads 1 nics::", tests.display()));
    assert_eq!(outcome.status, 0, "{}", outcome.said);
    assert!(outcome.said.contains("1 passed"), "{}", outcome.said);
}
