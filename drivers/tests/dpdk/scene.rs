//! Two processes with a port each, and what they say to each other.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use dwcp_drivers::dpdk::datagrams::{Address, Datagrams, NetConfig, Sent};
use dwcp_drivers::dpdk::device::{Device, Memif, MemifRole};
use dwcp_drivers::dpdk::eal::{Eal, EalConfig, Memory};
use dwcp_drivers::dpdk::port::{PacketPort, PortPlan};

use crate::other::Other;
pub use crate::other::{PATIENCE, role};

pub const PORT_BASE: u16 = 4800;
/// Packets that an idle side holds: a burst to be filled, and one that the device did not take.
pub const HELD_MAX: u32 = 64;
const SOCKET: &str = "DWCP_TEST_SOCKET";

/// The memif socket that the test which started this process chose.
pub fn given_socket() -> PathBuf {
    std::env::var(SOCKET).unwrap().into()
}

/// This test again, in another role, with the socket that the two meet at.
pub fn start(test: &str, role: &str, socket: &Path) -> Other {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(SOCKET, socket);
    Other::run(command, test, role)
}

pub fn eal() -> Eal {
    Eal::start(&EalConfig {
        memory: Memory::Ordinary { mib: 192 },
        pci: false,
    })
    .unwrap()
}

pub fn memif(socket: &Path, role: MemifRole) -> Device {
    Device::Memif(Memif {
        socket: socket.to_owned(),
        role,
        frame_bytes: 8192,
        ring_log2: 9,
    })
}

/// A port of 4 KiB datagrams in one queue.
pub fn plan() -> PortPlan {
    PortPlan {
        queues: 1,
        mtu_bytes: 4300,
        packets_per_queue: 2048,
    }
}

/// Host 1, 2 and so on in both families.
pub fn net(number: u8, mtu_bytes: u16) -> NetConfig {
    let address = |six| Address {
        ip: host(number, six).ip(),
        prefix_bits: 24,
        gateway: None,
    };
    NetConfig {
        v4: Some(address(false)),
        v6: Some(address(true)),
        port_base: PORT_BASE,
        queues: 1,
        mtu_bytes,
    }
}

pub fn host(number: u8, six: bool) -> SocketAddr {
    let ip = if six {
        IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number)])
    } else {
        IpAddr::from([10, 77, 0, number])
    };
    SocketAddr::new(ip, PORT_BASE)
}

/// A port and its one worker's datagrams, on this thread.
pub struct Side {
    pub datagrams: Datagrams,
    pub port: PacketPort,
}

impl Side {
    pub fn open(device: &Device, plan: &PortPlan, number: u8) -> Self {
        let (port, mut seats) = PacketPort::open(eal(), device, plan).unwrap();
        let queue = seats.pop().unwrap().sit().unwrap();
        let datagrams = Datagrams::new(queue, &net(number, plan.mtu_bytes)).unwrap();
        Self { datagrams, port }
    }

    /// Sends back what arrives; ends when the payload `end` does.
    pub fn echo(&mut self) {
        let mut waiting: Vec<(SocketAddr, Vec<u8>)> = Vec::new();
        let start = Instant::now();
        let mut ended = false;
        while !ended {
            assert!(start.elapsed() < PATIENCE, "nobody told the echo to end");
            self.port.tend();
            let idle = self.datagrams.recv(&mut |from, payload| {
                ended |= payload == b"end";
                waiting.push((from, payload.to_vec()));
            }) == 0;
            waiting.retain(|(to, payload)| {
                let copy = &mut |room: &mut [u8]| {
                    room[..payload.len()].copy_from_slice(payload);
                    payload.len()
                };
                self.datagrams.send(*to, copy) != Sent::Queued
            });
            self.datagrams.flush();
            if idle {
                std::thread::yield_now();
            }
        }
    }

    /// Sends a payload until it comes back, for the network may lose it. False when it does not for
    /// as long as `patience`.
    pub fn ask(&mut self, to: SocketAddr, payload: &[u8], patience: Duration) -> bool {
        let start = Instant::now();
        let mut sent: Option<Instant> = None;
        let mut came_back = false;
        while !came_back && start.elapsed() < patience {
            self.port.tend();
            if sent.is_none_or(|sent| sent.elapsed() > Duration::from_millis(50)) {
                let copy = &mut |room: &mut [u8]| {
                    room[..payload.len()].copy_from_slice(payload);
                    payload.len()
                };
                if self.datagrams.send(to, copy) == Sent::Queued {
                    sent = Some(Instant::now());
                }
                self.datagrams.flush();
            }
            self.datagrams.recv(&mut |from, got| {
                came_back |= from == to && got == payload;
            });
            self.datagrams.flush();
            std::thread::yield_now();
        }
        came_back
    }

    /// Datagrams of all lengths to host `number` and back, in both families.
    pub fn converse(&mut self, number: u8) {
        let most = self.datagrams.max_payload();
        for six in [false, true] {
            for bytes in [1, 2, 17, 100, 1000, most - 1, most] {
                let payload: Vec<u8> = (0..bytes).map(|n| (n * 31 + bytes) as u8).collect();
                let there_and_back = self.ask(host(number, six), &payload, PATIENCE);
                assert!(there_and_back, "{bytes} bytes, IPv6: {six}");
            }
        }
    }
}
