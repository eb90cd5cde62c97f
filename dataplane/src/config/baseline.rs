//! The table `[baseline]`: blocks that are kept on disk so that they need not travel. The control plane of the
//! host is given the same folder.

use std::path::PathBuf;

use dwcp_baseline::Limits;
use serde::Deserialize;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselineConfig {
    /// Folder of the store, an absolute path.
    pub dir: PathBuf,
    /// Bytes on disk at most, over all tenants.
    #[serde(default = "BaselineConfig::default_max_bytes")]
    pub max_bytes: u64,
    /// Migrations of each tenant whose pages are kept, the latest; 0: none.
    #[serde(default = "BaselineConfig::default_keep_migrations")]
    pub keep_migrations: usize,
}

impl BaselineConfig {
    const fn default_max_bytes() -> u64 {
        2 << 30
    }

    const fn default_keep_migrations() -> usize {
        2
    }

    /// What the store may use.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        Limits {
            bytes_max: self.max_bytes,
            migrations_max: self.keep_migrations,
        }
    }
}
