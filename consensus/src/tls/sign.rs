//! Words of a node that others pass on: signed with the key of its certificate, which goes with them.
//!
//! In: bytes. Out: a [`Signature`], or the name of the node that made one. Promises: what vouches for a node on a
//! connection vouches for its words too, by the same rules (authority, validity, revocation, one name); every length
//! is checked before anything is decoded.
//!
//! The same key signs the handshakes of TLS 1.3, whose signed bytes begin with 64 spaces. Whoever signs here begins
//! with other ones, so that neither is ever taken for the other.

use rustls::SignatureScheme;
use rustls::pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};
use webpki::{EndEntityCert, KeyUsage};

use super::credentials::Credentials;
use super::trust::node_in;

/// Certificates between a node's and its authority, the node's included.
const CERTIFICATES_MAX: usize = 4;
/// Hexadecimal digits of one certificate.
const CERTIFICATE_DIGITS_MAX: usize = 16 << 10;
/// Hexadecimal digits of a signature: RSA with 4,096 bits.
const SIGNATURE_DIGITS_MAX: usize = 1_024;

/// Schemes that are used, the preferred one first.
const SCHEMES: &[SignatureScheme] = &[
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
];

/// A node's signature, with the certificate that says whose it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The node's certificate, then those between it and the authority; DER, hexadecimal.
    pub certificates: Vec<String>,
    /// Number of the scheme, as in TLS.
    pub scheme: u16,
    /// The signature, hexadecimal.
    pub bytes: String,
}

/// Why a signature counts for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A part has no form or is too long.
    #[error("the signature's {0} is malformed")]
    Malformed(&'static str),
    /// The certificate is not good here.
    #[error("its certificate is not good here: {0}")]
    Certificate(String),
    /// The bytes are not what was signed, or another key signed them.
    #[error("the words are not what was signed")]
    Forged,
    /// The key cannot sign so.
    #[error("this node's key cannot sign: {0}")]
    Unfit(String),
}

impl Credentials {
    /// Signs as this node. `text` must begin with words that say what it is.
    ///
    /// # Errors
    /// [`SignatureError::Unfit`].
    pub fn sign(&self, text: &[u8]) -> Result<Signature, SignatureError> {
        let unfit = |error: String| SignatureError::Unfit(error);
        let signer = self.signer.choose_scheme(SCHEMES);
        let signer = signer.ok_or_else(|| unfit("it is of an unusual kind".to_owned()))?;
        let bytes = signer
            .sign(text)
            .map_err(|error| unfit(error.to_string()))?;
        Ok(Signature {
            certificates: self.chain.iter().map(hex::encode).collect(),
            scheme: signer.scheme().into(),
            bytes: hex::encode(bytes),
        })
    }

    /// Whose words they are.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn signed_by(&self, text: &[u8], signature: &Signature) -> Result<String, SignatureError> {
        let count = signature.certificates.len();
        let long = |digits: &String| digits.len() > CERTIFICATE_DIGITS_MAX;
        if !(1..=CERTIFICATES_MAX).contains(&count) || signature.certificates.iter().any(long) {
            return Err(SignatureError::Malformed("certificate"));
        }
        if signature.bytes.len() > SIGNATURE_DIGITS_MAX {
            return Err(SignatureError::Malformed("length"));
        }
        let chain: Vec<CertificateDer<'static>> = signature
            .certificates
            .iter()
            .map(|digits| hex::decode(digits).map(CertificateDer::from))
            .collect::<Result<_, _>>()
            .map_err(|_| SignatureError::Malformed("certificate"))?;
        let bytes =
            hex::decode(&signature.bytes).map_err(|_| SignatureError::Malformed("bytes"))?;
        let refused = |error: String| SignatureError::Certificate(error);
        let usage = KeyUsage::client_auth();
        self.trust
            .check(&chain[0], &chain[1..], UnixTime::now(), usage)
            .map_err(|error| refused(error.to_string()))?;
        let scheme = SignatureScheme::from(signature.scheme);
        let known = self.provider.signature_verification_algorithms.mapping;
        let algorithm = known
            .iter()
            .find(|(of, _)| *of == scheme && SCHEMES.contains(of))
            .and_then(|(_, algorithms)| algorithms.first())
            .ok_or(SignatureError::Malformed("scheme"))?;
        let end = EndEntityCert::try_from(&chain[0]).map_err(|error| refused(error.to_string()))?;
        end.verify_signature(*algorithm, text, &bytes)
            .map_err(|_| SignatureError::Forged)?;
        node_in(&chain[0]).ok_or_else(|| refused("it names no node".to_owned()))
    }
}
