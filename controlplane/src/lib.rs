//! The control plane of one host: it answers the operator and its peers, runs migrations by QMP and
//! by commands to the data plane, and sets the words that every batch reads. No byte of a migration
//! passes through it, and none stops when it does.
//!
//! | module | what |
//! |---|---|
//! | [`access`] | tokens, scopes, rates, the audit log |
//! | [`api`] | the REST API |
//! | [`baselines`] | blocks that this host keeps on disk |
//! | [`cluster`] | this node's part of the replicated truth |
//! | [`config`] | settings: file, environment, flags |
//! | [`flags`] | feature flags, their rollout, the kill switch |
//! | [`host`] | the data plane: attach, switch words, sessions, commands |
//! | [`jobs`] | migrations, both ways |
//! | [`life`] | signs of life for the service manager |
//! | [`mode`] | datacenter, internet or hybrid: measured for each peer, unless an operator says otherwise |
//! | [`link_limit`] | what all migrations of this host together may send |
//! | [`nics`] | the migration NICs of this host |
//! | [`node`] | one node's control plane, put together |
//! | [`profile`] | flame graphs and hardware counters of the data plane, from outside |
//! | [`qmp`] | the hypervisor's monitor |
//! | [`rollout`] | a version comes to more and more nodes, judged by what it does |
//! | [`store`] | what must outlive the process |
//! | [`telemetry`] | metrics, health, counters |
//! | [`tls`] | certificates of the API |
//! | [`token`] | the API's bearer token |

pub mod access;
pub mod api;
pub mod baselines;
pub mod cluster;
pub mod config;
pub mod flags;
pub mod host;
pub mod jobs;
pub mod life;
pub mod link_limit;
pub mod mode;
pub mod nics;
pub mod node;
pub mod profile;
pub mod qmp;
pub mod rollout;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod token;
