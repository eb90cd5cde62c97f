//! Capabilities and parameters of a migration. In: what the hypervisor lists (it differs from version
//! to version) and the options. Out: what to switch and to set, and a check of what it became.
//!
//! Return path: success then means that the destination has loaded everything. No hypervisor
//! compression, no XBZRLE, no TLS: each would hide the pages from our encoder.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::request::MigrationOptions;

/// 100 Gbit/s: the hypervisor's own limit must never be what limits.
pub const MAX_BANDWIDTH_BYTES_PER_S: u64 = 12_500_000_000;

/// Switched off where they exist.
const OFF: [&str; 14] = [
    "xbzrle",
    "rdma-pin-all",
    "auto-converge",
    "zero-blocks",
    "compress",
    "x-colo",
    "release-ram",
    "block",
    "pause-before-switchover",
    "x-ignore-shared",
    "background-snapshot",
    "zero-copy-send",
    "switchover-ack",
    "mapped-ram",
];

/// What to switch, from the answer to `query-migrate-capabilities`. Only what differs from what is.
/// `preempt`: in post-copy, pages that the guest waits for go over a connection of their own.
///
/// # Errors
/// The name of a capability that is needed and not there.
pub fn capabilities(
    listed: &Value,
    options: &MigrationOptions,
    preempt: bool,
) -> Result<Vec<(&'static str, bool)>, &'static str> {
    let now: BTreeMap<&str, bool> = listed
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.get("capability")?.as_str()?,
                entry.get("state")?.as_bool()?,
            ))
        })
        .collect();
    let multifd = options.multifd_channels > 0;
    for needed in ["return-path", "events"] {
        if !now.contains_key(needed) {
            return Err(needed);
        }
    }
    let postcopy = !options.postcopy.is_never();
    for (needed, wanted) in [("multifd", multifd), ("postcopy-ram", postcopy)] {
        if wanted && !now.contains_key(needed) {
            return Err(needed);
        }
    }
    // Off first: some exclude each other.
    let wanted = OFF.iter().map(|name| (*name, false)).chain([
        ("multifd", multifd),
        ("postcopy-ram", postcopy),
        ("postcopy-preempt", postcopy && preempt),
        ("return-path", true),
        ("events", true),
    ]);
    Ok(wanted
        .filter(|(name, on)| now.get(name).is_some_and(|state| state != on))
        .collect())
}

/// Does the answer to `query-migrate-capabilities` list this capability?
#[must_use]
pub fn lists(listed: &Value, name: &str) -> bool {
    let entries = listed.as_array().into_iter().flatten();
    entries
        .into_iter()
        .any(|entry| entry.get("capability").and_then(Value::as_str) == Some(name))
}

/// Which end of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The sender.
    Source,
    /// The receiver.
    Destination,
}

/// What to set, from the answer to `query-migrate-parameters`. Only what the hypervisor lists.
#[must_use]
pub fn parameters(listed: &Value, options: &MigrationOptions, end: End) -> Map<String, Value> {
    let mut wanted: Vec<(&str, Value)> = vec![
        ("multifd-compression", "none".into()),
        ("tls-creds", "".into()),
        ("tls-hostname", "".into()),
    ];
    if options.multifd_channels > 0 {
        wanted.push(("multifd-channels", options.multifd_channels.into()));
    }
    if end == End::Source {
        wanted.push(("max-bandwidth", MAX_BANDWIDTH_BYTES_PER_S.into()));
        // Zero is no limit of its own.
        wanted.push(("max-postcopy-bandwidth", 0.into()));
        if options.downtime_limit_ms > 0 {
            wanted.push(("downtime-limit", options.downtime_limit_ms.into()));
        }
        // Zero lets the hypervisor measure: it then sees the link through our back-pressure.
        wanted.push(("avail-switchover-bandwidth", 0.into()));
    }
    wanted
        .into_iter()
        .filter(|(name, _)| listed.get(name).is_some())
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Compares what was read back with what was set.
///
/// # Errors
/// The first name that differs, with what it is.
pub fn verify(read_back: &Value, set: &Map<String, Value>) -> Result<(), String> {
    for (name, wanted) in set {
        let found = read_back.get(name).unwrap_or(&Value::Null);
        if found != wanted {
            return Err(format!("kept {name} at {found} instead of {wanted}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::postcopy::Postcopy;
    use serde_json::json;

    fn listed(names: &[(&str, bool)]) -> Value {
        names
            .iter()
            .map(|(name, on)| json!({"capability": name, "state": on}))
            .collect()
    }

    fn options(multifd_channels: u32) -> MigrationOptions {
        MigrationOptions {
            multifd_channels,
            ..MigrationOptions::default()
        }
    }

    #[test]
    fn only_what_exists_and_differs_is_switched() {
        let old = listed(&[
            ("xbzrle", true),
            ("compress", false),
            ("events", false),
            ("return-path", true),
            ("multifd", false),
        ]);
        assert_eq!(
            capabilities(&old, &options(0), false),
            Ok(vec![("xbzrle", false), ("events", true)])
        );
        assert_eq!(
            capabilities(&old, &options(4), false),
            Ok(vec![("xbzrle", false), ("multifd", true), ("events", true)])
        );
    }

    #[test]
    fn what_is_needed_and_missing_is_named() {
        let none = listed(&[("events", true), ("return-path", true)]);
        assert_eq!(capabilities(&none, &options(2), false), Err("multifd"));
        assert_eq!(
            capabilities(&json!({}), &options(0), false),
            Err("return-path")
        );
        let postcopy = MigrationOptions {
            postcopy: Postcopy::AfterFirstPass,
            ..options(0)
        };
        assert_eq!(capabilities(&none, &postcopy, true), Err("postcopy-ram"));
        let able = listed(&[
            ("events", true),
            ("return-path", true),
            ("postcopy-ram", false),
            ("postcopy-preempt", false),
        ]);
        assert!(lists(&able, "postcopy-preempt") && !lists(&none, "postcopy-preempt"));
        let (ram, preempt) = (("postcopy-ram", true), ("postcopy-preempt", true));
        assert_eq!(capabilities(&able, &postcopy, true), Ok(vec![ram, preempt]));
        assert_eq!(capabilities(&able, &postcopy, false), Ok(vec![ram]));
        assert_eq!(capabilities(&able, &options(0), true), Ok(vec![]));
    }

    #[test]
    fn both_ends_agree_and_only_the_source_paces() {
        let listed = json!({
            "multifd-compression": "zlib", "tls-creds": "", "multifd-channels": 2,
            "max-bandwidth": 1, "downtime-limit": 1
        });
        let source = parameters(&listed, &options(3), End::Source);
        let destination = parameters(&listed, &options(3), End::Destination);
        assert_eq!(source["multifd-channels"], destination["multifd-channels"]);
        assert_eq!(source["max-bandwidth"], json!(MAX_BANDWIDTH_BYTES_PER_S));
        assert!(
            !source.contains_key("avail-switchover-bandwidth"),
            "not listed, so not set"
        );
        assert!(!destination.contains_key("max-bandwidth"));
        assert!(verify(&Value::Object(source.clone()), &source).is_ok());
        assert!(verify(&listed, &source).unwrap_err().contains("instead of"));
    }
}
