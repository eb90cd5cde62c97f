//! An authority for tests: certificates that are good, and ones that are wrong in one way each.
//!
//! In: a folder, names. Out: files as `[tls]` wants them. Promise: made with another program text than the
//! product's own, so that the two check each other.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nothing better to do than to stop"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use dwcp_dataplane::config::TlsConfig;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason,
    RevokedCertParams, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};

/// What a certificate is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As it should be.
    Good,
    /// It was, until yesterday.
    Expired,
    /// For a web server.
    WebServer,
    /// For a node and a web server.
    ForBoth,
    /// For a node, but only to dial.
    ClientOnly,
}

/// See the module.
pub struct Authority {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
    serial: u64,
}

fn now() -> OffsetDateTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    OffsetDateTime::from_unix_timestamp(since.as_secs() as i64).unwrap()
}

impl Authority {
    /// A new one, in `dir`, which is made.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("tests {}", dir.display()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.join("ca.pem"), issuer.pem()).unwrap();
        let new = Self {
            dir: dir.to_owned(),
            issuer,
            serial: 0,
        };
        new.revoke(&[]);
        new
    }

    /// Its own certificate.
    #[must_use]
    pub fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for `node`, in files of that name; gives its serial number.
    pub fn issue(&mut self, node: &str, kind: Kind) -> u64 {
        self.serial += 1;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, node);
        params.serial_number = Some(SerialNumber::from(self.serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if kind != Kind::ClientOnly {
            let server = ExtendedKeyUsagePurpose::ServerAuth;
            params.extended_key_usages.push(server);
        }
        let uri = format!("dwcp://node/{node}");
        if kind != Kind::WebServer {
            params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        }
        if matches!(kind, Kind::WebServer | Kind::ForBoth) {
            let name = format!("{node}.example.org").try_into().unwrap();
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.not_before = now() - Duration::days(30);
        params.not_after = now() + Duration::days(if kind == Kind::Expired { -1 } else { 30 });
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        // Key first: for a moment the two do not fit, as when an operator copies them.
        let path = self.dir.join(format!("{node}.key"));
        std::fs::write(&path, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(self.dir.join(format!("{node}.pem")), certificate.pem()).unwrap();
        self.serial
    }

    /// The list of those that are no longer good.
    pub fn revoke(&self, serials: &[u64]) {
        let one = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now(),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now(),
            next_update: now() + Duration::days(30),
            crl_number: SerialNumber::from(self.serial),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(one).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).unwrap();
        std::fs::write(self.dir.join("crl.pem"), list.pem().unwrap()).unwrap();
    }

    /// The table for `node`.
    #[must_use]
    pub fn table(&self, node: &str) -> TlsConfig {
        TlsConfig {
            ca: self.dir.join("ca.pem"),
            cert: self.dir.join(format!("{node}.pem")),
            key: self.dir.join(format!("{node}.key")),
            crl: Some(self.dir.join("crl.pem")),
            required: true,
            trusted_networks: Vec::new(),
        }
    }
}
