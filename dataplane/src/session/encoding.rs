//! Raw bytes of a batch become a sealed frame, and a rollback finds what it needs.
//!
//! In: a batch's raw bytes and tokens, what is known of the wire. Out: the frame to queue. Promises: a v3
//! batch's raw bytes are kept until the peer has it; no nonce is used twice: a batch is sealed once in v3
//! and at most once more in v1.

use dwcp_api::Failure;
use dwcp_drivers::frame::{Frame, FrameMut};

use super::Fault;
use super::link::{Kept, Link, Retained};
use crate::codec::{CodecVersion, EncodeHint, EncodeStats, Encoded, Encoder, Method};
use crate::intake::HEADROOM;
use crate::stream::Token;
use crate::transport::wire::batch::{
    DataHeader, FLAG_EXPRESS, FLAG_HISTORY, open_payload, seal_data,
};
use crate::transport::{BatchSeq, Version};

/// Encoded batches of at most this many bytes move to a smaller buffer.
const COMPACT_BYTES: usize = 60 << 10;

/// Encodes a batch into a sealed frame and keeps what a rollback would need.
pub(super) fn encode(
    link: &mut Link,
    hint: &EncodeHint,
    mut header: DataHeader,
    mut raw: FrameMut,
    raw_bytes: usize,
) -> Result<(Frame, EncodeStats), Fault> {
    let seal_bytes = link.keys_out.seal_bytes();
    let express = header.flags & FLAG_EXPRESS != 0;
    if express && header.version == Version::V3 {
        header.method = Method::Passthrough.code();
        let raw = with_room(link, raw, raw_bytes, seal_bytes)?;
        let frame = send_as_is(link, &header, raw, raw_bytes)?;
        return Ok((frame, EncodeStats::default()));
    }
    let mut out = take_output(link, raw_bytes)?;
    let codec_version = match header.version {
        Version::V1 => CodecVersion::V1,
        Version::V3 => CodecVersion::V3,
    };
    let raw_slice = &raw.payload_mut()[HEADROOM..HEADROOM + raw_bytes];
    let (tokens, payload) = (link.tokens.as_slice(), &mut out.payload_mut()[HEADROOM..]);
    let encoder = &mut link.encoder;
    let encoded = match express {
        true => encoder.encode_detached_v1(raw_slice, tokens, false, payload)?,
        false => encoder.encode(codec_version, hint, raw_slice, tokens, payload)?,
    };
    header.method = encoded.method;
    header.flags |= if encoded.history { FLAG_HISTORY } else { 0 };
    let stats = encoded.stats;
    if encoded.raw_as_is {
        // The raw bytes are the payload, in the buffer they were read into.
        link.scratch_out = Some(out);
        let frame = send_as_is(link, &header, raw, raw_bytes)?;
        return Ok((frame, stats));
    }
    let frame = seal(link, header, &encoded, out)?;
    if header.version == Version::V3 {
        let kept = Kept {
            frame: raw.freeze(HEADROOM + raw_bytes)?,
            sealed: false,
        };
        let tokens = copy_tokens(link);
        retain(link, &header, kept, (raw_bytes, &stats), tokens);
    }
    Ok((frame, stats))
}

/// A buffer for the frame of a batch, whatever it comes to.
pub(super) fn take_output(link: &mut Link, raw_bytes: usize) -> Result<FrameMut, Fault> {
    let needed = HEADROOM + Encoder::max_encoded_len(raw_bytes) + link.keys_out.seal_bytes();
    match link.scratch_out.take() {
        Some(out) if out.capacity() >= needed => Ok(out),
        _ => link.pools_out.take(needed).ok_or_else(Fault::buffers),
    }
}

/// The frame of a batch whose payload lies in `out` behind room for the header.
pub(super) fn seal(
    link: &mut Link,
    header: DataHeader,
    encoded: &Encoded,
    mut out: FrameMut,
) -> Result<Frame, Fault> {
    let total = HEADROOM + encoded.len + link.keys_out.seal_bytes();
    seal_data(&link.keys_out, &header, &mut out.payload_mut()[..total])?;
    compact(link, out, total)
}

/// The same bytes with room for the seal behind them.
fn with_room(
    link: &Link,
    mut raw: FrameMut,
    raw_bytes: usize,
    seal_bytes: usize,
) -> Result<FrameMut, Fault> {
    let end = HEADROOM + raw_bytes;
    if raw.capacity() >= end + seal_bytes {
        return Ok(raw);
    }
    let mut larger = link
        .pools_out
        .take(end + seal_bytes)
        .ok_or_else(Fault::buffers)?;
    larger.payload_mut()[..end].copy_from_slice(&raw.payload_mut()[..end]);
    Ok(larger)
}

/// Seals a batch whose payload is its raw bytes.
pub(super) fn send_as_is(
    link: &mut Link,
    header: &DataHeader,
    mut raw: FrameMut,
    raw_bytes: usize,
) -> Result<Frame, Fault> {
    let total = HEADROOM + raw_bytes + link.keys_out.seal_bytes();
    seal_data(&link.keys_out, header, &mut raw.payload_mut()[..total])?;
    let frame = raw.freeze(total)?;
    let kept = Kept {
        frame: frame.clone(),
        sealed: link.keys_out.encrypts(),
    };
    let tokens = copy_tokens(link);
    let stats = EncodeStats::default();
    retain(link, header, kept, (raw_bytes, &stats), tokens);
    Ok(frame)
}

/// A short frame moves to a small buffer, and the large one is used again.
fn compact(link: &mut Link, mut out: FrameMut, total: usize) -> Result<Frame, Fault> {
    if total <= COMPACT_BYTES
        && let Some(mut small) = link.pools_out.take(total)
    {
        small.payload_mut()[..total].copy_from_slice(&out.payload_mut()[..total]);
        link.scratch_out = Some(out);
        return Ok(small.freeze(total)?);
    }
    Ok(out.freeze(total)?)
}

/// The tokens of the batch at hand, in a list of its own.
pub(super) fn copy_tokens(link: &mut Link) -> Vec<Token> {
    link.token_lists.copy(link.tokens.as_slice())
}

/// Keeps what a rollback would need of a batch.
pub(super) fn retain(
    link: &mut Link,
    header: &DataHeader,
    raw: Kept,
    (raw_bytes, stats): (usize, &EncodeStats),
    tokens: Vec<Token>,
) {
    link.retained.push_back(Retained {
        header: *header,
        raw,
        raw_bytes,
        tokens,
        history: header.flags & FLAG_HISTORY != 0,
        known: stats.known > 0,
    });
}

/// Encodes a batch that was queued in v3 once more, in v1, for a rollback.
pub(super) fn transcode(link: &mut Link, seq: BatchSeq) -> Result<(), Fault> {
    let kept = link.retained.iter().position(|kept| kept.header.seq == seq);
    let kept = kept.ok_or_else(|| {
        Fault::new(
            Failure::Protocol,
            "a v3 batch to be re-encoded was not kept",
        )
    })?;
    let frame = in_v1(link, kept)?;
    link.outbound.replace(seq, Version::V1, frame)?;
    Ok(())
}

/// Sends a batch once more, in v1, that the peer has and cannot decode for want of a block. It is asked for
/// twice where a copy of it was under way already; the second word changes nothing.
pub(super) fn send_again(link: &mut Link, seq: BatchSeq) -> Result<(), Fault> {
    let mut retained = link.retained.iter();
    let Some(kept) = retained.position(|kept| kept.header.seq == seq && kept.known) else {
        return Ok(());
    };
    let frame = in_v1(link, kept)?;
    if link.outbound.send_again(seq, Version::V1, frame) {
        link.retained[kept].known = false;
    }
    Ok(())
}

/// The frame of a kept batch in v1.
fn in_v1(link: &mut Link, kept: usize) -> Result<Frame, Fault> {
    let kept = &link.retained[kept];
    let needed = HEADROOM + Encoder::max_encoded_len(kept.raw_bytes) + link.keys_out.seal_bytes();
    let mut out = link.pools_out.take(needed).ok_or_else(Fault::buffers)?;
    let held = if kept.raw.sealed {
        // The frame may lie in a lane, so it is decrypted beside it.
        link.unsealed.clear();
        link.unsealed.extend_from_slice(kept.raw.frame.bytes());
        open_payload(&link.keys_out, &mut link.unsealed)?;
        &link.unsealed[..]
    } else {
        kept.raw.frame.bytes()
    };
    let raw = &held[HEADROOM..HEADROOM + kept.raw_bytes];
    let encoded = link.encoder.encode_detached_v1(
        raw,
        &kept.tokens,
        kept.history,
        &mut out.payload_mut()[HEADROOM..],
    )?;
    let mut header = kept.header;
    header.version = Version::V1;
    header.method = encoded.method;
    header.flags &= FLAG_EXPRESS;
    header.flags |= if encoded.history { FLAG_HISTORY } else { 0 };
    seal(link, header, &encoded, out)
}
