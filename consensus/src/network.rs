//! openraft's network over a [`Wire`].
//!
//! In: openraft's requests. Out: its answers. Promise: a peer that is silent, in another epoch or not
//! able to answer is unreachable, never a vote and never an acknowledgement.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::TypeConfigExt;
use openraft::{OptionalSend, RaftNetworkFactory};

use crate::conf::{Conf, Epoch, NodeNumber, Peer, Snapshot, Vote};
use crate::plant::{Bug, planted};
use crate::wire::{Answer, Appended, Envelope, Message, Wire, WireError};

/// How long one attempt may take before another member is asked.
pub(crate) const ATTEMPT: Duration = Duration::from_millis(1_500);

/// What every client of a member needs.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) wire: Arc<dyn Wire>,
    pub(crate) cluster: Arc<str>,
    pub(crate) id: NodeNumber,
    pub(crate) me: Peer,
    /// Peers found in a newer epoch.
    pub(crate) ahead: Arc<Mutex<BTreeSet<(NodeNumber, Peer)>>>,
    pub(crate) wake: Arc<tokio::sync::Notify>,
}

impl Caller {
    /// Asks a peer; an answer from a newer epoch is noted for whoever catches up.
    pub(crate) async fn ask(
        &self,
        to: NodeNumber,
        peer: &Peer,
        epoch: Epoch,
        message: Message,
    ) -> io::Result<Answer> {
        let asked = self.wire.ask(peer, self.envelope(to, epoch, message)).await;
        match asked.map_err(io::Error::other)? {
            Answer::Epoch(theirs) => {
                if theirs > epoch {
                    self.note_ahead(to, peer);
                }
                Err(io::Error::other(format!("it is in epoch {theirs}")))
            }
            Answer::NotNow(why) => Err(io::Error::other(why)),
            answer => Ok(answer),
        }
    }

    /// Whether a node answers there at all, in whatever epoch it is.
    ///
    /// # Errors
    /// [`WireError`], also when no answer comes within the time for one attempt.
    pub(crate) async fn reach<C: Conf>(
        &self,
        to: NodeNumber,
        peer: &Peer,
        epoch: Epoch,
    ) -> Result<(), WireError> {
        let asked = self.wire.ask(peer, self.envelope(to, epoch, Message::Ping));
        let answer = C::timeout(ATTEMPT, asked).await;
        let late = |_| WireError::Unreachable {
            to,
            address: peer.address.clone(),
            reason: "no answer in time".to_owned(),
        };
        answer.map_err(late)?.map(drop)
    }

    fn envelope(&self, to: NodeNumber, epoch: Epoch, message: Message) -> Envelope {
        Envelope {
            cluster: self.cluster.as_ref().to_owned(),
            from: self.id,
            sender: self.me.clone(),
            to,
            epoch,
            message,
        }
    }

    /// Notes that a peer is in a newer epoch.
    pub(crate) fn note_ahead(&self, to: NodeNumber, peer: &Peer) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.insert((to, peer.clone()));
        drop(ahead);
        self.wake.notify_one();
    }
}

/// Makes clients of one epoch.
pub(crate) struct Network {
    pub(crate) caller: Caller,
    pub(crate) epoch: Epoch,
}

/// A client of one peer in one epoch.
pub(crate) struct Client {
    caller: Caller,
    epoch: Epoch,
    to: NodeNumber,
    peer: Peer,
}

impl Client {
    async fn ask<C: Conf>(
        &self,
        message: Message,
        option: &RPCOption,
    ) -> Result<Answer, Unreachable<C>> {
        let asked = self.caller.ask(self.to, &self.peer, self.epoch, message);
        match C::timeout(option.soft_ttl(), asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Unreachable::new(&error)),
            Err(_) => Err(Unreachable::new(&io::Error::from(io::ErrorKind::TimedOut))),
        }
    }

    async fn elect<C: Conf>(
        &self,
        rpc: VoteRequest<C>,
        pre: bool,
        option: &RPCOption,
    ) -> Result<VoteResponse<C>, RPCError<C>> {
        let message = Message::Elect {
            vote: rpc.vote,
            last: rpc.last_log_id,
            transfer: rpc.leadership_transfer,
            pre,
        };
        match self.ask::<C>(message, option).await {
            Ok(Answer::Elect {
                vote,
                granted,
                last,
            }) => Ok(VoteResponse::new(vote, last, granted)),
            Ok(_) => Err(odd::<C>()),
            Err(_) if planted(Bug::SilenceIsAVote) => {
                Ok(VoteResponse::new(rpc.vote, rpc.last_log_id, true))
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn odd<C: Conf>() -> RPCError<C> {
    Unreachable::new(&io::Error::other("an answer to another question")).into()
}

impl<C: Conf> RaftNetworkFactory<C> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: NodeNumber, node: &Peer) -> Client {
        Client {
            caller: self.caller.clone(),
            epoch: self.epoch,
            to: target,
            peer: node.clone(),
        }
    }
}

impl<C: Conf> RaftNetworkV2<C> for Client {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<C>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<C>, RPCError<C>> {
        let message = Message::Append {
            vote: rpc.vote,
            previous: rpc.prev_log_id,
            entries: rpc.entries,
            commit: rpc.leader_commit,
        };
        match self.ask::<C>(message, &option).await {
            Ok(Answer::Append(appended)) => Ok(match appended {
                Appended::All => AppendEntriesResponse::Success,
                Appended::UpTo(last) => AppendEntriesResponse::PartialSuccess(last),
                Appended::Conflict => AppendEntriesResponse::Conflict,
                Appended::Newer(vote) => AppendEntriesResponse::HigherVote(vote),
            }),
            Ok(_) => Err(odd::<C>()),
            Err(_) if planted(Bug::SilenceIsAnAck) => Ok(AppendEntriesResponse::Success),
            Err(error) => Err(error.into()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<C>,
        option: RPCOption,
    ) -> Result<VoteResponse<C>, RPCError<C>> {
        self.elect(rpc, false, &option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<C>,
        option: RPCOption,
    ) -> Result<VoteResponse<C>, RPCError<C>> {
        self.elect(rpc, true, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<C>, StreamingError<C>> {
        let message = Message::Snapshot {
            vote,
            meta: snapshot.meta,
            state: String::from_utf8_lossy(&snapshot.snapshot).into_owned(),
        };
        let asked = self.ask::<C>(message, &option);
        match C::select2(asked, cancel).await {
            openraft::async_runtime::Select2::First(Ok(Answer::Snapshot(vote))) => {
                Ok(SnapshotResponse::new(vote))
            }
            openraft::async_runtime::Select2::First(Ok(_)) => {
                let error = io::Error::other("an answer to another question");
                Err(StreamingError::Unreachable(Unreachable::new(&error)))
            }
            openraft::async_runtime::Select2::First(Err(error)) => {
                Err(StreamingError::Unreachable(error))
            }
            openraft::async_runtime::Select2::Second(closed) => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<C>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<C>, RPCError<C>> {
        let message = Message::Transfer {
            vote: *req.from_leader(),
            heir: *req.to_node_id(),
            last: req.last_log_id().copied(),
        };
        match self.ask::<C>(message, &option).await? {
            Answer::Transfer(Ok(())) => Ok(Ok(())),
            Answer::Transfer(Err(why)) => Err(Unreachable::new(&io::Error::other(why)).into()),
            _ => Err(odd::<C>()),
        }
    }
}
