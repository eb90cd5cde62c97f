//! This member's certificate and whom it trusts.
//!
//! In: paths. Out: both ends' settings of the TLS library. Promise: files that do not fit together, or
//! a key that others can read, are refused with the file's name.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, TrustAnchor};
use rustls::sign::SigningKey;
use rustls::{ClientConfig, ServerConfig};
use serde::{Deserialize, Serialize};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::trust::{Trust, node_in};

const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where the files lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Authorities, PEM.
    pub ca: PathBuf,
    /// This node's certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM, mode 0600.
    pub key: PathBuf,
    /// Revocations, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl: Option<PathBuf>,
}

/// Files that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct CredentialError {
    /// File meant.
    pub path: PathBuf,
    /// What is wrong and what to do.
    pub reason: String,
}

/// Both ends, ready for use; a clone is the same.
#[derive(Clone)]
pub struct Credentials {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
    pub(super) chain: Arc<[CertificateDer<'static>]>,
    pub(super) signer: Arc<dyn SigningKey>,
    pub(super) trust: Arc<Trust>,
    pub(super) provider: Arc<CryptoProvider>,
    /// The node that the certificate is for.
    pub name: String,
}

impl Credentials {
    /// Reads the files.
    ///
    /// # Errors
    /// [`CredentialError`].
    pub fn read(files: &TlsFiles) -> Result<Self, CredentialError> {
        let refused = |path: &Path, reason: String| CredentialError {
            path: path.to_owned(),
            reason,
        };
        let authorities = certificates(&files.ca)?;
        let anchors = authorities
            .iter()
            .map(|der| webpki::anchor_from_trusted_cert(der).map(|anchor| anchor.to_owned()))
            .collect::<Result<Vec<TrustAnchor<'static>>, _>>()
            .map_err(|error| refused(&files.ca, format!("no authority's certificate: {error}")))?;
        let mut revoked: Vec<CertRevocationList<'static>> = Vec::new();
        if let Some(path) = &files.crl {
            let pem = read(path, false)?;
            for der in CertificateRevocationListDer::pem_slice_iter(&pem) {
                let list = der
                    .map_err(|error| error.to_string())
                    .and_then(|der| {
                        OwnedCertRevocationList::from_der(&der).map_err(|error| error.to_string())
                    })
                    .map_err(|error| refused(path, format!("no list of revocations: {error}")))?;
                revoked.push(list.into());
            }
        }
        let chain = certificates(&files.cert)?;
        let name = chain.first().and_then(node_in).ok_or_else(|| {
            refused(
                &files.cert,
                "names no node: issue it with `dwcpctl pki issue`".to_owned(),
            )
        })?;
        let key = PrivateKeyDer::from_pem_slice(&read(&files.key, true)?)
            .map_err(|error| refused(&files.key, format!("no private key: {error}")))?;
        let provider = Arc::new(default_provider());
        let trust = Arc::new(Trust::new(anchors, revoked, provider.clone()));
        let versions = &[&rustls::version::TLS13];
        let unfit = |error: rustls::Error| {
            refused(
                &files.key,
                format!("does not fit {}: {error}", files.cert.display()),
            )
        };
        let signer = provider
            .key_provider
            .load_private_key(key.clone_key())
            .map_err(unfit)?;
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(unfit)?
            .with_client_cert_verifier(trust.clone())
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(unfit)?;
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(unfit)?
            .dangerous()
            .with_custom_certificate_verifier(trust.clone())
            .with_client_auth_cert(chain.clone(), key)
            .map_err(unfit)?;
        Ok(Self {
            server: Arc::new(server),
            client: Arc::new(client),
            chain: chain.into(),
            signer,
            trust,
            provider,
            name,
        })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let pem = read(path, false)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(CredentialError {
            path: path.to_owned(),
            reason: "holds no certificate in PEM".to_owned(),
        }),
        Err(error) => Err(CredentialError {
            path: path.to_owned(),
            reason: error.to_string(),
        }),
    }
}

fn read(path: &Path, secret: bool) -> Result<Vec<u8>, CredentialError> {
    let refused = |reason: String| CredentialError {
        path: path.to_owned(),
        reason,
    };
    let file = std::fs::File::open(path).map_err(|error| refused(error.to_string()))?;
    let about = file
        .metadata()
        .map_err(|error| refused(error.to_string()))?;
    if secret && about.mode() & 0o077 != 0 {
        return Err(refused("others can read it: chmod 600 it".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| refused(error.to_string()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(refused(format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}
