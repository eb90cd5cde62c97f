//! Baselines that both sides of a session hold: which they are, and what happens when a block is not there.
//!
//! In: what was loaded from disk here, what the peer says. Out: what encoder and decoder may refer to, words for
//! the peer. Promises: nothing waits for the disk or for the peer's answer: until both have spoken pages travel
//! as they are; only manifests of the session's own tenant are named, by tags that fit this session alone; a
//! block that cannot be read is had from the peer, and put right on disk.

use std::sync::Arc;

use arrayvec::ArrayVec;
use dwcp_api::Failure;
use dwcp_api::worker::WorkerCounters;
use dwcp_baseline::{Baseline, Tenant};

use super::link::Link;
use super::{Fault, Session, encoding, forward};
use crate::codec::{MissingBlock, PageStore};
use crate::engine::keeper::Keeper;
use crate::stream::PAGE_BYTES;
use crate::transport::wire::baseline::{BaselineWord, MAX_OFFERS, OfferTag};
use crate::transport::wire::batch::{BatchHeader, Marker};
use crate::transport::{BatchSeq, ChannelId};

/// Batches of a session that may come again at most: after the first the source refers to nothing any more, so
/// no more than are in flight can follow.
const MISSES_MAX: u32 = 1024;

/// See the module.
pub(super) struct Baselines {
    tenant: Tenant,
    keeper: Option<Keeper>,
    /// What is on disk here; `None`: not known yet.
    own: Option<Vec<Arc<Baseline>>>,
    /// What the source has, as it said.
    offered: Option<ArrayVec<OfferTag, MAX_OFFERS>>,
    /// This side has said what it has to.
    said: bool,
    /// The source has its answer.
    answered: bool,
    /// The batch that the peer must be asked for again.
    ask: Option<BatchSeq>,
    /// The batch that is waited for and the blocks that it lacked.
    lacking: Option<(BatchSeq, Vec<MissingBlock>)>,
    misses: u32,
}

impl Baselines {
    pub(super) const fn new(tenant: Tenant, keeper: Option<Keeper>) -> Self {
        Self {
            tenant,
            keeper,
            own: None,
            offered: None,
            said: false,
            answered: false,
            ask: None,
            lacking: None,
            misses: 0,
        }
    }

    fn count_miss(&mut self) -> Result<(), Fault> {
        self.misses += 1;
        if self.misses > MISSES_MAX {
            return Err(unexpected(
                "batches refer again and again to blocks that are not there",
            ));
        }
        Ok(())
    }

    /// A batch cannot be decoded as it is: it is put back, and asked for in another encoding.
    pub(super) fn refuse(&mut self, link: &mut Link, header: &BatchHeader) -> Result<(), Fault> {
        self.count_miss()?;
        link.inbound.put_back(header)?;
        self.lacking = Some((header.seq, link.decoder.missing().to_vec()));
        self.ask = Some(header.seq);
        tracing::warn!(
            seq = header.seq.0,
            "a block of a baseline is damaged: its page is fetched"
        );
        Ok(())
    }

    /// A batch has been decoded to these bytes. If it is the one that lacked blocks, these are put right.
    pub(super) fn note_decoded(&mut self, link: &Link, seq: BatchSeq, raw: &[u8]) {
        if self
            .lacking
            .as_ref()
            .is_none_or(|(lacking, _)| *lacking != seq)
        {
            return;
        }
        let Some(((_, blocks), keeper)) = self.lacking.take().zip(self.keeper.as_ref()) else {
            return;
        };
        for block in blocks {
            let page = raw
                .get(block.at..)
                .and_then(|rest| rest.first_chunk::<PAGE_BYTES>());
            if let Some((of, page)) = link.decoder.baseline(block.baseline).zip(page) {
                keeper.repair(Arc::clone(of), block.number, page);
            }
        }
    }
}

impl Session {
    /// What is on disk here came.
    pub fn on_baselines(&mut self, list: Vec<Arc<Baseline>>) {
        self.baselines.own.get_or_insert(list);
    }

    /// Says what is due. Says whether anything was.
    pub(super) fn pump_baselines(&mut self) -> Result<bool, Fault> {
        let is_source = self.is_source();
        let state = &mut self.baselines;
        let Some(link) = self.link.as_mut() else {
            return Ok(false);
        };
        if !link.baselines || (state.said && state.ask.is_none()) || !link.outbound.can_push() {
            return Ok(false);
        }
        let say = |link: &mut Link, word| {
            forward::push_marker(link, ChannelId(0), &Marker::Baseline(word)).map(|()| true)
        };
        if let Some(seq) = state.ask.take() {
            return say(link, BaselineWord::Missing(seq));
        }
        let Some(own) = &state.own else {
            return Ok(false);
        };
        let tenant = state.tenant.as_str();
        if is_source {
            state.said = true;
            let tags: ArrayVec<OfferTag, MAX_OFFERS> = own
                .iter()
                .take(MAX_OFFERS)
                .map(|one| link.keys_out.offer_tag(tenant, &one.id().0))
                .collect();
            return if tags.is_empty() {
                Ok(false)
            } else {
                say(link, BaselineWord::Offers(&tags))
            };
        }
        let Some(offered) = &state.offered else {
            return Ok(false);
        };
        state.said = true;
        let (mut bits, mut list) = (0, Vec::with_capacity(MAX_OFFERS));
        for (at, offer) in offered.iter().enumerate() {
            let mut own = own.iter();
            let held = own.find(|one| link.keys_in.offer_tag(tenant, &one.id().0) == *offer);
            if let Some(held) = held {
                bits |= 1 << at;
                list.push(Arc::clone(held));
            }
        }
        self.picture.baselines = list.len() as u64;
        if !list.is_empty() {
            link.decoder.use_baselines(list.clone());
            state.note_used(list);
        }
        say(link, BaselineWord::Holds(bits))
    }

    /// Takes the peer's word.
    pub(super) fn on_baseline_word(
        &mut self,
        word: BaselineWord<'_>,
        counters: &WorkerCounters,
    ) -> Result<(), Fault> {
        let is_source = self.is_source();
        let state = &mut self.baselines;
        let Some(link) = self.link.as_mut().filter(|link| link.baselines) else {
            return Err(unexpected("a word about baselines that were not agreed on"));
        };
        match (word, is_source) {
            (BaselineWord::Offers(tags), false) if state.offered.is_none() => {
                state.offered = ArrayVec::try_from(tags).ok();
                Ok(())
            }
            (BaselineWord::Holds(bits), true) if state.said && !state.answered => {
                state.answered = true;
                let own = state.own.as_deref().unwrap_or_default();
                if u32::from(bits) >> own.len().min(MAX_OFFERS) != 0 {
                    return Err(unexpected("the peer has baselines that were never offered"));
                }
                let held = |(at, _): &(usize, &Arc<Baseline>)| bits & 1 << *at != 0;
                let list = own.iter().take(MAX_OFFERS).enumerate().filter(held);
                let list: Vec<_> = list.map(|(_, one)| Arc::clone(one)).collect();
                self.picture.baselines = list.len() as u64;
                link.encoder.use_baselines(list.clone());
                state.note_used(list);
                Ok(())
            }
            (BaselineWord::Missing(seq), true) if state.answered => {
                state.count_miss()?;
                counters.baseline_misses_total.add(1);
                link.encoder.use_baselines(Vec::new());
                encoding::send_again(link, seq)
            }
            _ => Err(unexpected("a word about baselines out of turn")),
        }
    }

    /// Lets the session's memory go; the pages of a guest that was moved are kept for the next time.
    pub fn let_go(&mut self) {
        let Some(link) = self.link.take() else {
            return;
        };
        let moved = self.state == dwcp_api::SessionState::Completed;
        if let Some(keeper) = self.baselines.keeper.take()
            && moved
            && link.baselines
        {
            let pages = match self.is_source() {
                true => link.encoder.into_store(),
                false => link.decoder.into_store(),
            };
            let bytes = PageStore::bytes(pages.slots() as usize * PAGE_BYTES);
            let memory = self.memory.as_mut().map(|all| all.split(bytes as u64));
            keeper.keep(
                self.baselines.tenant.clone(),
                self.id.to_string(),
                (pages, memory),
            );
        }
    }
}

impl Baselines {
    fn note_used(&self, list: Vec<Arc<Baseline>>) {
        if let Some(keeper) = &self.keeper {
            keeper.used(list);
        }
    }
}

fn unexpected(detail: &str) -> Fault {
    Fault::new(Failure::Protocol, detail)
}
