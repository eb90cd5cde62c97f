//! Unsequenced control frames: ACK, PING, PONG, BYE.
//!
//! In: what one end tells the other about the sequence, the time and the end. Out: sealed frames;
//! at the other end the newest statement of each kind. Promise: a changed, forged or reflected
//! frame is an error; a repeated one, or one overtaken by a newer of its kind, is ignored, so that
//! the frame may take any lane. Layout, little-endian:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 1 | kind: 0x10 ACK, 0x11 PING, 0x12 PONG, 0x13 BYE |
//! | 1 | 1 | ACK: entries; BYE: reason; otherwise 0 |
//! | 2 | 2 | zero |
//! | 4 | 4 | attempt at the session |
//! | 8 | 8 | control sequence: rises by one with each control frame of the direction |
//! | 16 | – | ACK: next_seq 8, sack 32, total_delivered 8, echo 8, echo_held 8, entries of 2 + 8 |
//! | 16 | 8 | PING: timestamp; PONG: the PING's timestamp |
//! | end | 16 | keyed tag over all before it |

use arrayvec::ArrayVec;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::{BatchSeq, ChannelId, MAX_CHANNELS, MAX_IN_FLIGHT, Nanos, SessionEpoch};
use super::WireError;
use super::keys::{FrameKeys, tags_equal};

/// Channels that one ACK can name; more take turns.
pub const MAX_ACK_CHANNELS: usize = 64;
/// A buffer of this size takes any control frame.
pub const MAX_CONTROL_BYTES: usize = HEAD_BYTES + ACK_BYTES + MAX_ACK_CHANNELS * 10 + TAG_BYTES;

const HEAD_BYTES: usize = 16;
const ACK_BYTES: usize = 64;
const TAG_BYTES: usize = 16;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Head {
    kind: u8,
    detail: u8,
    zero: U16,
    epoch: U32,
    control_seq: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct AckBody {
    next_seq: U64,
    sack: [u8; MAX_IN_FLIGHT / 8],
    total_delivered: U64,
    echo: U64,
    echo_held: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct AckEntry {
    channel: U16,
    bytes: U64,
}

const _: () = assert!(size_of::<Head>() == HEAD_BYTES && size_of::<AckBody>() == ACK_BYTES);

/// Which of the batches from `next_seq` on have come: bit `i` stands for `next_seq + i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sack(pub [u8; MAX_IN_FLIGHT / 8]);

impl Sack {
    /// Marks `next_seq + ahead` as come.
    pub fn set(&mut self, ahead: usize) {
        if let Some(byte) = self.0.get_mut(ahead / 8) {
            *byte |= 1 << (ahead % 8);
        }
    }

    /// Has `next_seq + ahead` come?
    #[must_use]
    pub fn get(&self, ahead: usize) -> bool {
        self.0
            .get(ahead / 8)
            .is_some_and(|byte| byte & (1 << (ahead % 8)) != 0)
    }

    /// The highest place marked.
    #[must_use]
    pub fn highest(&self) -> Option<usize> {
        let at = self.0.iter().rposition(|&byte| byte != 0)?;
        Some(at * 8 + 7 - self.0[at].leading_zeros() as usize)
    }
}

/// What has come and what the hypervisor has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Every batch below has come, its header is verified, and it was handed up. The sender may be
    /// 256 batches ahead of this, so it must not run ahead of the receiver's ring.
    pub next_seq: BatchSeq,
    /// Batches from there on that have come too.
    pub sack: Sack,
    /// Raw bytes that the hypervisor has taken, over all channels.
    pub total_delivered_bytes: u64,
    /// Timestamp of the newest PING, if any came.
    pub echo: Option<Nanos>,
    /// How long that PING's timestamp lay here, so that the round trip can be told exactly.
    pub echo_held_ns: u64,
    /// Raw bytes that the hypervisor has taken, by channel.
    pub delivered: ArrayVec<(ChannelId, u64), MAX_ACK_CHANNELS>,
}

/// Why a session's end is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ByeReason {
    /// All channels are closed and delivered.
    Done = 1,
    /// An ABORT was sent or taken.
    Aborted = 2,
    /// The node goes out of service.
    Shutdown = 3,
}

/// A control frame's meaning.
#[allow(
    clippy::large_enum_variant,
    reason = "ACKs are the rule, and a box would be an allocation"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlFrame {
    /// See [`Ack`].
    Ack(Ack),
    /// Answer at once with a PONG.
    Ping(Nanos),
    /// The PING that it answers carried this timestamp.
    Pong(Nanos),
    /// Nothing more comes from here.
    Bye(ByeReason),
}

/// Seals the control frames of one direction.
#[derive(Debug)]
pub struct ControlSealer {
    keys: FrameKeys,
    epoch: SessionEpoch,
    control_seq: u64,
}

/// Opens the control frames of one direction, newest first of each kind.
#[derive(Debug)]
pub struct ControlOpener {
    keys: FrameKeys,
    epoch: SessionEpoch,
    newest_by_kind: [u64; 4],
}

impl ControlSealer {
    /// One for the life of the session, so that the control sequence never falls back.
    #[must_use]
    pub fn new(keys: FrameKeys, epoch: SessionEpoch) -> Self {
        Self {
            keys,
            epoch,
            control_seq: 0,
        }
    }

    /// Writes `frame` into `out` and returns its length.
    pub fn seal(&mut self, frame: &ControlFrame, out: &mut [u8; MAX_CONTROL_BYTES]) -> usize {
        self.control_seq += 1;
        let mut writer = ArrayVec::<u8, MAX_CONTROL_BYTES>::new();
        let mut put = |bytes: &[u8]| {
            // Cannot fail: MAX_CONTROL_BYTES is the sum of all parts.
            let fits = writer.try_extend_from_slice(bytes);
            debug_assert!(fits.is_ok());
        };
        let (kind, detail) = match frame {
            ControlFrame::Ack(ack) => (0x10, ack.delivered.len() as u8),
            ControlFrame::Ping(_) => (0x11, 0),
            ControlFrame::Pong(_) => (0x12, 0),
            ControlFrame::Bye(reason) => (0x13, *reason as u8),
        };
        let head = Head {
            kind,
            detail,
            zero: U16::ZERO,
            epoch: U32::new(self.epoch.0),
            control_seq: U64::new(self.control_seq),
        };
        put(head.as_bytes());
        match frame {
            ControlFrame::Ack(ack) => {
                let body = AckBody {
                    next_seq: U64::new(ack.next_seq.0),
                    sack: ack.sack.0,
                    total_delivered: U64::new(ack.total_delivered_bytes),
                    // Zero stands for none; a PING at the clock's zero goes unechoed, no harm.
                    echo: U64::new(ack.echo.map_or(0, |at| at.0)),
                    echo_held: U64::new(ack.echo_held_ns),
                };
                put(body.as_bytes());
                for &(channel, bytes) in &ack.delivered {
                    let entry = AckEntry {
                        channel: U16::new(channel.0),
                        bytes: U64::new(bytes),
                    };
                    put(entry.as_bytes());
                }
            }
            ControlFrame::Ping(at) | ControlFrame::Pong(at) => put(&at.0.to_le_bytes()),
            ControlFrame::Bye(_) => {}
        }
        let tag = control_tag(&self.keys, &writer);
        let used = writer.len();
        out[..used].copy_from_slice(&writer);
        out[used..used + TAG_BYTES].copy_from_slice(&tag);
        used + TAG_BYTES
    }
}

impl ControlOpener {
    /// One for the life of the session, so that a repeat is known as one.
    #[must_use]
    pub fn new(keys: FrameKeys, epoch: SessionEpoch) -> Self {
        Self {
            keys,
            epoch,
            newest_by_kind: [0; 4],
        }
    }

    /// The frame's meaning, or `None` when it is a repeat or was overtaken by a newer of its kind.
    ///
    /// # Errors
    /// [`WireError`]; the session must end.
    pub fn open(&mut self, frame: &[u8]) -> Result<Option<ControlFrame>, WireError> {
        if frame.len() > MAX_CONTROL_BYTES {
            return Err(WireError::TooLong {
                frame_bytes: frame.len(),
            });
        }
        let Some((signed, tag)) = frame.split_last_chunk::<TAG_BYTES>() else {
            return Err(WireError::TooShort {
                frame_bytes: frame.len(),
                needed_bytes: TAG_BYTES,
            });
        };
        if !tags_equal(&control_tag(&self.keys, signed), tag) {
            return Err(WireError::BadTag);
        }
        let parsed = parse_control_layout(signed)?;
        if parsed.epoch != self.epoch {
            return Err(WireError::WrongEpoch {
                expected: self.epoch,
                got: parsed.epoch,
            });
        }
        let newest = match parsed.frame {
            ControlFrame::Ack(_) => &mut self.newest_by_kind[0],
            ControlFrame::Ping(_) => &mut self.newest_by_kind[1],
            ControlFrame::Pong(_) => &mut self.newest_by_kind[2],
            ControlFrame::Bye(_) => &mut self.newest_by_kind[3],
        };
        if parsed.control_seq <= *newest {
            return Ok(None);
        }
        *newest = parsed.control_seq;
        Ok(Some(parsed.frame))
    }
}

/// A control frame's fields before anybody vouches for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlLayout {
    /// The attempt it says it belongs to.
    pub epoch: SessionEpoch,
    /// Its place among the direction's control frames.
    pub control_seq: u64,
    /// Its meaning.
    pub frame: ControlFrame,
}

/// Checks lengths and fields alone; `signed` is the frame without its tag.
///
/// # Errors
/// [`WireError`] for anything that no sender may write.
pub fn parse_control_layout(signed: &[u8]) -> Result<ControlLayout, WireError> {
    let short = |needed_bytes| WireError::TooShort {
        frame_bytes: signed.len(),
        needed_bytes,
    };
    let bad = |field, value: u64| WireError::BadField { field, value };
    let (head, body) = Head::ref_from_prefix(signed).map_err(|_| short(HEAD_BYTES))?;
    if head.zero != U16::ZERO {
        return Err(bad("zero", u64::from(head.zero.get())));
    }
    let frame = match head.kind {
        0x10 => ControlFrame::Ack(parse_ack(usize::from(head.detail), body)?),
        0x11 | 0x12 => {
            if head.detail != 0 {
                return Err(bad("detail", u64::from(head.detail)));
            }
            let bytes: [u8; 8] = body.try_into().map_err(|_| short(HEAD_BYTES + 8))?;
            let at = Nanos(u64::from_le_bytes(bytes));
            if head.kind == 0x11 {
                ControlFrame::Ping(at)
            } else {
                ControlFrame::Pong(at)
            }
        }
        0x13 => {
            if !body.is_empty() {
                return Err(bad("length", signed.len() as u64));
            }
            ControlFrame::Bye(match head.detail {
                1 => ByeReason::Done,
                2 => ByeReason::Aborted,
                3 => ByeReason::Shutdown,
                other => return Err(bad("bye reason", u64::from(other))),
            })
        }
        kind => return Err(WireError::UnknownKind { kind }),
    };
    let control_seq = head.control_seq.get();
    Ok(ControlLayout {
        epoch: SessionEpoch(head.epoch.get()),
        control_seq,
        frame,
    })
}

fn parse_ack(count: usize, body: &[u8]) -> Result<Ack, WireError> {
    let bad = |field, value: u64| WireError::BadField { field, value };
    if count > MAX_ACK_CHANNELS {
        return Err(bad("entries", count as u64));
    }
    let (fixed, rest) = AckBody::ref_from_prefix(body).map_err(|_| WireError::TooShort {
        frame_bytes: body.len(),
        needed_bytes: ACK_BYTES,
    })?;
    let entries = <[AckEntry]>::ref_from_bytes_with_elems(rest, count)
        .map_err(|_| bad("length", body.len() as u64))?;
    let sack = Sack(fixed.sack);
    let mut delivered = ArrayVec::new();
    for entry in entries {
        let channel = ChannelId(entry.channel.get());
        if usize::from(channel.0) >= MAX_CHANNELS {
            return Err(WireError::ChannelOutOfRange { channel });
        }
        delivered.push((channel, entry.bytes.get()));
    }
    Ok(Ack {
        next_seq: BatchSeq(fixed.next_seq.get()),
        sack,
        total_delivered_bytes: fixed.total_delivered.get(),
        echo: Some(Nanos(fixed.echo.get())).filter(|at| at.0 != 0),
        echo_held_ns: fixed.echo_held.get(),
        delivered,
    })
}

fn control_tag(keys: &FrameKeys, signed: &[u8]) -> [u8; TAG_BYTES] {
    let mut tag = [0; TAG_BYTES];
    tag.copy_from_slice(&blake3::keyed_hash(&keys.control, signed).as_bytes()[..TAG_BYTES]);
    tag
}

#[cfg(test)]
mod tests {
    use super::super::keys::{Direction, Psk, SessionKey};
    use super::*;
    use crate::transport::{NodeId, SessionId};

    fn pair(epoch: u32) -> (ControlSealer, ControlOpener) {
        let (a, b) = (NodeId::of_name("a"), NodeId::of_name("b"));
        let epoch = SessionEpoch(epoch);
        let key = SessionKey::derive(&Psk([7; 32]), SessionId([1; 16]), a, b, SessionEpoch(0));
        let keys = key.frame_keys(Direction::ToAcceptor);
        (
            ControlSealer::new(keys.clone(), epoch),
            ControlOpener::new(keys, epoch),
        )
    }

    fn sample_ack() -> Ack {
        let mut sack = Sack::default();
        sack.set(1);
        sack.set(255);
        assert_eq!(sack.highest(), Some(255));
        Ack {
            next_seq: BatchSeq(12),
            sack,
            total_delivered_bytes: 99,
            echo: Some(Nanos(5)),
            echo_held_ns: 3,
            delivered: (0..64).map(|i| (ChannelId(i), u64::from(i) * 7)).collect(),
        }
    }

    fn all() -> [ControlFrame; 4] {
        [
            ControlFrame::Ack(sample_ack()),
            ControlFrame::Ping(Nanos(1)),
            ControlFrame::Pong(Nanos(2)),
            ControlFrame::Bye(ByeReason::Done),
        ]
    }

    #[test]
    fn frames_survive_the_trip_and_every_bit_is_covered() {
        let (mut sealer, mut opener) = pair(0);
        for frame in all() {
            let mut out = [0; MAX_CONTROL_BYTES];
            let n = sealer.seal(&frame, &mut out);
            for bit in 0..n * 8 {
                let mut changed = out[..n].to_vec();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(opener.open(&changed), Err(WireError::BadTag), "bit {bit}");
            }
            assert_eq!(opener.open(&out[..n]).unwrap(), Some(frame));
        }
    }

    #[test]
    fn repeats_and_overtaken_frames_are_ignored_by_kind() {
        let (mut sealer, mut opener) = pair(0);
        let mut sealed = || {
            all().map(|frame| {
                let mut out = [0; MAX_CONTROL_BYTES];
                let n = sealer.seal(&frame, &mut out);
                out[..n].to_vec()
            })
        };
        let (first, second) = (sealed(), sealed());
        // A newer ACK does not make an older PING void.
        assert!(opener.open(&second[0]).unwrap().is_some());
        assert!(opener.open(&first[0]).unwrap().is_none());
        assert!(opener.open(&first[1]).unwrap().is_some());
        assert!(opener.open(&first[1]).unwrap().is_none());
        assert!(opener.open(&second[1]).unwrap().is_some());
    }

    #[test]
    fn another_attempt_is_foreign() {
        let (mut sealer, _) = pair(0);
        let (_, mut opener) = pair(1);
        let mut out = [0; MAX_CONTROL_BYTES];
        let n = sealer.seal(&ControlFrame::Ping(Nanos(1)), &mut out);
        assert!(matches!(
            opener.open(&out[..n]),
            Err(WireError::WrongEpoch { .. })
        ));
    }
}
