//! Judges a peer's certificate.
//!
//! In: a chain of any provenance, the time. Out: the node it is for, or the [`Flaw`]. Promises: as in the
//! parent; the same rules for the side that dials and the side that is dialled.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::names;

/// What is wrong with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Issued by nobody whom `ca` names.
    #[error(
        "is not from an authority in `ca`: issue it by that authority, or add the other to `ca` at both nodes"
    )]
    UnknownAuthority,
    /// Out of its time.
    #[error("has expired or is not valid yet: rotate it, and check both clocks")]
    Expired,
    /// In the revocation list.
    #[error("was revoked: issue a new one if the node is still to be trusted")]
    Revoked,
    /// Revocation cannot be told.
    #[error("is from an authority of which `crl` says nothing: add that authority's list")]
    RevocationUnknown,
    /// Of another use.
    #[error(
        "is not for migration alone: issue one whose only name is the URI dwcp://node/NAME, for client and server use"
    )]
    NotForMigration,
    /// Anything else.
    #[error("is broken: issue a new one")]
    Broken,
}

/// See the module.
#[derive(Debug)]
pub struct Peers {
    anchors: Vec<TrustAnchor<'static>>,
    revoked: Vec<CertRevocationList<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Peers {
    /// Trusts these authorities; with a list of revocations, only certificates of which it knows.
    #[must_use]
    pub fn new(
        anchors: Vec<TrustAnchor<'static>>,
        revoked: Vec<CertRevocationList<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Self {
        Self {
            anchors,
            revoked,
            provider,
        }
    }

    /// The node that a certificate is for, if it is good at `now` for this use.
    ///
    /// # Errors
    /// [`Flaw`].
    pub fn node_of(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<String, Flaw> {
        let end = EndEntityCert::try_from(certificate).map_err(|_| Flaw::Broken)?;
        let lists: Vec<&CertRevocationList<'_>> = self.revoked.iter().collect();
        // A list that has outlived its next update still says who is revoked; to refuse everybody then
        // would let a forgotten file stop all migrations.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        let algorithms = self.provider.signature_verification_algorithms.all;
        end.verify_for_usage(
            algorithms,
            &self.anchors,
            between,
            now,
            usage,
            revocation,
            None,
        )
        .map_err(|error| flaw(&error))?;
        names::only_node(end.valid_uri_names(), end.valid_dns_names())
            .map(str::to_owned)
            .ok_or(Flaw::NotForMigration)
    }

    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), rustls::Error> {
        match self.node_of(certificate, between, now, usage) {
            Ok(_) => Ok(()),
            Err(flaw) => Err(told(flaw)),
        }
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }
}

/// The node of a certificate that was judged good before.
#[must_use]
pub fn node_in(certificate: &CertificateDer<'_>) -> Option<String> {
    let end = EndEntityCert::try_from(certificate).ok()?;
    names::only_node(end.valid_uri_names(), end.valid_dns_names()).map(str::to_owned)
}

fn only_tls_1_3() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken here".to_owned())
}

fn flaw(error: &webpki::Error) -> Flaw {
    use webpki::Error;
    match error {
        Error::UnknownIssuer | Error::InvalidSignatureForPublicKey => Flaw::UnknownAuthority,
        Error::CertExpired { .. } | Error::CertNotValidYet { .. } => Flaw::Expired,
        Error::CertRevoked => Flaw::Revoked,
        Error::UnknownRevocationStatus => Flaw::RevocationUnknown,
        Error::RequiredEkuNotFoundContext(_)
        | Error::EmptyEkuExtension
        | Error::CaUsedAsEndEntity => Flaw::NotForMigration,
        _ => Flaw::Broken,
    }
}

/// As the TLS library and the peer are told: the alert says which it is.
fn told(flaw: Flaw) -> rustls::Error {
    let error = match flaw {
        Flaw::UnknownAuthority => CertificateError::UnknownIssuer,
        Flaw::Expired => CertificateError::Expired,
        Flaw::Revoked => CertificateError::Revoked,
        Flaw::RevocationUnknown => CertificateError::UnknownRevocationStatus,
        Flaw::NotForMigration => CertificateError::Other(OtherError(Arc::new(flaw))),
        Flaw::Broken => CertificateError::BadEncoding,
    };
    rustls::Error::InvalidCertificate(error)
}

/// The flaw behind what the TLS library says.
#[must_use]
pub fn flaw_in(error: &CertificateError) -> Flaw {
    match error {
        CertificateError::UnknownIssuer => Flaw::UnknownAuthority,
        CertificateError::Expired => Flaw::Expired,
        CertificateError::Revoked => Flaw::Revoked,
        CertificateError::UnknownRevocationStatus => Flaw::RevocationUnknown,
        CertificateError::Other(_) => Flaw::NotForMigration,
        _ => Flaw::Broken,
    }
}

impl ServerCertVerifier for Peers {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // Peers are dialled by address; who must answer is the handshake's affair, by the node's name.
        self.check(certificate, between, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls_1_3())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ClientCertVerifier for Peers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Every appliance has one certificate: there is nothing to choose by.
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(certificate, between, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls_1_3())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
