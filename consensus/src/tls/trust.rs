//! What a peer's certificate must say: one URI `dwcp://node/NAME` and no other name, from an authority of
//! ours, valid now, not revoked.
//!
//! In: a chain of any provenance. Out: accepted or not. Promise: the same rules at both ends; TLS 1.3 only.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};

const SCHEME: &str = "dwcp://node/";
const NAME_BYTES_MAX: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Trust {
    anchors: Vec<TrustAnchor<'static>>,
    revoked: Vec<CertRevocationList<'static>>,
    provider: Arc<CryptoProvider>,
}

/// The node that a certificate names, if it names one node and nothing else.
pub(super) fn node_in(certificate: &CertificateDer<'_>) -> Option<String> {
    let end = EndEntityCert::try_from(certificate).ok()?;
    let mut uris = end.valid_uri_names();
    let name = uris.next()?.strip_prefix(SCHEME)?;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let whole = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(good);
    let alone = uris.next().is_none() && end.valid_dns_names().next().is_none();
    (whole && alone).then(|| name.to_owned())
}

impl Trust {
    pub(super) fn new(
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

    pub(super) fn check(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        let wrong = |error| Error::InvalidCertificate(error);
        let end = EndEntityCert::try_from(certificate)
            .map_err(|_| wrong(CertificateError::BadEncoding))?;
        let lists: Vec<&CertRevocationList<'_>> = self.revoked.iter().collect();
        // A list past its next update still says who is revoked.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        let algorithms = self.provider.signature_verification_algorithms.all;
        let verified = end.verify_for_usage(
            algorithms,
            &self.anchors,
            between,
            now,
            usage,
            revocation,
            None,
        );
        verified.map_err(|error| {
            wrong(match error {
                webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
                webpki::Error::CertExpired { .. } => CertificateError::Expired,
                webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
                webpki::Error::CertRevoked => CertificateError::Revoked,
                webpki::Error::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
                _ => CertificateError::ApplicationVerificationFailure,
            })
        })?;
        let named = node_in(certificate);
        named
            .map(drop)
            .ok_or_else(|| wrong(CertificateError::ApplicationVerificationFailure))
    }
}

fn only_tls_1_3() -> Error {
    Error::General("TLS 1.2 is not spoken here".to_owned())
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Peers are dialled by address; which node must answer is checked by its name afterwards.
        self.check(certificate, between, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls_1_3())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Trust {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(certificate, between, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls_1_3())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
