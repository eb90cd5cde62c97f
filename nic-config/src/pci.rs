//! PCI addresses. In: text such as `0000:3b:00.0`. Out: a value that is one. Promise: what has this
//! type can be part of a path without leaving its folder.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Address of a PCI function: domain, bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// Text that is no PCI address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no PCI address: write it as in 0000:3b:00.0")]
pub struct NoPciAddress(String);

impl FromStr for PciAddress {
    type Err = NoPciAddress;

    fn from_str(text: &str) -> Result<Self, NoPciAddress> {
        parse(text).ok_or_else(|| NoPciAddress(text.chars().take(40).collect()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let hex = |part: &str, digits: std::ops::RangeInclusive<usize>| {
        let plain = part.bytes().all(|byte| byte.is_ascii_hexdigit());
        (plain && digits.contains(&part.len()))
            .then(|| u32::from_str_radix(part, 16).ok())
            .flatten()
    };
    let mut parts = text.split(':');
    let (domain, bus, last) = (parts.next()?, parts.next()?, parts.next()?);
    let (device, function) = last.split_once('.')?;
    let address = PciAddress {
        domain: hex(domain, 4..=8)?,
        bus: u8::try_from(hex(bus, 2..=2)?).ok()?,
        device: u8::try_from(hex(device, 2..=2)?).ok()?,
        function: u8::try_from(hex(function, 1..=1)?).ok()?,
    };
    let fits = parts.next().is_none() && address.device < 32 && address.function < 8;
    fits.then_some(address)
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

impl TryFrom<String> for PciAddress {
    type Error = NoPciAddress;

    fn try_from(text: String) -> Result<Self, NoPciAddress> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_sysfs_writes_them() {
        for text in ["0000:3b:00.0", "0000:00:1f.7", "10000:e1:00.1"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_could_leave_a_folder_or_be_misread_is_refused() {
        for text in [
            "",
            "3b:00.0",
            "0000:3b:00",
            "0000:3b:20.0",
            "0000:3b:00.8",
            "0000:3b:00.0/",
            "../0:3b:00.0",
            "+000:3b:00.0",
            "0000:3b:00.0:1",
            "000000000:3b:00.0",
        ] {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }
}
