//! What the API says about flags, and why it refuses.

use serde::Serialize;

use super::rule::{Flag, NodeId};
use crate::store::StoreError;

/// A flag as the API shows it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct FlagView {
    /// Key of the flag.
    pub feature: &'static str,
    /// Its settings.
    #[serde(flatten)]
    pub flag: Flag,
    /// This release has the component in v3; if not, the flag is kept but decides nothing.
    pub available: bool,
    /// Where this node stands: it is in if its bucket lies below `percentage` × 1000.
    pub bucket: u32,
    /// What this node uses, the kill switch applied.
    pub version_here: &'static str,
}

/// All flags as the API shows them.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct FlagsView {
    /// The node that `bucket` and `version_here` speak of.
    pub node: NodeId,
    /// The kill switch.
    pub force_v1: bool,
    /// When it was last changed, Unix milliseconds; 0: never.
    pub force_v1_changed_unix_ms: u64,
    /// A data plane is attached and its words say what is said here.
    pub in_force: bool,
    /// One per component.
    pub flags: Vec<FlagView>,
}

/// What became of a change of the kill switch.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct ForceView {
    /// Its state now.
    pub force_v1: bool,
    /// The word is in the data plane's memory.
    pub applied: bool,
    /// From the arrival of the request to that store, microseconds; null if no data plane is attached.
    pub applied_us: Option<u64>,
    /// The change is on disk.
    pub persisted: bool,
    /// What else to know, in words.
    pub note: Option<String>,
}

/// Why a change of a flag was refused.
#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    /// No such flag.
    #[error(
        "there is no flag {0:?}; the flags are dwcp_v3_amst, dwcp_v3_hde, dwcp_v3_pba, dwcp_v3_ass, dwcp_v3_acp and dwcp_v3_itp"
    )]
    Unknown(String),
    /// The exclusion list is full.
    #[error(
        "a flag excludes {limit} nodes at most, this would be {found}: lower its percentage instead"
    )]
    TooMany {
        /// Nodes that would be excluded.
        found: usize,
        /// How many may be.
        limit: usize,
    },
    /// The disk refused it; nothing was changed.
    #[error("nothing was changed: {0}")]
    Store(#[from] StoreError),
}

/// What became of a release of the kill switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// It was thrown again meanwhile and stays on.
    pub overtaken: bool,
    /// The word is in the data plane's memory.
    pub applied: bool,
}
