//! The types that a replicated log is made of, and the runtime it runs on.
//!
//! In: nothing. Out: names for openraft's types with ours filled in. Promise: everything but the
//! runtime is fixed here, so that what is tested in virtual time is what runs.

use openraft::RaftTypeConfig;
use openraft::impls::{EntryPayload, InlineBatch, OneshotResponder};
use openraft::raft::ClientWriteResult;
use openraft::vote::RaftLeaderId;
use serde::{Deserialize, Serialize};

use crate::command::{Outcome, Request};

/// Number of a node in its cluster; never used again once the node is gone.
pub type NodeNumber = u64;

/// Number of an epoch of the virtual log, from 1.
pub type Epoch = u64;

/// Where a member listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    /// Name of the node, which its certificate must bear.
    pub name: String,
    /// `host:port` of its listener for peers.
    pub address: String,
}

pub(crate) type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, NodeNumber>;
pub(crate) type Committed = <LeaderId as RaftLeaderId>::Committed;
pub(crate) type LogId = openraft::LogId<Committed>;
pub(crate) type Vote = openraft::impls::Vote<LeaderId>;
pub(crate) type Payload = EntryPayload<Request, NodeNumber, Peer>;
pub(crate) type Entry = openraft::impls::Entry<Committed, Payload>;
pub(crate) type StoredMembership = openraft::StoredMembership<Committed, NodeNumber, Peer>;
pub(crate) type SnapshotMeta = openraft::storage::SnapshotMeta<Committed, NodeNumber, Peer>;
pub(crate) type Snapshot = openraft::storage::Snapshot<Committed, NodeNumber, Peer, Vec<u8>>;

/// A runtime with everything else filled in.
pub trait Conf:
    RaftTypeConfig<
        D = Request,
        R = Outcome,
        NodeId = NodeNumber,
        Node = Peer,
        Term = u64,
        LeaderId = LeaderId,
        Vote = Vote,
        Payload = Payload,
        Entry = Entry,
        Responder<ClientWriteResult<Self>> = OneshotResponder<Self, ClientWriteResult<Self>>,
        Batch<Entry> = InlineBatch<Entry>,
    >
{
}

impl<T> Conf for T where
    T: RaftTypeConfig<
            D = Request,
            R = Outcome,
            NodeId = NodeNumber,
            Node = Peer,
            Term = u64,
            LeaderId = LeaderId,
            Vote = Vote,
            Payload = Payload,
            Entry = Entry,
            Responder<ClientWriteResult<T>> = OneshotResponder<T, ClientWriteResult<T>>,
            Batch<Entry> = InlineBatch<Entry>,
        >
{
}

/// Fills a type in for a runtime.
macro_rules! on_runtime {
    ($(#[$doc:meta])* $name:ident, $runtime:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
        pub struct $name;

        impl openraft::RaftTypeConfig for $name {
            type D = $crate::command::Request;
            type R = $crate::command::Outcome;
            type NodeId = $crate::conf::NodeNumber;
            type Node = $crate::conf::Peer;
            type Term = u64;
            type LeaderId = $crate::conf::LeaderId;
            type Vote = $crate::conf::Vote;
            type Payload = $crate::conf::Payload;
            type Entry = $crate::conf::Entry;
            type AsyncRuntime = $runtime;
            type Responder<T>
                = openraft::impls::OneshotResponder<Self, T>
            where
                T: openraft::OptionalSend + 'static;
            type Batch<T>
                = openraft::impls::InlineBatch<T>
            where
                T: openraft::OptionalSend + 'static;
            type ErrorSource = openraft::impls::BoxedErrorSource;
        }
    };
}
#[cfg(test)]
pub(crate) use on_runtime;

on_runtime!(
    /// The log on tokio.
    Tokio,
    openraft_rt_tokio::TokioRuntime
);
