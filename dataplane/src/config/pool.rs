//! The table `[pool]`: connections to peers that are made, proven and warm before a session wants them.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolConfig {
    /// Keep them, and let peers keep theirs here.
    pub enabled: bool,
    /// Peers to which there are always some; others have them once a session went there.
    pub peers: Vec<SocketAddr>,
    /// How many to each peer.
    pub lanes: u16,
    /// How long after the last session they are kept, for peers that are not listed.
    pub keep_s: u64,
}

impl PoolConfig {
    /// Peers listed, at most.
    pub const PEERS_MAX: usize = 32;
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            peers: Vec::new(),
            lanes: 16,
            keep_s: 600,
        }
    }
}
