//! The nodes, as a rollout sees them.
//!
//! In: a question. Out: each node's account, or why there is none. Promise: a node's account is checked before it is
//! believed; one that is not is a silent node.

use std::collections::BTreeSet;

use dwcp_consensus::wire::Boxed;

use super::decide::Report;
use super::sample::Figures;
use crate::cluster::{ChangeError, Cluster};

/// Where accounts come from.
pub trait Fleet: Send + Sync + 'static {
    /// Every node's account.
    fn reports(&self) -> Boxed<Vec<Report>>;

    /// Names of the nodes.
    fn names(&self) -> BTreeSet<String>;

    /// Makes a flag ready to be steered by the log.
    fn prepare(&self, feature: String, by: String) -> Boxed<Result<(), ChangeError>>;
}

impl Fleet for Cluster {
    fn reports(&self) -> Boxed<Vec<Report>> {
        let cluster = self.clone();
        Box::pin(async move {
            let nodes = cluster.figures().await;
            nodes
                .into_iter()
                .map(|node| Report {
                    node: node.name,
                    figures: node.figures.and_then(Figures::read),
                })
                .collect()
        })
    }

    fn names(&self) -> BTreeSet<String> {
        self.status()
            .members
            .into_iter()
            .map(|it| it.name)
            .collect()
    }

    fn prepare(&self, feature: String, by: String) -> Boxed<Result<(), ChangeError>> {
        let cluster = self.clone();
        Box::pin(async move { cluster.begin(&feature, &by).await.map(drop) })
    }
}
