//! The steps of a handshake at the door: which proof, what to answer, who is turned away.
//!
//! In: a stranger with bytes to read. Out: what becomes of it. Promises: a peer from a network that is not
//! trusted gets no further than its first message without TLS; a peer under TLS is the node of its
//! certificate and no other; who is turned away is told why, and counted once.

use arrayvec::ArrayString;
use dwcp_api::SessionId;
use dwcp_api::door::Refusal;

use super::error::{DoorError, refusal_for};
use super::pooling::open_wide;
use super::stranger::{Got, NO_TLS_ALERT, Opening, READ_BYTES, Side, Stranger};
use super::{Door, Next, fresh_bytes, lane_up, params, wire_version};
use crate::engine::drivers::LaneEnd;
use crate::engine::messages::Errand;
use crate::engine::sockets;
use crate::tls::pipe::Pipe;
use crate::transport::handshake::{
    Acceptor, AcceptorStep, Answer, HandshakeError, Hello, Initiator, InitiatorConfig,
    InitiatorStep, Join, Proof, Proven, Purpose, RefuseReason, Way,
};
use crate::transport::{BatchSeq, NodeId, SessionEpoch};

impl Door {
    /// Goes on as far as the connection lets it.
    pub(super) fn advance(&mut self, stranger: &mut Stranger) -> Result<Next, DoorError> {
        loop {
            if !stranger.flush()? {
                return Ok(Next::Wait);
            }
            if let Side::Connecting(_) = stranger.side {
                if !sockets::is_connected(&stranger.fd)? {
                    return Ok(Next::Wait);
                }
                self.begin(stranger)?;
                continue;
            }
            match std::mem::replace(&mut stranger.side, Side::TurnedAway) {
                Side::TurnedAway => {
                    let gone = stranger.see_off();
                    return Ok(if gone { Next::Close } else { Next::Wait });
                }
                Side::Welcomed(agreed) if agreed.purpose == Purpose::Pool => {
                    self.park_peer(stranger, &agreed)?;
                }
                Side::Welcomed(agreed) => return Ok(Next::Lane(agreed)),
                side => stranger.side = side,
            }
            if matches!(stranger.side, Side::Silent) && stranger.tls.is_none() {
                match stranger.opening()? {
                    Opening::Nothing => return Ok(Next::Wait),
                    Opening::Plain => {
                        let acceptor = Acceptor::new(Proof::Node(self.psk.clone()), self.node);
                        stranger.side = Side::Acceptor(Box::new(acceptor));
                    }
                    Opening::Tls => {
                        let Some(credentials) = &self.credentials else {
                            self.count(Refusal::TlsNotConfigured);
                            tracing::warn!(peer = %stranger.peer, "TLS, but there is no [tls] here");
                            stranger.side = Side::TurnedAway;
                            stranger.unsent.extend(NO_TLS_ALERT);
                            continue;
                        };
                        stranger.tls = Some(Box::new(Pipe::accept(&credentials.server)?));
                    }
                }
            }
            let mut bytes = [0u8; READ_BYTES];
            let Got::Bytes(got) = stranger.read(&mut bytes)? else {
                return Ok(Next::Wait);
            };
            let next = if stranger.tls.is_some() {
                self.feed_tls(stranger, &bytes[..got])?
            } else {
                self.feed(stranger, &bytes[..got])?
            };
            if let Some(next) = next {
                return Ok(next);
            }
        }
    }

    /// A peer that we dialled is there.
    fn begin(&mut self, stranger: &mut Stranger) -> Result<(), DoorError> {
        let Some((session, peer)) = stranger
            .dial()
            .map(|dial| (dial.session, dial.peer.address))
        else {
            return Ok(());
        };
        let key = self.sessions.our_key(session).cloned();
        let credentials = self.credentials.as_ref();
        let credentials = credentials.filter(|ours| !ours.config().is_plain(peer));
        match (key, credentials) {
            (None, Some(credentials)) => {
                let mut pipe = Box::new(Pipe::dial(&credentials.client, peer)?);
                pipe.take_bytes(&mut stranger.unsent);
                stranger.tls = Some(pipe);
                stranger.dialled(Side::Securing);
                Ok(())
            }
            (Some(key), _) => self.say_hello(stranger, Proof::Session(key), None),
            (None, None) => self.say_hello(stranger, Proof::Node(self.psk.clone()), None),
        }
    }

    pub(super) fn say_hello(
        &mut self,
        stranger: &mut Stranger,
        proof: Proof,
        certified: Option<NodeId>,
    ) -> Result<(), DoorError> {
        let Some(dial) = stranger.dial() else {
            return Ok(());
        };
        let peer = certified.or_else(|| dial.peer.node.as_deref().map(NodeId::of_name));
        let purpose = match (dial.errand, &dial.peer.target) {
            (Errand::Pool, _) => Purpose::Pool,
            (_, None) => Purpose::Expected,
            (_, Some(name)) => Purpose::Passive {
                target: ArrayString::from(name).map_err(|_| DoorError::TargetTooLong)?,
            },
        };
        let nonce = match proof {
            Proof::Tls(_) if dial.errand != Errand::Pool => {
                self.sessions.our_half(dial.session, fresh_bytes)
            }
            _ => fresh_bytes(),
        };
        let config = InitiatorConfig {
            proof,
            node: self.node,
            peer,
            session: crate::transport::SessionId(dial.session.0),
            epoch: SessionEpoch(0),
            lane: dial.lane,
            lane_attempt: dial.attempt,
            join: Join::New,
            purpose,
            highest: wire_version(dial.offer.max_version),
            params: params(&dial.offer),
            way: dial.way,
        };
        let (initiator, hello) = Initiator::new(config, nonce.ok_or(DoorError::NoRandom)?);
        open_wide(stranger)?;
        stranger.dialled(|dial| Side::Initiator(Box::new(initiator), dial));
        stranger.say(&hello)
    }

    /// Gives bytes to TLS, and what comes out of it to the handshake inside.
    fn feed_tls(
        &mut self,
        stranger: &mut Stranger,
        bytes: &[u8],
    ) -> Result<Option<Next>, DoorError> {
        let Some(tls) = &mut stranger.tls else {
            return Ok(Some(Next::Close));
        };
        let fed = tls.feed(bytes);
        // Also after an error: the alert says why.
        tls.take_bytes(&mut stranger.unsent);
        fed?;
        if !tls.is_up() {
            return Ok(None);
        }
        if stranger.node.is_none() {
            let name = tls.peer()?;
            let node = NodeId::of_name(&name);
            let proof = Proof::Tls(tls.secret()?);
            if let Some(expected) = stranger.expected_node().filter(|known| *known != name) {
                return Err(DoorError::OtherNode {
                    expected: expected.to_owned(),
                    found: Some(name),
                });
            }
            stranger.node = Some(node);
            if let Side::Silent = stranger.side {
                stranger.side = Side::Acceptor(Box::new(Acceptor::new(proof, self.node)));
            } else {
                self.say_hello(stranger, proof, Some(node))?;
            }
        }
        let mut said = [0u8; READ_BYTES];
        loop {
            let heard = stranger.tls.as_mut().map_or(0, |tls| tls.heard(&mut said));
            if heard == 0 {
                return Ok(None);
            }
            if let Some(next) = self.feed(stranger, &said[..heard])? {
                return Ok(Some(next));
            }
        }
    }

    /// Gives bytes to the handshake. From the connection there are no more than it wanted; from TLS there
    /// may be more than one message.
    fn feed(&mut self, stranger: &mut Stranger, bytes: &[u8]) -> Result<Option<Next>, DoorError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = match &mut stranger.side {
                Side::Initiator(initiator, dial) => {
                    let (taken, step) = initiator.feed(rest).map_err(|error| match error {
                        HandshakeError::WrongPeer { .. } => DoorError::OtherNode {
                            expected: dial.peer.node.clone().unwrap_or_default(),
                            found: None,
                        },
                        error => error.into(),
                    })?;
                    match step {
                        None => {}
                        Some(InitiatorStep::Send(message)) => stranger.say(&message)?,
                        Some(InitiatorStep::Done { agreed, .. }) if dial.errand == Errand::Pool => {
                            return Ok(Some(Next::Ready(agreed.acceptor)));
                        }
                        Some(InitiatorStep::Done { agreed, .. }) => {
                            if !self.sessions.note_ours(dial.session, &agreed.key) {
                                return Err(DoorError::OtherKey);
                            }
                            return Ok(Some(Next::Lane(Box::new(agreed))));
                        }
                        Some(InitiatorStep::Refused { reason, verified }) => {
                            return Err(DoorError::Refused { reason, verified });
                        }
                    }
                    taken
                }
                Side::Acceptor(acceptor) | Side::Parked(acceptor) => {
                    let (taken, step) = acceptor.feed(rest)?;
                    if let Some(step) = step {
                        if stranger.is_parked() {
                            self.wake(stranger)?;
                        }
                        self.step(stranger, step)?;
                    }
                    taken
                }
                // It was turned away or welcomed and may say what it likes.
                _ => return Ok(None),
            };
            rest = &rest[taken..];
        }
        Ok(None)
    }

    fn step(&mut self, stranger: &mut Stranger, step: AcceptorStep) -> Result<(), DoorError> {
        match step {
            AcceptorStep::Hello(hello) => match stranger.node {
                None => self.answer_plain(stranger, &hello),
                Some(node) => self.answer_tls(stranger, &hello, node),
            },
            AcceptorStep::WrongKey(message) => {
                self.count(Refusal::WrongKey);
                tracing::warn!(peer = %stranger.peer, "a stranger does not have the key");
                stranger.side = Side::TurnedAway;
                stranger.say(&message)
            }
            AcceptorStep::Proven(proven) if proven.purpose == Purpose::Pool => {
                self.answer_parking(stranger, proven)
            }
            AcceptorStep::Proven(proven) => match self.admission_as_answered(&proven) {
                Ok(()) => self.welcome(stranger, proven),
                Err(reason) => self.refuse(stranger, reason),
            },
        }
    }

    /// Answers a HELLO that came without TLS. Nobody vouches for it, so it learns nothing of sessions.
    fn answer_plain(&mut self, stranger: &mut Stranger, hello: &Hello) -> Result<(), DoorError> {
        let known = self.sessions.get(SessionId(hello.session.0));
        let offer = known.map_or(self.offer, |known| known.offer);
        let fresh = || fresh_bytes().ok_or(DoorError::NoRandom);
        let Side::Acceptor(acceptor) = &mut stranger.side else {
            return Ok(());
        };
        if hello.by_session && hello.purpose == Purpose::Pool {
            // What is parked belongs to no session.
            return self.refuse(stranger, RefuseReason::NotYourSession);
        }
        if hello.by_session {
            // Of a session that has no key this asks for a proof that nobody can give.
            let proof = match known.and_then(super::known::Known::key) {
                Some(key) => Proof::Session(key.clone()),
                None => Proof::Node(crate::transport::wire::keys::Psk(fresh()?)),
            };
            acceptor.prove_by(proof);
        } else if let Some(credentials) = &self.credentials
            && !credentials.config().is_plain(stranger.peer)
        {
            return self.refuse(stranger, RefuseReason::TlsRequired);
        }
        let highest = wire_version(offer.max_version).min(self.max_version);
        let is_new = known.is_some_and(|known| known.is_new_dial(hello.lane, hello.lane_attempt));
        if !is_new || !acceptor.is_vouched_for() {
            let answer = acceptor.challenge(highest, params(&offer), fresh()?)?;
            return self.answered(stranger, &answer);
        }
        let (answer, proven) = acceptor.answer_at_once(highest, params(&offer), fresh()?)?;
        self.answered(stranger, &answer)?;
        match proven {
            Some(proven) => self.welcome(stranger, proven),
            None => Ok(()),
        }
    }

    /// Answers a HELLO that came over TLS from `node`.
    fn answer_tls(
        &mut self,
        stranger: &mut Stranger,
        hello: &Hello,
        node: NodeId,
    ) -> Result<(), DoorError> {
        if hello.by_session {
            return Err(DoorError::ByBoth);
        }
        if hello.node != node {
            return self.refuse(stranger, RefuseReason::WrongNode);
        }
        if hello.purpose == Purpose::Pool {
            return self.answer_parking_tls(stranger);
        }
        let session = SessionId(hello.session.0);
        if let Err(reason) = self.admission(session, &hello.purpose) {
            return self.refuse(stranger, reason);
        }
        let Some(known) = self.sessions.get(session) else {
            return self.refuse(stranger, RefuseReason::UnknownSession);
        };
        let Side::Acceptor(acceptor) = &mut stranger.side else {
            return Ok(());
        };
        let highest = wire_version(known.offer.max_version).min(self.max_version);
        let (answer, proven) =
            acceptor.answer_at_once(highest, params(&known.offer), known.half())?;
        self.answered(stranger, &answer)?;
        match proven {
            Some(proven) => self.welcome(stranger, proven),
            None => Ok(()),
        }
    }

    pub(super) fn answered(
        &self,
        stranger: &mut Stranger,
        answer: &Answer,
    ) -> Result<(), DoorError> {
        match answer {
            Answer::Challenge(message) => stranger.say(message),
            Answer::VersionMismatch(message) => {
                self.count(Refusal::Version);
                stranger.side = Side::TurnedAway;
                stranger.say(message)
            }
        }
    }

    /// Lets a lane in, if the session is this peer's.
    fn welcome(&mut self, stranger: &mut Stranger, proven: Proven) -> Result<(), DoorError> {
        if proven.purpose == Purpose::Pool {
            return self.answer_parking(stranger, proven);
        }
        let node = stranger.node;
        let Some(known) = self.sessions.get_mut(SessionId(proven.session.0)) else {
            return self.refuse(stranger, RefuseReason::UnknownSession);
        };
        if let Err(reason) = known.admit(&proven, node) {
            return self.refuse(stranger, reason);
        }
        known.note_dial(proven.lane(), proven.lane_attempt());
        let worker = known.worker;
        let Side::Acceptor(acceptor) = &mut stranger.side else {
            return Ok(());
        };
        let way = self.drivers.ways(worker).answer(proven.wanted);
        let (message, agreed) = acceptor.welcome(proven, BatchSeq(0), way)?;
        if let Way::Rdma(_) = way {
            let lane = lane_up(agreed.clone(), stranger.peer, false, LaneEnd::Agreed);
            self.drivers.expect(lane, self.workers[worker].clone());
        }
        stranger.side = Side::Welcomed(Box::new(agreed));
        self.note_admitted();
        stranger.say(&message)
    }

    pub(super) fn refuse(
        &self,
        stranger: &mut Stranger,
        reason: RefuseReason,
    ) -> Result<(), DoorError> {
        let Side::Acceptor(acceptor) = &mut stranger.side else {
            return Ok(());
        };
        let message = acceptor.refuse(reason)?;
        self.count(refusal_for(reason));
        tracing::warn!(peer = %stranger.peer, %reason, "a peer was refused");
        stranger.side = Side::TurnedAway;
        stranger.say(&message)
    }
}
