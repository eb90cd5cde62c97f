//! What the nodes count, asked of each over the peers' connections.
//!
//! In: a question. Out: one answer for each member, or why there is none. Promise: it takes no longer than
//! [`WITHIN`], whoever is silent; a node that does not answer is in the list with its reason, never left out.

use std::time::Duration;

use dwcp_consensus::Peer;
use dwcp_consensus::wire::{Answer, Envelope, Message};
use serde_json::Value;

use super::Cluster;

/// How long the nodes are waited for.
const WITHIN: Duration = Duration::from_secs(3);

/// One node's answer.
#[derive(Clone, Debug)]
pub struct NodeFigures {
    /// Its name.
    pub name: String,
    /// Its figures, or why there are none.
    pub figures: Result<Value, String>,
}

impl Cluster {
    /// What this node answers when it is asked; the first one counts.
    pub fn count_with(&self, count: impl Fn() -> Value + Send + Sync + 'static) {
        let _ = self.counts.set(Box::new(count));
    }

    /// What every member counts, this node included.
    pub async fn figures(&self) -> Vec<NodeFigures> {
        let mut members: Vec<(u64, Peer)> = self
            .status()
            .members
            .into_iter()
            .map(|view| {
                let peer = Peer {
                    name: view.name,
                    address: view.address,
                };
                (view.id, peer)
            })
            .collect();
        if members.is_empty() {
            members.push((self.here.id, self.me.clone()));
        }
        let asked = members.into_iter().map(|(id, peer)| async move {
            let figures = self.figures_of(id, &peer).await;
            NodeFigures {
                name: peer.name,
                figures,
            }
        });
        futures_util::future::join_all(asked).await
    }

    async fn figures_of(&self, id: u64, peer: &Peer) -> Result<Value, String> {
        if id == self.here.id {
            let count = self.counts.get();
            return count
                .map(|count| count())
                .ok_or_else(|| "this node is starting".to_owned());
        }
        let envelope = Envelope {
            cluster: self.here.cluster.clone(),
            from: self.here.id,
            sender: self.me.clone(),
            to: id,
            epoch: 0,
            message: Message::Figures,
        };
        match tokio::time::timeout(WITHIN, self.wire.ask(peer, envelope)).await {
            Ok(Ok(Answer::Figures(figures))) => Ok(figures),
            Ok(Ok(Answer::NotNow(why))) => Err(why),
            Ok(Ok(_)) => Err("an answer to another question".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it did not answer in time".to_owned()),
        }
    }
}
