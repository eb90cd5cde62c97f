//! Builds the tree of a machine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Mutex;

use super::{Machine, State};

/// A NIC to be built.
#[derive(Clone)]
pub struct NicSpec {
    pub pci: &'static str,
    pub driver: &'static str,
    pub interface: &'static str,
    /// Where it is, or -1.
    pub node: i32,
    pub group: Option<u32>,
    pub queues: u32,
    pub vfs_max: u32,
    pub rdma: Option<&'static str>,
    pub up: bool,
}

impl NicSpec {
    pub fn new(pci: &'static str, driver: &'static str, interface: &'static str) -> Self {
        Self {
            pci,
            driver,
            interface,
            node: 0,
            group: None,
            queues: 4,
            vfs_max: 0,
            rdma: None,
            up: true,
        }
    }
}

/// Copies a folder without links.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The address of a virtual function: the device's bus, further on.
pub fn function_of(device: &Path, index: usize) -> String {
    let name = device.file_name().unwrap().to_str().unwrap();
    let function = name.as_bytes()[name.len() - 1] - b'0';
    format!("{}{:02x}.{index}", &name[..8], 0x10 + function)
}

impl Machine {
    /// A machine with two nodes of four cores each, hugepages of 2 MiB, vfio-pci, and no NIC.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let (sys, proc) = (root.join("sys"), root.join("proc"));
        for path in [
            "bus/pci/devices",
            "bus/pci/drivers/vfio-pci",
            "class/net",
            "kernel/iommu_groups",
        ] {
            fs::create_dir_all(sys.join(path)).unwrap();
        }
        let machine = Self {
            folder,
            sys,
            proc,
            state: Mutex::new(State::default()),
        };
        machine.set("sys/bus/pci/drivers_probe", "");
        machine.set("sys/bus/pci/drivers/vfio-pci/unbind", "");
        for (node, cores) in [(0, "0-3"), (1, "4-7")] {
            let folder = format!("sys/devices/system/node/node{node}");
            machine.set(&format!("{folder}/cpulist"), cores);
            machine.set(
                &format!("{folder}/hugepages/hugepages-2048kB/nr_hugepages"),
                "8",
            );
        }
        machine.set("sys/devices/system/cpu/online", "0-7");
        machine.set("sys/devices/system/cpu/isolated", "");
        machine.set("proc/sys/kernel/random/boot_id", "boot-1");
        machine.set("proc/1/comm", "init");
        machine
    }

    /// Plugs a NIC in.
    pub fn plug(&self, spec: &NicSpec) {
        let device = self
            .sys
            .join("devices/pci0000:00/0000:00:01.0")
            .join(spec.pci);
        let put = |name: &str, text: &str| {
            let path = device.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        };
        put("class", "0x020000");
        put("vendor", "0x8086");
        put("device", "0x1592");
        put("numa_node", &spec.node.to_string());
        put("driver_override", "(null)");
        put("native/driver", spec.driver);
        if spec.vfs_max > 0 {
            put("sriov_totalvfs", &spec.vfs_max.to_string());
            put("sriov_numvfs", "0");
        }
        if let Some(rdma) = spec.rdma {
            fs::create_dir_all(device.join("infiniband").join(rdma)).unwrap();
        }
        let driver = self.sys.join("bus/pci/drivers").join(spec.driver);
        fs::create_dir_all(&driver).unwrap();
        fs::write(driver.join("unbind"), "\n").unwrap();
        symlink(&device, self.sys.join("bus/pci/devices").join(spec.pci)).unwrap();
        if let Some(group) = spec.group {
            let group = self.sys.join(format!("kernel/iommu_groups/{group}"));
            fs::create_dir_all(group.join("devices")).unwrap();
            symlink(&device, group.join("devices").join(spec.pci)).unwrap();
            symlink(group, device.join("iommu_group")).unwrap();
        }
        // As the driver shows it when it starts: under the kernel's own name, off, and plain.
        let fresh = format!(
            "native/net/eth{}",
            u8::from_str_radix(&spec.pci[5..7], 16).unwrap()
        );
        let of = |name: &str| format!("{fresh}/{name}");
        put(&of("device"), "");
        put(&of("speed"), "25000");
        let mac = format!("02:00:00:00:{}:0{}", &spec.pci[5..7], &spec.pci[11..]);
        put(&of("kernel/mac"), &mac);
        put(&of("kernel/mtu"), "1500");
        put(&of("kernel/mtu_range"), "68 9710");
        put(&of("kernel/up"), "0");
        put(&of("kernel/rings"), "512 512");
        put(&of("kernel/rings_max"), "4096 4096");
        let queues = spec.queues;
        put(&of("kernel/channels"), &format!("0 0 {queues}"));
        put(&of("kernel/channels_max"), &format!("0 0 {queues}"));
        put(
            &of("kernel/offloads"),
            "rx-gro on\nrx-lro off\ntx-checksum-sctp off fixed",
        );
        for queue in 0..queues {
            put(&of(&format!("queues/rx-{queue}/x")), "");
            put(&of(&format!("queues/tx-{queue}/x")), "");
        }
        // Renamed by the host's rules, and in use.
        copy(
            &device.join(&fresh),
            &device.join("net").join(spec.interface),
        );
        symlink(
            device.join("net").join(spec.interface),
            self.sys.join("class/net").join(spec.interface),
        )
        .unwrap();
        symlink(driver, device.join("driver")).unwrap();
        let up = u8::from(spec.up);
        fs::write(
            self.net(spec.interface).join("kernel/up"),
            format!("{up}\n"),
        )
        .unwrap();
        for queue in 0..=queues {
            let bus = u32::from(u8::from_str_radix(&spec.pci[5..7], 16).unwrap());
            let port = u32::from(spec.pci.as_bytes()[11] - b'0');
            let interrupt = bus * 100 + port * 50 + queue;
            put(&format!("msi_irqs/{interrupt}"), "msix");
            self.set(&format!("proc/irq/{interrupt}/smp_affinity_list"), "0-7");
            // The last one serves no queue.
            let handler = if queue < queues {
                format!("{}-TxRx-{queue}", spec.interface)
            } else {
                format!("{}:misc", spec.driver)
            };
            fs::create_dir_all(self.proc.join(format!("irq/{interrupt}/{handler}"))).unwrap();
        }
    }

    /// Adds an interface without a PCI device: a bridge, a bond, a VLAN, or a USB one if `device`.
    pub fn virtual_interface(&self, name: &str, lowers: &[&str], device: bool) {
        let folder = self.sys.join("devices/virtual/net").join(name);
        fs::create_dir_all(folder.join("kernel")).unwrap();
        fs::write(folder.join("kernel/up"), "1\n").unwrap();
        if device {
            fs::write(folder.join("device"), "\n").unwrap();
        }
        symlink(&folder, self.net(name)).unwrap();
        for lower in lowers {
            let under = self.net(lower).canonicalize().unwrap();
            symlink(&folder, under.join(format!("upper_{name}"))).unwrap();
            symlink(&under, folder.join(format!("lower_{lower}"))).unwrap();
        }
    }
}
