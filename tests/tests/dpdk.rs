//! DPDK where it needs more than two processes: the conformance suite over AF_XDP between the ends of a cable,
//! and over DPDK's own drivers on emulated NICs behind an IOMMU, in a virtual machine; there profiles on those
//! NICs too, and a stream between two data planes over what `dwcpctl` bound.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use dwcp_lab::netns::{Cable, Host};
use dwcp_lab::vm::{E1000E, IGB, Outcome, Shape, Vm, VmConfig};
use dwcp_tests::{binary, recorded};

/// Checks of the conformance suite.
const CHECKS: usize = 18;

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
    let near = Host::new("xdp").unwrap();
    let _cable = Cable::folded(&near, 5).unwrap();
    let output = near
        .command("bash")
        .args(["-c", &each_alone(&suite)])
        .env("DWCP_DPDK_NEAR", "af_xdp:lan5")
        .env("DWCP_DPDK_FAR", "af_xdp:lan5b")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    all_passed(&said);
}

#[test]
fn profiles_are_applied_to_nics_and_taken_back_and_dpdk_drives_what_they_bound() {
    let tests = binary::test("dwcp-tests", "in_machine").unwrap();
    let recorded = recorded::file();
    let outcome = in_machine(&format!(
        "export {}={}; {} --test-threads 1 nics::",
        recorded::FILE,
        recorded.display(),
        tests.display()
    ));
    assert_eq!(outcome.status, 0, "{}", outcome.said);
    assert!(outcome.said.contains("1 passed"), "{}", outcome.said);
}
