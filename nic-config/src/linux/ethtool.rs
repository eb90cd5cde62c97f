//! Rings, channels and offloads over the kernel's ethtool family of generic netlink. Numbers of
//! messages and attributes are those of the kernel's `linux/ethtool_netlink.h` and `linux/genetlink.h`.

use std::collections::{BTreeMap, BTreeSet};

use netlink_sys::protocols::NETLINK_GENERIC;
use rustix::io::Errno;

use super::attributes::{Reader, Writer};
use super::socket::Socket;
use crate::kernel::{ChannelCounts, Channels, KernelError, Offload, RingSizes, Rings};

/// `struct genlmsghdr`: command, version, two bytes unused.
const GENERIC_HEADER_BYTES: usize = 4;
const CONTROLLER: u16 = 16;
const CONTROLLER_GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const FEATURES_GET: u8 = 11;
const FEATURES_SET: u8 = 12;
const RINGS_GET: u8 = 15;
const RINGS_SET: u8 = 16;
const CHANNELS_GET: u8 = 17;
const CHANNELS_SET: u8 = 18;

/// The attribute that names the device, the same in all messages.
const HEADER: u16 = 1;
const HEADER_NAME: u16 = 2;
const HEADER_FLAGS: u16 = 3;
/// The acknowledgement is enough.
const FLAG_OMIT_REPLY: u32 = 2;

const RINGS_RX_MAX: u16 = 2;
const RINGS_TX_MAX: u16 = 5;
const RINGS_RX: u16 = 6;
const RINGS_TX: u16 = 9;

const CHANNELS_RX_MAX: u16 = 2;
const CHANNELS_TX_MAX: u16 = 3;
const CHANNELS_COMBINED_MAX: u16 = 5;
const CHANNELS_RX: u16 = 6;
const CHANNELS_TX: u16 = 7;
const CHANNELS_COMBINED: u16 = 9;

const FEATURES_HARDWARE: u16 = 2;
const FEATURES_WANTED: u16 = 3;
const FEATURES_ACTIVE: u16 = 4;
const FEATURES_NO_CHANGE: u16 = 5;
const BITSET_NO_MASK: u16 = 1;
const BITSET_BITS: u16 = 3;
const BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// A socket to the ethtool family.
pub struct Ethtool {
    socket: Socket,
    family: u16,
}

impl Ethtool {
    /// Opens one.
    pub fn open() -> Result<Self, KernelError> {
        let mut socket = Socket::open(NETLINK_GENERIC)?;
        let name = Writer::default().text(FAMILY_NAME, "ethtool");
        let what =
            "find the kernel's ethtool interface (CONFIG_ETHTOOL_NETLINK, Linux 5.6 or newer)";
        let body = generic(CONTROLLER_GET_FAMILY, name);
        let answers = socket.ask(what, CONTROLLER, 0, &body)?;
        let id = answers.first().and_then(|answer| {
            let bytes = Reader::after(answer, GENERIC_HEADER_BYTES).get(FAMILY_ID)?;
            Some(u16::from_ne_bytes(*bytes.first_chunk()?))
        });
        let family = id.ok_or_else(|| KernelError::Netlink {
            what: what.to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
            said: None,
        })?;
        Ok(Self { socket, family })
    }

    /// The answer to a question about a device; `None` if its driver has no answer.
    fn get(
        &mut self,
        what: &str,
        command: u8,
        interface: &str,
    ) -> Result<Option<Vec<u8>>, KernelError> {
        let body = generic(command, header(interface, 0));
        match self.socket.ask(what, self.family, 0, &body) {
            Ok(answers) => Ok(answers.into_iter().next()),
            Err(KernelError::Netlink { source, .. })
                if source.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn set(&mut self, what: &str, command: u8, attributes: Writer) -> Result<(), KernelError> {
        let body = generic(command, attributes);
        self.socket.ask(what, self.family, 0, &body).map(drop)
    }

    /// Ring sizes.
    pub fn rings(&mut self, interface: &str) -> Result<Option<Rings>, KernelError> {
        let what = format!("read the ring sizes of {interface}");
        let answer = self.get(&what, RINGS_GET, interface)?;
        Ok(answer.and_then(|answer| {
            let ring = Reader::after(&answer, GENERIC_HEADER_BYTES);
            let sizes = |rx, tx| {
                Some(RingSizes {
                    rx: ring.u32(rx)?,
                    tx: ring.u32(tx)?,
                })
            };
            Some(Rings {
                now: sizes(RINGS_RX, RINGS_TX)?,
                max: sizes(RINGS_RX_MAX, RINGS_TX_MAX)?,
            })
        }))
    }

    /// Sets the ring sizes.
    pub fn set_rings(&mut self, interface: &str, sizes: RingSizes) -> Result<(), KernelError> {
        let what = format!(
            "set the rings of {interface} to {} and {} descriptors",
            sizes.rx, sizes.tx
        );
        let attributes = header(interface, FLAG_OMIT_REPLY)
            .u32(RINGS_RX, sizes.rx)
            .u32(RINGS_TX, sizes.tx);
        self.set(&what, RINGS_SET, attributes)
    }

    /// Channels.
    pub fn channels(&mut self, interface: &str) -> Result<Option<Channels>, KernelError> {
        let what = format!("read the channels of {interface}");
        let answer = self.get(&what, CHANNELS_GET, interface)?;
        Ok(answer.map(|answer| {
            let channels = Reader::after(&answer, GENERIC_HEADER_BYTES);
            // A kind that the driver does not have is left out.
            let counts = |rx, tx, combined| ChannelCounts {
                rx: channels.u32(rx).unwrap_or(0),
                tx: channels.u32(tx).unwrap_or(0),
                combined: channels.u32(combined).unwrap_or(0),
            };
            Channels {
                now: counts(CHANNELS_RX, CHANNELS_TX, CHANNELS_COMBINED),
                max: counts(CHANNELS_RX_MAX, CHANNELS_TX_MAX, CHANNELS_COMBINED_MAX),
            }
        }))
    }

    /// Sets the numbers of channels. A kind that the driver does not have must not be named, so a count
    /// is sent only where it changes.
    pub fn set_channels(
        &mut self,
        interface: &str,
        counts: ChannelCounts,
    ) -> Result<(), KernelError> {
        let now = self.channels(interface)?.unwrap_or_default().now;
        let mut attributes = header(interface, FLAG_OMIT_REPLY);
        for (kind, from, to) in [
            (CHANNELS_RX, now.rx, counts.rx),
            (CHANNELS_TX, now.tx, counts.tx),
            (CHANNELS_COMBINED, now.combined, counts.combined),
        ] {
            if from != to {
                attributes = attributes.u32(kind, to);
            }
        }
        let what = format!(
            "set the channels of {interface} to {} combined, {} rx, {} tx",
            counts.combined, counts.rx, counts.tx
        );
        self.set(&what, CHANNELS_SET, attributes)
    }

    /// Offloads.
    pub fn offloads(&mut self, interface: &str) -> Result<BTreeMap<String, Offload>, KernelError> {
        let what = format!("read the offloads of {interface}");
        let Some(answer) = self.get(&what, FEATURES_GET, interface)? else {
            return Ok(BTreeMap::new());
        };
        let features = Reader::after(&answer, GENERIC_HEADER_BYTES);
        let set = |kind| -> BTreeSet<String> {
            let bits = features.nest(kind).map(bits).unwrap_or_default();
            bits.into_iter()
                .filter_map(|(name, on)| on.then_some(name))
                .collect()
        };
        let (active, pinned) = (set(FEATURES_ACTIVE), set(FEATURES_NO_CHANGE));
        // This list has every name the kernel knows, with those set that the driver can switch.
        let all = features.nest(FEATURES_HARDWARE).map(bits);
        let offload = |(name, switchable): (String, bool)| {
            let offload = Offload {
                on: active.contains(&name),
                fixed: !switchable || pinned.contains(&name),
            };
            (name, offload)
        };
        Ok(all.unwrap_or_default().into_iter().map(offload).collect())
    }

    /// Switches offloads.
    pub fn set_offloads(
        &mut self,
        interface: &str,
        wanted: &BTreeMap<String, bool>,
    ) -> Result<(), KernelError> {
        let mut bits = Writer::default();
        for (name, on) in wanted {
            let bit = Writer::default().text(BIT_NAME, name).flag(BIT_VALUE, *on);
            bits = bits.nest(BIT, bit);
        }
        let bitset = Writer::default().nest(BITSET_BITS, bits);
        let attributes = header(interface, FLAG_OMIT_REPLY).nest(FEATURES_WANTED, bitset);
        let what = format!("switch offloads of {interface}");
        self.set(&what, FEATURES_SET, attributes)
    }
}

fn generic(command: u8, attributes: Writer) -> Vec<u8> {
    const VERSION: u8 = 1;
    [&[command, VERSION, 0, 0], &attributes.finish()[..]].concat()
}

fn header(interface: &str, flags: u32) -> Writer {
    let mut inner = Writer::default().text(HEADER_NAME, interface);
    if flags != 0 {
        inner = inner.u32(HEADER_FLAGS, flags);
    }
    Writer::default().nest(HEADER, inner)
}

/// The named bits of a bitset, each with its value. In a set without a mask only those that are set are
/// listed.
fn bits(bitset: Reader<'_>) -> Vec<(String, bool)> {
    let listed = bitset.get(BITSET_NO_MASK).is_some();
    let bits = bitset.nest(BITSET_BITS);
    bits.into_iter()
        .flat_map(Reader::all)
        .filter_map(|(_, bit)| {
            let bit = Reader::after(bit, 0);
            Some((bit.text(BIT_NAME)?, listed || bit.get(BIT_VALUE).is_some()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_bitset_are_read() {
        let bit = |name, on| Writer::default().text(BIT_NAME, name).flag(BIT_VALUE, on);
        let list = |on| {
            Writer::default()
                .nest(BIT, bit("rx-gro", on))
                .nest(BIT, bit("rx-lro", false))
        };
        let pair = |gro, lro| vec![("rx-gro".to_owned(), gro), ("rx-lro".to_owned(), lro)];
        let masked = Writer::default().nest(BITSET_BITS, list(true)).finish();
        assert_eq!(bits(Reader::after(&masked, 0)), pair(true, false));
        let plain = Writer::default()
            .flag(BITSET_NO_MASK, true)
            .nest(BITSET_BITS, list(false))
            .finish();
        assert_eq!(bits(Reader::after(&plain, 0)), pair(true, true));
    }
}
