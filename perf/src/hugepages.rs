//! Hugepages for a bench. In: how much. Out: that much reserved and touched, given back at the end.

use std::fs;

use anyhow::{Context as _, ensure};
use dwcp_hugepages::arena::{Arena, ArenaConfig, BackingPolicy};

const POOL: &str = "/proc/sys/vm/nr_hugepages";
const PAGE_MB: u32 = 2;
/// What two data planes take for one session: page history, buffers.
pub(crate) const PLANES_MB: u32 = 1024;

/// Hugepages that this process asked for; as many as before once it is dropped.
pub(crate) struct Reserved {
    before: u32,
}

impl Reserved {
    /// At least `mb` MiB of hugepages in the machine's pool, each of them touched once.
    pub(crate) fn hugepages(mb: u32) -> anyhow::Result<Self> {
        let before = pool()?;
        let reserved = Self { before };
        let wanted = before.max(mb.div_ceil(PAGE_MB));
        fs::write(POOL, wanted.to_string()).with_context(|| format!("{POOL}: run as root"))?;
        let got = pool()?;
        ensure!(
            got >= wanted,
            "{got} of {wanted} hugepages of 2 MiB: free some memory, or measure a smaller guest"
        );
        // An arena on hugepages has them all present.
        Arena::new(ArenaConfig {
            name: "warm-up",
            bytes: (mb as usize) << 20,
            backing: BackingPolicy::RequireHuge,
        })?;
        Ok(reserved)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Err(error) = fs::write(POOL, self.before.to_string()) {
            eprintln!("{POOL} stays as it is: {error}");
        }
    }
}

fn pool() -> anyhow::Result<u32> {
    let text = fs::read_to_string(POOL).with_context(|| POOL.to_owned())?;
    text.trim()
        .parse()
        .with_context(|| format!("{POOL}: {text}"))
}
