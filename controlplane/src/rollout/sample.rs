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
