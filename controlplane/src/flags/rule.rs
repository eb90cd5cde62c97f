//! One flag and what it decides.
//!
//! In: a flag's settings and a node's name. Out: v1 or v3 for that node. Promise: a component that
//! this release does not have in v3 stays in v1 whatever its flag says.

use std::collections::BTreeSet;

use dwcp_api::Version;
use dwcp_api::switches::Component;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bucket::{BUCKETS, bucket};

/// Nodes that one flag may exclude.
pub const EXCLUDED_MAX: usize = 1_024;

/// Name of a node: 1 to 64 characters out of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct NodeId(String);

impl NodeId {
    /// Checks a name.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        ((1..=64).contains(&name.len()) && name.chars().all(allowed)).then(|| Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let name = String::deserialize(input)?;
        Self::new(&name).ok_or_else(|| {
            serde::de::Error::custom(
                "a node's name has 1 to 64 characters out of A-Z a-z 0-9 . _ -",
            )
        })
    }
}

/// Share of the nodes, in steps of a thousandth of a percent; a JSON number from 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, utoipa::ToSchema)]
#[schema(value_type = f64, minimum = 0, maximum = 100)]
pub struct Percentage(u32);

impl Percentage {
    /// Nobody.
    pub const NONE: Self = Self(0);
    /// Everybody.
    pub const ALL: Self = Self(BUCKETS);

    /// From a number between 0 and 100 with at most three decimals.
    #[must_use]
    pub fn new(percent: f64) -> Option<Self> {
        let steps = (percent * 1_000.0).round();
        let whole = (percent * 1_000.0 - steps).abs() < 1e-6;
        // In range and whole, so the cast is exact; NaN fails both tests.
        (whole && (0.0..=f64::from(BUCKETS)).contains(&steps)).then_some(Self(steps as u32))
    }

    /// Buckets below this are in.
    #[must_use]
    pub const fn buckets(self) -> u32 {
        self.0
    }
}

impl Serialize for Percentage {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(1_000) {
            output.serialize_u32(self.0 / 1_000)
        } else {
            output.serialize_f64(f64::from(self.0) / 1_000.0)
        }
    }
}

impl<'de> Deserialize<'de> for Percentage {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let percent = f64::deserialize(input)?;
        Self::new(percent).ok_or_else(|| {
            serde::de::Error::custom(
                "a percentage is a number from 0 to 100, three decimals at most",
            )
        })
    }
}

/// The key of a component's flag.
#[must_use]
pub const fn key(component: Component) -> &'static str {
    match component {
        Component::Amst => "dwcp_v3_amst",
        Component::Hde => "dwcp_v3_hde",
        Component::Pba => "dwcp_v3_pba",
        Component::Ass => "dwcp_v3_ass",
        Component::Acp => "dwcp_v3_acp",
        Component::Itp => "dwcp_v3_itp",
    }
}

/// The component behind a flag's key.
#[must_use]
pub fn component(flag_key: &str) -> Option<Component> {
    Component::ALL
        .iter()
        .copied()
        .find(|component| key(*component) == flag_key)
}

/// Does this release have the component in v3?
#[must_use]
pub const fn is_available(component: Component) -> bool {
    matches!(component, Component::Amst | Component::Hde)
}

/// Settings of one flag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Flag {
    /// Off means v1 on every node.
    pub enabled: bool,
    /// Share of the nodes that use v3.
    pub percentage: Percentage,
    /// Nodes that stay in v1 whatever the share.
    pub excluded_nodes: BTreeSet<NodeId>,
    /// When it was last changed, Unix milliseconds; 0: never.
    pub changed_unix_ms: u64,
}

impl Flag {
    /// What a new node starts with: v3 everywhere for what exists in v3, nothing for the rest.
    #[must_use]
    pub fn initial(of: Component) -> Self {
        let enabled = is_available(of);
        Self {
            enabled,
            percentage: if enabled {
                Percentage::ALL
            } else {
                Percentage::NONE
            },
            excluded_nodes: BTreeSet::new(),
            changed_unix_ms: 0,
        }
    }

    /// The version this flag gives a node; the kill switch is not looked at here.
    #[must_use]
    pub fn version(&self, of: Component, node: &NodeId) -> Version {
        let chosen = self.enabled
            && is_available(of)
            && !self.excluded_nodes.contains(node)
            && bucket(key(of), node.as_str()) < self.percentage.buckets();
        if chosen { Version::V3 } else { Version::V1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flag(percent: f64) -> Flag {
        Flag {
            percentage: Percentage::new(percent).unwrap(),
            ..Flag::initial(Component::Hde)
        }
    }

    proptest! {
        #[test]
        fn raising_a_percentage_only_adds_nodes(
            name in "[A-Za-z0-9._-]{1,64}", low in 0u32..=100_000, high in 0u32..=100_000,
        ) {
            let (low, high) = (low.min(high), low.max(high));
            let node = NodeId::new(&name).unwrap();
            let version = |steps: u32| {
                flag(f64::from(steps) / 1_000.0).version(Component::Hde, &node)
            };
            if version(low) == Version::V3 {
                prop_assert_eq!(version(high), Version::V3);
            }
            prop_assert_eq!(version(0), Version::V1);
            prop_assert_eq!(version(100_000), Version::V3);
        }

        #[test]
        fn every_step_of_a_percentage_reads_back(steps in 0u32..=100_000) {
            let text = serde_json::to_string(&Percentage(steps)).unwrap();
            prop_assert_eq!(serde_json::from_str::<Percentage>(&text).unwrap(), Percentage(steps));
        }
    }

    #[test]
    fn off_excluded_or_not_there_means_v1() {
        let node = NodeId::new("node-1").unwrap();
        let mut hde = Flag::initial(Component::Hde);
        assert_eq!(hde.version(Component::Hde, &node), Version::V3);
        hde.excluded_nodes.insert(node.clone());
        assert_eq!(hde.version(Component::Hde, &node), Version::V1);
        let off = Flag {
            enabled: false,
            ..Flag::initial(Component::Hde)
        };
        assert_eq!(off.version(Component::Hde, &node), Version::V1);
        let early = Flag {
            enabled: true,
            ..flag(100.0)
        };
        assert_eq!(early.version(Component::Pba, &node), Version::V1);
    }

    #[test]
    fn numbers_that_are_no_percentage_are_refused() {
        for bad in [
            "-1", "100.001", "101", "1e9", "0.0001", "\"10\"", "null", "-0.5",
        ] {
            assert!(serde_json::from_str::<Percentage>(bad).is_err(), "{bad}");
        }
        assert!(Percentage::new(f64::NAN).is_none());
    }

    #[test]
    fn keys_and_components_agree() {
        for of in Component::ALL {
            assert_eq!(component(key(*of)), Some(*of));
            assert_eq!(key(*of), format!("dwcp_v3_{}", of.as_str()));
        }
        assert_eq!(component("dwcp_v3_none"), None);
    }
}
