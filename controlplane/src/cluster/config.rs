//! `[cluster]`: which cluster this node is a member of.
//!
//! In: the table, or none. Out: what [`super::Cluster`] needs. Promise: a table that cannot work is refused
//! with the key that is wrong; without one the node is a cluster of its own, and nothing listens.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use dwcp_consensus::command::MEMBERS_MAX;
use dwcp_consensus::tls::TlsFiles;
use dwcp_consensus::{Identity, NodeNumber, Peer};
use serde::{Deserialize, Serialize};

/// The table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// Name of the cluster, the same on all its nodes.
    pub name: String,
    /// Number of this node, from 1; never one that another node of this cluster had before.
    pub id: NodeNumber,
    /// Where this node listens for peers.
    pub listen: SocketAddr,
    /// `host:port` under which peers find it [default: listen].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// This node's certificate and whom it trusts.
    pub tls: TlsFiles,
    /// The members at the very beginning, this one included; none: it waits for `dwcpctl cluster add`.
    #[serde(default)]
    pub founders: Vec<Founder>,
}

/// A member at the very beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Founder {
    /// Its number.
    pub id: NodeNumber,
    /// Its name, as its certificate has it.
    pub name: String,
    /// `host:port` of its listener for peers.
    pub address: String,
}

impl ClusterConfig {
    /// What is wrong with it, if anything: the key and the cure.
    #[must_use]
    pub fn flaw(&self) -> Option<(&'static str, String, &'static str)> {
        let ids: BTreeMap<_, _> = self.founders.iter().map(|it| (it.id, ())).collect();
        if self.name.is_empty() || self.name.len() > 64 {
            let why = "is no name of a cluster: 1 to 64 characters";
            return Some(("cluster.name", self.name.clone(), why));
        }
        if self.id == 0 {
            return Some(("cluster.id", "0".to_owned(), "is no number: count from 1"));
        }
        if self.founders.len() > MEMBERS_MAX || ids.len() != self.founders.len() {
            let why = "members were given: at most 9, each number once";
            return Some(("cluster.founders", self.founders.len().to_string(), why));
        }
        if !self.founders.is_empty() && !ids.contains_key(&self.id) {
            let why = "is not among the founders: name this node there, or leave founders out";
            return Some(("cluster.id", self.id.to_string(), why));
        }
        for path in [&self.tls.ca, &self.tls.cert, &self.tls.key] {
            if !path.is_absolute() {
                let why = "is no absolute path: begin it with /";
                return Some(("cluster.tls", path.display().to_string(), why));
            }
        }
        None
    }

    pub(super) fn identity(&self, name: &str) -> Identity {
        let founder = |it: &Founder| {
            let peer = Peer {
                name: it.name.clone(),
                address: it.address.clone(),
            };
            (it.id, peer)
        };
        Identity {
            id: self.id,
            cluster: self.name.clone(),
            me: Peer {
                name: name.to_owned(),
                address: self
                    .address
                    .clone()
                    .unwrap_or_else(|| self.listen.to_string()),
            },
            founders: self.founders.iter().map(founder).collect(),
        }
    }
}

/// A node without a cluster: one member, whom nobody can reach.
pub(super) fn alone(name: &str) -> Identity {
    let me = Peer {
        name: name.to_owned(),
        address: "none".to_owned(),
    };
    Identity {
        id: 1,
        cluster: name.to_owned(),
        founders: BTreeMap::from([(1, me.clone())]),
        me,
    }
}
