//! What certificates say. In: a name, a span of time, a key. Out: PEM. Promise: a node's certificate has one
//! name, the URI `dwcp://node/NAME`, and is good for both ends of a migration and nothing else.

use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, Error, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevocationReason, RevokedCertParams, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};

/// Clocks of nodes may be behind by this much.
const CLOCK_SLACK: Duration = Duration::hours(1);

/// Now, in whole seconds.
pub fn now() -> OffsetDateTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    at(i64::try_from(seconds).unwrap_or(0))
}

/// A moment in seconds since 1970.
pub fn at(unix_s: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(unix_s).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// May a node have this name? It stands in a URI as it is.
pub fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let plain = name != "." && name != "..";
    plain && (1..=64).contains(&name.len()) && name.bytes().all(good)
}

/// An authority's own words, from which its signatures can be made again.
pub fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// The authority's certificate.
pub fn of_authority(name: &str, key: &KeyPair, until: OffsetDateTime) -> Result<String, Error> {
    let mut params = authority(name);
    params.not_before = now() - CLOCK_SLACK;
    params.not_after = until;
    Ok(params.self_signed(key)?.pem())
}

/// A node's certificate.
pub fn of_node(
    issuer: &Issuer<'_, &KeyPair>,
    node: &str,
    key: &KeyPair,
    serial: &[u8],
    until: OffsetDateTime,
) -> Result<String, Error> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, node);
    params.distinguished_name = subject;
    params.subject_alt_names = vec![SanType::URI(format!("dwcp://node/{node}").try_into()?)];
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now() - CLOCK_SLACK;
    params.not_after = until;
    Ok(params.signed_by(key, issuer)?.pem())
}

/// The list of revoked certificates, each with the moment.
pub fn revocations(
    issuer: &Issuer<'_, &KeyPair>,
    revoked: impl Iterator<Item = (Vec<u8>, OffsetDateTime)>,
    number: u64,
) -> Result<String, Error> {
    let one = |(serial, revocation_time): (Vec<u8>, OffsetDateTime)| RevokedCertParams {
        serial_number: SerialNumber::from_slice(&serial),
        revocation_time,
        reason_code: Some(RevocationReason::Unspecified),
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: now(),
        next_update: now() + Duration::days(365),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked.map(one).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer)?.pem()
}
