//! The side that dials.
//!
//! In: the acceptor's bytes. Out: HELLO, PROOF, and the agreement or the refusal.

use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::{U16, U32, U64};

use super::super::wire::keys::Psk;
use super::super::{BatchSeq, LaneIx, NodeId, SessionEpoch, SessionId, Version};
use super::message::{
    BY_SESSION, HANDSHAKE_REVISION, KIND_ANSWER, KIND_CHALLENGE, KIND_HELLO, KIND_PROOF,
    KIND_REFUSE, KIND_WELCOME, MAGIC, MacPurpose, OFFERS_V1, OFFERS_V3, RawChallenge, RawHello,
    RawParams, RawProof, RawRefuse, RawWelcome, Reader, Transcript, WITH_BASELINES, frame,
    parse_exact,
};
use super::proof::Proof;
use super::way::{LaneSecret, LaneWay, RawWay, Way};
use super::{Agreed, HandshakeError, Join, Message, Purpose, RefuseReason, SessionParams};

/// What the initiator brings.
#[derive(Debug, Clone)]
pub struct InitiatorConfig {
    /// What the lane is proven by.
    pub proof: Proof,
    /// This node.
    pub node: NodeId,
    /// The node that must answer; `None` takes any that has the proof.
    pub peer: Option<NodeId>,
    /// The session.
    pub session: SessionId,
    /// The attempt at it.
    pub epoch: SessionEpoch,
    /// Which lane.
    pub lane: LaneIx,
    /// Which dial of that lane.
    pub lane_attempt: u32,
    /// How the lane relates to the session.
    pub join: Join,
    /// Who the session is for.
    pub purpose: Purpose,
    /// Versions up to this are offered; v1 always is.
    pub highest: Version,
    /// What this side can do.
    pub params: SessionParams,
    /// What this side wants the lane to run over.
    pub way: Way,
}

/// What to do next.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "lives for one step of a cold path"
)]
pub enum InitiatorStep {
    /// Write this.
    Send(Message),
    /// Frames may follow on this connection.
    Done {
        /// What both agreed on.
        agreed: Agreed,
        /// The batch that the acceptor hands up next: all below have come.
        peer_next_seq: BatchSeq,
    },
    /// Close the connection.
    Refused {
        /// Why, as the acceptor says.
        reason: RefuseReason,
        /// The refusal is made with the shared key. Without that anybody on the path may have said
        /// it: dial again until the caller's deadline.
        verified: bool,
    },
}

#[derive(Debug)]
enum Waiting {
    Challenge,
    Welcome { challenge: RawChallenge },
    Nothing,
}

/// See the module.
#[derive(Debug)]
pub struct Initiator {
    config: InitiatorConfig,
    mac_key: Psk,
    nonce: [u8; 32],
    reader: Reader,
    transcript: Transcript,
    waiting: Waiting,
}

impl Initiator {
    /// The machine and its HELLO. `nonce` must be fresh from the system's random source; over TLS, with
    /// [`Proof::Tls`], it is this side's half of the session's key, the same on all its lanes.
    #[must_use]
    pub fn new(config: InitiatorConfig, nonce: [u8; 32]) -> (Self, Message) {
        let (join, next_seq) = match config.join {
            Join::New => (0, 0),
            Join::Lane => (1, 0),
            Join::Resume { next_seq } => (2, next_seq.0),
        };
        let (purpose, name) = match &config.purpose {
            Purpose::Expected => (0, ""),
            Purpose::Passive { target } => (1, target.as_str()),
            Purpose::Pool => (2, ""),
        };
        let versions = match (config.highest, config.params.baselines) {
            (Version::V3, true) => OFFERS_V1 | OFFERS_V3 | WITH_BASELINES,
            (Version::V3, false) => OFFERS_V1 | OFFERS_V3,
            (Version::V1, _) => OFFERS_V1,
        };
        let offers = match config.proof {
            Proof::Session(_) => versions | BY_SESSION,
            _ => versions,
        };
        let mut hello = RawHello {
            kind: KIND_HELLO,
            magic: MAGIC,
            revision: HANDSHAKE_REVISION,
            offers,
            join,
            purpose,
            session: config.session.0,
            node: config.node.0,
            epoch: U32::new(config.epoch.0),
            lane: U16::new(config.lane.0),
            lane_attempt: U32::new(config.lane_attempt),
            next_seq: U64::new(next_seq),
            nonce,
            params: RawParams::new(config.params),
            way: RawWay::new(config.way),
            mac: [0; 32],
        };
        let mac_key = config.proof.mac_key();
        let said = Transcript::default().with(&frame([hello.as_bytes(), name.as_bytes()]));
        hello.mac = said.mac(&mac_key, MacPurpose::Hello);
        let message = frame([hello.as_bytes(), name.as_bytes()]);
        let transcript = Transcript::default().with(&message);
        let reader = Reader::default();
        (
            Self {
                mac_key,
                config,
                nonce,
                reader,
                transcript,
                waiting: Waiting::Challenge,
            },
            message,
        )
    }

    /// Bytes to read next at most; frames may follow right behind them.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.reader.wanted()
    }

    /// Takes bytes from the connection; returns how many it took and what to do. Bytes not taken
    /// belong to the next message or to the lane: feed again unless it was the last one.
    ///
    /// # Errors
    /// [`HandshakeError`]; close the connection.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(usize, Option<InitiatorStep>), HandshakeError> {
        if matches!(self.waiting, Waiting::Nothing) {
            return Err(HandshakeError::OutOfTurn);
        }
        let (taken, whole) = self.reader.feed(bytes)?;
        if !whole {
            return Ok((taken, None));
        }
        let waiting = std::mem::replace(&mut self.waiting, Waiting::Nothing);
        let body = self.reader.body();
        let step = if body.first() == Some(&KIND_REFUSE) {
            Some(self.on_refuse()?)
        } else {
            match waiting {
                Waiting::Challenge => self.on_challenge()?,
                Waiting::Welcome { challenge } => Some(self.on_welcome(&challenge)?),
                Waiting::Nothing => return Err(HandshakeError::OutOfTurn),
            }
        };
        self.reader.clear();
        Ok((taken, step))
    }

    fn on_refuse(&self) -> Result<InitiatorStep, HandshakeError> {
        let refuse: RawRefuse = parse_exact(KIND_REFUSE, self.reader.body())?;
        let reason = RefuseReason::from_wire(refuse.reason)
            .ok_or(HandshakeError::BadField { field: "reason" })?;
        let said = self.transcript.with(&[refuse.kind, refuse.reason]);
        let verified = said.check(&self.mac_key, MacPurpose::Refuse, &refuse.mac);
        Ok(InitiatorStep::Refused { reason, verified })
    }

    fn on_challenge(&mut self) -> Result<Option<InitiatorStep>, HandshakeError> {
        let body = self.reader.body();
        // TLS has proven this side already; by a key HELLO may have.
        let at_once = body.first() == Some(&KIND_ANSWER);
        let kind = if at_once || self.config.proof.needs_no_answer() {
            KIND_ANSWER
        } else {
            KIND_CHALLENGE
        };
        let challenge: RawChallenge = parse_exact(kind, body)?;
        let (version, baselines) = challenge.chosen()?;
        if version > self.config.highest || (baselines && version != Version::V3) {
            return Err(HandshakeError::BeyondProposal { field: "version" });
        }
        let answer = challenge.params.parse(baselines)?;
        if answer.least(self.config.params) != answer {
            return Err(HandshakeError::BeyondProposal {
                field: "parameters",
            });
        }
        let got = NodeId(challenge.node);
        if let Some(expected) = self.config.peer.filter(|&expected| expected != got) {
            return Err(HandshakeError::WrongPeer { expected, got });
        }
        self.transcript = self.transcript.with(self.reader.message());
        if at_once {
            self.waiting = Waiting::Welcome { challenge };
            return Ok(None);
        }
        let mac = self.transcript.mac(&self.mac_key, MacPurpose::Proof);
        let message = frame([
            RawProof {
                kind: KIND_PROOF,
                mac,
            }
            .as_bytes(),
            &[],
        ]);
        self.transcript = self.transcript.with(&message);
        self.waiting = Waiting::Welcome { challenge };
        Ok(Some(InitiatorStep::Send(message)))
    }

    fn on_welcome(&self, challenge: &RawChallenge) -> Result<InitiatorStep, HandshakeError> {
        let welcome: RawWelcome = parse_exact(KIND_WELCOME, self.reader.body())?;
        let said = self
            .transcript
            .with(&[welcome.kind])
            .with(welcome.next_seq.as_bytes())
            .with(welcome.way.as_bytes());
        if !said.check(&self.mac_key, MacPurpose::Welcome, &welcome.mac) {
            return Err(HandshakeError::WrongKey);
        }
        let config = &self.config;
        let answer = welcome.way.parse()?;
        if answer != Way::Tcp && !answer.fits(config.way) {
            return Err(HandshakeError::BeyondProposal { field: "driver" });
        }
        let way = LaneWay {
            initiator: if answer == Way::Tcp {
                Way::Tcp
            } else {
                config.way
            },
            acceptor: answer,
            secret: LaneSecret(said.mac(&self.mac_key, MacPurpose::LaneSecret)),
        };
        let (version, baselines) = challenge.chosen()?;
        let acceptor = NodeId(challenge.node);
        let (session, epoch, initiator) = (config.session, config.epoch, config.node);
        let agreed = Agreed {
            session,
            epoch,
            initiator,
            acceptor,
            lane: config.lane,
            lane_attempt: config.lane_attempt,
            join: config.join,
            purpose: config.purpose.clone(),
            version,
            params: challenge.params.parse(baselines)?,
            key: config.proof.session_key(
                (session, initiator, acceptor, epoch),
                [&self.nonce, &challenge.nonce],
            ),
            way,
        };
        let peer_next_seq = BatchSeq(welcome.next_seq.get());
        Ok(InitiatorStep::Done {
            agreed,
            peer_next_seq,
        })
    }
}
