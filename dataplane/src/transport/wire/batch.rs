//! Sequenced batches: OPEN, DATA, HALF_CLOSE, ABORT, BASELINE.
//!
//! In: a header and a payload laid out in one buffer, or the bytes of a received frame. Out: a
//! sealed frame, or a checked [`BatchView`]. Layout of the 56-byte header, little-endian:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 1 | kind: 1 OPEN, 2 DATA, 3 HALF_CLOSE, 4 ABORT, 5 BASELINE |
//! | 1 | 1 | version: 1 or 3; always 1 unless DATA, so that a rollback never meets a v3 close |
//! | 2 | 1 | method, the codec's; 0 unless DATA |
//! | 3 | 1 | flags: bit 0 history, bit 1 express, never both; 0 unless DATA |
//! | 4 | 2 | channel |
//! | 6 | 2 | zero |
//! | 8 | 8 | seq |
//! | 16 | 8 | offset of the first raw byte in its channel and direction |
//! | 24 | 4 | raw_len; 1 to 1 MiB for DATA, 0 otherwise |
//! | 28 | 4 | payload_len: the rest of the frame |
//! | 32 | 16 | digest: DATA, the chain; otherwise a keyed tag over header (digest zero) and payload |
//! | 48 | 8 | tag: keyed over bytes 0 to 47 |
//!
//! A resend is the same batch: nothing on the wire tells it apart.
//!
//! BASELINE is only for a peer that agreed to baselines in the handshake; see [`super::baseline`].
//!
//! Under keys that encrypt ([`FrameKeys::encrypts`]), the payload of DATA is encrypted in place with
//! AEGIS-128X2 (draft-irtf-cfrg-aegis-aead) and its tag of 16 bytes follows, both part of payload_len; the
//! associated data is the whole header. The nonce is seq (8 bytes), version, and 7 bytes of the hash
//! that the header's tag is cut from. A direction has one key and seals a seq once in v3 and at most
//! once more in v1, for a rollback, so no nonce comes twice; and since that hash covers the digest of
//! the raw bytes, even a fault that sealed a seq again with other bytes would change it. What carries no
//! bytes of a guest, markers and headers, is authenticated and readable.

use aegis::aegis128x2::Aegis128X2;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::{
    BatchSeq, ChannelId, MAX_BATCH_RAW_BYTES, MAX_CHANNELS, MAX_FRAME_BYTES, Version,
};
use super::WireError;
use super::baseline::BaselineWord;
use super::keys::{FrameKeys, SEAL_BYTES, tags_equal};

/// Bytes of the header in front of every payload.
pub const BATCH_HEADER_BYTES: usize = 56;
/// The batch changes the page history that both ends mirror.
pub const FLAG_HISTORY: u8 = 1;
/// The batch may be handed up before those in front of it, once its channel has come that far. It
/// neither changes nor needs the page history.
pub const FLAG_EXPRESS: u8 = 2;
/// Bytes of an ABORT's text at most.
pub const MAX_ABORT_TEXT_BYTES: usize = 200;
/// A buffer of this size takes any batch but DATA.
pub const MAX_MARKER_BYTES: usize = BATCH_HEADER_BYTES + 2 + MAX_ABORT_TEXT_BYTES;

const TAG_AT: usize = 48;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    kind: u8,
    version: u8,
    method: u8,
    flags: u8,
    channel: U16,
    zero: U16,
    seq: U64,
    offset: U64,
    raw_len: U32,
    payload_len: U32,
    digest: [u8; 16],
    tag: [u8; 8],
}

const _: () = assert!(size_of::<RawHeader>() == BATCH_HEADER_BYTES);

/// The most payload that `raw_len` decoded bytes may take. Codecs store what does not shrink, so a
/// payload is never much larger; the bound keeps a peer from filling buffers with hollow batches.
#[must_use]
pub const fn max_payload_bytes(raw_len: usize) -> usize {
    raw_len + raw_len / 32 + 1024
}

const _: () = assert!(
    max_payload_bytes(MAX_BATCH_RAW_BYTES) + BATCH_HEADER_BYTES <= MAX_FRAME_BYTES,
    "the largest batch must fit a frame"
);

/// What a DATA header says besides the lengths of its own frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataHeader {
    /// The payload's format.
    pub version: Version,
    /// The codec's method; transport only carries and protects it.
    pub method: u8,
    /// [`FLAG_HISTORY`], [`FLAG_EXPRESS`] or 0.
    pub flags: u8,
    /// The channel whose bytes these are.
    pub channel: ChannelId,
    /// Place in the direction's sequence.
    pub seq: BatchSeq,
    /// Position of the first raw byte in the channel and direction.
    pub offset: u64,
    /// Decoded bytes, 1 to [`MAX_BATCH_RAW_BYTES`].
    pub raw_len: u32,
    /// The digest chain after these bytes.
    pub digest: [u8; 16],
}

/// What kind of connection a channel carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ChannelKind {
    /// QEMU's main migration stream.
    Main = 1,
    /// A multifd stream.
    Multifd = 2,
    /// Bytes not understood, carried as they are.
    Opaque = 3,
    /// QEMU's main migration stream where a post-copy is recovered.
    Resumed = 4,
    /// Pages that a guest waits for in post-copy.
    Urgent = 5,
}

/// Why one side gives a session up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum AbortReason {
    /// A digest, tag or sequence did not agree.
    Integrity = 1,
    /// The hypervisor's connection failed.
    Hypervisor = 2,
    /// An operator or the control plane asked.
    Cancelled = 3,
    /// A limit was reached.
    Limit = 4,
    /// A fault of the program.
    Internal = 5,
}

/// A batch that is not DATA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker<'a> {
    /// The channel begins, in both directions.
    Open(ChannelKind),
    /// No more bytes on the channel in this direction.
    HalfClose {
        /// Bytes that the channel carried in this direction.
        total_bytes: u64,
        /// The digest chain after the last of them.
        digest: [u8; 16],
    },
    /// The session ends without success.
    Abort {
        /// Why.
        reason: AbortReason,
        /// For people; at most [`MAX_ABORT_TEXT_BYTES`].
        text: &'a str,
    },
    /// About baselines.
    Baseline(BaselineWord<'a>),
}

/// A checked batch header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Which of them.
    pub kind: BatchKind,
    /// See [`DataHeader`]; [`Version::V1`] unless DATA.
    pub version: Version,
    /// See [`DataHeader`]; 0 unless DATA.
    pub method: u8,
    /// See [`DataHeader`]; 0 unless DATA.
    pub flags: u8,
    /// The channel.
    pub channel: ChannelId,
    /// Place in the direction's sequence.
    pub seq: BatchSeq,
    /// DATA: position of the first raw byte. HALF_CLOSE: the total. Otherwise 0.
    pub offset: u64,
    /// Decoded bytes; 0 unless DATA.
    pub raw_len: u32,
    /// Bytes after the header.
    pub payload_len: u32,
    /// DATA: the digest chain. Otherwise the batch's own tag, already checked.
    pub digest: [u8; 16],
}

/// The kinds of batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum BatchKind {
    /// Opens a channel.
    Open = 1,
    /// Carries bytes.
    Data = 2,
    /// Ends a channel in this direction.
    HalfClose = 3,
    /// Ends the session.
    Abort = 4,
    /// Says what baselines are there.
    Baseline = 5,
}

/// A batch frame taken apart, its lengths and fields checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchView<'a> {
    /// The header.
    pub header: BatchHeader,
    /// What follows it.
    pub payload: &'a [u8],
    /// The payload's meaning; `None` for DATA, whose payload is the codec's.
    pub marker: Option<Marker<'a>>,
}

pub(super) fn bad(field: &'static str, value: impl Into<u64>) -> WireError {
    WireError::BadField {
        field,
        value: value.into(),
    }
}

/// Writes the header in front of the payload that `frame[BATCH_HEADER_BYTES..]` already holds, the last
/// [`FrameKeys::seal_bytes`] of it free, and encrypts it if the keys do. A batch that was transcoded is
/// sealed again, with its new version and method; never twice in one version.
///
/// # Errors
/// [`WireError`] when the header or the frame's length breaks a limit; the frame must not be sent.
pub fn seal_data(keys: &FrameKeys, header: &DataHeader, frame: &mut [u8]) -> Result<(), WireError> {
    let payload_len = frame
        .len()
        .checked_sub(BATCH_HEADER_BYTES)
        .ok_or(WireError::TooShort {
            frame_bytes: frame.len(),
            needed_bytes: BATCH_HEADER_BYTES,
        })?;
    if payload_len > max_payload_bytes(MAX_BATCH_RAW_BYTES) {
        return Err(WireError::TooLong {
            frame_bytes: frame.len(),
        });
    }
    let raw = RawHeader {
        kind: BatchKind::Data as u8,
        version: header.version as u8,
        method: header.method,
        flags: header.flags,
        channel: U16::new(header.channel.0),
        zero: U16::ZERO,
        seq: U64::new(header.seq.0),
        offset: U64::new(header.offset),
        raw_len: U32::new(header.raw_len),
        payload_len: U32::new(u32::try_from(payload_len).unwrap_or(u32::MAX)),
        digest: header.digest,
        tag: [0; 8],
    };
    let nonce = write_header(keys, raw, frame)?;
    if let Some(key) = &keys.payload {
        let (header, payload, tag) = split_sealed(frame)?;
        *tag = Aegis128X2::<SEAL_BYTES>::new(key, &nonce).encrypt_in_place(payload, header);
    }
    parse_batch_layout(frame).map(|_| ())
}

/// Decrypts the payload of a DATA frame that [`open_batch`] took, in place. Returns the length of the
/// frame that is left: header and encoded bytes. Frames that were not encrypted stay as they are.
///
/// # Errors
/// [`WireError::BadTag`]; the payload is gone and the session must end.
pub fn open_payload(keys: &FrameKeys, frame: &mut [u8]) -> Result<usize, WireError> {
    let Some(key) = &keys.payload else {
        return Ok(frame.len());
    };
    let (raw, _) = split(frame)?;
    let nonce = nonce(raw, &header_hash(keys, raw));
    let (header, payload, tag) = split_sealed(frame)?;
    Aegis128X2::<SEAL_BYTES>::new(key, &nonce)
        .decrypt_in_place(payload, tag, header)
        .map_err(|_| WireError::BadTag)?;
    Ok(frame.len() - SEAL_BYTES)
}

/// Header, encrypted bytes and tag, none of them empty.
#[expect(clippy::type_complexity, reason = "three parts of one slice")]
fn split_sealed(frame: &mut [u8]) -> Result<(&[u8], &mut [u8], &mut [u8; SEAL_BYTES]), WireError> {
    let short = WireError::TooShort {
        frame_bytes: frame.len(),
        needed_bytes: BATCH_HEADER_BYTES + 1 + SEAL_BYTES,
    };
    let Some((header, rest)) = frame.split_at_mut_checked(BATCH_HEADER_BYTES) else {
        return Err(short);
    };
    match rest.split_last_chunk_mut::<SEAL_BYTES>() {
        Some((payload, tag)) if !payload.is_empty() => Ok((header, payload, tag)),
        _ => Err(short),
    }
}

/// Writes a whole OPEN, HALF_CLOSE, ABORT or BASELINE into `out` and returns its length.
///
/// # Errors
/// [`WireError`] when a limit is broken or `out` is too small ([`MAX_MARKER_BYTES`] always fits).
pub fn seal_marker(
    keys: &FrameKeys,
    seq: BatchSeq,
    channel: ChannelId,
    marker: &Marker<'_>,
    out: &mut [u8],
) -> Result<usize, WireError> {
    let (kind, offset, payload_len) = match marker {
        Marker::Open(_) => (BatchKind::Open, 0, 1),
        Marker::HalfClose { total_bytes, .. } => (BatchKind::HalfClose, *total_bytes, 16),
        Marker::Abort { text, .. } => (BatchKind::Abort, 0, 1 + text.len()),
        Marker::Baseline(word) => (BatchKind::Baseline, 0, word.len()),
    };
    let needed = BATCH_HEADER_BYTES + payload_len;
    if needed > MAX_MARKER_BYTES {
        return Err(WireError::TooLong {
            frame_bytes: needed,
        });
    }
    let buffer_bytes = out.len();
    let frame = out.get_mut(..needed).ok_or(WireError::BufferTooSmall {
        buffer_bytes,
        needed_bytes: needed,
    })?;
    let payload = &mut frame[BATCH_HEADER_BYTES..];
    match marker {
        Marker::Open(kind) => payload[0] = *kind as u8,
        Marker::HalfClose { digest, .. } => payload.copy_from_slice(digest),
        Marker::Abort { reason, text } => {
            payload[0] = *reason as u8;
            payload[1..].copy_from_slice(text.as_bytes());
        }
        Marker::Baseline(word) => word.write(payload),
    }
    let mut raw = RawHeader {
        kind: kind as u8,
        version: Version::V1 as u8,
        method: 0,
        flags: 0,
        channel: U16::new(channel.0),
        zero: U16::ZERO,
        seq: U64::new(seq.0),
        offset: U64::new(offset),
        raw_len: U32::ZERO,
        payload_len: U32::new(u32::try_from(payload_len).unwrap_or(u32::MAX)),
        digest: [0; 16],
        tag: [0; 8],
    };
    raw.digest = body_tag(keys, raw, payload);
    write_header(keys, raw, frame)?;
    parse_batch_layout(frame).map(|_| needed)
}

/// Checks the tags and then the layout of a received batch frame. The payload of DATA is not
/// verified here: its digest is over the decoded bytes, and [`open_payload`] decrypts it.
///
/// # Errors
/// [`WireError`]; the session must end.
pub fn open_batch<'a>(keys: &FrameKeys, frame: &'a [u8]) -> Result<BatchView<'a>, WireError> {
    let (raw, payload) = split(frame)?;
    if !tags_equal(&header_tag(&header_hash(keys, raw)), &raw.tag) {
        return Err(WireError::BadTag);
    }
    // A DATA payload may be a MiB, so its digest waits for the decoder; markers are checked here.
    if raw.kind != BatchKind::Data as u8 && !tags_equal(&body_tag(keys, *raw, payload), &raw.digest)
    {
        return Err(WireError::BadTag);
    }
    parse_batch_layout(frame)
}

/// Checks lengths and fields alone, without keys: what [`open_batch`] does after the tags.
///
/// # Errors
/// [`WireError`] for anything that no sender may write.
pub fn parse_batch_layout(frame: &[u8]) -> Result<BatchView<'_>, WireError> {
    if frame.len() > MAX_FRAME_BYTES {
        return Err(WireError::TooLong {
            frame_bytes: frame.len(),
        });
    }
    let (raw, payload) = split(frame)?;
    let kind = match raw.kind {
        1 => BatchKind::Open,
        2 => BatchKind::Data,
        3 => BatchKind::HalfClose,
        4 => BatchKind::Abort,
        5 => BatchKind::Baseline,
        kind => return Err(WireError::UnknownKind { kind }),
    };
    let version = Version::from_wire(raw.version).ok_or(bad("version", raw.version))?;
    let channel = ChannelId(raw.channel.get());
    if usize::from(channel.0) >= MAX_CHANNELS {
        return Err(WireError::ChannelOutOfRange { channel });
    }
    if raw.zero != U16::ZERO {
        return Err(bad("zero", raw.zero.get()));
    }
    if raw.payload_len.get() as usize != payload.len() {
        return Err(bad("payload_len", raw.payload_len.get()));
    }
    let header = BatchHeader {
        kind,
        version,
        method: raw.method,
        flags: raw.flags,
        channel,
        seq: BatchSeq(raw.seq.get()),
        offset: raw.offset.get(),
        raw_len: raw.raw_len.get(),
        payload_len: raw.payload_len.get(),
        digest: raw.digest,
    };
    let marker = if kind == BatchKind::Data {
        check_data(&header)?;
        None
    } else {
        Some(parse_marker(&header, payload)?)
    };
    Ok(BatchView {
        header,
        payload,
        marker,
    })
}

fn check_data(header: &BatchHeader) -> Result<(), WireError> {
    let raw_len = header.raw_len as usize;
    if raw_len == 0 || raw_len > MAX_BATCH_RAW_BYTES {
        return Err(bad("raw_len", header.raw_len));
    }
    if header.payload_len == 0 || header.payload_len as usize > max_payload_bytes(raw_len) {
        return Err(bad("payload_len", header.payload_len));
    }
    if !matches!(header.flags, 0 | FLAG_HISTORY | FLAG_EXPRESS) {
        return Err(bad("flags", header.flags));
    }
    if header
        .offset
        .checked_add(u64::from(header.raw_len))
        .is_none()
    {
        return Err(bad("offset", header.offset));
    }
    Ok(())
}

fn parse_marker<'a>(header: &BatchHeader, payload: &'a [u8]) -> Result<Marker<'a>, WireError> {
    let plain = [
        ("version", u64::from(header.version != Version::V1)),
        ("method", u64::from(header.method)),
        ("flags", u64::from(header.flags)),
        ("raw_len", u64::from(header.raw_len)),
        (
            "offset",
            if header.kind == BatchKind::HalfClose {
                0
            } else {
                header.offset
            },
        ),
    ];
    if let Some((field, value)) = plain.into_iter().find(|&(_, value)| value != 0) {
        return Err(bad(field, value));
    }
    let wrong_length = bad("payload_len", header.payload_len);
    match header.kind {
        BatchKind::Open => match payload {
            [1] => Ok(Marker::Open(ChannelKind::Main)),
            [2] => Ok(Marker::Open(ChannelKind::Multifd)),
            [3] => Ok(Marker::Open(ChannelKind::Opaque)),
            [4] => Ok(Marker::Open(ChannelKind::Resumed)),
            [5] => Ok(Marker::Open(ChannelKind::Urgent)),
            [kind] => Err(bad("channel kind", *kind)),
            _ => Err(wrong_length),
        },
        BatchKind::HalfClose => {
            let digest = payload.try_into().map_err(|_| wrong_length)?;
            Ok(Marker::HalfClose {
                total_bytes: header.offset,
                digest,
            })
        }
        BatchKind::Baseline => BaselineWord::parse(payload).map(Marker::Baseline),
        _ => {
            let (&code, text) = payload.split_first().ok_or_else(|| wrong_length.clone())?;
            if text.len() > MAX_ABORT_TEXT_BYTES {
                return Err(wrong_length);
            }
            let reason = match code {
                1 => AbortReason::Integrity,
                2 => AbortReason::Hypervisor,
                3 => AbortReason::Cancelled,
                4 => AbortReason::Limit,
                5 => AbortReason::Internal,
                code => return Err(bad("abort reason", code)),
            };
            let text = std::str::from_utf8(text).map_err(|_| WireError::BadText)?;
            Ok(Marker::Abort { reason, text })
        }
    }
}

fn split(frame: &[u8]) -> Result<(&RawHeader, &[u8]), WireError> {
    RawHeader::ref_from_prefix(frame).map_err(|_| WireError::TooShort {
        frame_bytes: frame.len(),
        needed_bytes: BATCH_HEADER_BYTES,
    })
}

/// Writes it with its tag and returns the nonce for its payload.
fn write_header(
    keys: &FrameKeys,
    mut raw: RawHeader,
    frame: &mut [u8],
) -> Result<[u8; 16], WireError> {
    let hash = header_hash(keys, &raw);
    raw.tag = header_tag(&hash);
    let buffer_bytes = frame.len();
    raw.write_to_prefix(frame)
        .map_err(|_| WireError::BufferTooSmall {
            buffer_bytes,
            needed_bytes: BATCH_HEADER_BYTES,
        })?;
    Ok(nonce(&raw, &hash))
}

/// Of all of the header before its tag.
fn header_hash(keys: &FrameKeys, raw: &RawHeader) -> [u8; 32] {
    *blake3::keyed_hash(&keys.header, &raw.as_bytes()[..TAG_AT]).as_bytes()
}

fn header_tag(hash: &[u8; 32]) -> [u8; 8] {
    let mut tag = [0; 8];
    tag.copy_from_slice(&hash[..8]);
    tag
}

/// See the module: differs for all that is ever sealed under one key.
fn nonce(raw: &RawHeader, hash: &[u8; 32]) -> [u8; 16] {
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(raw.seq.as_bytes());
    nonce[8] = raw.version;
    // Bytes that are not part of the tag, which everybody sees.
    nonce[9..].copy_from_slice(&hash[8..15]);
    nonce
}

fn body_tag(keys: &FrameKeys, mut raw: RawHeader, payload: &[u8]) -> [u8; 16] {
    raw.digest = [0; 16];
    let mut hasher = blake3::Hasher::new_keyed(&keys.body);
    hasher.update(&raw.as_bytes()[..TAG_AT]);
    hasher.update(payload);
    let mut tag = [0; 16];
    tag.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    tag
}

#[cfg(test)]
mod tests;
