//! How a guest may be moved: by the product, or by its hypervisor in one of its ways. In: a name. Out: what
//! both hypervisors are told. Promise: every way of the hypervisor is set up as an operator who wants it fast
//! would: return path on, no bandwidth limit of its own, a cache for XBZRLE not smaller than the
//! product's page history.

use clap::ValueEnum;
use dwcp_lab::guest::{Guest, GuestError, UNLIMITED_BANDWIDTH};
use serde_json::json;

/// QEMU's own default, for all alike.
pub(super) const DOWNTIME_LIMIT_MS: u32 = 300;
/// Not less than the product's history of pages for one session by default; QEMU takes a power of two.
const XBZRLE_CACHE_BYTES: u64 = 256 << 20;

/// One way to move a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Config {
    /// The product: both planes on both hosts, asked by the REST API.
    Dwcp,
    /// The product, its data planes speaking TLS and every page encrypted.
    #[value(name = "dwcp-tls")]
    DwcpTls,
    /// The product, its connections made and warm before the command.
    #[value(name = "dwcp-pool")]
    DwcpPool,
    /// The product, with the golden image of the guest's disk as a baseline on both hosts.
    #[value(name = "dwcp-baseline")]
    DwcpBaseline,
    /// The product, with the pages of an earlier migration of the same guest as a baseline on both hosts.
    #[value(name = "dwcp-again")]
    DwcpAgain,
    /// One connection.
    Plain,
    /// One connection, changed pages as differences.
    Xbzrle,
    /// Four connections for pages.
    Multifd4,
    /// Eight connections for pages.
    Multifd8,
    /// Four, compressed with zstd at QEMU's default level.
    #[value(name = "multifd4-zstd")]
    Multifd4Zstd,
    /// Eight, compressed with zstd at QEMU's default level.
    #[value(name = "multifd8-zstd")]
    Multifd8Zstd,
}

impl Config {
    /// The name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dwcp => "dwcp",
            Self::DwcpTls => "dwcp-tls",
            Self::DwcpPool => "dwcp-pool",
            Self::DwcpBaseline => "dwcp-baseline",
            Self::DwcpAgain => "dwcp-again",
            Self::Plain => "plain",
            Self::Xbzrle => "xbzrle",
            Self::Multifd4 => "multifd4",
            Self::Multifd8 => "multifd8",
            Self::Multifd4Zstd => "multifd4-zstd",
            Self::Multifd8Zstd => "multifd8-zstd",
        }
    }

    /// Is it one of the product's?
    #[must_use]
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Dwcp | Self::DwcpTls | Self::DwcpPool) || self.uses_baselines()
    }

    /// Do both hosts have something of the guest on disk?
    pub(super) fn uses_baselines(self) -> bool {
        matches!(self, Self::DwcpBaseline | Self::DwcpAgain)
    }

    /// Connections for pages, if more than the one for everything.
    fn channels(self) -> Option<u8> {
        match self {
            Self::Multifd4 | Self::Multifd4Zstd => Some(4),
            Self::Multifd8 | Self::Multifd8Zstd => Some(8),
            _ => None,
        }
    }

    fn compresses(self) -> bool {
        matches!(self, Self::Multifd4Zstd | Self::Multifd8Zstd)
    }
}

/// Tells both hypervisors how. The product's control plane does this itself.
pub(super) fn prepare(
    config: Config,
    source: &mut Guest,
    destination: &mut Guest,
) -> Result<(), GuestError> {
    for guest in [source, destination] {
        let capabilities = json!({ "capabilities": [
            { "capability": "events", "state": true },
            { "capability": "return-path", "state": true },
            { "capability": "xbzrle", "state": config == Config::Xbzrle },
            { "capability": "multifd", "state": config.channels().is_some() },
        ]});
        guest.execute("migrate-set-capabilities", capabilities)?;
        let mut parameters = json!({
            "max-bandwidth": UNLIMITED_BANDWIDTH,
            "downtime-limit": DOWNTIME_LIMIT_MS,
        });
        if config == Config::Xbzrle {
            parameters["xbzrle-cache-size"] = json!(XBZRLE_CACHE_BYTES);
        }
        if let Some(channels) = config.channels() {
            parameters["multifd-channels"] = json!(channels);
        }
        if config.compresses() {
            parameters["multifd-compression"] = json!("zstd");
        }
        guest.execute("migrate-set-parameters", parameters)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for config in Config::value_variants() {
            assert_eq!(Config::from_str(config.name(), false), Ok(*config));
        }
    }
}
