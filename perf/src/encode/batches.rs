//! A recorded stream, cut into batches as the data plane cuts it. In: a file, bytes of a batch. Out: all
//! batches with their tokens, in memory. Promise: their bytes are the file's.

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, ensure};
use dwcp_dataplane::codec::Page;
use dwcp_dataplane::intake::{BATCH_TOKENS, HEADROOM, Intake, ReadOutcome};
use dwcp_dataplane::stream::{BlockTable, ChannelKind, PAGE_BYTES, Token, TokenBuf};
use dwcp_drivers::frame::{FramePools, FramePoolsConfig};
use dwcp_hugepages::arena::BackingPolicy;

/// One batch.
pub(crate) struct Batch {
    pub(crate) raw: Vec<u8>,
    pub(crate) tokens: Vec<Token>,
}

/// All of a stream.
pub(super) struct Stream {
    pub(super) batches: Vec<Batch>,
    pub(super) raw_bytes: usize,
    /// Of pages that are not all zero, each time that they were sent.
    pub(super) page_bytes: usize,
}

impl Stream {
    pub(super) fn read(path: &Path, batch_bytes: usize) -> anyhow::Result<Self> {
        let file = File::open(path)
            .with_context(|| format!("{}: record it with `dwcp-perf corpus`", path.display()))?;
        let pools = FramePools::new(&FramePoolsConfig {
            small: 8,
            medium: 8,
            large: 8,
            backing: BackingPolicy::PreferHuge,
        })?;
        let mut intake = Intake::new(ChannelKind::Main);
        let (mut blocks, mut tokens) = (BlockTable::new(), TokenBuf::with_capacity(BATCH_TOKENS));
        let mut batches = Vec::new();
        loop {
            let read = intake.read(&file, batch_bytes, &pools)?;
            let ended = read == ReadOutcome::End;
            let full = intake.waiting_bytes() >= batch_bytes;
            while intake.ready_bytes() >= batch_bytes
                || ended
                || (full && read == ReadOutcome::Full)
            {
                let cut = intake.cut(ended, batch_bytes, &mut blocks, &mut tokens, &pools);
                let Some(mut cut) = cut else { break };
                let raw = &cut.frame.payload_mut()[HEADROOM..HEADROOM + cut.raw_bytes];
                batches.push(Batch {
                    raw: raw.to_vec(),
                    tokens: tokens.as_slice().to_vec(),
                });
            }
            if ended && intake.waiting_bytes() == 0 {
                break;
            }
        }
        let raw_bytes = batches.iter().map(|batch| batch.raw.len()).sum();
        let size = file.metadata()?.len();
        ensure!(
            raw_bytes as u64 == size,
            "{raw_bytes} of {size} bytes were cut"
        );
        let pages: usize = batches.iter().map(|batch| batch.pages().count()).sum();
        let page_bytes = pages * PAGE_BYTES;
        Ok(Self {
            batches,
            raw_bytes,
            page_bytes,
        })
    }

    /// Each page that is not all zero, once.
    pub(super) fn distinct_pages(&self) -> Vec<Page> {
        let mut seen = HashSet::new();
        let pages = self.batches.iter().flat_map(Batch::pages);
        pages.filter(|page| seen.insert(*page)).copied().collect()
    }
}

impl Batch {
    /// Pages that are not all zero.
    fn pages(&self) -> impl Iterator<Item = &Page> {
        let mut at = 0;
        self.tokens.iter().filter_map(move |token| {
            at += token.len();
            if !token.is_page() {
                return None;
            }
            let page = self.raw[..at].last_chunk::<PAGE_BYTES>()?;
            page.iter().any(|byte| *byte != 0).then_some(page)
        })
    }
}
