//! What both sides hold on disk. In: names of states, or `image`. Out: baselines, for encoder and decoder. Promise:
//! an earlier migration is kept as the data plane keeps it: what the page history holds at its end.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use dwcp_baseline::image::Image;
use dwcp_baseline::{Baseline, Kind, Limits, Store, Tenant};
use dwcp_dataplane::codec::{Choice, ChoiceReason, Encoder, Method, Sections};
use dwcp_dataplane::engine::keeper::Pages;

use super::batches::Stream;
use super::{Arguments, replay};
use crate::compare::{Guest, Saved, default_cache, saved};
use crate::corpus;

/// See the module.
pub(super) struct Known {
    list: Vec<Arc<Baseline>>,
    _folder: Option<tempfile::TempDir>,
}

impl Known {
    /// Makes a store of what the arguments name.
    pub(super) fn prepare(
        arguments: &Arguments,
        guest: Guest,
        streams: &Path,
    ) -> anyhow::Result<Self> {
        let mut known = Self {
            list: Vec::new(),
            _folder: None,
        };
        if arguments.baseline.is_empty() {
            return Ok(known);
        }
        let folder = tempfile::tempdir()?;
        let limits = Limits {
            bytes_max: 16 << 30,
            migrations_max: usize::MAX,
        };
        let store = Store::open(folder.path(), limits)?;
        let tenant = Tenant::default();
        for name in &arguments.baseline {
            let summary = if name == "image" {
                let cache = arguments.cache.clone().map_or_else(default_cache, Ok)?;
                let Saved::Debian(saved) = saved(guest, &cache)? else {
                    bail!("this guest has no disk: name one with an operating system");
                };
                let mut image = Image::open(&saved.golden_image(), None, &store)?;
                store.add(&tenant, (Kind::Image, name), &mut image, &mut |_| true)?
            } else {
                let path = corpus::file(streams, guest, name);
                let stream = Stream::read(&path, arguments.batch_kb as usize * 1024)?;
                let mut pages = history_after(&stream, (arguments.store_mb as usize) << 20)?;
                store.add(&tenant, (Kind::Migration, name), &mut pages, &mut |_| true)?
            };
            let baseline = store.load_one(&tenant, summary.id)?;
            known.list.push(Arc::new(baseline));
        }
        known._folder = Some(folder);
        Ok(known)
    }

    /// In the order that was agreed on.
    pub(super) fn list(&self) -> Vec<Arc<Baseline>> {
        self.list.clone()
    }
}

/// What the page history holds when the stream is through.
fn history_after(stream: &Stream, store_bytes: usize) -> anyhow::Result<Pages> {
    let mut encoder = Encoder::new(&replay::config(store_bytes)).context("an encoder")?;
    let mut sections = Sections::new();
    let choice = Choice {
        method: Method::Stored,
        level: 0,
        reason: ChoiceReason::Soonest,
    };
    for batch in &stream.batches {
        encoder.classify_with(choice, &batch.raw, &batch.tokens, &mut sections)?;
    }
    Ok(Pages::new(Box::new(encoder.into_store())))
}
