//! The lines that guests are moved over, by name. In: a name, two hosts. Out: a line between them, and what
//! went over it. `lan` is a pair of virtual Ethernet devices without shaping, for a thread that forwards
//! packets would take from the processors that the guests need.

use clap::ValueEnum;
use dwcp_lab::link::{LinkConfig, LinkError, Shape, WanLink};
use dwcp_lab::netns::{Cable, Host, NetnsError};
use std::net::Ipv4Addr;

/// TCP buffers below this hold nothing back on a local network.
const BUFFER_BYTES_MIN: u64 = 4 << 20;

/// A line by name; rates of IP bytes, delays one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Link {
    /// 200 Mbit/s, 40 ms.
    Wan200,
    /// 100 Mbit/s, 50 ms, 1 % of packets lost.
    Lossy100,
    /// 900 Mbit/s, 25 ms.
    Fast900,
    /// 250 Mbit/s, 75 ms.
    Far150,
    /// Neither rate nor delay.
    Lan,
}

impl Link {
    /// The name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Wan200 => "wan200",
            Self::Lossy100 => "lossy100",
            Self::Fast900 => "fast900",
            Self::Far150 => "far150",
            Self::Lan => "lan",
        }
    }

    /// Its shape each way, if it has one.
    #[must_use]
    pub fn shape(self) -> Option<Shape> {
        match self {
            Self::Wan200 => Some(Shape::new(200.0, 40.0, 0.0)),
            Self::Lossy100 => Some(Shape::new(100.0, 50.0, 1.0)),
            Self::Fast900 => Some(Shape::new(900.0, 25.0, 0.0)),
            Self::Far150 => Some(Shape::new(250.0, 75.0, 0.0)),
            Self::Lan => None,
        }
    }

    /// What one direction carries, bytes per second.
    #[must_use]
    pub fn rate_bytes_per_s(self) -> Option<f64> {
        self.shape().map(|shape| shape.rate_mbit * 1e6 / 8.0)
    }

    /// What people want to know of it.
    #[must_use]
    pub fn about(self) -> String {
        match self.shape() {
            None => "unshaped".to_owned(),
            Some(shape) => {
                let loss = if shape.loss_percent > 0.0 {
                    format!(", {} % lost", shape.loss_percent)
                } else {
                    String::new()
                };
                format!(
                    "{} Mbit/s, {} ms one way{loss}",
                    shape.rate_mbit, shape.delay_ms
                )
            }
        }
    }
}

/// A line that is up.
pub(super) enum Line {
    Shaped(WanLink),
    Free(Cable),
}

impl Line {
    /// Lays the line and gives both hosts TCP buffers that fill it.
    pub(super) fn lay(link: Link, a: &Host, b: &Host) -> Result<Self, LinkError> {
        let buffer_bytes = link.shape().map_or(0, |shape| shape.round_trip_bytes() * 2);
        for host in [a, b] {
            host.set_tcp_buffer_limit(buffer_bytes.max(BUFFER_BYTES_MIN))?;
        }
        Ok(match link.shape() {
            Some(shape) => Self::Shaped(WanLink::start(a, b, LinkConfig::symmetric(shape))?),
            None => Self::Free(Cable::lan(a, b, 1)?),
        })
    }

    /// The addresses of both ends.
    pub(super) fn addresses(&self) -> [Ipv4Addr; 2] {
        match self {
            Self::Shaped(link) => [link.a, link.b],
            Self::Free(cable) => [cable.a, cable.b],
        }
    }

    /// Bytes that went over it, both ways: IP bytes of a shaped line, Ethernet's too of a free one.
    pub(super) fn wire_bytes(&self, a: &Host) -> Result<u64, NetnsError> {
        match self {
            Self::Shaped(link) => Ok(link.wire_bytes()),
            Self::Free(cable) => cable.bytes(a).map(|(sent, received)| sent + received),
        }
    }

    /// IP bytes that the first host gave to a shaped line.
    pub(super) fn given_bytes(&self) -> Option<u64> {
        match self {
            Self::Shaped(link) => Some(link.traffic()[0].wire_bytes),
            Self::Free(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for link in Link::value_variants() {
            assert_eq!(Link::from_str(link.name(), false), Ok(*link));
        }
    }
}
