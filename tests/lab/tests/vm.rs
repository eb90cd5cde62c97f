//! Virtual machines boot in each shape, see this machine's files, and say how their jobs ended.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use dwcp_lab::vm::{E1000E, IGB, Shape, Vm, VmConfig, VmError};
use std::path::Path;
use std::time::Duration;

fn run(shape: Shape, job: &str) -> dwcp_lab::vm::Outcome {
    Vm::run(&VmConfig::new(shape), Path::new("/"), job).unwrap()
}

#[test]
fn rdma_devices_send_to_each_other_over_a_veth_pair() {
    let outcome = run(
        Shape::Rxe,
        "set -e
        ibv_devinfo -d rxe0 | grep -E 'state|active_mtu'
        ibv_devinfo -d rxe1 | grep -E 'state|active_mtu'
        before=$(cat /sys/class/net/veth1/statistics/rx_bytes)
        ibv_rc_pingpong -d rxe1 -g 1 -s 4096 -n 200 >/tmp/far 2>&1 &
        sleep 2
        ibv_rc_pingpong -d rxe0 -g 1 -s 4096 -n 200 10.77.0.2
        wait
        after=$(cat /sys/class/net/veth1/statistics/rx_bytes)
        echo crossed $((after - before))
        echo kept >/etc/dwcp-vm-was-here
        exit 7",
    );
    assert_eq!(outcome.status, 7, "{}", outcome.said);
    let said = |what: &str| outcome.said.matches(what).count();
    assert_eq!(said("PORT_ACTIVE"), 2);
    assert_eq!(said("1638400 bytes in"), 1);
    let crossed = outcome.said.split("crossed ").nth(1).unwrap();
    let crossed: u64 = crossed.lines().next().unwrap().parse().unwrap();
    assert!(crossed > 200 * 4096, "only {crossed} bytes over the pair");
    assert!(
        !Path::new("/etc/dwcp-vm-was-here").exists(),
        "the machine changed this one"
    );
}

#[test]
fn nics_are_bound_to_vfio_behind_an_iommu() {
    let outcome = run(
        Shape::Vfio,
        &format!(
            "set -e
            basename $(readlink /sys/bus/pci/devices/{E1000E}/driver)
            basename $(readlink /sys/bus/pci/devices/{IGB}/driver)
            for nic in {E1000E} {IGB}; do
                bind_to_vfio $nic
                group=$(basename $(readlink /sys/bus/pci/devices/$nic/iommu_group))
                [ -c /dev/vfio/$group ]
                echo bound $nic
            done
            grep HugePages_Free /proc/meminfo"
        ),
    );
    assert_eq!(outcome.status, 0, "{}", outcome.said);
    for line in ["e1000e", "igb", "bound 0000:00:04.0", "bound 0000:00:05.0"] {
        assert!(outcome.said.lines().any(|said| said == line), "no {line}");
    }
    assert!(outcome.said.contains("     128"), "{}", outcome.said);
}

#[test]
fn a_job_past_its_limit_is_ended_and_its_words_are_told() {
    let config = VmConfig {
        limit: Duration::from_secs(45),
        ..VmConfig::new(Shape::Rxe)
    };
    let vm = Vm::start(&config, Path::new("/tmp"), "pwd; sleep 1000").unwrap();
    let mut told = Vec::new();
    let ended = vm.wait(|line| told.push(line.to_owned())).unwrap_err();
    assert!(
        matches!(&ended, VmError::Deadline { limit_s: 45, log } if log.contains("/tmp")),
        "{ended}"
    );
    assert_eq!(told, ["/tmp"]);
}
