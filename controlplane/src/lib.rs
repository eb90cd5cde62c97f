//! The control plane of one host: it answers the operator and its peers, runs migrations by QMP and
//! by commands to the data plane, and sets the words that every batch reads. No byte of a migration
//! passes through it, and none stops when it does.
//!
//! | module | what |
//! |---|---|
//! | [`api`] | the REST API |
//! | [`baselines`] | blocks that this host keeps on disk |
//! | [`cluster`] | this node's part of the replicated truth |
//! | [`config`] | settings: file, environment, flags |
//! | [`flags`] | feature flags, their rollout, the kill switch |
//! | [`host`] | the data plane: attach, switch words, sessions, commands |
//! | [`jobs`] | migrations, both ways |
//! | [`mode`] | datacenter, internet or hybrid: measured for each peer, unless an operator says otherwise |
//! | [`link_limit`] | what all migrations of this host together may send |
//! | [`nics`] | the migration NICs of this host |
//! | [`node`] | one node's control plane, put together |
//! | [`profile`] | flame graphs and hardware counters of the data plane, from outside |
//! | [`qmp`] | the hypervisor's monitor |
//! | [`store`] | what must outlive the process |
//! | [`telemetry`] | metrics, health, counters |
//! | [`token`] | the API's bearer token |

pub mod api;
pub mod baselines;
pub mod cluster;
pub mod config;
pub mod flags;
pub mod host;
pub mod jobs;
pub mod link_limit;
pub mod mode;
pub mod nics;
pub mod node;
pub mod profile;
pub mod qmp;
pub mod store;
pub mod telemetry;
pub mod token;
