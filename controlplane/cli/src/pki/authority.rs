//! An authority's folder.
//!
//! In: its path, what to issue or revoke. Out: files. Promises: what exists is not overwritten but for the
//! record and the list, which are replaced whole; two commands at once take turns; a certificate is in the
//! record before it is given out.
//!
//! | file | what |
//! |---|---|
//! | `ca.pem`, `ca.key` | the authority |
//! | `crl.pem` | revoked certificates |
//! | `authority.json` | all that was issued |
//! | `nodes/NAME/cert.pem`, `key.pem` | a node's newest; older ones carry their serial number |

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rcgen::{Issuer, KeyPair};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::certificate;
use crate::exit::Exit;

pub const CA: &str = "ca.pem";
pub const CA_KEY: &str = "ca.key";
pub const CRL: &str = "crl.pem";
pub const NODES: &str = "nodes";
pub const CERT: &str = "cert.pem";
pub const KEY: &str = "key.pem";
const RECORD: &str = "authority.json";
const SERIAL_BYTES: usize = 16;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file or folder.
    #[error("{path}: {reason}\n  next: name a folder that this user may write")]
    File { path: PathBuf, reason: io::Error },
    /// It is there already.
    #[error("{0} exists and is not overwritten\n  next: {1}")]
    Exists(PathBuf, &'static str),
    /// No authority there.
    #[error("{0} holds no authority\n  next: dwcpctl pki init {0}")]
    NoAuthority(PathBuf),
    /// Its record is broken.
    #[error("{path} is broken: {reason}\n  next: restore the folder from a backup")]
    Broken { path: PathBuf, reason: String },
    /// No such name.
    #[error(
        "\"{0}\" cannot stand in a certificate\n  next: use 1 to 64 letters, digits, dots, dashes or underscores"
    )]
    Name(String),
    /// Nothing to rotate or revoke.
    #[error("{node} has no {what}\n  next: look into {record}")]
    Nothing {
        node: String,
        what: &'static str,
        record: PathBuf,
    },
    /// No random bytes.
    #[error("the system has no random bytes to give\n  next: try again")]
    NoRandom,
    /// The certificate library.
    #[error("the certificate cannot be made: {0}\n  next: check the folder's ca.key")]
    Made(#[from] rcgen::Error),
}

impl PkiError {
    /// How the program ends.
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Name(_) | Self::NoAuthority(_) | Self::Nothing { .. } => Exit::Usage,
            _ => Exit::Failed,
        }
    }
}

/// A certificate that was issued.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issued {
    /// For whom.
    pub node: String,
    /// Its number, in hex digits.
    pub serial: String,
    /// The last day on which it is good.
    pub not_after: String,
    /// When it was revoked, in seconds since 1970.
    revoked_unix_s: Option<i64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    name: String,
    not_after: String,
    crl_number: u64,
    issued: Vec<Issued>,
}

/// See the module.
pub struct Authority {
    dir: PathBuf,
    record: Record,
    key: KeyPair,
    /// Held while the folder is in use.
    _turn: File,
}

impl Authority {
    /// A new one in a folder that does not exist or is empty.
    pub fn create(dir: &Path, name: Option<String>, years: u32) -> Result<Self, PkiError> {
        let there = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
        if there {
            let next = "name a new folder, or go on with dwcpctl pki issue";
            return Err(PkiError::Exists(dir.to_owned(), next));
        }
        private_dir(dir)?;
        let turn = take_turn(dir)?;
        let name = match name {
            Some(name) => name,
            None => format!("DWCP {}", &hex(&fresh_serial()?)[..8]),
        };
        let until = certificate::now() + Duration::days(365 * i64::from(years));
        let key = KeyPair::generate()?;
        create(&dir.join(CA_KEY), &key.serialize_pem(), 0o600)?;
        let pem = certificate::of_authority(&name, &key, until)?;
        create(&dir.join(CA), &pem, 0o644)?;
        private_dir(&dir.join(NODES))?;
        let mut authority = Self {
            dir: dir.to_owned(),
            record: Record {
                name,
                not_after: until.date().to_string(),
                crl_number: 0,
                issued: Vec::new(),
            },
            key,
            _turn: turn,
        };
        authority.write_list()?;
        Ok(authority)
    }

    /// The one in this folder.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        let path = dir.join(RECORD);
        if !path.exists() {
            return Err(PkiError::NoAuthority(dir.to_owned()));
        }
        let turn = take_turn(dir)?;
        let text = fs::read_to_string(&path).map_err(|reason| wrong(&path, reason))?;
        let record = serde_json::from_str(&text).map_err(|error| PkiError::Broken {
            path,
            reason: error.to_string(),
        })?;
        let path = dir.join(CA_KEY);
        let key = fs::read_to_string(&path).map_err(|reason| wrong(&path, reason))?;
        Ok(Self {
            dir: dir.to_owned(),
            record,
            key: KeyPair::from_pem(&key)?,
            _turn: turn,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// The last day of its certificate.
    pub fn not_after(&self) -> &str {
        &self.record.not_after
    }

    /// A node's first certificate.
    pub fn issue(&mut self, node: &str, days: u32) -> Result<Issued, PkiError> {
        if !certificate::is_name(node) {
            return Err(PkiError::Name(node.to_owned()));
        }
        let folder = self.dir.join(NODES).join(node);
        if folder.join(CERT).exists() {
            let next = "dwcpctl pki rotate gives the node a new one";
            return Err(PkiError::Exists(folder, next));
        }
        private_dir(&folder)?;
        self.make(node, days)
    }

    /// A new certificate and key for a node that has one.
    pub fn rotate(&mut self, node: &str, days: u32) -> Result<Issued, PkiError> {
        let newest = self.record.issued.iter().rfind(|one| one.node == node);
        let Some(newest) = newest.cloned() else {
            return Err(self.nothing(node, "certificate"));
        };
        let folder = self.dir.join(NODES).join(node);
        for file in [CERT, KEY] {
            let (path, kept) = (
                folder.join(file),
                folder.join(format!("{file}.{}", newest.serial)),
            );
            if path.exists() {
                fs::rename(&path, &kept).map_err(|reason| wrong(&path, reason))?;
            }
        }
        self.make(node, days)
    }

    /// Revokes certificates of a node: one, all but the newest, or all. Gives their numbers.
    pub fn revoke(
        &mut self,
        node: &str,
        old: bool,
        serial: Option<&str>,
    ) -> Result<Vec<String>, PkiError> {
        let now = certificate::now().unix_timestamp();
        let newest = self.record.issued.iter().rposition(|one| one.node == node);
        let mut revoked = Vec::new();
        for (index, one) in self.record.issued.iter_mut().enumerate() {
            let meant =
                serial.is_none_or(|serial| serial == one.serial) && !(old && Some(index) == newest);
            if one.node == node && meant && one.revoked_unix_s.is_none() {
                one.revoked_unix_s = Some(now);
                revoked.push(one.serial.clone());
            }
        }
        if revoked.is_empty() {
            return Err(self.nothing(node, "such certificate that is not revoked"));
        }
        self.write_list()?;
        Ok(revoked)
    }

    fn nothing(&self, node: &str, what: &'static str) -> PkiError {
        PkiError::Nothing {
            node: node.to_owned(),
            what,
            record: self.dir.join(RECORD),
        }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::new(certificate::authority(&self.record.name), &self.key)
    }

    fn make(&mut self, node: &str, days: u32) -> Result<Issued, PkiError> {
        let until = certificate::now() + Duration::days(i64::from(days));
        let serial = fresh_serial()?;
        let key = KeyPair::generate()?;
        let pem = certificate::of_node(&self.issuer(), node, &key, &serial, until)?;
        let issued = Issued {
            node: node.to_owned(),
            serial: hex(&serial),
            not_after: until.date().to_string(),
            revoked_unix_s: None,
        };
        self.record.issued.push(issued.clone());
        self.write_record()?;
        let folder = self.dir.join(NODES).join(node);
        create(&folder.join(KEY), &key.serialize_pem(), 0o600)?;
        create(&folder.join(CERT), &pem, 0o644)?;
        Ok(issued)
    }

    fn write_list(&mut self) -> Result<(), PkiError> {
        self.record.crl_number += 1;
        let revoked = self.record.issued.iter().filter_map(|one| {
            let at: OffsetDateTime = certificate::at(one.revoked_unix_s?);
            Some((unhex(&one.serial), at))
        });
        let pem = certificate::revocations(&self.issuer(), revoked, self.record.crl_number)?;
        self.write_record()?;
        replace(&self.dir.join(CRL), &pem)
    }

    fn write_record(&self) -> Result<(), PkiError> {
        let path = self.dir.join(RECORD);
        let text =
            serde_json::to_string_pretty(&self.record).map_err(|error| PkiError::Broken {
                path: path.clone(),
                reason: error.to_string(),
            })?;
        replace(&path, &text)
    }
}

fn wrong(path: &Path, reason: io::Error) -> PkiError {
    PkiError::File {
        path: path.to_owned(),
        reason,
    }
}

fn private_dir(path: &Path) -> Result<(), PkiError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(|reason| wrong(path, reason))
}

/// Waits until no other command works on the folder.
fn take_turn(dir: &Path) -> Result<File, PkiError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|reason| wrong(&path, reason))?;
    file.lock().map_err(|reason| wrong(&path, reason))?;
    Ok(file)
}

/// Writes a file that does not exist yet.
fn create(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(mode)
        .open(path);
    let written = file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|reason| {
        if reason.kind() == io::ErrorKind::AlreadyExists {
            PkiError::Exists(path.to_owned(), "move it away if it is of no use")
        } else {
            wrong(path, reason)
        }
    })
}

/// Replaces a file whole.
fn replace(path: &Path, text: &str) -> Result<(), PkiError> {
    let fresh = path.with_extension("new");
    let written = fs::remove_file(&fresh)
        .or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })
        .map_err(|reason| wrong(&fresh, reason));
    written?;
    create(&fresh, text, 0o644)?;
    fs::rename(&fresh, path).map_err(|reason| wrong(path, reason))
}

/// A number that no other certificate has: positive, of 16 bytes, at random.
fn fresh_serial() -> Result<[u8; SERIAL_BYTES], PkiError> {
    let mut serial = [0; SERIAL_BYTES];
    getrandom::fill(&mut serial).map_err(|_| PkiError::NoRandom)?;
    serial[0] = serial[0] & 0x3f | 0x40;
    Ok(serial)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let pair = |at: usize| text.get(at..at + 2);
    (0..text.len() / 2)
        .filter_map(|at| u8::from_str_radix(pair(at * 2)?, 16).ok())
        .collect()
}
