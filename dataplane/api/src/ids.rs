//! Names of things that both planes speak about.

use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One migration between two data planes: 16 random bytes chosen by the source.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct SessionId(pub [u8; 16]);

impl SessionId {
    /// Parses 32 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 32 {
            return None;
        }
        let mut id = [0u8; 16];
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16)?;
            let low = char::from(pair[1]).to_digit(16)?;
            *byte = u8::try_from(high * 16 + low).ok()?;
        }
        Some(Self(id))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Declares a closed set of values that crosses the border as a number.
macro_rules! closed_set {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $value:literal, $text:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every value, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The number that crosses the border.
            #[must_use]
            pub const fn code(self) -> u32 {
                match self { $(Self::$variant => $value,)+ }
            }

            /// The value behind a number that came across, if there is one.
            #[must_use]
            pub const fn from_code(code: u32) -> Option<Self> {
                match code { $($value => Some(Self::$variant),)+ _ => None }
            }

            /// The word used in the API, in logs and in metrics.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use closed_set;

closed_set! {
    /// Which end of the migration this data plane serves.
    Role {
        /// The hypervisor here sends.
        Source = 1, "source";
        /// The hypervisor here receives.
        Destination = 2, "destination";
    }
}

closed_set! {
    /// The protocol a batch is written in.
    Version {
        /// The plain and proven way.
        V1 = 1, "v1";
        /// Everything since.
        V3 = 3, "v3";
    }
}

closed_set! {
    /// What kind of path leads to a peer, and so how its sessions behave. Decided by the control plane, in
    /// force from one batch to the next.
    Mode {
        /// Near and fast: round trip under 10 ms, more than 1 Gbit/s.
        Datacenter = 1, "datacenter";
        /// Far or thin: round trip over 50 ms, or less than 1 Gbit/s.
        Internet = 2, "internet";
        /// In between.
        Hybrid = 3, "hybrid";
    }
}

closed_set! {
    /// What a sample of a path says about its bandwidth.
    PathLoad {
        /// Hardly anything was sent: nothing.
        Idle = 0, "idle";
        /// Bytes flowed and none had to wait for the path: it carries at least what it carried.
        Free = 1, "free";
        /// Bytes waited for the path: it carries what it carried.
        Full = 2, "full";
    }
}

closed_set! {
    /// Where a session stands.
    SessionState {
        /// Waiting for the hypervisor to connect, or for the peer.
        Waiting = 1, "waiting";
        /// Bytes flow.
        Active = 2, "active";
        /// The link is gone; lanes are being dialled again.
        Reconnecting = 3, "reconnecting";
        /// The end of RAM is on its way: the destination may take over at any moment.
        Switchover = 4, "switchover";
        /// The source lost its peer after the switchover began. The hypervisor's connections are
        /// held open until a verdict says which side runs the guest.
        Undecided = 5, "undecided";
        /// Every byte was delivered, both ways.
        Completed = 6, "completed";
        /// Closed without completing; see the failure.
        Failed = 7, "failed";
    }
}

impl SessionState {
    /// Nothing will change any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }
}

closed_set! {
    /// Why a session or a command failed. The text beside it says what to do.
    Failure {
        /// It did not.
        None = 0, "none";
        /// An operator or the hypervisor's owner cancelled it.
        Cancelled = 1, "cancelled";
        /// The peer did not answer within the resume limit.
        PeerLost = 2, "peer_lost";
        /// The peer proved no knowledge of the shared key or showed no good certificate, or we did not.
        WrongKey = 3, "wrong_key";
        /// The peer refused the session.
        Refused = 4, "refused";
        /// No protocol version that both sides may use.
        VersionMismatch = 5, "version_mismatch";
        /// Bytes arrived that the peer's digest does not vouch for.
        Corrupted = 6, "corrupted";
        /// The peer broke the protocol.
        Protocol = 7, "protocol";
        /// The hypervisor's socket failed or closed early.
        Hypervisor = 8, "hypervisor";
        /// A limit of this host would have been passed.
        Limit = 9, "limit";
        /// The system refused something: a socket, memory, a file.
        System = 10, "system";
        /// The peer ended the session and said so.
        PeerAborted = 11, "peer_aborted";
        /// The command was not understood or named an unknown session.
        BadCommand = 12, "bad_command";
        /// The data plane itself went away.
        DataPlaneGone = 13, "data_plane_gone";
        /// The hypervisor did not connect in time.
        NoHypervisor = 14, "no_hypervisor";
        /// Another node answers than the one that the command names.
        WrongNode = 15, "wrong_node";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_reads_back_as_it_was_written() {
        let id = SessionId([7, 0, 255, 16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(SessionId::parse(&id.to_string()), Some(id));
        assert_eq!(SessionId::parse("07"), None);
        assert_eq!(SessionId::parse(&"g".repeat(32)), None);
    }

    #[test]
    fn codes_are_distinct_and_read_back() {
        for state in SessionState::ALL {
            assert_eq!(SessionState::from_code(state.code()), Some(*state));
        }
        for failure in Failure::ALL {
            assert_eq!(Failure::from_code(failure.code()), Some(*failure));
        }
        for mode in Mode::ALL {
            assert_eq!(Mode::from_code(mode.code()), Some(*mode));
        }
        // A word that was never written names no mode.
        assert_eq!((Version::from_code(2), Mode::from_code(0)), (None, None));
    }
}
