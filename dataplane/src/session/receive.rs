//! From the lanes to the hypervisor: take in, put in order, decode, check, release.
//!
//! In: frames of this session from any lane. Out: bytes queued for the hypervisor's connections, what to
//! acknowledge. Promise: not a byte is queued whose digest chain has not agreed.

use dwcp_api::{Failure, Stage, monotonic_ns};
use dwcp_drivers::frame::Frame;
use dwcp_drivers::lane::LaneGroup;

use super::channel::{ChainKeys, Channel, stream_kind};
use super::link::Link;
use super::{Fault, Hands, Session};
use crate::codec::{CodecVersion, DecodeError, Method};
use crate::intake::HEADROOM;
use crate::transport::inbound::Ready;
use crate::transport::wire::FrameKind;
use crate::transport::wire::batch::{BatchHeader, BatchKind, FLAG_HISTORY, Marker, open_payload};
use crate::transport::wire::control::{ByeReason, ControlFrame};
use crate::transport::{MAX_BATCH_RAW_BYTES, Nanos, Version};

/// Decoded batches of at most this many bytes move to a smaller buffer.
const COMPACT_BYTES: usize = 60 << 10;
/// A BYE may overtake the ABORT that says why: the two take different lanes. It is waited for so long.
const REASON_LIMIT_NS: u64 = 250_000_000;

impl Session {
    /// Takes one frame in.
    pub(super) fn on_frame(&mut self, frame: Frame, now_ns: u64) -> Result<(), Fault> {
        let Some(link) = self.link.as_mut() else {
            return Ok(());
        };
        let now = Nanos(now_ns);
        self.picture.wire_bytes_received += frame.bytes().len() as u64;
        match FrameKind::peek(frame.bytes())? {
            FrameKind::Batch => {
                link.inbound.on_batch(frame)?;
                link.outbound.heard(now);
            }
            FrameKind::Control => match link.opener.open(frame.bytes())? {
                None => {}
                Some(ControlFrame::Ack(ack)) => link.on_ack(&ack, now)?,
                Some(ControlFrame::Ping(sent)) => {
                    link.inbound.note_ping(sent, now);
                    link.outbound.heard(now);
                    self.pong = Some(sent);
                }
                Some(ControlFrame::Pong(sent)) => link.outbound.on_pong(sent, now),
                Some(ControlFrame::Bye(reason)) => {
                    link.outbound.heard(now);
                    self.peer_bye = Some(reason);
                    if reason != ByeReason::Done && !self.is_over() {
                        self.reason_due_ns.get_or_insert(now_ns + REASON_LIMIT_NS);
                    }
                }
            },
        }
        Ok(())
    }

    /// Has the peer given the session up?
    pub(super) const fn is_given_up(&self) -> bool {
        self.reason_due_ns.is_some()
    }

    /// A peer that gave up without a word in time did so without a word.
    pub(super) fn check_reason(&self, now_ns: u64) -> Result<(), Fault> {
        match self.reason_due_ns {
            Some(due_ns) if due_ns <= now_ns => Err(Fault::new(
                Failure::PeerAborted,
                "the peer gave the session up; its own record says why",
            )),
            _ => Ok(()),
        }
    }

    /// Hands up what is in sequence. Says whether there was anything.
    pub(super) fn pump_receive<G: LaneGroup>(
        &mut self,
        hands: &mut Hands<'_, G>,
    ) -> Result<bool, Fault> {
        let stages = hands.stages;
        let _transport = stages.enter(Stage::Transport);
        let mut worked = false;
        loop {
            if !self.pending_connects.is_empty() {
                // What follows may be for the connection that the hypervisor has not taken yet.
                self.connect_pending(hands)?;
                if !self.pending_connects.is_empty() {
                    return Ok(worked);
                }
            }
            let Some(link) = self.link.as_mut() else {
                return Ok(worked);
            };
            if link.scratch_in.is_none() {
                // Without a buffer to decode into nothing may be taken out of the sequence.
                let Some(buffer) = link.pools_in.take(MAX_BATCH_RAW_BYTES) else {
                    return Ok(worked);
                };
                link.scratch_in = Some(buffer);
            }
            let express = link.inbound.pop_express()?;
            let Some(ready) =
                express.map_or_else(|| link.inbound.pop_ready(), |ready| Ok(Some(ready)))?
            else {
                return Ok(worked);
            };
            worked = true;
            match ready.header.kind {
                BatchKind::Data => self.on_data(ready, hands)?,
                _ => self.on_marker(&ready, hands)?,
            }
        }
    }

    fn on_data<G: LaneGroup>(
        &mut self,
        ready: Ready<Frame>,
        hands: &mut Hands<'_, G>,
    ) -> Result<(), Fault> {
        let BatchHeader {
            version,
            method,
            flags,
            channel,
            seq,
            offset,
            raw_len,
            ..
        } = ready.header;
        let raw_len = raw_len as usize;
        let stages = hands.stages;
        let _decode = stages.enter(Stage::Decode);
        let started_ns = monotonic_ns();
        let Some(link) = self.link.as_mut() else {
            return Ok(());
        };
        let channel = self
            .channels
            .get_mut(usize::from(channel.0))
            .ok_or_else(|| Fault::new(Failure::Protocol, "bytes for a channel that is not open"))?;
        let digest = &ready.header.digest;
        let codec_version = match version {
            Version::V1 => CodecVersion::V1,
            Version::V3 => CodecVersion::V3,
        };
        let frame = unseal(link, ready.frame)?;
        let payload = &frame.bytes()[HEADROOM..];
        let as_is = matches!(
            Method::from_code(codec_version, method),
            Ok(Method::Passthrough)
        );
        if as_is && payload.len() == raw_len {
            // Sent as it was: checked and released from where it lies.
            channel.chain_in.verify(seq.0, offset, payload, digest)?;
            channel
                .release
                .push(frame.clone(), HEADROOM..HEADROOM + raw_len);
        } else {
            let mut out = link.scratch_in.take().ok_or_else(Fault::buffers)?;
            let raw = &mut out.payload_mut()[..raw_len];
            let history = flags & FLAG_HISTORY != 0;
            let decoder = &mut link.decoder;
            match decoder.decode(codec_version, method, history, payload, raw) {
                Err(DecodeError::MissingBlock { .. }) => {
                    link.scratch_in = Some(out);
                    return self.baselines.refuse(link, &ready.header);
                }
                decoded => decoded?,
            }
            channel.chain_in.verify(seq.0, offset, raw, digest)?;
            self.baselines.note_decoded(link, seq, raw);
            let small = if raw_len <= COMPACT_BYTES {
                link.pools_in.take(raw_len)
            } else {
                None
            };
            if let Some(mut small) = small {
                small.payload_mut()[..raw_len].copy_from_slice(raw);
                channel.release.push(small.freeze(raw_len)?, 0..raw_len);
                link.scratch_in = Some(out);
            } else {
                channel.release.push(out.freeze(raw_len)?, 0..raw_len);
            }
        }
        channel.last_in = *digest;
        let decode_ns = monotonic_ns().saturating_sub(started_ns);
        let counters = hands.counters;
        counters.decode_ns_total.add(decode_ns);
        counters.batches_decoded_total.add(1);
        counters.decoded_bytes_in_total.add(payload.len() as u64);
        counters.decoded_bytes_out_total.add(raw_len as u64);
        if !self.is_source() {
            self.picture.codec_ns += decode_ns;
            self.picture.batch_version = version as u64;
        }
        Ok(())
    }

    fn on_marker<G: LaneGroup>(
        &mut self,
        ready: &Ready<Frame>,
        hands: &mut Hands<'_, G>,
    ) -> Result<(), Fault> {
        let id = ready.header.channel;
        match ready.marker() {
            Some(Marker::Open(kind)) => {
                if self.is_source() || usize::from(id.0) != self.channels.len() {
                    return Err(Fault::new(
                        Failure::Protocol,
                        "the peer opened a channel out of turn",
                    ));
                }
                self.pending_connects.push_back((id, stream_kind(kind)));
                self.connect_pending(hands)
            }
            Some(Marker::HalfClose { digest, .. }) => {
                let channel = self.channels.get_mut(usize::from(id.0)).ok_or_else(|| {
                    Fault::new(Failure::Protocol, "the end of a channel that is not open")
                })?;
                if digest != channel.last_in {
                    return Err(Fault::new(
                        Failure::Corrupted,
                        "a channel's end does not vouch for its bytes; nothing of it counts as whole",
                    ));
                }
                channel.release.push_end();
                Ok(())
            }
            Some(Marker::Abort { reason, text }) => Err(Fault::new(
                Failure::PeerAborted,
                format!("the peer gave the session up ({reason:?}): {text}"),
            )),
            Some(Marker::Baseline(word)) => self.on_baseline_word(word, hands.counters),
            None => Err(Fault::new(Failure::Protocol, "a batch of no known kind")),
        }
    }

    /// Connects to the receiving hypervisor for every channel that the peer opened. A full backlog
    /// is tried again at the next tick.
    pub(super) fn connect_pending<G: LaneGroup>(
        &mut self,
        hands: &mut Hands<'_, G>,
    ) -> Result<(), Fault> {
        while let Some((id, kind)) = self.pending_connects.front().copied() {
            let Some(link) = self.link.as_mut() else {
                return Ok(());
            };
            let fd = match crate::engine::sockets::connect_unix(&self.socket_path) {
                Ok(fd) => fd,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    return Err(Fault::new(
                        Failure::Hypervisor,
                        format!(
                            "{}: {error}; start the receiving hypervisor with an incoming \
                             migration on this socket first",
                            self.socket_path.display()
                        ),
                    ));
                }
            };
            self.pending_connects.pop_front();
            // The peer's OPEN opened its direction; this opens ours.
            link.outbound.open_channel(id)?;
            let keys = ChainKeys {
                out: link.keys_out.chain_key(),
                into: link.keys_in.chain_key(),
                is_source: false,
            };
            let channel = Channel::new(id, kind, fd, &keys);
            self.adopt(channel, hands)?;
        }
        Ok(())
    }

    /// Writes what is queued for the hypervisor. Says whether anything was written.
    pub(super) fn pump_release<G: LaneGroup>(
        &mut self,
        hands: &mut Hands<'_, G>,
    ) -> Result<bool, Fault> {
        let receives_guest = !self.is_source();
        let Some(link) = self.link.as_mut() else {
            return Ok(false);
        };
        let mut worked = false;
        for channel in &mut self.channels {
            if channel.release.queued_bytes() > 0 && channel.writable {
                let _release = hands.stages.enter(Stage::Release);
                let wrote = channel.release.write(&channel.fd).map_err(|error| {
                    Fault::new(
                        Failure::Hypervisor,
                        format!("the hypervisor's connection failed: {error}"),
                    )
                })?;
                channel.writable = !wrote.blocked;
                // Without a return path nothing else would tell the sender, which would hand its last
                // byte to nobody and stop its guest.
                if receives_guest && channel.kind.is_main() && channel.release.is_refused() {
                    return Err(Fault::new(
                        Failure::Hypervisor,
                        "the receiving hypervisor closed its connection before it had the whole \
                         guest; see its log",
                    ));
                }
                if wrote.bytes > 0 {
                    link.inbound
                        .note_delivered(channel.id, wrote.bytes as u64)?;
                    self.picture.hypervisor_bytes_out += wrote.bytes as u64;
                    let written = &hands.counters.hypervisor_bytes_out_total;
                    written.add(wrote.bytes as u64);
                    worked = true;
                }
            }
            if channel.release.is_done() && !channel.end_released {
                channel.shut_release();
                worked = true;
            }
        }
        Ok(worked)
    }
}

/// The frame with its payload readable: decrypted where it lies, or, if somebody else holds it too, beside
/// it.
fn unseal(link: &Link, frame: Frame) -> Result<Frame, Fault> {
    if !link.keys_in.encrypts() {
        return Ok(frame);
    }
    let bytes = frame.len();
    let mut buffer = match frame.into_mut() {
        Ok(buffer) => buffer,
        Err(shared) => {
            let mut copy = link.pools_in.take(bytes).ok_or_else(Fault::buffers)?;
            copy.payload_mut()[..bytes].copy_from_slice(shared.bytes());
            copy
        }
    };
    let left = open_payload(&link.keys_in, &mut buffer.payload_mut()[..bytes])?;
    Ok(buffer.freeze(left)?)
}
