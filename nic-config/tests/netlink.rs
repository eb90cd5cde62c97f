//! The real kernel over netlink, on veth pairs in network namespaces; and whole plans on a PCI tree made
//! of files whose interfaces are such real ones. Root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use std::collections::BTreeMap;

use dwcp_lab::netns::Host;
use dwcp_nic_config::apply::{ApplyError, apply};
use dwcp_nic_config::journal::Journals;
use dwcp_nic_config::kernel::{ChannelCounts, Kernel, KernelError, Link, LinkChange, RingSizes};
use dwcp_nic_config::linux::Linux;
use dwcp_nic_config::plan::{self, PlanError};
use dwcp_nic_config::profile::Profile;
use dwcp_nic_config::revert::revert;
use dwcp_nic_config::verify::verify;
use fake::{Machine, NicSpec};

const NIC: &str = "0000:3b:00.0";

fn ip(host: &Host, arguments: &str) {
    let output = host
        .command("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ip {arguments}: {said}");
}

/// A host with a cable for migrations and one for its management, whose other ends lie loose.
fn host() -> Host {
    let host = Host::new("nic").unwrap();
    for name in ["mig0", "mgmt0"] {
        ip(
            &host,
            &format!("link add {name} numrxqueues 4 numtxqueues 4 type veth peer name {name}x"),
        );
        ip(&host, &format!("link set {name}x up"));
        ip(&host, &format!("link set {name} up"));
    }
    ip(&host, "addr add 10.9.0.1/24 dev mgmt0");
    ip(&host, "-6 addr add 2001:db8:9::1/64 dev mgmt0 nodad");
    host
}

fn link(kernel: &Linux, name: &str) -> Link {
    let links = kernel.links().unwrap();
    links.into_iter().find(|link| link.name == name).unwrap()
}

#[test]
fn links_are_read_and_changed() {
    let host = host();
    host.enter(|| {
        let kernel = Linux::default();
        let before = link(&kernel, "mig0");
        assert_eq!((before.mtu, before.up, before.mac.len()), (1500, true, 17));
        assert_eq!(before.mtu_range, Some((68, 65_535)));
        kernel.change_link("mig0", &LinkChange::Mtu(9000)).unwrap();
        assert_eq!(
            link(&kernel, "mig0"),
            Link {
                mtu: 9000,
                ..before.clone()
            }
        );
        let error = kernel
            .change_link("mig0", &LinkChange::Mtu(70_000))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("set the MTU of mig0 to 70000")
                && error.contains("mtu greater than device maximum"),
            "{error}"
        );
        kernel.change_link("mig0", &LinkChange::Up(false)).unwrap();
        assert!(!link(&kernel, "mig0").up);
        kernel
            .change_link("mig0", &LinkChange::Name("mig9".into()))
            .unwrap();
        assert_eq!(link(&kernel, "mig9").index, before.index);
        let error = kernel
            .change_link("mig0", &LinkChange::Up(true))
            .unwrap_err()
            .to_string();
        assert!(error.contains("find interface mig0"), "{error}");
    })
    .unwrap();
}

#[test]
fn addresses_and_default_routes_are_read() {
    let host = host();
    let defaults = || {
        host.enter(|| {
            let routes = Linux::default().routes().unwrap();
            let defaults = routes.into_iter().filter(|route| route.default);
            let mut out: Vec<_> = defaults.map(|route| route.interfaces).collect();
            out.sort();
            out
        })
        .unwrap()
    };
    assert!(defaults().is_empty());
    ip(&host, "route add default via 10.9.0.2");
    assert_eq!(defaults(), [["mgmt0"]]);
    ip(&host, "-6 route add default via 2001:db8:9::2 table 77");
    assert_eq!(defaults(), [["mgmt0"], ["mgmt0"]]);
    ip(&host, "addr add 10.8.0.1/24 dev mig0");
    ip(
        &host,
        "route replace default nexthop via 10.9.0.2 nexthop via 10.8.0.2",
    );
    assert_eq!(defaults(), [vec!["mgmt0"], vec!["mgmt0", "mig0"]]);
    host.enter(|| {
        let addresses = Linux::default().addresses().unwrap();
        let global: Vec<_> = addresses
            .iter()
            .filter(|address| address.global && address.interface == "mgmt0")
            .map(|address| format!("{}/{}", address.address, address.prefix_len))
            .collect();
        assert_eq!(global, ["10.9.0.1/24", "2001:db8:9::1/64"]);
        let local = addresses
            .iter()
            .find(|address| address.interface == "lo")
            .unwrap();
        assert!(!local.global && local.address.is_loopback());
    })
    .unwrap();
}

#[test]
fn channels_offloads_and_rings_go_through_ethtool() {
    let host = host();
    host.enter(|| {
        let kernel = Linux::default();
        let channels = kernel.channels("mig0").unwrap().unwrap();
        assert_eq!((channels.max.combined, channels.queues_max()), (0, 4));
        let two = channels.for_queues(2);
        assert_eq!(
            two,
            ChannelCounts {
                rx: 2,
                tx: 2,
                combined: 0
            }
        );
        kernel.set_channels("mig0", two).unwrap();
        assert_eq!(kernel.channels("mig0").unwrap().unwrap().now, two);
        let error = kernel
            .set_channels("mig0", channels.for_queues(5))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("set the channels of mig0") && error.contains("exceeds maximum"),
            "{error}"
        );

        let before = kernel.offloads("mig0").unwrap();
        assert!(before.len() > 40 && before["loopback"].fixed, "{before:?}");
        let wanted: BTreeMap<_, _> = [("rx-gro", false), ("tx-sctp-segmentation", false)]
            .map(|(name, on)| (name.to_owned(), on))
            .into();
        kernel.set_offloads("mig0", &wanted).unwrap();
        let after = kernel.offloads("mig0").unwrap();
        for (name, offload) in &after {
            let on = wanted.get(name).copied().unwrap_or(before[name].on);
            assert_eq!(offload.on, on, "{name}");
        }
        assert!(before["rx-gro"].on || before["tx-sctp-segmentation"].on);
        let unknown = BTreeMap::from([("no-such-thing".to_owned(), true)]);
        assert!(kernel.set_offloads("mig0", &unknown).is_err());

        // A veth has no rings: that is no error, but setting them is.
        assert_eq!(kernel.rings("mig0").unwrap(), None);
        let error = kernel
            .set_rings("mig0", RingSizes { rx: 1, tx: 1 })
            .unwrap_err();
        assert!(matches!(error, KernelError::Netlink { .. }), "{error}");
        assert!(kernel.rings("nothing").is_err());
    })
    .unwrap();
}

/// The tree of a machine whose NICs' interfaces are the host's real ones.
fn tree() -> Machine {
    let machine = Machine::new();
    for (pci, interface) in [("0000:02:00.0", "mgmt0"), (NIC, "mig0")] {
        machine.plug(&NicSpec {
            node: 1,
            vfs_max: 4,
            group: Some(7),
            ..NicSpec::new(pci, "ice", interface)
        });
    }
    machine
}

#[test]
fn a_plan_is_carried_out_for_real_and_taken_back() {
    let host = host();
    ip(&host, "route add default via 10.9.0.2");
    let tree = tree();
    let folder = tempfile::tempdir().unwrap();
    let journals = Journals::open(folder.path()).unwrap();
    let kernel = Linux::new(tree.sys(), tree.proc());
    let profile = |nic: &str| {
        Profile::parse(&format!(
            "[nic]\ninterface = \"{nic}\"\n[link]\nmtu = 9000\n[queues]\ncount = \"cores\"\ncores = \"4,6\"\n\
             [offloads]\nrx-gro = false\n[sriov]\nvfs = 2\n[hugepages]\nsize_kib = 2048\npages = 64\n"
        ))
        .unwrap()
    };
    host.enter(|| {
        let state = || {
            let link = link(&kernel, "mig0");
            let channels = kernel.channels("mig0").unwrap().unwrap().now;
            (
                link.mtu,
                channels.rx,
                channels.tx,
                kernel.offloads("mig0").unwrap()["rx-gro"].on,
            )
        };
        kernel
            .set_offloads("mig0", &BTreeMap::from([("rx-gro".to_owned(), true)]))
            .unwrap();
        let (before, files) = (state(), tree.photograph());
        let Err(PlanError::Refused(refusals)) = plan::plan(&kernel, &profile("mgmt0")) else {
            panic!("the default route is not guarded");
        };
        assert!(refusals[0].guard, "{refusals:?}");

        let plan = apply(&kernel, &journals, &profile("mig0"), None).unwrap();
        assert_eq!(plan.changes.len(), 6, "{}", plan.view());
        assert_eq!(state(), (9000, 2, 2, false));
        assert!(verify(&kernel, &profile("mig0")).unwrap().holds);
        assert_eq!(
            tree.read(&format!("proc/irq/{}/smp_affinity_list", 0x3b * 100 + 1)),
            "6"
        );
        let reverted = revert(&kernel, &journals, NIC.parse().unwrap()).unwrap();
        assert_eq!(reverted.restored.len(), 6);
        assert_eq!(state(), before);
        tree.is_as(&files, "reverted");
    })
    .unwrap();
}

#[test]
fn what_the_real_kernel_refuses_takes_all_back() {
    let host = host();
    ip(&host, "route add default via 10.9.0.2");
    let tree = tree();
    let folder = tempfile::tempdir().unwrap();
    let journals = Journals::open(folder.path()).unwrap();
    let kernel = Linux::new(tree.sys(), tree.proc());
    // An address keeps vfio-pci off; without one, files alone make no driver move, and that is noticed.
    let profile = Profile::parse(&format!(
        "[nic]\npci = \"{NIC}\"\n[driver]\nbind = \"vfio-pci\"\n"
    ))
    .unwrap();
    ip(&host, "addr add 10.8.0.1/24 dev mig0");
    host.enter(|| {
        let error = apply(&kernel, &journals, &profile, None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("10.8.0.1/24"), "{error}");
    })
    .unwrap();
    ip(&host, "addr flush dev mig0");
    // The group holds the other NIC, too.
    std::fs::remove_file(
        tree.sys()
            .join("kernel/iommu_groups/7/devices/0000:02:00.0"),
    )
    .unwrap();
    host.enter(|| {
        let before = link(&kernel, "mig0");
        let error = apply(&kernel, &journals, &profile, None).unwrap_err();
        assert!(matches!(&error, ApplyError::Failed { setting, left, .. } if setting == "driver" && left.is_empty()), "{error}");
        assert!(error.to_string().contains("vfio-pci was asked for, but the kernel made it ice"), "{error}");
        assert_eq!(link(&kernel, "mig0"), before);
        assert!(journals.read(&kernel, NIC.parse().unwrap()).unwrap().is_none());
    })
    .unwrap();
}
