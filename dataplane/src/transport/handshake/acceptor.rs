//! The side that is dialled.
//!
//! In: a stranger's bytes, or those of a peer that TLS knows. Out: CHALLENGE, and after the proof WELCOME or
//! REFUSE as the caller decides. Nothing that a stranger says is acted upon before the proof, but for choosing which
//! offer to answer with.

use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use super::super::wire::keys::Psk;
use super::super::{BatchSeq, LaneIx, NodeId, SessionEpoch, SessionId, Version};
use super::message::{
    BASELINES_AGREED, BY_SESSION, HANDSHAKE_REVISION, KIND_ANSWER, KIND_CHALLENGE, KIND_HELLO,
    KIND_PAD, KIND_PROOF, KIND_REFUSE, KIND_WELCOME, MAGIC, MacPurpose, RawChallenge, RawHello,
    RawParams, RawProof, RawRefuse, RawWelcome, Reader, Transcript, WITH_BASELINES, frame,
    parse_exact,
};
use super::proof::Proof;
use super::way::{LaneSecret, LaneWay, RawWay, Way};
use super::{
    Agreed, HandshakeError, Join, Message, OPENING_PADDING_BYTES, Proven, Purpose, RefuseReason,
    SessionParams,
};

/// What a stranger says it wants; nobody vouches for it yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The session.
    pub session: SessionId,
    /// The node that it says it is.
    pub node: NodeId,
    /// How the lane relates to the session.
    pub join: Join,
    /// Who the session is for.
    pub purpose: Purpose,
    /// The lane is to be proven by the session's own key: see [`Acceptor::prove_by`].
    pub by_session: bool,
    /// Its nonce; over TLS its half of the session's key.
    pub nonce: [u8; 32],
    /// Which lane.
    pub lane: LaneIx,
    /// Which dial of that lane.
    pub lane_attempt: u32,
}

/// What to do next.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "lives for one step of a cold path"
)]
pub enum AcceptorStep {
    /// Answer with [`Acceptor::challenge`], over TLS with [`Acceptor::answer_at_once`], also when the session is unknown (a stranger must not
    /// learn which exist), or with [`Acceptor::refuse`] when there is no room at all.
    Hello(Hello),
    /// The peer has the key. Answer with [`Acceptor::welcome`] or [`Acceptor::refuse`].
    Proven(Proven),
    /// The proof does not fit: write this refusal and close.
    WrongKey(Message),
}

/// What [`Acceptor::challenge`] came to.
#[derive(Debug)]
pub enum Answer {
    /// Write it and go on.
    Challenge(Message),
    /// No version in common: write it and close.
    VersionMismatch(Message),
}

/// A HELLO that was taken.
#[derive(Debug)]
struct Pending {
    raw: RawHello,
    /// What its MAC is over.
    said: Transcript,
    hello: Hello,
    proposal: SessionParams,
    wanted: Way,
}

#[derive(Debug)]
enum State {
    WaitHello,
    Challenging(Box<Pending>),
    WaitProof(Box<Agreed>),
    Deciding,
    Ended,
}

/// See the module.
#[derive(Debug)]
pub struct Acceptor {
    proof: Proof,
    mac_key: Psk,
    node: NodeId,
    reader: Reader,
    transcript: Transcript,
    state: State,
    /// Bytes of padding that may still come before HELLO.
    padding_left: usize,
}

impl Acceptor {
    /// One that lets peers in by `proof`.
    #[must_use]
    pub fn new(proof: Proof, node: NodeId) -> Self {
        let (reader, transcript) = (Reader::default(), Transcript::default());
        Self {
            mac_key: proof.mac_key(),
            proof,
            node,
            reader,
            transcript,
            state: State::WaitHello,
            padding_left: OPENING_PADDING_BYTES,
        }
    }

    /// One on a connection that is parked: before HELLO there may be so many bytes of padding instead.
    #[must_use]
    pub fn parked(proof: Proof, node: NodeId, padding_bytes: usize) -> Self {
        Self {
            padding_left: padding_bytes,
            ..Self::new(proof, node)
        }
    }

    /// Bytes to read next at most.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.reader.wanted()
    }

    /// Takes bytes from the connection; returns how many it took and what to do.
    ///
    /// # Errors
    /// [`HandshakeError`]; close the connection.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(usize, Option<AcceptorStep>), HandshakeError> {
        if !matches!(self.state, State::WaitHello | State::WaitProof(_)) {
            return Err(HandshakeError::OutOfTurn);
        }
        let (taken, whole) = self.reader.feed(bytes)?;
        if !whole {
            return Ok((taken, None));
        }
        if matches!(self.state, State::WaitHello) && self.reader.body().first() == Some(&KIND_PAD) {
            let left = self.padding_left.checked_sub(self.reader.message().len());
            self.padding_left = left.ok_or(HandshakeError::TooMuchPadding)?;
            self.reader.clear();
            return Ok((taken, None));
        }
        let step = match std::mem::replace(&mut self.state, State::Ended) {
            State::WaitHello => self.on_hello()?,
            State::WaitProof(agreed) => self.on_proof(*agreed)?,
            _ => return Err(HandshakeError::OutOfTurn),
        };
        self.reader.clear();
        Ok((taken, Some(step)))
    }

    fn on_hello(&mut self) -> Result<AcceptorStep, HandshakeError> {
        let body = self.reader.body();
        let kind = body.first().copied().unwrap_or(0);
        let unexpected = HandshakeError::Unexpected {
            kind,
            body_bytes: body.len(),
        };
        let Ok((raw, name)) = RawHello::read_from_prefix(body) else {
            return Err(unexpected);
        };
        if kind != KIND_HELLO || raw.magic != MAGIC || raw.revision != HANDSHAKE_REVISION {
            return Err(unexpected);
        }
        let hello = Hello {
            session: SessionId(raw.session),
            node: NodeId(raw.node),
            join: raw.join()?,
            purpose: raw.purpose(name)?,
            by_session: raw.offers & BY_SESSION != 0,
            nonce: raw.nonce,
            lane: LaneIx(raw.lane.get()),
            lane_attempt: raw.lane_attempt.get(),
        };
        let bare = RawHello {
            mac: [0; 32],
            ..raw
        };
        let said = Transcript::default().with(&frame([bare.as_bytes(), name]));
        let proposal = raw.params.parse(raw.offers & WITH_BASELINES != 0)?;
        let wanted = raw.way.parse()?;
        self.transcript = self.transcript.with(self.reader.message());
        self.state = State::Challenging(Box::new(Pending {
            raw,
            said,
            hello: hello.clone(),
            proposal,
            wanted,
        }));
        Ok(AcceptorStep::Hello(hello))
    }

    /// From here on the peer has to prove this; call it before anything is answered.
    pub fn prove_by(&mut self, proof: Proof) {
        self.mac_key = proof.mac_key();
        self.proof = proof;
    }

    /// Was the HELLO at hand made by somebody who has what proves the lane? Whoever recorded it can say it again:
    /// only one that was not heard before proves anything.
    #[must_use]
    pub fn is_vouched_for(&self) -> bool {
        match &self.state {
            State::Challenging(pending) => {
                let mac = &pending.raw.mac;
                pending.said.check(&self.mac_key, MacPurpose::Hello, mac)
            }
            _ => false,
        }
    }

    /// Answers a HELLO over TLS, or one that [`Acceptor::is_vouched_for`] and was not heard before, with what this
    /// side can do; the peer is proven. `nonce` is as for [`Acceptor::challenge`], over TLS this side's half
    /// of the session's key, the same on all its lanes. Write the message and go on with
    /// [`Acceptor::welcome`] or [`Acceptor::refuse`].
    ///
    /// # Errors
    /// As [`Acceptor::challenge`]; [`HandshakeError::OutOfTurn`] also for any other HELLO.
    pub fn answer_at_once(
        &mut self,
        highest: Version,
        params: SessionParams,
        nonce: [u8; 32],
    ) -> Result<(Answer, Option<Proven>), HandshakeError> {
        if !self.proof.needs_no_answer() && !self.is_vouched_for() {
            return Err(HandshakeError::OutOfTurn);
        }
        let answer = self.answer(KIND_ANSWER, highest, params, nonce)?;
        match std::mem::replace(&mut self.state, State::Deciding) {
            State::WaitProof(agreed) => {
                self.reader.clear();
                Ok((answer, Some(Proven::of(*agreed))))
            }
            ended => {
                self.state = ended;
                Ok((answer, None))
            }
        }
    }

    /// Answers a HELLO with what this side can do. `nonce` must be fresh from the system's random source.
    ///
    /// # Errors
    /// [`HandshakeError::OutOfTurn`] unless a HELLO was just taken; [`HandshakeError::BadField`]
    /// when `params` leave nothing to work with.
    pub fn challenge(
        &mut self,
        highest: Version,
        params: SessionParams,
        nonce: [u8; 32],
    ) -> Result<Answer, HandshakeError> {
        self.answer(KIND_CHALLENGE, highest, params, nonce)
    }

    fn answer(
        &mut self,
        kind: u8,
        highest: Version,
        params: SessionParams,
        nonce: [u8; 32],
    ) -> Result<Answer, HandshakeError> {
        let State::Challenging(pending) = std::mem::replace(&mut self.state, State::Ended) else {
            return Err(HandshakeError::OutOfTurn);
        };
        let Pending {
            raw,
            hello,
            proposal,
            wanted,
            ..
        } = *pending;
        let Some(version) = raw.choose_version(highest) else {
            let message = self.refusal(RefuseReason::VersionMismatch);
            return Ok(Answer::VersionMismatch(message));
        };
        let least = proposal.least(params);
        let baselines = least.baselines && version == Version::V3;
        let answer = RawParams::new(least);
        let challenge = RawChallenge {
            kind,
            version: version as u8 | if baselines { BASELINES_AGREED } else { 0 },
            node: self.node.0,
            nonce,
            params: answer,
        };
        let epoch = SessionEpoch(raw.epoch.get());
        let agreed = Agreed {
            session: hello.session,
            epoch,
            initiator: hello.node,
            acceptor: self.node,
            lane: LaneIx(raw.lane.get()),
            lane_attempt: raw.lane_attempt.get(),
            join: hello.join,
            purpose: hello.purpose,
            version,
            params: answer.parse(baselines)?,
            key: self.proof.session_key(
                (hello.session, hello.node, self.node, epoch),
                [&raw.nonce, &nonce],
            ),
            // As it is until the caller decides, with the WELCOME.
            way: LaneWay {
                initiator: wanted,
                acceptor: Way::Tcp,
                secret: LaneSecret([0; 32]),
            },
        };
        let message = frame([challenge.as_bytes(), &[]]);
        self.transcript = self.transcript.with(&message);
        self.state = State::WaitProof(Box::new(agreed));
        Ok(Answer::Challenge(message))
    }

    fn on_proof(&mut self, agreed: Agreed) -> Result<AcceptorStep, HandshakeError> {
        let proof: RawProof = parse_exact(KIND_PROOF, self.reader.body())?;
        let fits = self
            .transcript
            .check(&self.mac_key, MacPurpose::Proof, &proof.mac);
        self.transcript = self.transcript.with(self.reader.message());
        if !fits {
            return Ok(AcceptorStep::WrongKey(self.refusal(RefuseReason::WrongKey)));
        }
        self.state = State::Deciding;
        Ok(AcceptorStep::Proven(Proven::of(agreed)))
    }

    /// Lets the proven peer in. `next_seq` is the batch that this side hands up next, 0 for a new
    /// session; `way` is this side's end of the lane: of the driver that the peer wanted, or TCP.
    /// Frames may follow.
    ///
    /// # Errors
    /// [`HandshakeError::OutOfTurn`] unless the peer was just proven, or for a way that it did not ask for.
    pub fn welcome(
        &mut self,
        proven: Proven,
        next_seq: BatchSeq,
        way: Way,
    ) -> Result<(Message, Agreed), HandshakeError> {
        let State::Deciding = std::mem::replace(&mut self.state, State::Ended) else {
            return Err(HandshakeError::OutOfTurn);
        };
        if way != Way::Tcp && !way.fits(proven.wanted) {
            return Err(HandshakeError::OutOfTurn);
        }
        let next_seq = U64::new(next_seq.0);
        let raw_way = RawWay::new(way);
        let said = self
            .transcript
            .with(&[KIND_WELCOME])
            .with(next_seq.as_bytes())
            .with(raw_way.as_bytes());
        let mut agreed = proven.agreed;
        agreed.way = LaneWay {
            initiator: if way == Way::Tcp {
                Way::Tcp
            } else {
                proven.wanted
            },
            acceptor: way,
            secret: LaneSecret(said.mac(&self.mac_key, MacPurpose::LaneSecret)),
        };
        let welcome = RawWelcome {
            kind: KIND_WELCOME,
            next_seq,
            way: raw_way,
            mac: said.mac(&self.mac_key, MacPurpose::Welcome),
        };
        Ok((frame([welcome.as_bytes(), &[]]), agreed))
    }

    /// Turns the peer away, after a HELLO or after the proof.
    ///
    /// # Errors
    /// [`HandshakeError::OutOfTurn`] at any other time.
    pub fn refuse(&mut self, reason: RefuseReason) -> Result<Message, HandshakeError> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Challenging(_) | State::Deciding => Ok(self.refusal(reason)),
            _ => Err(HandshakeError::OutOfTurn),
        }
    }

    fn refusal(&self, reason: RefuseReason) -> Message {
        let said = self.transcript.with(&[KIND_REFUSE, reason as u8]);
        let mac = said.mac(&self.mac_key, MacPurpose::Refuse);
        frame([
            RawRefuse {
                kind: KIND_REFUSE,
                reason: reason as u8,
                mac,
            }
            .as_bytes(),
            &[],
        ])
    }
}
