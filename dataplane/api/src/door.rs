//! Counters of the door: who stands in it, who came in, who was turned away and why.

use dwcp_hugepages::counters::Counter;
use dwcp_hugepages::impl_shared_pod;
use zerocopy::FromBytes;

use crate::ids::closed_set;

closed_set! {
    /// Why a handshake with a peer that dialled us was refused or given up.
    Refusal {
        /// The proof is not by the key that both should have; so ends a replay too.
        WrongKey = 0, "wrong_key";
        /// No TLS from a network where it is needed.
        TlsRequired = 1, "tls_required";
        /// TLS, but this data plane has no `[tls]`.
        TlsNotConfigured = 2, "tls_not_configured";
        /// TLS without a certificate.
        NoCertificate = 3, "no_certificate";
        /// The certificate is from an authority that is not ours.
        UnknownAuthority = 4, "unknown_authority";
        /// The certificate is no longer valid, or not yet.
        Expired = 5, "expired";
        /// The certificate was revoked, or nobody says that it was not.
        Revoked = 6, "revoked";
        /// The certificate is not for migration, or not for this alone.
        NotForMigration = 7, "not_for_migration";
        /// The certificate is broken in some other way.
        BadCertificate = 8, "bad_certificate";
        /// The certificate is another node's than the peer says it is.
        WrongNode = 9, "wrong_node";
        /// Nobody announced the session.
        UnknownSession = 10, "unknown_session";
        /// The session has ended.
        SessionGone = 11, "session_gone";
        /// The session is another node's, or was begun in another way.
        NotItsSession = 12, "not_its_session";
        /// No passive target of that name.
        UnknownTarget = 13, "unknown_target";
        /// No version in common.
        Version = 14, "version";
        /// No room for another session.
        Busy = 15, "busy";
        /// Not the protocol: garbage, another release, a broken TLS record.
        Protocol = 16, "protocol";
        /// It did not get on in time.
        TooLate = 17, "too_late";
        /// It went away.
        Ended = 18, "ended";
        /// Others came and it had stood there longest.
        Crowded = 19, "crowded";
    }
}

/// One counter for each [`Refusal`].
pub const REFUSALS: usize = Refusal::ALL.len();

/// Written by the door alone.
#[repr(C)]
#[derive(Debug, Default, FromBytes)]
pub struct DoorCounters {
    /// Handshakes under way with peers that dialled us.
    pub under_way: Counter,
    /// Lanes let in.
    pub admitted_total: Counter,
    /// Connections to peers that are ready to be lanes.
    pub pool_ready: Counter,
    /// Connections of peers that are parked here until they are wanted.
    pub pool_parked: Counter,
    /// Lanes that came up on a connection that was ready.
    pub pool_hits_total: Counter,
    /// Lanes for which there was none.
    pub pool_misses_total: Counter,
    /// Bytes sent to have such connections find out what their path carries.
    pub pool_padding_bytes_total: Counter,
    /// Times the certificates were read anew.
    pub reloads_total: Counter,
    /// Times that failed: the old ones stay in use.
    pub reload_failures_total: Counter,
    refused_total: [Counter; REFUSALS],
}

impl_shared_pod!(DoorCounters {
    under_way,
    admitted_total,
    pool_ready,
    pool_parked,
    pool_hits_total,
    pool_misses_total,
    pool_padding_bytes_total,
    reloads_total,
    reload_failures_total,
    refused_total
});

impl DoorCounters {
    /// Counts one.
    pub fn count(&self, refusal: Refusal) {
        self.refused_total[refusal.code() as usize].add(1);
    }

    /// How often for this reason.
    #[must_use]
    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.refused_total[refusal.code() as usize].get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter() {
        let counters = DoorCounters::default();
        for (index, refusal) in Refusal::ALL.iter().enumerate() {
            assert_eq!(refusal.code() as usize, index);
            counters.count(*refusal);
            assert_eq!(counters.refused(*refusal), 1);
        }
    }
}
