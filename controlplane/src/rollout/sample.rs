//! What a node tells about the work it did.
//!
//! In: JSON of a node. Out: [`Figures`]. Promise: a node that tells more than is read, or what cannot be, is not
//! believed as a whole.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Samples that a node keeps and tells.
pub const SAMPLES_MAX: usize = 512;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// A session between two data planes, seen from either end.
    Session,
    /// A migration, seen from its source.
    Migration,
}

/// Which implementation did it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[schema(as = VersionSide)]
pub enum Side {
    /// The baseline.
    V1,
    /// What is rolled out.
    V3,
}

/// One piece of work that ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The session.
    pub id: String,
    /// When it ended, Unix milliseconds.
    pub at_unix_ms: u64,
    /// What it was.
    pub work: Work,
    /// By which version.
    pub version: Side,
    /// `datacenter`, `internet` or `hybrid`; empty: not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mode: String,
    /// It ended well.
    pub ok: bool,
    /// It ended because bytes were not what was sent, or a peer broke the protocol.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub harm: bool,
    /// Bytes of the hypervisor.
    #[serde(default)]
    pub bytes: u64,
    /// Bytes on the wire.
    #[serde(default)]
    pub wire_bytes: u64,
    /// How long it took.
    #[serde(default)]
    pub total_ms: u64,
    /// How long the guest stood still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u64>,
    /// Memory of the data plane at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

impl Sample {
    /// Kinds of work that may be compared: the same mode, and sizes within a factor of four.
    #[must_use]
    pub fn kind(&self) -> (&str, u32) {
        (&self.mode, self.bytes.checked_ilog2().unwrap_or(0) / 2)
    }
}

/// One node's account.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// What it uses now, by flag.
    pub versions: BTreeMap<String, Side>,
    /// Highest version its data plane may use, 1 or 3; absent: none is attached.
    pub highest: Option<u32>,
    /// Its kill switch is on.
    pub forced: bool,
    /// What it did, the oldest first.
    pub samples: Vec<Sample>,
}

impl Figures {
    /// Reads a node's account.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(value: serde_json::Value) -> Result<Self, String> {
        let figures: Self =
            serde_json::from_value(value).map_err(|error| format!("not understood: {error}"))?;
        if figures.samples.len() > SAMPLES_MAX {
            return Err(format!("more than {SAMPLES_MAX} samples"));
        }
        Ok(figures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_read_back_and_too_long_a_one_is_not() {
        let sample = Sample {
            id: "a".to_owned(),
            at_unix_ms: 1,
            work: Work::Migration,
            version: Side::V3,
            mode: "internet".to_owned(),
            ok: true,
            harm: false,
            bytes: 5,
            wire_bytes: 2,
            total_ms: 3,
            downtime_ms: Some(4),
            memory_bytes: None,
        };
        let mut figures = Figures {
            versions: BTreeMap::from([("dwcp_v3_hde".to_owned(), Side::V1)]),
            highest: Some(3),
            forced: false,
            samples: vec![sample.clone(); SAMPLES_MAX],
        };
        let read = |figures: &Figures| Figures::read(serde_json::to_value(figures).unwrap());
        assert_eq!(read(&figures).unwrap(), figures);
        figures.samples.push(sample);
        assert!(read(&figures).is_err());
        for odd in [
            serde_json::json!(null),
            serde_json::json!({"samples": [{"bytes": -1}]}),
        ] {
            assert!(Figures::read(odd).is_err());
        }
    }

    #[test]
    fn a_kind_is_a_mode_and_a_size() {
        let of = |mode: &str, bytes| {
            let sample = Sample {
                id: String::new(),
                at_unix_ms: 0,
                work: Work::Migration,
                version: Side::V1,
                mode: mode.to_owned(),
                ok: true,
                harm: false,
                bytes,
                wire_bytes: 0,
                total_ms: 0,
                downtime_ms: None,
                memory_bytes: None,
            };
            (sample.kind().0.to_owned(), sample.kind().1)
        };
        assert_eq!(of("internet", 1 << 30), of("internet", (1 << 32) - 1));
        assert_ne!(of("internet", 1 << 30), of("internet", 1 << 32));
        assert_ne!(of("internet", 1 << 30), of("datacenter", 1 << 30));
    }
}
