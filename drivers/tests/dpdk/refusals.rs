//! What cannot be says so, with the cure, and leaves nothing behind.

use std::os::unix::net::UnixListener;
use std::path::Path;

use dwcp_drivers::dpdk::datagrams::{Datagrams, NetConfig, NetError};
use dwcp_drivers::dpdk::device::{Device, DeviceError, Memif, MemifRole};
use dwcp_drivers::dpdk::eal::{Eal, EalConfig, EalError, Memory};
use dwcp_drivers::dpdk::port::{PacketPort, PortError, PortPlan};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::scene::{eal, memif, net, plan};

const MIB: u32 = 64;

#[test]
fn too_few_hugepages_are_told_and_more_may_be_tried() {
    let config = |mib| EalConfig {
        memory: Memory::Huge { mib },
        pci: false,
    };
    let refused = Eal::start(&config(1 << 30)).unwrap_err();
    assert!(
        matches!(refused, EalError::NoHugepages { needs_mib, .. } if needs_mib == 1 << 30),
        "{refused}"
    );
    assert!(refused.to_string().contains("vm.nr_hugepages"));
    // That was found before DPDK was touched, so it starts now.
    let ordinary = EalConfig {
        memory: Memory::Ordinary { mib: MIB },
        pci: false,
    };
    Eal::start(&ordinary).unwrap();
    assert_eq!(
        Eal::start(&ordinary).unwrap(),
        Eal::start(&ordinary).unwrap()
    );
    let other = Eal::start(&config(2)).unwrap_err();
    assert!(matches!(other, EalError::OtherConfig { running } if running == ordinary));
}

#[test]
fn an_eal_that_cannot_start_is_not_tried_twice() {
    // More than any address space holds.
    let config = EalConfig {
        memory: Memory::Ordinary { mib: u32::MAX },
        pci: false,
    };
    let refused = Eal::start(&config).unwrap_err();
    assert!(matches!(refused, EalError::Refused { .. }), "{refused}");
    let small = EalConfig {
        memory: Memory::Ordinary { mib: MIB },
        pci: false,
    };
    let again = Eal::start(&small).unwrap_err();
    assert!(matches!(again, EalError::Spoilt), "{again}");
}

#[test]
fn starting_changes_the_affinity_of_no_thread() {
    let before = rustix::thread::sched_getaffinity(None).unwrap();
    eal();
    let after = rustix::thread::sched_getaffinity(None).unwrap();
    assert_eq!(before, after);
    let later = std::thread::spawn(|| rustix::thread::sched_getaffinity(None).unwrap());
    assert_eq!(later.join().unwrap(), before);
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    for thread in threads.flatten() {
        let id: i32 = thread.file_name().to_str().unwrap().parse().unwrap();
        let pid = rustix::process::Pid::from_raw(id);
        // A thread of DPDK's that has ended meanwhile has none.
        if let Ok(set) = rustix::thread::sched_getaffinity(pid) {
            assert_eq!(set, before, "thread {id}");
        }
    }
}

fn refused(device: &Device) -> DeviceError {
    match PacketPort::open(eal(), device, &plan()) {
        Err(PortError::Device(error)) => error,
        Err(other) => panic!("{device}: {other}"),
        Ok(_) => panic!("{device} opened"),
    }
}

#[test]
fn sockets_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &Path| refused(&memif(path, MemifRole::Server));
    let long = folder.path().join("x".repeat(120));
    assert!(matches!(at(&long), DeviceError::BadSocketPath { .. }));
    let comma = folder.path().join("a,role=client");
    assert!(matches!(at(&comma), DeviceError::BadSocketPath { .. }));
    assert!(matches!(
        at(Path::new("relative")),
        DeviceError::BadSocketPath { .. }
    ));
    let nowhere = folder.path().join("no/such/folder");
    assert!(matches!(at(&nowhere), DeviceError::SocketFolder { .. }));
    let file = folder.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    assert!(matches!(at(&file), DeviceError::SocketInUse { .. }));
    assert_eq!(std::fs::read(&file).unwrap(), b"mine", "it is left alone");
    let out_of_range = refused(&Device::Memif(Memif {
        socket: folder.path().join("memif.sock"),
        role: MemifRole::Server,
        frame_bytes: 8192,
        ring_log2: 15,
    }));
    assert!(matches!(
        out_of_range,
        DeviceError::OutOfRange { value: 15, .. }
    ));
}

#[test]
fn a_socket_is_in_use_only_while_somebody_listens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memif.sock");
    let device = memif(&path, MemifRole::Server);
    let first = PacketPort::open(eal(), &device, &plan()).unwrap();
    assert!(matches!(refused(&device), DeviceError::SocketInUse { .. }));
    drop(first);
    // As a killed process leaves it.
    let _ = std::fs::remove_file(&path);
    drop(UnixListener::bind(&path).unwrap());
    PacketPort::open(eal(), &device, &plan()).unwrap();
}

#[test]
fn a_port_that_was_dropped_can_be_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let device = memif(&folder.path().join("memif.sock"), MemifRole::Server);
    // More often than its memory would last if any stayed behind.
    for _ in 0..40 {
        let (port, mut seats) = PacketPort::open(eal(), &device, &plan()).unwrap();
        let mut queue = seats.pop().unwrap().sit().unwrap();
        // A queue may outlive its port, and does nothing then.
        drop(port);
        assert!(queue.receive().is_empty());
    }
}

#[test]
fn interfaces_and_devices_that_are_not_there_are_refused() {
    let interface = "nosuch0".to_owned();
    let missing = refused(&Device::AfXdp { interface });
    assert!(
        matches!(missing, DeviceError::NoInterface { .. }),
        "{missing}"
    );
    let interface = "lo,queue_count=9".to_owned();
    assert!(matches!(
        refused(&Device::AfXdp { interface }),
        DeviceError::NoInterface { .. }
    ));
    for address in ["ffff:00:00.0", "", "../../../class/net/lo"] {
        let address = address.to_owned();
        let missing = refused(&Device::Pci { address });
        assert!(
            matches!(missing, DeviceError::NoPciDevice { .. }),
            "{missing}"
        );
    }
}

#[test]
fn a_device_of_the_kernel_is_left_to_it() {
    let devices = std::fs::read_dir("/sys/bus/pci/devices").into_iter();
    let of_the_kernel = devices.flatten().flatten().find(|entry| {
        let driver = std::fs::read_link(entry.path().join("driver"));
        driver.is_ok_and(|driver| !driver.ends_with("vfio-pci"))
    });
    let Some(entry) = of_the_kernel else {
        println!("not checked here: this machine has no PCI devices");
        return;
    };
    let address = entry.file_name().into_string().unwrap();
    let refusal = refused(&Device::Pci { address });
    assert!(
        matches!(refusal, DeviceError::KernelDriver { .. }),
        "{refusal}"
    );
}

#[test]
fn without_the_right_to_it_af_xdp_is_refused() {
    eal();
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).unwrap();
    let interface = "lo".to_owned();
    let refusal = refused(&Device::AfXdp { interface });
    assert!(
        matches!(refusal, DeviceError::NoPermission { .. }),
        "{refusal}"
    );
}

#[test]
fn plans_that_the_device_cannot_keep_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let device = memif(&folder.path().join("memif.sock"), MemifRole::Server);
    let open = |plan: PortPlan| {
        PacketPort::open(eal(), &device, &plan)
            .map(|_| ())
            .unwrap_err()
    };
    let too_many = open(PortPlan {
        queues: 1000,
        ..plan()
    });
    assert!(
        matches!(too_many, PortError::Queues { wants: 1000, .. }),
        "{too_many}"
    );
    let too_long = open(PortPlan {
        mtu_bytes: 9000,
        ..plan()
    });
    assert!(
        matches!(too_long, PortError::Mtu { most: 8178, .. }),
        "{too_long}"
    );
    let too_few = open(PortPlan {
        packets_per_queue: 10,
        ..plan()
    });
    assert!(matches!(too_few, PortError::Packets { .. }), "{too_few}");
    let too_much = open(PortPlan {
        packets_per_queue: 1 << 20,
        ..plan()
    });
    assert!(matches!(too_much, PortError::Pool(_)), "{too_much}");
    // And what was refused holds nothing.
    let (_port, mut seats) = PacketPort::open(eal(), &device, &plan()).unwrap();
    let queue = seats.pop().unwrap().sit().unwrap();
    let wrong = NetConfig {
        mtu_bytes: 9000,
        ..net(1, 4300)
    };
    let refusal = Datagrams::new(queue, &wrong).map(|_| ()).unwrap_err();
    assert!(matches!(
        refusal,
        NetError::Mtu {
            wants: 9000,
            has: 4300
        }
    ));
}
