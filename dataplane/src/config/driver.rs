//! What lanes run over beside TCP: the tables `[dpdk]` and `[rdma]`.
//!
//! In: TOML. Out: devices and addresses that are well-formed; whether the host has them is found out when they
//! are opened.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::transport::handshake::Guard;

/// The driver that a node prefers for the lanes that it opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The kernel's TCP.
    #[default]
    Tcp,
    /// A DPDK port, by `[dpdk]`.
    Dpdk,
    /// An RDMA device, by `[rdma]`.
    Rdma,
}

/// A host's address and its segment, such as `10.9.0.1/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// The address.
    pub ip: IpAddr,
    /// Leading bits that all hosts of the segment share.
    pub prefix_bits: u8,
}

/// What a DPDK port stands on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum DpdkDevice {
    /// A PCI address, such as `0000:03:00.0`.
    Pci(String),
    /// `af_xdp:INTERFACE`
    AfXdp(String),
    /// `memif-server:/PATH`
    MemifServer(PathBuf),
    /// `memif-client:/PATH`
    MemifClient(PathBuf),
}

/// How a congested path is shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CongestionControl {
    /// Fills the path until it loses.
    #[default]
    Cubic,
    /// Keeps to the rate that the path delivers.
    Bbr,
}

/// How the kernel's TCP shares a congested path between lanes and everybody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TcpCongestion {
    /// By the path: BBR on a far one, else what the host has.
    #[default]
    Auto,
    /// What the host has, on every path.
    Host,
    /// Fills the path until it loses.
    Cubic,
    /// Keeps to the rate that the path delivers.
    Bbr,
}

/// The table `[dpdk]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DpdkConfig {
    /// What the port stands on.
    pub device: DpdkDevice,
    /// This host there.
    pub address: Cidr,
    /// Who carries packets to other segments.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// UDP port of the first worker; each further worker has the next.
    #[serde(default = "DpdkConfig::default_port")]
    pub port: u16,
    /// Longest IP packet.
    #[serde(default = "DpdkConfig::default_mtu_bytes")]
    pub mtu_bytes: u16,
    /// Packet memory, MiB.
    #[serde(default = "DpdkConfig::default_memory_mib")]
    pub memory_mib: u32,
    /// What guards the datagrams of lanes: `datagrams`, `encrypted`, or `headers` where only trusted hosts can write to
    /// the wire. The node that opens a lane decides; `headers` takes both.
    #[serde(default)]
    pub guard: Guard,
    /// Congestion control of what this node sends.
    #[serde(default)]
    pub congestion: CongestionControl,
}

impl DpdkConfig {
    const fn default_port() -> u16 {
        4790
    }

    const fn default_mtu_bytes() -> u16 {
        1500
    }

    const fn default_memory_mib() -> u32 {
        256
    }
}

/// The table `[rdma]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RdmaConfig {
    /// Where peers connect: an address of an RDMA device and a port.
    pub listen: SocketAddr,
}

/// Text that is no device or address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDriverText {
    /// No device.
    #[error(
        "\"{0}\" is no DPDK device: give a PCI address (0000:03:00.0), af_xdp:INTERFACE, memif-server:/PATH or memif-client:/PATH"
    )]
    Device(String),
    /// No address.
    #[error("\"{0}\" is no address with its segment: write it like 10.9.0.1/24")]
    Address(String),
}

impl TryFrom<String> for DpdkDevice {
    type Error = BadDriverText;

    fn try_from(text: String) -> Result<Self, BadDriverText> {
        text.parse()
    }
}

impl From<DpdkDevice> for String {
    fn from(device: DpdkDevice) -> Self {
        match device {
            DpdkDevice::Pci(address) => address,
            DpdkDevice::AfXdp(name) => format!("af_xdp:{name}"),
            DpdkDevice::MemifServer(path) => format!("memif-server:{}", path.display()),
            DpdkDevice::MemifClient(path) => format!("memif-client:{}", path.display()),
        }
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        format!("{}/{}", cidr.ip, cidr.prefix_bits)
    }
}

impl FromStr for DpdkDevice {
    type Err = BadDriverText;

    fn from_str(text: &str) -> Result<Self, BadDriverText> {
        let bad = || BadDriverText::Device(text.to_owned());
        if let Some(name) = text.strip_prefix("af_xdp:") {
            let good = (1..16).contains(&name.len()) && !name.contains(['/', ',', ' ']);
            return good.then(|| Self::AfXdp(name.to_owned())).ok_or_else(bad);
        }
        let path = |path: &str| {
            let path = PathBuf::from(path);
            path.is_absolute().then_some(path).ok_or_else(bad)
        };
        if let Some(socket) = text.strip_prefix("memif-server:") {
            return path(socket).map(Self::MemifServer);
        }
        if let Some(socket) = text.strip_prefix("memif-client:") {
            return path(socket).map(Self::MemifClient);
        }
        let hex = |part: &str, digits: usize| {
            part.len() == digits && part.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let parts: Vec<&str> = text.split([':', '.']).collect();
        match parts[..] {
            [domain, bus, device, function]
                if hex(domain, 4) && hex(bus, 2) && hex(device, 2) && hex(function, 1) =>
            {
                Ok(Self::Pci(text.to_owned()))
            }
            _ => Err(bad()),
        }
    }
}

impl TryFrom<String> for Cidr {
    type Error = BadDriverText;

    fn try_from(text: String) -> Result<Self, BadDriverText> {
        let bad = || BadDriverText::Address(text.clone());
        let (ip, bits) = text.split_once('/').ok_or_else(bad)?;
        let ip: IpAddr = ip.parse().map_err(|_| bad())?;
        let prefix_bits: u8 = bits.parse().map_err(|_| bad())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        if prefix_bits > most {
            return Err(bad());
        }
        Ok(Self { ip, prefix_bits })
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Dpdk => "dpdk",
            Self::Rdma => "rdma",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_addresses_are_read_and_nonsense_is_named() {
        let device = |text: &str| text.parse::<DpdkDevice>();
        assert_eq!(
            device("0000:03:00.0"),
            Ok(DpdkDevice::Pci("0000:03:00.0".into()))
        );
        assert_eq!(device("af_xdp:eth1"), Ok(DpdkDevice::AfXdp("eth1".into())));
        assert_eq!(
            device("memif-client:/run/m.sock"),
            Ok(DpdkDevice::MemifClient("/run/m.sock".into()))
        );
        for bad in [
            "eth1",
            "memif-server:m.sock",
            "af_xdp:",
            "af_xdp:a,b",
            "000:03:00.0",
            "0000:03:00.zz",
            "",
        ] {
            let error = device(bad).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
        let cidr = |text: &str| Cidr::try_from(text.to_owned());
        assert_eq!(
            cidr("10.9.0.1/24"),
            Ok(Cidr {
                ip: [10, 9, 0, 1].into(),
                prefix_bits: 24
            })
        );
        for bad in ["10.9.0.1", "10.9.0.1/33", "fd00::1/129", "x/8"] {
            assert!(cidr(bad).is_err(), "{bad}");
        }
    }
}
