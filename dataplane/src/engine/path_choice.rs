//! How a TCP lane's path is shared with others: BBR or CUBIC, by what the operator wants and the path is.
//!
//! In: the configuration, the round trip of a connection whose handshake is done. Out: its congestion control
//! set. Promise: a kernel that lacks what is wanted costs the choice, never the lane.

use std::os::fd::AsFd;

use dwcp_drivers::tcp::socket::{set_congestion, stats};

use crate::config::TcpCongestion;
use crate::transport::streams::PathKind;

/// What to try on such a path, in this order; nothing leaves what the host has. On a far path loss is mostly
/// not congestion, and queues are deep: BBR keeps to the rate that is delivered, where CUBIC would stop at
/// each loss and fill each queue.
const fn wanted(congestion: TcpCongestion, kind: PathKind) -> &'static [&'static str] {
    match (congestion, kind) {
        (TcpCongestion::Host, _) | (TcpCongestion::Auto, PathKind::Datacenter) => &[],
        (TcpCongestion::Auto, PathKind::Hybrid | PathKind::Internet) => &["bbr", "cubic"],
        (TcpCongestion::Bbr, _) => &["bbr"],
        (TcpCongestion::Cubic, _) => &["cubic"],
    }
}

/// See the module.
#[derive(Debug)]
pub struct PathChoice {
    congestion: TcpCongestion,
    /// What is wanted and missing was told.
    told: bool,
}

impl PathChoice {
    /// As the operator says.
    pub const fn new(congestion: TcpCongestion) -> Self {
        Self {
            congestion,
            told: false,
        }
    }

    /// Sets a connected socket's congestion control.
    pub fn choose(&mut self, socket: impl AsFd) {
        if let Some(missing) = choose(socket, self.congestion)
            && !std::mem::replace(&mut self.told, true)
        {
            tracing::warn!(
                "this kernel lacks {missing} (modprobe tcp_{missing}): lanes are controlled as the host has it"
            );
        }
    }
}

/// Sets the congestion control of a connected socket. Gives what was wanted and is not there.
fn choose(socket: impl AsFd, congestion: TcpCongestion) -> Option<&'static str> {
    // The handshake was at least two round trips: the smallest is the path's own.
    let rtt_us = stats(&socket).ok().map(|stats| u64::from(stats.rtt_min_us));
    let kind = PathKind::by_rtt(rtt_us.filter(|rtt| *rtt > 0));
    let wanted = wanted(congestion, kind);
    let set = wanted
        .iter()
        .any(|name| set_congestion(&socket, name).is_ok());
    if set { None } else { wanted.first().copied() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn far_paths_get_bbr_near_ones_what_the_host_has_and_an_operator_what_he_says() {
        use TcpCongestion::{Auto, Bbr, Cubic, Host};
        assert_eq!(wanted(Auto, PathKind::Internet), ["bbr", "cubic"]);
        assert_eq!(wanted(Auto, PathKind::Hybrid), ["bbr", "cubic"]);
        assert!(wanted(Auto, PathKind::Datacenter).is_empty());
        assert!(wanted(Host, PathKind::Internet).is_empty());
        assert_eq!(wanted(Cubic, PathKind::Internet), ["cubic"]);
        assert_eq!(wanted(Bbr, PathKind::Datacenter), ["bbr"]);
    }

    #[test]
    fn the_kernel_says_afterwards_what_was_chosen_or_what_is_missing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let before = stats(&near).unwrap().congestion;
        assert_eq!(choose(&near, TcpCongestion::Host), None);
        assert_eq!(stats(&near).unwrap().congestion, before);
        for (congestion, name) in [(TcpCongestion::Cubic, "cubic"), (TcpCongestion::Bbr, "bbr")] {
            match choose(&near, congestion) {
                None => assert_eq!(stats(&near).unwrap().congestion_name(), name),
                // A kernel built without it.
                Some(missing) => assert_eq!(missing, name),
            }
        }
        let not_tcp = std::os::unix::net::UnixStream::pair().unwrap().0;
        assert_eq!(choose(not_tcp, TcpCongestion::Cubic), Some("cubic"));
    }
}
