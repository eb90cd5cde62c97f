//! Reads certificates, key and revocations. In: the paths of `[tls]`. Out: their content, or the file that is
//! wrong and what to do. Promises: a key that others can read is refused; a file's size is bounded.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, TrustAnchor};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use crate::config::TlsConfig;

/// No certificate, key or list is larger.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Whom we let in.
pub struct Trust {
    /// The authorities.
    pub anchors: Vec<TrustAnchor<'static>>,
    /// Revocations, one list for each authority.
    pub revoked: Vec<CertRevocationList<'static>>,
}

/// Who we are.
pub struct Own {
    /// Our certificate, then what lies between it and its authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// Our key.
    pub key: PrivateKeyDer<'static>,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {trouble}")]
pub struct FileError {
    path: PathBuf,
    trouble: Trouble,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}; correct the path in [tls]")]
    Read(#[from] std::io::Error),
    #[error("more than {FILE_BYTES_MAX} bytes; this is no {0}")]
    TooLarge(&'static str),
    #[error("can be read by others (mode {0:o}): chmod 600 it")]
    Open(u32),
    #[error("no {0} in PEM in it")]
    Empty(&'static str),
    #[error("a {what} in it is broken ({detail}): copy or issue it again")]
    Broken { what: &'static str, detail: String },
}

/// When and what a file was: it differs once the file was written or replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(Vec<Option<(u64, u64, i64, i64)>>);

/// The files' stamps; one that is not there counts too.
#[must_use]
pub fn stamp(config: &TlsConfig) -> Stamp {
    let paths = [
        Some(&config.ca),
        Some(&config.cert),
        Some(&config.key),
        config.crl.as_ref(),
    ];
    let of = |path: &PathBuf| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
    };
    Stamp(paths.into_iter().flatten().map(of).collect())
}

/// Reads authorities and revocations.
///
/// # Errors
/// [`FileError`], the first.
pub fn read_trust(config: &TlsConfig) -> Result<Trust, FileError> {
    let authorities: Vec<CertificateDer<'static>> = pem(&config.ca, "certificate", false)?;
    let anchors = authorities
        .iter()
        .map(|certificate| {
            let anchor = webpki::anchor_from_trusted_cert(certificate);
            anchor
                .map(|anchor| anchor.to_owned())
                .map_err(|error| broken(&config.ca, "certificate", &error))
        })
        .collect::<Result<_, _>>()?;
    let mut revoked = Vec::new();
    if let Some(path) = &config.crl {
        let lists: Vec<CertificateRevocationListDer<'static>> =
            pem(path, "revocation list", false)?;
        for list in lists {
            let list = OwnedCertRevocationList::from_der(&list)
                .map_err(|error| broken(path, "revocation list", &error))?;
            revoked.push(CertRevocationList::Owned(list));
        }
    }
    Ok(Trust { anchors, revoked })
}

/// Reads our certificate and key.
///
/// # Errors
/// [`FileError`], the first.
pub fn read_own(config: &TlsConfig) -> Result<Own, FileError> {
    let mut keys: Vec<PrivateKeyDer<'static>> = pem(&config.key, "private key", true)?;
    Ok(Own {
        chain: pem(&config.cert, "certificate", false)?,
        key: keys.swap_remove(0),
    })
}

/// All items of one kind in a file, at least one.
fn pem<T: PemObject>(path: &Path, what: &'static str, secret: bool) -> Result<Vec<T>, FileError> {
    let wrong = |trouble| FileError {
        path: path.to_owned(),
        trouble,
    };
    let mut file = File::open(path).map_err(|error| wrong(error.into()))?;
    let meta = file.metadata().map_err(|error| wrong(error.into()))?;
    if secret && meta.mode() & 0o077 != 0 {
        return Err(wrong(Trouble::Open(meta.mode() & 0o777)));
    }
    let mut text = Vec::new();
    let read = (&mut file).take(FILE_BYTES_MAX + 1).read_to_end(&mut text);
    if read.map_err(|error| wrong(error.into()))? as u64 > FILE_BYTES_MAX {
        return Err(wrong(Trouble::TooLarge(what)));
    }
    let items: Result<Vec<T>, _> = T::pem_slice_iter(&text).collect();
    let items = items.map_err(|error| broken(path, what, &error))?;
    if items.is_empty() {
        return Err(wrong(Trouble::Empty(what)));
    }
    Ok(items)
}

fn broken(path: &Path, what: &'static str, error: &dyn std::fmt::Display) -> FileError {
    let detail = error.to_string();
    FileError {
        path: path.to_owned(),
        trouble: Trouble::Broken { what, detail },
    }
}
