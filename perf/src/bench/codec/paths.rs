//! Pages that take one path through the codec. In: a path, a round. Out: batches whose pages all take it.
//! Promise: the next round's do so again, with a history that is full.

use std::sync::Arc;

use dwcp_baseline::{Baseline, Blocks, Kind, Limits, Store, StoreError, Tenant};
use dwcp_dataplane::codec::{EncodeStats, Method, Page};
use dwcp_dataplane::stream::{BlockId, PAGE_BYTES, PAGE_RECORD_BYTES, PageAddr, Token};

use super::{BATCH_PAGES, PAGES};
use crate::encode::batches::Batch;

/// Until every round is like the one before: both halves of the addresses were sent.
pub(super) const WARM_ROUNDS: usize = 2;
/// Words of a page that a delta changes: more than those of which no duplicate is looked for, and fewer.
const FEW_WORDS: usize = 16;
const MORE_WORDS: usize = 96;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    Zero,
    Same,
    Copy,
    SmallDelta,
    Delta,
    Known,
    Stored,
    Lz4,
    Zstd1,
    Random,
}

impl Path {
    pub(super) const ALL: [Self; 10] = [
        Self::Zero,
        Self::Same,
        Self::Copy,
        Self::SmallDelta,
        Self::Delta,
        Self::Known,
        Self::Stored,
        Self::Lz4,
        Self::Zstd1,
        Self::Random,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero pages",
            Self::Same => "pages sent again as they were",
            Self::Copy => "pages that another address had",
            Self::SmallDelta => "delta of 16 words in 512",
            Self::Delta => "delta of 96 words in 512",
            Self::Known => "blocks of a baseline",
            Self::Stored => "new pages, stored",
            Self::Lz4 => "new pages, LZ4",
            Self::Zstd1 => "new pages, zstd 1",
            Self::Random => "new random pages, zstd 9",
        }
    }

    pub(super) const fn method(self) -> Method {
        match self {
            Self::Lz4 => Method::Lz4,
            Self::Zstd1 | Self::Random => Method::Zstd,
            _ => Method::Stored,
        }
    }

    pub(super) const fn level(self) -> i32 {
        match self {
            Self::Zstd1 => 1,
            Self::Random => 9,
            _ => 0,
        }
    }

    /// Pages that took it.
    pub(super) const fn taken(self, stats: &EncodeStats) -> u64 {
        match self {
            Self::Zero => stats.zero,
            Self::Same | Self::Copy => stats.dup,
            Self::SmallDelta | Self::Delta => stats.delta,
            Self::Known => stats.known,
            Self::Stored | Self::Lz4 | Self::Zstd1 | Self::Random => stats.literal,
        }
    }
}

/// See the module.
pub(super) struct Feed {
    path: Path,
    /// For new pages and blocks two sets, sent in turns at addresses of their own: each pushes the other out of
    /// the history.
    pages: Vec<Page>,
    baselines: Vec<Arc<Baseline>>,
    _folder: Option<tempfile::TempDir>,
}

impl Feed {
    pub(super) fn new(path: Path, data: &[Page]) -> anyhow::Result<Self> {
        let mut feed = Self {
            path,
            pages: Vec::new(),
            baselines: Vec::new(),
            _folder: None,
        };
        let random = |count: usize| (0..count as u64).map(noise).collect::<Vec<Page>>();
        feed.pages = match path {
            Path::Zero => vec![[0; PAGE_BYTES]; PAGES],
            Path::Same | Path::Copy | Path::SmallDelta | Path::Delta => random(PAGES),
            Path::Known | Path::Stored | Path::Random => random(2 * PAGES),
            // Each page but with a stamp, so that none repeats.
            Path::Lz4 | Path::Zstd1 => (0..2 * PAGES)
                .map(|at| {
                    let mut page = data[at % data.len()];
                    page[..8].copy_from_slice(&(at as u64 + 1).to_le_bytes());
                    page
                })
                .collect(),
        };
        if path == Path::Known {
            let folder = tempfile::tempdir()?;
            let limits = Limits {
                bytes_max: 1 << 30,
                migrations_max: 1,
            };
            let store = Store::open(folder.path(), limits)?;
            let (tenant, named) = (Tenant::default(), (Kind::Image, "bench"));
            let mut blocks = All(feed.pages.iter());
            let summary = store.add(&tenant, named, &mut blocks, &mut |_| true)?;
            feed.baselines = vec![Arc::new(store.load_one(&tenant, summary.id)?)];
            feed._folder = Some(folder);
        }
        Ok(feed)
    }

    pub(super) fn baselines(&self) -> Vec<Arc<Baseline>> {
        self.baselines.clone()
    }

    /// The batches of a round.
    pub(super) fn round(&mut self, round: usize) -> Vec<Batch> {
        let changed = match self.path {
            Path::SmallDelta => FEW_WORDS,
            Path::Delta => MORE_WORDS,
            _ => 0,
        };
        if let Some(every) = (PAGE_BYTES / 8).checked_div(changed) {
            for page in &mut self.pages {
                let words = page.as_chunks_mut::<8>().0.iter_mut();
                words.step_by(every).for_each(|word| word[0] ^= 0x5a);
            }
        }
        let moved = if self.path == Path::Copy { round } else { 0 };
        let half = round % (self.pages.len() / PAGES) * PAGES;
        let numbers: Vec<usize> = (half..half + PAGES).collect();
        numbers
            .chunks(BATCH_PAGES)
            .map(|numbers| self.batch(numbers, moved))
            .collect()
    }

    fn batch(&self, numbers: &[usize], moved: usize) -> Batch {
        let mut batch = Batch {
            raw: Vec::with_capacity(numbers.len() * PAGE_RECORD_BYTES),
            tokens: Vec::with_capacity(numbers.len()),
        };
        for &number in numbers {
            let addr = PageAddr {
                block: BlockId(0),
                index: number as u64,
            };
            batch.raw.extend_from_slice(&addr.page_header());
            let page = &self.pages[(number + moved) % self.pages.len()];
            batch.raw.extend_from_slice(page);
            batch.tokens.push(Token::Page { addr });
        }
        batch
    }
}

struct All<'a>(std::slice::Iter<'a, Page>);

impl Blocks for All<'_> {
    fn next(&mut self, into: &mut Page) -> Result<bool, StoreError> {
        Ok(self.0.next().map(|page| *into = *page).is_some())
    }

    fn position(&self) -> u64 {
        0
    }
}

/// A page that nothing compresses, a different one for each seed.
fn noise(seed: u64) -> Page {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut page = [0; PAGE_BYTES];
    for word in page.as_chunks_mut::<8>().0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word = state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
    }
    page
}
