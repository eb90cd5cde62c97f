//! TLS of the API, both ways.
//!
//! In: PEM files. Out: what the server shows, and whom this host's requests to peers' APIs trust. Promises: TLS 1.2 or
//! newer; a key that others can read is refused; nobody is trusted whom `tls_ca` does not name.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// No certificate or key is longer.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Files that make no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One cannot be read.
    #[error("{path}: {reason}; correct tls_cert, tls_key or tls_ca")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// They do not fit together.
    #[error("tls_cert and tls_key: {0}; issue them again together")]
    Pair(rustls::Error),
    /// The library has no protocol that it could use.
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// What the server shows.
///
/// # Errors
/// [`TlsError`].
pub fn server(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let chain: Vec<CertificateDer<'static>> = pem(cert, false)?;
    let key = pem::<PrivateKeyDer<'static>>(key, true)?.swap_remove(0);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(TlsError::Pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Whom requests trust; without a file nobody, so that `https` is refused and `http` goes on.
///
/// # Errors
/// [`TlsError`].
pub fn client(authority: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = authority {
        for certificate in pem::<CertificateDer<'static>>(path, false)? {
            roots.add(certificate).map_err(|error| TlsError::File {
                path: path.to_owned(),
                reason: error.to_string(),
            })?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// All items of one kind in a file, at least one.
fn pem<T: PemObject>(path: &Path, secret: bool) -> Result<Vec<T>, TlsError> {
    let wrong = |reason: String| TlsError::File {
        path: path.to_owned(),
        reason,
    };
    let file = std::fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
    let mode = file
        .metadata()
        .map_err(|error| wrong(error.to_string()))?
        .mode()
        & 0o777;
    if secret && mode & 0o077 != 0 {
        return Err(wrong(format!(
            "others can read it (mode {mode:o}): chmod 600 it"
        )));
    }
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(|error| wrong(error.to_string()))?;
    let items: Result<Vec<T>, _> = T::pem_slice_iter(&text).collect();
    let items = items.map_err(|error| wrong(error.to_string()))?;
    if items.is_empty() {
        return Err(wrong(
            "nothing in PEM of the kind that is needed in it".to_owned(),
        ));
    }
    Ok(items)
}
