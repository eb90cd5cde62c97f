//! Inventory, plans and refusals on machines of several kinds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use dwcp_nic_config::change::Change;
use dwcp_nic_config::inventory;
use dwcp_nic_config::plan::{self, PlanError, Refusal};
use dwcp_nic_config::profile::Profile;
use fake::{Machine, NicSpec};

const FIRST: &str = "0000:3b:00.0";
const SECOND: &str = "0000:3b:00.1";

/// One NIC with the default route, and a two-port one for migrations.
fn machine() -> Machine {
    let machine = Machine::new();
    machine.plug(&NicSpec::new("0000:02:00.0", "igb", "eno1"));
    machine.address("eno1", "192.0.2.7", 24);
    machine.route(&["eno1"], true);
    for (pci, interface, rdma) in [
        (FIRST, "ens1f0", "rocep59s0f0"),
        (SECOND, "ens1f1", "rocep59s0f1"),
    ] {
        machine.plug(&NicSpec {
            group: Some(if pci == FIRST { 7 } else { 8 }),
            node: 1,
            vfs_max: 8,
            rdma: Some(rdma),
            ..NicSpec::new(pci, "ice", interface)
        });
    }
    machine.virtual_interface("lo", &[], false);
    machine.virtual_interface("docker0", &[], false);
    machine.address("lo", "127.0.0.1", 8);
    machine.address("docker0", "172.17.0.1", 16);
    machine
}

fn profile(nic: &str, rest: &str) -> Profile {
    let name = if nic.contains(':') {
        "pci"
    } else {
        "interface"
    };
    Profile::parse(&format!("[nic]\n{name} = \"{nic}\"\n{rest}")).unwrap()
}

fn refusals(machine: &Machine, profile: &Profile) -> Vec<Refusal> {
    let before = machine.photograph();
    let Err(PlanError::Refused(refusals)) = plan::plan(machine, profile) else {
        panic!("not refused: {profile:?}");
    };
    machine.is_as(&before, "a plan changes nothing");
    assert_eq!(machine.orders(), 0);
    refusals
}

fn refused(machine: &Machine, nic: &str, rest: &str, line: usize, word: &str) {
    let refusals = refusals(machine, &profile(nic, rest));
    let found = refusals.iter().any(|refusal| {
        refusal.line == Some(line) && !refusal.guard && refusal.to_string().contains(word)
    });
    assert!(found, "{rest}: {refusals:?}");
}

#[test]
fn nics_are_listed_with_their_facts_and_virtual_ones_are_not() {
    let machine = machine();
    let nics = inventory::all(&machine).unwrap();
    let names: Vec<_> = nics.iter().map(|nic| nic.pci.to_string()).collect();
    assert_eq!(names, ["0000:02:00.0", FIRST, SECOND]);
    let nic = &nics[1];
    assert_eq!(
        (nic.id.as_str(), nic.driver.as_deref()),
        ("8086:1592", Some("ice"))
    );
    assert_eq!((nic.numa_node, nic.iommu_group), (Some(1), Some(7)));
    assert_eq!(nic.rdma, ["rocep59s0f0"]);
    assert_eq!(nic.sriov.unwrap().vfs_max, 8);
    let interface = &nic.interfaces[0];
    assert_eq!(
        (interface.name.as_str(), interface.speed_mbps),
        ("ens1f0", Some(25_000))
    );
    assert_eq!(
        (interface.mtu, interface.mtu_range),
        (1500, Some((68, 9710)))
    );
    assert_eq!((interface.rx_queues, interface.tx_queues), (4, 4));
    assert_eq!(interface.rings.unwrap().max.rx, 4096);
    assert!(interface.offloads["rx-gro"].on && interface.offloads["tx-checksum-sctp"].fixed);
    assert_eq!(nics[0].interfaces[0].addresses, ["192.0.2.7/24"]);
}

#[test]
fn a_plan_reads_like_a_difference() {
    let machine = machine();
    let text = "\
[link]
mtu = 9000
[rings]
rx = \"max\"
tx = 1024
[queues]
count = 2
cores = \"4-5\"
[offloads]
rx-gro = false
rx-lro = false
[sriov]
vfs = 2
[hugepages]
size_kib = 2048
pages = 64
[cores]
isolated = \"6-7\"
";
    let plan = plan::plan(&machine, &profile("ens1f0", text)).unwrap();
    let view = plan.view();
    let expected = format!(
        "plan {} for NIC {FIRST}\n  \
         hugepages of 2048 KiB on node 1: 8 -> 64\n  \
         virtual functions: 0 -> 2\n  \
         mtu of ens1f0: 1500 -> 9000\n  \
         rings of ens1f0: rx 512 tx 512 -> rx 4096 tx 1024\n  \
         queues of ens1f0: 4 combined -> 2 combined\n  \
         offloads of ens1f0: rx-gro on -> rx-gro off\n  \
         interrupts: 5900 on 0-7, 5901 on 0-7, 5902 on 0-7, 5903 on 0-7 -> the queues in turn on cores 4-5\n  \
         isolated cores: none -> 6-7  needs reboot: add to the kernel's command line: isolcpus=managed_irq,domain,6-7 nohz_full=6-7 rcu_nocbs=6-7\n",
        view.id
    );
    assert_eq!(view.to_string(), expected);
    let again = plan::plan(&machine, &profile(FIRST, text)).unwrap();
    assert_eq!(
        again.view().id,
        view.id,
        "the same changes are the same plan"
    );
    machine.set(
        "sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages",
        "9",
    );
    let other = plan::plan(&machine, &profile(FIRST, text)).unwrap();
    assert_ne!(other.view().id, view.id, "from another state it is another");
}

#[test]
fn what_is_there_already_needs_no_plan() {
    let machine = machine();
    machine.set("sys/devices/system/cpu/isolated", "5-7");
    let text = "[link]\nmtu = 1500\nup = true\n[rings]\nrx = 512\n[queues]\ncount = 4\n\
                [offloads]\nrx-gro = true\ntx-checksum-sctp = false\n[sriov]\nvfs = 0\n\
                [hugepages]\nsize_kib = 2048\npages = 5\nnodes = \"0-1\"\n[cores]\nisolated = \"6-7\"\n[driver]\nbind = \"kernel\"\n";
    // Even for the NIC that must not be touched.
    for nic in ["ens1f0", "eno1"] {
        let text = if nic == "eno1" {
            text.replace("[sriov]\nvfs = 0\n", "")
        } else {
            text.to_owned()
        };
        let plan = plan::plan(&machine, &profile(nic, &text)).unwrap();
        assert!(
            plan.changes.is_empty() && plan.reboot.is_empty(),
            "{plan:?}"
        );
        assert!(plan.view().to_string().contains("nothing to change"));
    }
}

#[test]
fn the_way_out_of_the_host_is_not_touched() {
    let guarded = |machine: &Machine, nic: &str, word: &str| {
        for text in [
            "[link]\nmtu = 9000\n",
            "[offloads]\nrx-gro = false\n",
            "[queues]\ncores = \"node\"\n",
        ] {
            let refusals = refusals(machine, &profile(nic, text));
            assert!(
                refusals
                    .iter()
                    .any(|one| one.guard && one.to_string().contains(word)),
                "{refusals:?}"
            );
        }
        // Nothing else is said then: to take its addresses away would be the wrong cure.
        let vfio = profile("0000:02:00.0", "[driver]\nbind = \"vfio-pci\"\n");
        let refusals = refusals(machine, &vfio);
        assert!(
            refusals.len() == 1 && refusals[0].guard && refusals[0].problem.contains(word),
            "{refusals:?}"
        );
    };
    let free = |machine: &Machine, nic: &str| {
        plan::plan(machine, &profile(nic, "[link]\nmtu = 9000\n")).unwrap();
    };
    let machine = machine();
    guarded(&machine, "eno1", "default route, through eno1");
    free(&machine, "ens1f0");
    // Hugepages are no change of the NIC.
    let pages = "[hugepages]\nsize_kib = 2048\npages = 64\n";
    assert_eq!(
        plan::plan(&machine, &profile("eno1", pages))
            .unwrap()
            .changes
            .len(),
        1
    );
    // Without any default route the only NIC with an address is the way in; a bridge of containers and
    // an address for this link alone are not.
    machine.no_routes();
    machine.address("ens1f0", "fe80::1", 64);
    guarded(
        &machine,
        "eno1",
        "only address that reaches this host (192.0.2.7)",
    );
    free(&machine, "ens1f0");
    // Another NIC with an address is a way in as well.
    machine.address("ens1f1", "198.51.100.1", 24);
    free(&machine, "eno1");
}

#[test]
fn bonds_bridges_and_vlans_carry_the_guard_down_to_the_nic() {
    let machine = Machine::new();
    machine.plug(&NicSpec::new("0000:02:00.0", "igb", "eno1"));
    machine.plug(&NicSpec::new("0000:02:00.1", "igb", "eno2"));
    machine.plug(&NicSpec::new("0000:04:00.0", "igb", "eno3"));
    machine.virtual_interface("bond0", &["eno1", "eno2"], false);
    machine.virtual_interface("bond0.7", &["bond0"], false);
    machine.virtual_interface("br0", &["bond0.7"], false);
    machine.address("br0", "2001:db8::7", 64);
    let mtu = "[link]\nmtu = 9000\n";
    for ring in [true, false] {
        for nic in ["eno1", "eno2"] {
            let refusals = refusals(&machine, &profile(nic, mtu));
            assert!(
                refusals[0].guard && refusals[0].problem.contains("br0"),
                "{refusals:?}"
            );
        }
        plan::plan(&machine, &profile("eno3", mtu)).unwrap();
        if ring {
            // A route with several ways out, and interfaces in a ring, end the search all the same.
            machine.route(&["eno3x", "br0"], true);
            let (upper, lower) = (
                machine.path().join("sys/class/net/br0/upper_bond0"),
                machine.path().join("sys/class/net/bond0"),
            );
            std::os::unix::fs::symlink(lower, upper).unwrap();
        }
    }
    // A USB NIC with an address of its own is another way in.
    machine.no_routes();
    machine.virtual_interface("usb0", &[], true);
    machine.address("usb0", "198.51.100.1", 24);
    plan::plan(&machine, &profile("eno1", mtu)).unwrap();
}

#[test]
fn what_the_hardware_cannot_do_is_refused_with_the_profiles_line() {
    let machine = machine();
    for (text, line, word) in [
        ("[link]\nmtu = 9711\n", 4, "68 to 9710"),
        ("[rings]\nrx = 4097\n", 4, "at most 4096"),
        ("[queues]\ncount = 5\n", 4, "at most 4 queues"),
        ("[queues]\ncores = \"0-1\"\n", 4, "choose among 4-7"),
        ("[queues]\ncores = \"4-8\"\n", 4, "cores 8"),
        ("[offloads]\nrx-gro-hot = true\n", 4, "no offload"),
        (
            "[offloads]\ntx-checksum-sctp = true\n",
            4,
            "does not switch",
        ),
        ("[sriov]\nvfs = 9\n", 4, "at most 8"),
        (
            "[hugepages]\nsize_kib = 1048576\npages = 1\n",
            4,
            "no hugepages of 1048576 KiB on node 1",
        ),
        (
            "[hugepages]\nsize_kib = 2048\npages = 9\nnodes = \"0-2\"\n",
            6,
            "no node 2",
        ),
        ("[cores]\nisolated = \"7-9\"\n", 4, "no cores 8-9"),
        (
            "[link]\nup = false\n[queues]\ncores = \"node\"\n",
            6,
            "up = true",
        ),
    ] {
        refused(&machine, "ens1f0", text, line, word);
    }
    // Everything that is wrong is told at once.
    let text = "[link]\nmtu = 9711\n[sriov]\nvfs = 9\n[cores]\nisolated = \"9\"\n";
    assert_eq!(refusals(&machine, &profile("ens1f0", text)).len(), 3);
    let error = plan::plan(&machine, &profile("ens9", ""))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("line 2") && error.contains("ens9") && error.contains("nic list"),
        "{error}"
    );
}

#[test]
fn vfio_takes_only_a_nic_that_can_be_spared_and_kept_apart() {
    let machine = machine();
    let vfio = "[driver]\nbind = \"vfio-pci\"\n";
    let plan = plan::plan(&machine, &profile(FIRST, vfio)).unwrap();
    assert!(matches!(&plan.changes[..], [Change::Driver { .. }]));
    assert!(
        plan.notes.iter().any(|note| note.contains("rocep59s0f0")),
        "{plan:?}"
    );

    let refused = |machine: &Machine, nic: &str, word: &str| refused(machine, nic, vfio, 4, word);
    // Addresses, interfaces on top, virtual functions.
    machine.address("ens1f0", "198.51.100.1", 24);
    refused(&machine, FIRST, "ip address flush dev ens1f0");
    machine.virtual_interface("vlan9", &["ens1f1"], false);
    refused(&machine, SECOND, "vlan9 on top of ens1f1");
    // A driver that serves DPDK itself, no IOMMU, a neighbour in the group, no vfio-pci.
    machine.plug(&NicSpec {
        group: Some(9),
        ..NicSpec::new("0000:5e:00.0", "mlx5_core", "ens2")
    });
    refused(&machine, "0000:5e:00.0", "bind = \"kernel\"");
    machine.plug(&NicSpec::new("0000:61:00.0", "ixgbe", "ens3"));
    refused(&machine, "0000:61:00.0", "intel_iommu=on");
    for (pci, name) in [("0000:62:00.0", "ens4"), ("0000:62:00.1", "ens5")] {
        machine.plug(&NicSpec {
            group: Some(11),
            ..NicSpec::new(pci, "ixgbe", name)
        });
    }
    refused(
        &machine,
        "0000:62:00.0",
        "0000:62:00.1 is in the same IOMMU group",
    );
    machine.set(
        "sys/devices/pci0000:00/0000:00:01.0/0000:62:00.1/class",
        "0x060400",
    );
    plan::plan(&machine, &profile("0000:62:00.0", vfio)).unwrap();
    std::fs::remove_dir_all(machine.path().join("sys/bus/pci/drivers/vfio-pci")).unwrap();
    refused(&machine, "0000:62:00.0", "modprobe vfio-pci");
}

#[test]
fn a_nic_without_a_kernel_driver_has_no_link_to_set() {
    let machine = machine();
    let device = machine.path().join("sys/bus/pci/devices").join(FIRST);
    std::fs::remove_file(device.join("driver")).unwrap();
    std::os::unix::fs::symlink(
        machine.path().join("sys/bus/pci/drivers/vfio-pci"),
        device.join("driver"),
    )
    .unwrap();
    std::fs::remove_file(machine.path().join("sys/class/net/ens1f0")).unwrap();
    refused(
        &machine,
        FIRST,
        "[link]\nmtu = 9000\n",
        4,
        "vfio-pci has it",
    );
    refused(
        &machine,
        FIRST,
        "[driver]\nbind = \"kernel\"\n",
        4,
        "bound to vfio-pci",
    );
    let held = plan::plan(&machine, &profile(FIRST, "[driver]\nbind = \"vfio-pci\"\n")).unwrap();
    assert!(held.changes.is_empty());
}

#[test]
fn irqbalance_is_worth_a_note() {
    let machine = machine();
    let plan = |machine: &Machine| {
        plan::plan(machine, &profile("ens1f0", "[queues]\ncores = \"node\"\n")).unwrap()
    };
    assert!(plan(&machine).notes.is_empty());
    machine.set("proc/77/comm", "irqbalance");
    assert!(plan(&machine).notes[0].contains("irqbalance"));
}
