//! Mutual TLS 1.3 between appliances: who the peer is, and a secret that only the two know.
//!
//! In: certificate files, bytes of connections. Out: the peer's node name, the exporter's secret, what the
//! peer says inside. Promises: nobody gets past without a certificate of an authority of ours that is
//! valid now, not revoked, and for migration and nothing else; a connection under handshake holds a fixed
//! amount of memory; not a byte behind the last record is taken, for it belongs to the lane.
//!
//! TLS covers the handshake of a lane and no more. The frames that follow on the same connection (or on
//! datagrams, or RDMA) are encrypted by `transport::wire` under the session's key, once, where they lie;
//! so a frame can go out again over another lane as it is, io_uring and the other drivers see plain
//! buffers, and there is no copy through a TLS library and no kernel TLS. There is no resumption by
//! tickets and no early data, which could be replayed: a later lane is proven by its session's key
//! (`transport::handshake::proof`). The connection costs one round trip, the HELLO and its answer another.
//!
//! | module | what |
//! |---|---|
//! | [`files`] | reads certificates, key and revocations |
//! | [`names`] | the node that a certificate is for |
//! | [`peers`] | judges a peer's certificate |
//! | [`credentials`] | all of it ready for use, and read anew when it changes |
//! | [`pipe`] | one connection |

pub mod credentials;
pub mod files;
pub mod names;
pub mod peers;
pub mod pipe;

use rustls::AlertDescription;

/// What is agreed on as the protocol inside, so that no other service's handshake serves as ours.
pub const PROTOCOL: &[u8] = b"dwcp/3";

/// Why a connection does not come to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The peer's certificate.
    #[error("the peer's certificate {0}")]
    Certificate(#[from] peers::Flaw),
    /// The peer showed no certificate.
    #[error("the peer shows no certificate: give it a [tls] table")]
    NoCertificate,
    /// The peer refused ours, or speaks no TLS.
    #[error(
        "the peer refuses this node's certificate or has no [tls] table ({0:?}): compare CA, validity and \
         revocations at both nodes"
    )]
    Refused(AlertDescription),
    /// It speaks TLS, but not this protocol.
    #[error(
        "the peer does not speak {} inside TLS: check its address",
        String::from_utf8_lossy(PROTOCOL)
    )]
    OtherProtocol,
    /// A record longer than TLS allows, or of no known type: not TLS at all.
    #[error(
        "the peer does not speak TLS: give it a [tls] table, or take its network into trusted_networks at both nodes"
    )]
    NotTls,
    /// Anything else that is no TLS 1.3 handshake.
    #[error("TLS: {0}")]
    Broken(String),
}
