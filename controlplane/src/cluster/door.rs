//! What peers ask: most of it the log answers, the rest is answered beside it, with or without a quorum.
//!
//! In: a message of a peer that proved its name. Out: its answer. Promise: a message for another cluster or node is
//! answered by nobody here.

use std::sync::Arc;

use dwcp_consensus::wire::{Answer, Answerer, Boxed, Envelope, Message};

use super::throws::Throws;
use super::{Counts, Identified};

/// See the module.
pub(super) struct Door {
    pub(super) log: Arc<dyn Answerer>,
    pub(super) throws: Throws,
    pub(super) counts: Counts,
    pub(super) here: Identified,
}

impl Answerer for Door {
    fn answer(self: Arc<Self>, envelope: Envelope) -> Boxed<Answer> {
        let ours = envelope.cluster == self.here.cluster && envelope.to == self.here.id;
        match envelope.message {
            Message::Throws(told) if ours => {
                let answer = Answer::Throws(self.throws.hear(&envelope.sender.name, told));
                Box::pin(async move { answer })
            }
            Message::Figures if ours => {
                let answer = match self.counts.get() {
                    Some(count) => Answer::Figures(count()),
                    None => Answer::NotNow("this node is starting".to_owned()),
                };
                Box::pin(async move { answer })
            }
            _ => self.log.clone().answer(envelope),
        }
    }
}
