//! What both hosts hold on disk before a run. In: a guest, a line, a way. Out: the folders of the stores.
//! Promises: the golden image is the one that the guest's disk is a layer over, indexed once; an earlier
//! migration is one that really was made, over the same line; no run adds to what the next one finds.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use dwcp_baseline::image::Image;
use dwcp_baseline::{Kind, Limits, Store, Tenant};
use dwcp_lab::watchdog::poll_until;

use super::configs::Config;
use super::links::Link;
use super::migrate::{self, LIMIT, Saved};

/// More than any guest has.
const STORE_BYTES_MAX: u64 = 16 << 30;

/// The folders of one way; removed with it.
pub(super) struct Stores {
    folder: tempfile::TempDir,
    /// An earlier migration is in them, or there is to be none.
    ready: bool,
}

/// What a node is told of its store.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    folder: PathBuf,
    keep: usize,
}

impl Shelf {
    /// Lines for the data plane's configuration; a table, so the last.
    pub(super) fn table(&self) -> String {
        format!(
            "[baseline]\ndir = \"{}\"\nmax_bytes = {STORE_BYTES_MAX}\nkeep_migrations = {}\n",
            self.folder.display(),
            self.keep
        )
    }
}

impl Stores {
    /// For ways that need none: nothing.
    pub(super) fn for_config(config: Config) -> anyhow::Result<Option<Self>> {
        if !config.uses_baselines() {
            return Ok(None);
        }
        Ok(Some(Self {
            folder: tempfile::tempdir()?,
            ready: false,
        }))
    }

    fn dir(&self, host: usize) -> PathBuf {
        self.folder.path().join(["a", "b"][host])
    }

    /// What both nodes are told, with all that they are to hold in their stores.
    pub(super) fn shelves(
        &mut self,
        (config, multifd): (Config, u32),
        saved: &Saved,
        link: Link,
    ) -> anyhow::Result<[Shelf; 2]> {
        let shelves = |keep| {
            [0, 1].map(|host| Shelf {
                folder: self.dir(host),
                keep,
            })
        };
        let (first, later) = (shelves(1), shelves(0));
        if !self.ready {
            match config {
                Config::DwcpAgain => {
                    eprintln!("the migration that this one follows");
                    let arrived = |_: &_| self.wait_kept();
                    migrate::once_then(saved, link, (config, multifd), Some(&first), &arrived)?;
                }
                _ => {
                    let Saved::Debian(guest) = saved else {
                        bail!("this guest has no disk: name one with an operating system");
                    };
                    for host in [0, 1] {
                        index(&guest.golden_image(), &self.dir(host))?;
                    }
                }
            }
            self.ready = true;
        }
        Ok(later)
    }

    /// Until both hosts have kept the migration: they do so after its end.
    fn wait_kept(&self) -> anyhow::Result<()> {
        let kept = |host| {
            let store = open(&self.dir(host)).ok()?;
            (!store.held(&Tenant::default()).ok()?.is_empty()).then_some(())
        };
        poll_until(LIMIT, || kept(0).and(kept(1))).context("a migration was not kept")
    }
}

fn open(dir: &Path) -> anyhow::Result<Store> {
    let limits = Limits {
        bytes_max: STORE_BYTES_MAX,
        migrations_max: 1,
    };
    Ok(Store::open(dir, limits)?)
}

fn index(image: &Path, dir: &Path) -> anyhow::Result<()> {
    let store = open(dir)?;
    let mut blocks = Image::open(image, None, &store)?;
    let named = (Kind::Image, "golden image");
    store.add(&Tenant::default(), named, &mut blocks, &mut |_| true)?;
    Ok(())
}
