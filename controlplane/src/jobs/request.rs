//! What callers ask for. In: JSON of the REST API. Out: checked requests; what a number or a text may
//! be is decided here and nowhere else.

use std::fmt;

use dwcp_api::Version;
use dwcp_api::command::{NODE_BYTES, SessionLimits};
use dwcp_api::text::Text;
use dwcp_baseline::Tenant;
use serde::{Deserialize, Serialize};

use super::error::JobError;
use super::postcopy::Postcopy;

/// Extra migration connections (multifd) at most; the hypervisor's own limit is 255.
pub const MULTIFD_CHANNELS_MAX: u32 = 255;
/// Longest downtime limit the hypervisor takes, 2000 seconds.
pub const DOWNTIME_LIMIT_MS_MAX: u64 = 2_000_000;
/// Longest time that a link may be gone, one hour.
pub const RESUME_LIMIT_MS_MAX: u64 = 3_600_000;
/// Longest text of a request, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// A bearer token for a peer's API. Never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct PeerToken(pub String);

impl fmt::Debug for PeerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerToken(…)")
    }
}

/// The virtual machine to move, as the source host knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRef {
    /// Path of its QMP socket on the source host.
    pub qmp: String,
    /// A name for people; the path is used if there is none.
    #[serde(default)]
    pub name: Option<String>,
}

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DestinationRef {
    /// Base address of the destination's control plane, `http://host:port` or `https://host:port`.
    pub api: String,
    /// Path of the receiving hypervisor's QMP socket on the destination host.
    pub qmp: String,
    /// Token for that API, if it is not the configured one.
    #[serde(default)]
    pub token: Option<PeerToken>,
    /// The node that must answer there, as its data plane's `node` says; without it any that proves itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

impl DestinationRef {
    /// The node for the data plane; empty if none is named.
    ///
    /// # Errors
    /// [`JobError::BadRequest`].
    pub fn node_text(&self) -> Result<Text<NODE_BYTES>, JobError> {
        let Some(node) = &self.node else {
            return Ok(Text::EMPTY);
        };
        let wrong = |problem: String| JobError::BadRequest {
            field: "destination.node",
            problem,
        };
        if node.is_empty() {
            return Err(wrong("it is empty; leave it out for any node".to_owned()));
        }
        Text::new(node).map_err(|error| wrong(error.to_string()))
    }
}

/// The highest protocol version a migration may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MaxVersion {
    /// The plain and proven way.
    V1,
    /// Everything since.
    #[default]
    V3,
}

impl From<MaxVersion> for Version {
    fn from(version: MaxVersion) -> Self {
        match version {
            MaxVersion::V1 => Self::V1,
            MaxVersion::V3 => Self::V3,
        }
    }
}

/// What may be chosen for one migration. Zero means "the default" for every limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MigrationOptions {
    /// Highest protocol version.
    pub max_version: MaxVersion,
    /// Extra migration connections of the hypervisor (multifd); 0: the single stream.
    pub multifd_channels: u32,
    /// The hypervisor's downtime limit.
    pub downtime_limit_ms: u64,
    /// Wire bytes a second at most.
    pub bandwidth_limit_bytes_per_s: u64,
    /// Bytes held between the two hypervisors at most.
    pub window_limit_bytes: u64,
    /// Size of the mirrored page store.
    pub store_bytes: u64,
    /// How long the link may be gone.
    pub resume_limit_ms: u64,
    /// End the source hypervisor after success; otherwise it stays stopped in `postmigrate`.
    pub quit_source: bool,
    /// When the guest goes to the destination before all its memory is there.
    #[serde(skip_serializing_if = "Postcopy::is_never")]
    #[schema(value_type = Value)]
    pub postcopy: Postcopy,
    /// A post-copy migration whose link was lost goes on by itself when the link is back.
    #[serde(skip_serializing_if = "is_true")]
    pub postcopy_auto_recover: bool,
    /// Whose baselines the guest may be held against, and whose it is added to; empty: the default tenant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tenant: String,
}

/// What is so by default is not said, so that a peer of an earlier release understands the rest.
const fn is_true(value: &bool) -> bool {
    *value
}

const fn is_false(value: &bool) -> bool {
    !*value
}

impl Default for MigrationOptions {
    fn default() -> Self {
        Self {
            max_version: MaxVersion::V3,
            multifd_channels: 0,
            downtime_limit_ms: 300,
            bandwidth_limit_bytes_per_s: 0,
            window_limit_bytes: 0,
            store_bytes: 0,
            resume_limit_ms: 30_000,
            quit_source: false,
            postcopy: Postcopy::Never,
            postcopy_auto_recover: true,
            tenant: String::new(),
        }
    }
}

impl MigrationOptions {
    /// The data plane's part of the options.
    #[must_use]
    pub fn session_limits(&self) -> SessionLimits {
        SessionLimits {
            window_limit_bytes: self.window_limit_bytes,
            store_bytes: self.store_bytes,
            rate_limit_bytes_per_s: self.bandwidth_limit_bytes_per_s,
            resume_limit_ms: self.resume_limit_ms,
            // Checked with the request: it fits.
            tenant: Text::clipped(&self.tenant),
        }
    }

    fn check(&self) -> Result<(), JobError> {
        let at_most = |field, found: u64, limit: u64| {
            if found > limit {
                return Err(JobError::BadRequest {
                    field,
                    problem: format!("{found} is more than {limit}"),
                });
            }
            Ok(())
        };
        at_most(
            "options.multifd_channels",
            u64::from(self.multifd_channels),
            u64::from(MULTIFD_CHANNELS_MAX),
        )?;
        at_most(
            "options.downtime_limit_ms",
            self.downtime_limit_ms,
            DOWNTIME_LIMIT_MS_MAX,
        )?;
        at_most(
            "options.resume_limit_ms",
            self.resume_limit_ms,
            RESUME_LIMIT_MS_MAX,
        )?;
        if !self.tenant.is_empty() && Tenant::new(&self.tenant).is_none() {
            return Err(JobError::BadRequest {
                field: "options.tenant",
                problem: "it must be 1 to 32 of a-z 0-9 - _ . and begin with a letter or a digit"
                    .to_owned(),
            });
        }
        Ok(())
    }
}

/// `POST /v1/migrations`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrationRequest {
    /// What to move.
    pub vm: VmRef,
    /// Where to.
    pub destination: DestinationRef,
    /// How.
    #[serde(default)]
    pub options: MigrationOptions,
}

impl MigrationRequest {
    /// Checks every text and number.
    ///
    /// # Errors
    /// [`JobError::BadRequest`] naming the field.
    pub fn check(&self) -> Result<(), JobError> {
        text("vm.qmp", &self.vm.qmp)?;
        if let Some(name) = &self.vm.name {
            text("vm.name", name)?;
        }
        text("destination.qmp", &self.destination.qmp)?;
        text("destination.api", &self.destination.api)?;
        self.destination.node_text()?;
        let api = &self.destination.api;
        let known = ["http://", "https://"]
            .iter()
            .any(|scheme| api.starts_with(scheme));
        if !known || reqwest::Url::parse(api).is_err() {
            return Err(JobError::BadRequest {
                field: "destination.api",
                problem: "it must read http://host:port or https://host:port".to_owned(),
            });
        }
        self.options.check()
    }
}

/// `POST /v1/incoming`: a source control plane asks for a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IncomingRequest {
    /// The session, 32 hexadecimal digits.
    pub session: String,
    /// Path of the receiving hypervisor's QMP socket.
    pub qmp: String,
    /// Extra migration connections (multifd) that the source will use.
    #[serde(default)]
    pub multifd_channels: u32,
    /// How; the limits count on this host too.
    #[serde(default)]
    pub options: MigrationOptions,
    /// The source's hypervisor can send the pages that the guest waits for over a connection of their own.
    #[serde(default, skip_serializing_if = "is_false")]
    pub postcopy_preempt: bool,
}

/// `POST /v1/incoming/{session}/recover`: the source goes on over a new session of the data planes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecoverRequest {
    /// The new session, 32 hexadecimal digits.
    pub session: String,
}

impl RecoverRequest {
    /// Checks the session.
    ///
    /// # Errors
    /// [`JobError::BadRequest`] naming the field.
    pub fn check(&self) -> Result<dwcp_api::SessionId, JobError> {
        session("session", &self.session)
    }
}

impl IncomingRequest {
    /// Checks every text and number.
    ///
    /// # Errors
    /// [`JobError::BadRequest`] naming the field.
    pub fn check(&self) -> Result<dwcp_api::SessionId, JobError> {
        text("qmp", &self.qmp)?;
        self.options.check()?;
        if self.multifd_channels > MULTIFD_CHANNELS_MAX {
            return Err(JobError::BadRequest {
                field: "multifd_channels",
                problem: format!(
                    "{} is more than {MULTIFD_CHANNELS_MAX}",
                    self.multifd_channels
                ),
            });
        }
        session("session", &self.session)
    }
}

fn session(field: &'static str, value: &str) -> Result<dwcp_api::SessionId, JobError> {
    match dwcp_api::SessionId::parse(value) {
        Some(id) if id.0 != [0; 16] => Ok(id),
        _ => Err(JobError::BadRequest {
            field,
            problem: "it must be 32 hexadecimal digits, not all zero".to_owned(),
        }),
    }
}

fn text(field: &'static str, value: &str) -> Result<(), JobError> {
    let problem = if value.is_empty() {
        "it is empty".to_owned()
    } else if value.len() > TEXT_BYTES_MAX {
        format!("it is longer than {TEXT_BYTES_MAX} bytes")
    } else if value.chars().any(char::is_control) {
        "it holds control characters".to_owned()
    } else {
        return Ok(());
    };
    Err(JobError::BadRequest { field, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: &str) -> Result<MigrationRequest, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn a_short_request_gets_the_defaults() {
        let request = request(
            r#"{"vm":{"qmp":"/run/a.qmp"},"destination":{"api":"http://10.0.0.2:7780","qmp":"/run/b.qmp"}}"#,
        )
        .unwrap();
        request.check().unwrap();
        assert_eq!(request.options, MigrationOptions::default());
        assert_eq!(request.options.session_limits().resume_limit_ms, 30_000);
    }

    #[test]
    fn an_unknown_option_is_refused_not_ignored() {
        let outcome = request(
            r#"{"vm":{"qmp":"a"},"destination":{"api":"http://h:1","qmp":"b"},"options":{"bandwith":1}}"#,
        );
        assert!(outcome.is_err());
    }

    #[test]
    fn bad_fields_are_named() {
        let good = request(
            r#"{"vm":{"qmp":"/a"},"destination":{"api":"http://h:1","qmp":"/b","token":"secret"}}"#,
        )
        .unwrap();
        assert!(!format!("{good:?}").contains("secret"));
        let mut bad = good.clone();
        bad.destination.api = "ftp://h".to_owned();
        assert!(
            bad.check()
                .unwrap_err()
                .to_string()
                .contains("destination.api")
        );
        let mut bad = good.clone();
        bad.vm.qmp = "/a\n".to_owned();
        assert!(bad.check().unwrap_err().to_string().contains("vm.qmp"));
        let mut bad = good.clone();
        bad.options.tenant = "../other".to_owned();
        assert!(
            bad.check()
                .unwrap_err()
                .to_string()
                .contains("options.tenant")
        );
        let mut bad = good;
        bad.options.multifd_channels = 256;
        assert!(
            bad.check()
                .unwrap_err()
                .to_string()
                .contains("multifd_channels")
        );
    }

    #[test]
    fn a_session_is_32_digits() {
        let mut incoming = IncomingRequest {
            session: "00".repeat(16),
            qmp: "/b".to_owned(),
            multifd_channels: 0,
            options: MigrationOptions::default(),
            postcopy_preempt: false,
        };
        assert!(incoming.check().is_err());
        incoming.session = "0a".repeat(16);
        assert_eq!(incoming.check().unwrap().0, [10; 16]);
    }
}
