//! Profiles on NICs that the kernel drives for real: found, planned, applied, compared and taken back by
//! `dwcpctl`, also when the control plane is killed in the middle; and a stream over those that it bound.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dwcp_lab::vm::{E1000E, IGB};
use dwcp_lab::watchdog::Watchdog;
use dwcp_nic_config::kernel::{ChannelCounts, Kernel, LinkChange, RingSizes};
use dwcp_nic_config::linux::Linux;
use serde_json::{Value, json};

use crate::desk::{Desk, hugepages, interrupts, read};

/// The end of a change may come before the kill: then it is tried again.
const TRIES: usize = 5;
/// Exit status of `dwcpctl` for what the host needs.
const GUARDED: Option<i32> = Some(5);

/// A NIC that keeps its driver, with everything that the driver can be told.
const KEPT: &str = r#"
name = "kept"
[nic]
pci = "0000:00:04.0"
[driver]
bind = "kernel"
[link]
mtu = 9000
up = true
[rings]
rx = "max"
tx = 512
[offloads]
rx-gro = false
[hugepages]
size_kib = 2048
pages = 160
"#;

/// A NIC with several queues and virtual functions.
const SHARED: &str = r#"
name = "shared"
[nic]
interface = "eth1"
[link]
up = true
[queues]
count = 2
cores = "1"
[sriov]
vfs = 2
"#;

/// A NIC for DPDK.
const BYPASSED: &str = r#"
name = "bypassed"
[nic]
pci = "0000:00:05.0"
[driver]
bind = "vfio-pci"
[hugepages]
size_kib = 2048
pages = 160
"#;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

/// Settings that are not those of a fresh driver, so that what it forgets is seen to be missing.
fn live_in() {
    let kernel = Linux::default();
    for (interface, mtu) in [("eth0", 1600), ("eth1", 2000)] {
        kernel
            .change_link(interface, &LinkChange::Mtu(mtu))
            .unwrap();
        let off = BTreeMap::from([("rx-checksum".to_owned(), false)]);
        kernel.set_offloads(interface, &off).unwrap();
        let rings = RingSizes { rx: 128, tx: 192 };
        kernel.set_rings(interface, rings).unwrap();
        kernel
            .change_link(interface, &LinkChange::Up(true))
            .unwrap();
    }
    let one = ChannelCounts {
        combined: 1,
        ..kernel.channels("eth1").unwrap().unwrap().now
    };
    kernel.set_channels("eth1", one).unwrap();
}

#[test]
fn nics_are_configured_for_migrations_and_given_back() {
    let _watchdog = Watchdog::new("nics", Duration::from_secs(280));
    live_in();
    let mut desk = Desk::open();
    let before = desk.all();
    the_way_out_is_kept(&desk, &before);
    the_kernels_driver_is_told(&desk, &before);
    virtual_functions_and_queues(&desk, &before);
    a_crash_amid_a_change_is_taken_back(&mut desk, &before);
    another_driver_and_back(&mut desk, &before);
}

/// The NIC of the default route, and the one with the only address, are left alone.
fn the_way_out_is_kept(desk: &Desk, before: &Value) {
    let profile = desk.profile("kept.toml", KEPT);
    let vfio = KEPT
        .replace("\"kernel\"", "\"vfio-pci\"")
        .split("[link]")
        .next()
        .unwrap()
        .to_owned();
    let vfio = desk.profile("vfio.toml", &vfio);
    ip("address add 10.79.0.1/24 dev eth0");
    ip("route add default via 10.79.0.2");
    for reason in [
        "carries a default route, through eth0",
        "eth0 on it has the only address",
    ] {
        for (command, profile) in [("plan", &profile), ("apply", &profile), ("apply", &vfio)] {
            let said = desk.nic(&[command, text(profile)]);
            assert_eq!(said.code, GUARDED, "{}", said.err);
            assert!(said.err.contains(reason), "{}", said.err);
            assert!(said.err.contains("take another NIC"), "{}", said.err);
        }
        if reason.contains("route") {
            ip("route delete default");
        }
    }
    ip("address delete 10.79.0.1/24 dev eth0");
    assert_eq!(desk.all(), *before);
}

fn the_kernels_driver_is_told(desk: &Desk, before: &Value) {
    let profile = desk.profile("kept.toml", KEPT);
    let profile = text(&profile);
    let plan: Value = serde_json::from_str(&desk.done(&["plan", profile, "--json"])).unwrap();
    let settings: Vec<_> = plan["lines"].as_array().unwrap().iter().collect();
    let settings: Vec<_> = settings.iter().map(|line| &line["setting"]).collect();
    assert_eq!(
        settings,
        [
            "hugepages of 2048 KiB on node 0",
            "mtu of eth0",
            "rings of eth0",
            "offloads of eth0",
        ]
    );
    assert_eq!(desk.nic(&["verify", profile]).code, Some(1), "not yet");
    assert_eq!(desk.all(), *before, "a plan changed something");

    let id = plan["id"].as_str().unwrap();
    desk.done(&["apply", profile, "--plan", id]);
    let verified = desk.done(&["verify", profile]);
    assert!(
        verified.ends_with("\nas the profile wants it\n"),
        "{verified}"
    );
    assert_eq!(desk.plan_state(E1000E), "applied");
    assert_eq!(read("/sys/class/net/eth0/mtu"), "9000");
    assert_eq!(hugepages(), "160");
    let nic = desk.list()[E1000E].clone();
    let interface = &nic["interfaces"][0];
    assert_eq!(
        (&nic["driver"], &interface["up"]),
        (&json!("e1000e"), &json!(true))
    );
    assert_eq!(interface["rings"]["now"], json!({ "rx": 4096, "tx": 512 }));
    assert_eq!(interface["offloads"]["rx-gro"]["on"], false);

    let reverted = desk.done(&["revert", E1000E]);
    assert!(reverted.ends_with("\nreverted\n"), "{reverted}");
    assert_eq!(desk.all(), *before);
}

fn virtual_functions_and_queues(desk: &Desk, before: &Value) {
    let profile = desk.profile("shared.toml", SHARED);
    let profile = text(&profile);
    desk.done(&["apply", profile]);
    desk.done(&["verify", profile]);
    let list = desk.list();
    let functions = list.values().filter(|nic| nic["physical"] == IGB);
    assert_eq!(functions.count(), 2, "{list:#?}");
    assert_eq!(list[IGB]["interfaces"][0]["rx_queues"], 2);
    let mut cores = interrupts();
    cores.retain(|name, _| name.starts_with("eth1-"));
    assert!(
        !cores.is_empty() && cores.values().all(|cores| cores == "1"),
        "{cores:?}"
    );
    // With the number of functions this driver sets its queues anew, both ways.
    desk.done(&["revert", IGB]);
    assert_eq!(desk.all(), *before);
}

fn a_crash_amid_a_change_is_taken_back(desk: &mut Desk, before: &Value) {
    let kept = desk.profile("kept.toml", KEPT);
    let bypassed = desk.profile("bypassed.toml", BYPASSED);
    for (nic, profile, change) in [(E1000E, &kept, "rings"), (IGB, &bypassed, "driver")] {
        let profile = text(profile);
        let journal = desk.journal(nic);
        let intended = format!("{{\"intend\":{{\"{change}\"");
        let cut_off = (0..TRIES).any(|_| {
            desk.killed_during(&["apply", profile], || journal().contains(&intended));
            let cut_off = desk.plan_state(nic) == "cut_off";
            if !cut_off {
                desk.done(&["revert", nic]);
            }
            cut_off
        });
        assert!(cut_off, "{nic} was never in the middle of {change}");
        assert_eq!(hugepages(), "160", "what was made before is not there");
        let again = desk.nic(&["apply", profile]);
        assert_eq!(again.code, Some(1));
        assert!(again.err.contains("cut off"), "{}", again.err);
        desk.done(&["revert", nic]);
        assert_eq!(desk.all(), *before, "after a crash amid {change}");
    }
}

fn another_driver_and_back(desk: &mut Desk, before: &Value) {
    let igb = desk.profile("bypassed.toml", BYPASSED);
    let e1000e = desk.profile("other.toml", &BYPASSED.replace(IGB, E1000E));
    for (nic, profile) in [(IGB, &igb), (E1000E, &e1000e)] {
        desk.done(&["apply", text(profile)]);
        desk.done(&["verify", text(profile)]);
        let found = desk.list()[nic].clone();
        assert_eq!(found["driver"], "vfio-pci");
        assert_eq!(found["interfaces"], json!([]));
    }
    assert_eq!(hugepages(), "160");
    // In a process of its own: DPDK holds its devices until the process ends.
    let stream = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "vfio_streams_cross_two_nics"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&stream.stdout);
    assert!(said.contains("1 passed"), "{said}");

    let driver = Path::new("/sys/bus/pci/devices").join(IGB).join("driver");
    let taken_back = || std::fs::read_link(&driver).is_ok_and(|driver| driver.ends_with("igb"));
    let cut_off = (0..TRIES).any(|_| {
        desk.killed_during(&["revert", IGB], taken_back);
        let cut_off = desk.plan_state(IGB) == "applied";
        if !cut_off {
            desk.done(&["apply", text(&igb)]);
        }
        cut_off
    });
    assert!(cut_off, "never in the middle of a revert");
    desk.done(&["revert", IGB]);
    desk.done(&["revert", E1000E]);
    assert_eq!(desk.all(), *before);
}
