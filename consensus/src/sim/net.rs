//! A network that loses, delays, doubles and cuts, one way or both.
//!
//! In: messages between lives of members. Out: answers, or silence. Promise: nothing reaches or leaves
//! a life that has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use openraft::type_config::TypeConfigExt;

use super::Sim;
use super::chance::Chance;
use super::check::Checks;
use crate::conf::{NodeNumber, Peer};
use crate::wire::{Answer, Answerer, Boxed, Envelope, Wire, WireError};

#[derive(Clone)]
pub(super) struct Net {
    inner: Arc<Mutex<Inner>>,
    chance: Chance,
    checks: Checks,
}

#[derive(Default)]
struct Inner {
    lives: BTreeMap<NodeNumber, u64>,
    answerers: BTreeMap<NodeNumber, Arc<dyn Answerer>>,
    cut: BTreeSet<(NodeNumber, NodeNumber)>,
    loss_permille: u64,
}

impl Net {
    pub(super) fn new(chance: Chance, checks: Checks) -> Self {
        Self {
            inner: Arc::default(),
            chance,
            checks,
        }
    }

    pub(super) fn begin_life(&self, id: NodeNumber) -> u64 {
        let mut inner = self.inner.lock().unwrap();
        let life = inner.lives.entry(id).or_insert(0);
        *life += 1;
        *life
    }

    pub(super) fn end_life(&self, id: NodeNumber) {
        let mut inner = self.inner.lock().unwrap();
        *inner.lives.entry(id).or_insert(0) += 1;
        inner.answerers.remove(&id);
    }

    pub(super) fn life(&self, id: NodeNumber) -> u64 {
        *self.inner.lock().unwrap().lives.get(&id).unwrap_or(&0)
    }

    pub(super) fn serve(&self, id: NodeNumber, answerer: Arc<dyn Answerer>) {
        self.inner.lock().unwrap().answerers.insert(id, answerer);
    }

    pub(super) fn cut(&self, from: NodeNumber, to: NodeNumber) {
        self.inner.lock().unwrap().cut.insert((from, to));
    }

    pub(super) fn heal(&self) {
        let mut inner = self.inner.lock().unwrap();
        inner.cut.clear();
        inner.loss_permille = 0;
    }

    pub(super) fn lose(&self, permille: u64) {
        self.inner.lock().unwrap().loss_permille = permille;
    }

    fn passes(&self, from: NodeNumber, to: NodeNumber) -> bool {
        let inner = self.inner.lock().unwrap();
        !inner.cut.contains(&(from, to)) && !self.chance.permille(inner.loss_permille)
    }

    fn answerer(&self, to: NodeNumber) -> Option<Arc<dyn Answerer>> {
        self.inner.lock().unwrap().answerers.get(&to).cloned()
    }

    async fn delay(&self) {
        let far = if self.chance.permille(30) {
            80_000
        } else {
            2_000
        };
        Sim::sleep(self.chance.micros(50, far)).await;
    }
}

/// One life's end of the network.
pub(super) struct Port {
    pub(super) net: Net,
    pub(super) id: NodeNumber,
    pub(super) life: u64,
}

impl Wire for Port {
    fn ask(&self, peer: &Peer, envelope: Envelope) -> Boxed<Result<Answer, WireError>> {
        let (net, from, life) = (self.net.clone(), self.id, self.life);
        let address = peer.address.clone();
        Box::pin(async move {
            let to = envelope.to;
            if net.life(from) != life || !net.passes(from, to) {
                std::future::pending::<()>().await;
            }
            net.checks.sent(&envelope);
            let envelope = if net.chance.permille(30) {
                let bytes = serde_json::to_vec(&envelope).unwrap();
                serde_json::from_slice(&bytes).unwrap()
            } else {
                envelope
            };
            net.delay().await;
            let unreachable = || WireError::Unreachable {
                to,
                address: address.clone(),
                reason: "nobody listens".to_owned(),
            };
            let answerer = net.answerer(to).ok_or_else(unreachable)?;
            if net.chance.permille(20) {
                let (again, doubled, net) = (answerer.clone(), envelope.clone(), net.clone());
                drop(Sim::spawn(async move {
                    net.delay().await;
                    again.answer(doubled).await;
                }));
            }
            let there = net.life(to);
            let answer = answerer.answer(envelope).await;
            if net.life(to) != there || !net.passes(to, from) {
                std::future::pending::<()>().await;
            }
            net.delay().await;
            if net.life(from) != life {
                std::future::pending::<()>().await;
            }
            Ok(answer)
        })
    }
}
