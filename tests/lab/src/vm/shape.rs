//! The shapes of virtual machines: which devices, which modules, and what is set up before the job.

use clap::ValueEnum;

/// PCI address of the emulated e1000e in [`Shape::Vfio`].
pub const E1000E: &str = "0000:00:04.0";
/// PCI address of the emulated igb in [`Shape::Vfio`].
pub const IGB: &str = "0000:00:05.0";

/// What a virtual machine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// RDMA in software over a veth pair: devices `rxe0` on `veth0` (10.77.0.1) and `rxe1` on `veth1`
    /// (10.77.0.2). What one sends to the other crosses the pair, although both are in one machine.
    Rxe,
    /// Two NICs on one wire, [`E1000E`] and [`IGB`], behind an emulated IOMMU, and 128 hugepages. The
    /// NICs keep their kernel drivers until the job says `bind_to_vfio ADDRESS`.
    Vfio,
}

/// The job's own words: a driver for one NIC, by sysfs alone.
const BIND_TO_VFIO: &str = r#"
bind_to_vfio() {
    local device=/sys/bus/pci/devices/$1
    echo vfio-pci >"$device/driver_override"
    if [ -e "$device/driver" ]; then echo "$1" >"$device/driver/unbind"; fi
    echo "$1" >/sys/bus/pci/drivers_probe
    [ "$(basename "$(readlink "$device/driver")")" = vfio-pci ]
}
"#;

/// Both ends of the pair are local addresses, which the kernel would answer over `lo`. So "local" is
/// asked for only behind "how do I get there", except for packets that came in; then each end accepts
/// packets from an address that is its own machine's.
const SET_UP_RXE: &str = r"
ip link add veth0 mtu 9000 type veth peer name veth1 mtu 9000
for end in 0 1; do
    echo 1 >/proc/sys/net/ipv4/conf/veth$end/accept_local
    echo 0 >/proc/sys/net/ipv4/conf/veth$end/rp_filter
    echo 1 >/proc/sys/net/ipv6/conf/veth$end/disable_ipv6
    ip address add 10.77.0.$((end + 1))/32 dev veth$end
    ip link set veth$end up
    ip rule add pref 10 iif veth$end lookup local
done
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
ip route add 10.77.0.2 dev veth0 src 10.77.0.1 table 100
ip route add 10.77.0.1 dev veth1 src 10.77.0.2 table 100
ip rule add pref 20 lookup 100
ip rule add pref 30 lookup local
ip rule del pref 0
rdma link add rxe0 type rxe netdev veth0
rdma link add rxe1 type rxe netdev veth1
";

const SET_UP_VFIO: &str = r"
echo 128 >/proc/sys/vm/nr_hugepages
mkdir -p /dev/hugepages
mount -t hugetlbfs hugetlbfs /dev/hugepages
";

impl Shape {
    /// Modules beyond those for the root, in the order to load them.
    pub(super) fn modules(self) -> &'static [&'static str] {
        match self {
            // rdma_rxe asks for crc32 by its algorithm's name, so that no dependency shows it.
            Self::Rxe => &["veth", "crc32_generic", "ib_uverbs", "rdma_ucm", "rdma_rxe"],
            Self::Vfio => &["vfio_iommu_type1", "vfio_pci", "e1000e", "igb"],
        }
    }

    /// QEMU's flags beyond those of every machine.
    pub(super) fn flags(self) -> Vec<String> {
        let flags: &[&str] = match self {
            Self::Rxe => &["-machine", "q35"],
            // The IOMMU comes first: it covers devices made after it only.
            Self::Vfio => &[
                "-machine",
                "q35,kernel-irqchip=split",
                "-device",
                "intel-iommu,intremap=on,caching-mode=on",
                "-netdev",
                "hubport,id=wire0,hubid=0",
                "-netdev",
                "hubport,id=wire1,hubid=0",
                "-device",
                "e1000e,netdev=wire0,mac=52:54:00:00:00:04,addr=0x4",
                "-device",
                "igb,netdev=wire1,mac=52:54:00:00:00:05,addr=0x5",
            ],
        };
        flags.iter().map(|flag| (*flag).to_owned()).collect()
    }

    /// What the kernel is told beyond what every machine's is.
    pub(super) fn kernel_words(self) -> &'static str {
        match self {
            Self::Rxe => "",
            Self::Vfio => "intel_iommu=on iommu=pt",
        }
    }

    /// The script that runs before the job; the job does not run when it fails.
    pub(super) fn set_up(self) -> &'static str {
        match self {
            Self::Rxe => SET_UP_RXE,
            Self::Vfio => SET_UP_VFIO,
        }
    }

    /// What the job finds defined.
    pub(super) fn prelude(self) -> &'static str {
        match self {
            Self::Rxe => "",
            Self::Vfio => BIND_TO_VFIO,
        }
    }
}
