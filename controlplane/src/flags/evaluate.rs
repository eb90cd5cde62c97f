//! What a flag means for any node, and why.
//!
//! In: a flag's key and a node's name. Out: v1 or v3, with the reason in OpenFeature's words. Promise: for this node it
//! is what its data plane is told, kill switch included.

use dwcp_api::Version;
use dwcp_api::switches::Component;

use super::rule::{self, Flag, NodeId, Percentage};
use super::{FlagError, Flags, bucket, known};

/// Why a node has the version that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Everybody has the same.
    Static,
    /// The node is excluded by its name.
    TargetingMatch,
    /// The node's bucket decided.
    Split,
    /// Kill switch, switched off, or not in this release.
    Disabled,
}

impl Reason {
    /// OpenFeature's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Static => "STATIC",
            Self::TargetingMatch => "TARGETING_MATCH",
            Self::Split => "SPLIT",
            Self::Disabled => "DISABLED",
        }
    }
}

/// What a flag means for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// Key of the flag.
    pub feature: &'static str,
    /// What the node uses.
    pub version: Version,
    /// Why.
    pub reason: Reason,
    /// Where the node stands.
    pub bucket: u32,
    /// The share.
    pub percentage: Percentage,
    /// The kill switch is on.
    pub forced: bool,
}

fn reason(flag: &Flag, of: Component, node: &NodeId, forced: bool) -> Reason {
    if forced || !flag.enabled || !rule::is_available(of) {
        Reason::Disabled
    } else if flag.excluded_nodes.contains(node) {
        Reason::TargetingMatch
    } else if matches!(flag.percentage, Percentage::NONE | Percentage::ALL) {
        Reason::Static
    } else {
        Reason::Split
    }
}

impl Flags {
    /// What a flag means for a node.
    ///
    /// # Errors
    /// [`FlagError::Unknown`].
    pub fn evaluate(&self, feature: &str, node: &NodeId) -> Result<Evaluation, FlagError> {
        let of = known(feature)?;
        let words = self.words();
        let flag = &words.flags[of.code() as usize];
        let forced = words.force.on;
        let version = if forced {
            Version::V1
        } else {
            flag.version(of, node)
        };
        Ok(Evaluation {
            feature: rule::key(of),
            version,
            reason: reason(flag, of, node, forced),
            bucket: bucket::bucket(rule::key(of), node.as_str()),
            percentage: flag.percentage,
            forced,
        })
    }

    /// What every flag means for a node.
    #[must_use]
    pub fn evaluate_all(&self, node: &NodeId) -> Vec<Evaluation> {
        let keys = Component::ALL.iter().map(|of| rule::key(*of));
        keys.filter_map(|key| self.evaluate(key, node).ok())
            .collect()
    }
}
