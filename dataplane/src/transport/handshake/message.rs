//! The five handshake messages as bytes, and the running hash that the proofs are made over.
//!
//! In: fields to write, or bytes of any provenance. Out: messages, or fields in range. Fields are
//! little-endian; see the structs for the layouts.

use arrayvec::ArrayString;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::wire::keys::{Psk, tags_equal};
use super::super::{BatchSeq, Version};
use super::way::RawWay;
use super::{
    HandshakeError, Join, MAX_MESSAGE_BYTES, MAX_TARGET_BYTES, MIN_WINDOW_BYTES, Message, Purpose,
    SessionParams,
};

pub const KIND_HELLO: u8 = 1;
pub const KIND_CHALLENGE: u8 = 2;
pub const KIND_PROOF: u8 = 3;
pub const KIND_WELCOME: u8 = 4;
pub const KIND_REFUSE: u8 = 5;
/// A CHALLENGE to a HELLO that proves itself: no PROOF is to follow.
pub const KIND_ANSWER: u8 = 6;

/// What a parked connection may be sent before its HELLO; it says nothing.
pub const KIND_PAD: u8 = 7;

/// In `RawHello::offers`: v1.
pub const OFFERS_V1: u8 = 1;
/// In `RawHello::offers`: v3. Bit 1 was v3 with other payloads: with a peer that knows no better, v1 is agreed on.
pub const OFFERS_V3: u8 = 4;
/// In `RawHello::offers`: the lane is proven by the session's own key.
pub const BY_SESSION: u8 = 0x80;
/// In `RawHello::offers`: baselines may be used. Who does not know the bit passes over it.
pub const WITH_BASELINES: u8 = 8;
/// In `RawChallenge::version`, and only if the HELLO offered it: baselines may be used.
pub const BASELINES_AGREED: u8 = 0x80;

/// The first bytes of every connection.
pub const MAGIC: [u8; 4] = *b"DWCP";
/// The handshake's own version: it differs where the messages do.
pub const HANDSHAKE_REVISION: u8 = 3;

const LENGTH_BYTES: usize = 2;
/// How batches are vouched for; the only way there is. 1 and 2 were other functions: a peer that knows no
/// better is refused here, not at its first batch.
const DIGEST_AEGIS_128X2: u8 = 3;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RawParams {
    page_store_bytes: U64,
    window_limit_bytes: U64,
    lanes_v1: U16,
    lanes_v3: U16,
    digest: u8,
}

/// Followed by the passive target's name.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RawHello {
    pub kind: u8,
    pub magic: [u8; 4],
    pub revision: u8,
    /// [`OFFERS_V1`], [`OFFERS_V3`], [`WITH_BASELINES`], [`BY_SESSION`].
    pub offers: u8,
    /// 0 new, 1 lane, 2 resume.
    pub join: u8,
    /// 0 expected, 1 passive, 2 pool.
    pub purpose: u8,
    pub session: [u8; 16],
    pub node: [u8; 16],
    pub epoch: U32,
    pub lane: U16,
    pub lane_attempt: U32,
    pub next_seq: U64,
    pub nonce: [u8; 32],
    pub params: RawParams,
    pub way: RawWay,
    /// Over all of the message, this field zero.
    pub mac: [u8; 32],
}

/// A connection over TLS begins with 22: no HELLO does, for the low byte of its length comes first.
const _: () = assert!(
    size_of::<RawHello>() > 22 && size_of::<RawHello>() + MAX_TARGET_BYTES < 256 + 22,
    "the first byte must tell a HELLO from a TLS record"
);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RawChallenge {
    pub kind: u8,
    /// Bit 7: [`BASELINES_AGREED`].
    pub version: u8,
    pub node: [u8; 16],
    pub nonce: [u8; 32],
    pub params: RawParams,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RawProof {
    pub kind: u8,
    pub mac: [u8; 32],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RawWelcome {
    pub kind: u8,
    pub next_seq: U64,
    pub way: RawWay,
    pub mac: [u8; 32],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RawRefuse {
    pub kind: u8,
    pub reason: u8,
    pub mac: [u8; 32],
}

impl RawParams {
    pub fn new(params: SessionParams) -> Self {
        Self {
            page_store_bytes: U64::new(params.page_store_bytes),
            window_limit_bytes: U64::new(params.window_limit_bytes),
            lanes_v1: U16::new(params.lanes_v1),
            lanes_v3: U16::new(params.lanes_v3),
            digest: DIGEST_AEGIS_128X2,
        }
    }

    /// `baselines` is said elsewhere in the message.
    pub fn parse(&self, baselines: bool) -> Result<SessionParams, HandshakeError> {
        let params = SessionParams {
            page_store_bytes: self.page_store_bytes.get(),
            window_limit_bytes: self.window_limit_bytes.get(),
            lanes_v1: self.lanes_v1.get(),
            lanes_v3: self.lanes_v3.get(),
            baselines,
        };
        if self.digest != DIGEST_AEGIS_128X2 {
            return Err(HandshakeError::BadField { field: "digest" });
        }
        if params.window_limit_bytes < MIN_WINDOW_BYTES {
            return Err(HandshakeError::BadField {
                field: "window limit",
            });
        }
        if params.lanes_v1 == 0 || params.lanes_v3 == 0 {
            return Err(HandshakeError::BadField { field: "lanes" });
        }
        Ok(params)
    }
}

impl RawChallenge {
    /// The version chosen, and whether baselines may be used.
    pub fn chosen(&self) -> Result<(Version, bool), HandshakeError> {
        let baselines = self.version & BASELINES_AGREED != 0;
        let version = Version::from_wire(self.version & !BASELINES_AGREED)
            .ok_or(HandshakeError::BadField { field: "version" })?;
        Ok((version, baselines))
    }
}

impl RawHello {
    pub fn join(&self) -> Result<Join, HandshakeError> {
        let next_seq = BatchSeq(self.next_seq.get());
        match (self.join, next_seq.0) {
            (0, 0) => Ok(Join::New),
            (1, 0) => Ok(Join::Lane),
            (2, _) => Ok(Join::Resume { next_seq }),
            _ => Err(HandshakeError::BadField { field: "join" }),
        }
    }

    /// `name` is what follows the fixed part.
    pub fn purpose(&self, name: &[u8]) -> Result<Purpose, HandshakeError> {
        let bad = HandshakeError::BadField {
            field: "passive target",
        };
        match (self.purpose, name.len()) {
            (0, 0) => Ok(Purpose::Expected),
            (2, 0) => Ok(Purpose::Pool),
            (1, 1..=MAX_TARGET_BYTES) => {
                let name = std::str::from_utf8(name).map_err(|_| bad.clone())?;
                let target = ArrayString::from(name).map_err(|_| bad)?;
                Ok(Purpose::Passive { target })
            }
            _ => Err(bad),
        }
    }

    /// The highest version that is offered and not above `highest`.
    pub fn choose_version(&self, highest: Version) -> Option<Version> {
        if self.offers & OFFERS_V3 != 0 && highest == Version::V3 {
            Some(Version::V3)
        } else if self.offers & OFFERS_V1 != 0 {
            Some(Version::V1)
        } else {
            None
        }
    }
}

/// The message whose body is `parts`, one after another.
pub fn frame(parts: [&[u8]; 2]) -> Message {
    let mut message = Message::new();
    let body_bytes = parts[0].len() + parts[1].len();
    debug_assert!(body_bytes + LENGTH_BYTES <= MAX_MESSAGE_BYTES);
    let length = (body_bytes as u16).to_le_bytes();
    for part in [&length[..], parts[0], parts[1]] {
        // Cannot fail: the largest message is a HELLO with a name, far below the limit.
        let fits = message.try_extend_from_slice(part);
        debug_assert!(fits.is_ok());
    }
    message
}

/// A message of so many bytes, its length included, that says nothing.
pub fn pad(bytes: usize) -> Message {
    let body_bytes = bytes.clamp(LENGTH_BYTES + 1, MAX_MESSAGE_BYTES) - LENGTH_BYTES;
    frame([&[KIND_PAD], &[0; MAX_MESSAGE_BYTES][..body_bytes - 1]])
}

/// The fixed-size message `T` of `kind`, which must be all of `body`.
pub fn parse_exact<T>(kind: u8, body: &[u8]) -> Result<T, HandshakeError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let found = body.first().copied().unwrap_or(0);
    let unexpected = HandshakeError::Unexpected {
        kind: found,
        body_bytes: body.len(),
    };
    if found != kind {
        return Err(unexpected);
    }
    T::read_from_bytes(body).map_err(|_| unexpected)
}

/// Gathers one message at a time from a byte stream, never a byte beyond it.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Message,
}

impl Reader {
    /// Bytes of the message that are still missing, as far as is known. Reading no more than this
    /// from the connection leaves the lane's first frame in place.
    pub fn wanted(&self) -> usize {
        self.needed().saturating_sub(self.bytes.len())
    }

    fn needed(&self) -> usize {
        match self.bytes.first_chunk::<LENGTH_BYTES>() {
            None => LENGTH_BYTES,
            Some(&length) => LENGTH_BYTES + usize::from(u16::from_le_bytes(length)),
        }
    }

    /// Takes what the current message needs from the front of `bytes`; returns how many that were
    /// and whether the message is whole.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(usize, bool), HandshakeError> {
        let mut taken = 0;
        loop {
            let needed = self.needed();
            if needed == LENGTH_BYTES && self.bytes.len() == LENGTH_BYTES
                || needed > MAX_MESSAGE_BYTES
            {
                return Err(HandshakeError::BadLength {
                    body_bytes: needed - LENGTH_BYTES,
                });
            }
            let part = &bytes[taken..bytes.len().min(taken + self.wanted())];
            if part.is_empty() {
                return Ok((taken, self.bytes.len() > LENGTH_BYTES && self.wanted() == 0));
            }
            let fits = self.bytes.try_extend_from_slice(part);
            debug_assert!(fits.is_ok());
            taken += part.len();
        }
    }

    /// The whole message, its length included.
    pub fn message(&self) -> &[u8] {
        &self.bytes
    }

    pub fn body(&self) -> &[u8] {
        self.bytes.get(LENGTH_BYTES..).unwrap_or_default()
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
    }
}

/// The hash of all messages so far: `h = hash(h before || message)`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Transcript([u8; 32]);

impl Transcript {
    #[must_use]
    pub fn with(self, message: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        hasher.update(message);
        Self(*hasher.finalize().as_bytes())
    }

    pub fn mac(&self, psk: &Psk, purpose: MacPurpose) -> [u8; 32] {
        let key = psk.derive(match purpose {
            MacPurpose::Hello => "dwcp transport 1 handshake hello",
            MacPurpose::Proof => "dwcp transport 1 handshake proof",
            MacPurpose::Welcome => "dwcp transport 1 handshake welcome",
            MacPurpose::Refuse => "dwcp transport 1 handshake refuse",
            MacPurpose::LaneSecret => "dwcp transport 1 lane secret",
        });
        *blake3::keyed_hash(&key, &self.0).as_bytes()
    }

    pub fn check(&self, psk: &Psk, purpose: MacPurpose, mac: &[u8; 32]) -> bool {
        tags_equal(&self.mac(psk, purpose), mac)
    }
}

/// What a MAC says, and with it who may say it.
#[derive(Debug, Clone, Copy)]
pub enum MacPurpose {
    Hello,
    Proof,
    Welcome,
    Refuse,
    LaneSecret,
}
