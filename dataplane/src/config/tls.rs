//! The table `[tls]`: with whom this data plane speaks over TLS, and by which files.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::driver::Cidr;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Certificates of the authorities whose appliances are let in, PEM.
    pub ca: PathBuf,
    /// This appliance's certificate and what lies between it and the authority, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM, readable by nobody else.
    pub key: PathBuf,
    /// Certificates that are no longer good, PEM; without it none is revoked.
    #[serde(default)]
    pub crl: Option<PathBuf>,
    /// Speak TLS in `trusted_networks` too.
    #[serde(default = "TlsConfig::default_required")]
    pub required: bool,
    /// Networks in which the shared key is enough if `required = false`.
    #[serde(default)]
    pub trusted_networks: Vec<Cidr>,
}

impl TlsConfig {
    const fn default_required() -> bool {
        true
    }

    /// Is a peer at this address spoken to without TLS?
    #[must_use]
    pub fn is_plain(&self, peer: SocketAddr) -> bool {
        let ip = peer.ip().to_canonical();
        !self.required && self.trusted_networks.iter().any(|network| network.has(ip))
    }
}

impl Cidr {
    /// Does the segment have this address?
    #[must_use]
    pub fn has(&self, ip: IpAddr) -> bool {
        let (network, ip, width) = match (self.ip, ip) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => {
                (u128::from(network.to_bits()), u128::from(ip.to_bits()), 32)
            }
            (IpAddr::V6(network), IpAddr::V6(ip)) => (network.to_bits(), ip.to_bits(), 128),
            _ => return false,
        };
        let differing = width - u32::from(self.prefix_bits).min(width);
        (network ^ ip).checked_shr(differing).unwrap_or(0) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(required: bool, networks: &[&str]) -> TlsConfig {
        TlsConfig {
            ca: "ca".into(),
            cert: "cert".into(),
            key: "key".into(),
            crl: None,
            required,
            trusted_networks: networks
                .iter()
                .map(|text| Cidr::try_from((*text).to_owned()).unwrap())
                .collect(),
        }
    }

    #[test]
    fn only_trusted_networks_are_plain_and_only_if_that_is_allowed() {
        let plain = |config: &TlsConfig, ip: &str| {
            config.is_plain(SocketAddr::new(ip.parse().unwrap(), 4790))
        };
        let networks = &["10.0.0.0/8", "192.168.7.4/32", "fd00::/8"];
        let open = config(false, networks);
        for (ip, expected) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("192.168.7.4", true),
            ("192.168.7.5", false),
            ("::ffff:10.1.2.3", true),
            ("fdff::1", true),
            ("fe80::1", false),
        ] {
            assert_eq!(plain(&open, ip), expected, "{ip}");
            assert!(!plain(&config(true, networks), ip), "{ip}");
        }
        assert!(plain(&config(false, &["0.0.0.0/0"]), "203.0.113.9"));
        assert!(!plain(&config(false, &["0.0.0.0/0"]), "2001:db8::1"));
    }
}
