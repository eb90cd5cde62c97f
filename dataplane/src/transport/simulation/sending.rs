//! What an end of a world does of its own accord: reads, seals, sends, looks after its lanes.
//!
//! In: credit, lanes and verdicts of the transport. Out: frames on lanes. Promise: it does what the
//! product's session does, in the same order, and nothing v3 passes unseen while it is forbidden.

use std::sync::Arc;

use super::super::outbound::{BatchMeta, SendStep, Verdict};
use super::super::wire::batch::{
    BATCH_HEADER_BYTES, BatchKind, ChannelKind, DataHeader, FLAG_EXPRESS, MAX_MARKER_BYTES, Marker,
    seal_data, seal_marker,
};
use super::super::wire::control::{Ack, ControlFrame, MAX_CONTROL_BYTES};
use super::super::wire::keys::FrameKeys;
use super::super::*;
use super::bug::Bug;
use super::net::SimFrame;
use super::plan::SOURCE;
use super::streams::{PAYLOAD_BYTES, payload};
use super::truth::Broken;
use super::world::World;

impl World {
    pub(super) fn read_hypervisor(&mut self, side: usize) -> Result<(), Broken> {
        for index in 0..self.streams[side].len() {
            let channel = ChannelId(index as u16);
            let ends = &mut self.sides[side];
            if side == SOURCE && !self.streams[side][index].open && ends.outbound.can_push() {
                ends.outbound.open_channel(channel)?;
                ends.inbound.open_channel(channel)?;
                self.push_marker(side, channel, &Marker::Open(ChannelKind::Multifd))?;
                self.streams[side][index].open = true;
            }
            while self.streams[side][index].open && self.read_batch(side, index)? {}
            let stream = &self.streams[side][index];
            let all_read = stream.open && stream.read == stream.total;
            if all_read && !stream.close_sent && self.sides[side].outbound.can_push() {
                let close = Marker::HalfClose {
                    total_bytes: stream.total,
                    digest: [0; 16],
                };
                self.push_marker(side, channel, &close)?;
                self.streams[side][index].close_sent = true;
            }
        }
        Ok(())
    }

    fn read_batch(&mut self, side: usize, index: usize) -> Result<bool, Broken> {
        let channel = ChannelId(index as u16);
        let express = self.plan.is_express(side, index);
        let ends = &mut self.sides[side];
        let stream = &mut self.streams[side][index];
        let mut credit = ends.outbound.may_read(channel) as u64;
        let held = stream.read - ends.outbound.delivered_bytes(channel);
        let unheld = CHANNEL_GUARANTEE_BYTES.saturating_sub(held);
        Broken::unless(credit >= unheld, || {
            format!("channel {index} may read {credit} of its guarantee of {unheld}")
        })?;
        if self.bug == Some(Bug::GuaranteeIgnored) {
            credit = credit.saturating_sub(CHANNEL_GUARANTEE_BYTES);
        }
        if stream.wanted == 0 {
            let most = self.plan.batch_bytes_max;
            stream.wanted = match self.random.one_in(4) {
                true => 1 + self.random.below(most),
                false => most,
            };
        }
        let wanted = stream.wanted.min(stream.total - stream.read);
        let ready = stream.offered(&self.plan, self.now) - stream.read;
        // Without credit a small batch waits for the next acknowledgement, if there is one to come.
        let due = credit >= wanted || (credit > 0 && ends.outbound.in_flight() == 0);
        let room = match self.plan.express && !express {
            true => ends.outbound.can_push_beside_express(),
            false => ends.outbound.can_push(),
        };
        if wanted == 0 || ready < wanted || !due || !room {
            return Ok(false);
        }
        let raw_len = wanted.min(credit);
        stream.wanted = 0;
        ends.outbound.on_read(channel, raw_len as usize)?;
        ends.outbound.open_reserve(0);
        let version = match ends.v3_allowed {
            true => self.plan.agreed,
            false => Version::V1,
        };
        let offset = stream.read;
        let chain = stream.read_on(channel.0, raw_len);
        let mut digest = [0; 16];
        digest[..8].copy_from_slice(&chain.to_le_bytes());
        let header = DataHeader {
            version,
            method: 0,
            flags: if express { FLAG_EXPRESS } else { 0 },
            channel,
            seq: ends.outbound.next_seq(),
            offset,
            raw_len: raw_len as u32,
            digest,
        };
        let frame = encode(&ends.keys, &header, self.plan.ratio)?;
        ends.retained.insert(header.seq, header);
        Broken::unless(ends.retained.len() <= MAX_IN_FLIGHT, || {
            format!("{} batches are kept", ends.retained.len())
        })?;
        self.push(side, channel, raw_len as u32, version, frame)?;
        Ok(true)
    }

    fn push_marker(
        &mut self,
        side: usize,
        channel: ChannelId,
        marker: &Marker<'_>,
    ) -> Result<(), Broken> {
        let ends = &self.sides[side];
        let mut out = [0; MAX_MARKER_BYTES];
        let seq = ends.outbound.next_seq();
        let n = seal_marker(&ends.keys, seq, channel, marker, &mut out)?;
        self.push(side, channel, 0, Version::V1, SimFrame::whole(&out[..n]))
    }

    fn push(
        &mut self,
        side: usize,
        channel: ChannelId,
        raw_len: u32,
        version: Version,
        frame: SimFrame,
    ) -> Result<(), Broken> {
        let meta = BatchMeta {
            channel,
            raw_len,
            version,
            read_at: self.now,
            express: self.plan.is_express(side, usize::from(channel.0)) && raw_len > 0,
        };
        self.sides[side].outbound.push(meta, frame, self.now)?;
        self.sides[1 - side].came.push(false);
        Ok(())
    }

    /// Batches first, then what the peer must know, as the session does it.
    pub(super) fn send(&mut self, from: usize) -> Result<(), Broken> {
        self.send_batches(from)?;
        let now = self.now;
        let pong = self.sides[from].pong.take().map(ControlFrame::Pong);
        let ack = self.sides[from].inbound.ack_due(now);
        let ack = ack.map(|ack| ControlFrame::Ack(self.spoil(from, ack)));
        let ping = self.sides[from].outbound.ping_due(now);
        for frame in [pong, ack, ping.map(ControlFrame::Ping)]
            .into_iter()
            .flatten()
        {
            self.put_control(from, &frame)?;
        }
        self.sides[from].lost_lane = false;
        Ok(())
    }

    fn send_batches(&mut self, from: usize) -> Result<(), Broken> {
        loop {
            let (net, now) = (&self.net, self.now);
            let ends = &mut self.sides[from];
            let backlog = |lane: LaneIx| net.backlog_bytes(from, lane, now);
            let allow_v3 = ends.v3_allowed
                || (self.bug == Some(Bug::V3ResentWhileForbidden) && ends.lost_lane);
            match ends.outbound.poll_send(now, allow_v3, backlog) {
                SendStep::Idle => return Ok(()),
                SendStep::Send(lane, frame) => {
                    let header = wire::batch::parse_batch_layout(&frame.bytes)?.header;
                    if self.random.one_in(self.plan.refusals_one_in) {
                        ends.outbound.take_back(header.seq);
                        return Ok(());
                    }
                    let is_v3 = header.kind == BatchKind::Data && header.version == Version::V3;
                    Broken::unless(ends.v3_allowed || !is_v3, || {
                        format!("batch {} leaves in v3 while that is forbidden", header.seq)
                    })?;
                    self.trace.note(now, || {
                        format!("{from} sends {:?} {} over {lane}", header.kind, header.seq)
                    });
                    let sent_before = !ends.sent.insert(header.seq);
                    match self.bug {
                        Some(Bug::ResendForgotten) if sent_before => continue,
                        Some(Bug::ResumedFromWrongSeq) if sent_before => {
                            if let Some(kept) = ends.retained.get(&header.seq) {
                                let seq = kept.seq.next();
                                let wrong = DataHeader { seq, ..*kept };
                                let frame = encode(&ends.keys, &wrong, self.plan.ratio)?;
                                self.put(from, lane, frame)?;
                                continue;
                            }
                        }
                        _ => {}
                    }
                    self.put(from, lane, frame)?;
                }
                SendStep::NeedsTranscode(seq) => {
                    let kept = ends.retained.get_mut(&seq);
                    let kept = kept.ok_or_else(|| {
                        Broken(format!(
                            "batch {seq} is to be encoded again and was not kept"
                        ))
                    })?;
                    if self.bug != Some(Bug::TranscodeOnlyInName) {
                        kept.version = Version::V1;
                    }
                    let frame = encode(&ends.keys, kept, self.plan.ratio)?;
                    ends.outbound.replace(seq, Version::V1, frame)?;
                    self.end.transcoded += 1;
                    self.trace
                        .note(now, || format!("{from} encodes {seq} again in v1"));
                }
            }
        }
    }

    fn put_control(&mut self, from: usize, frame: &ControlFrame) -> Result<(), Broken> {
        let (net, now) = (&self.net, self.now);
        let ends = &mut self.sides[from];
        let backlog = |lane: LaneIx| net.backlog_bytes(from, lane, now);
        let Some(lane) = ends.outbound.control_lane(backlog) else {
            return Ok(());
        };
        let mut out = [0; MAX_CONTROL_BYTES];
        let n = ends.sealer.seal(frame, &mut out);
        self.trace.note(now, || match frame {
            ControlFrame::Ack(ack) => format!(
                "{from} acknowledges below {}, {} bytes taken, over {lane}",
                ack.next_seq, ack.total_delivered_bytes
            ),
            other => format!("{from} sends {other:?} over {lane}"),
        });
        self.put(from, lane, SimFrame::whole(&out[..n]))
    }

    fn put(&mut self, from: usize, lane: LaneIx, frame: SimFrame) -> Result<(), Broken> {
        let taken = self.net.put(from, lane, frame, self.now, &mut self.random);
        Broken::unless(taken, || format!("{from} sends over {lane}, which is down"))
    }

    /// What the planted bugs make of an ACK.
    fn spoil(&mut self, from: usize, mut ack: Ack) -> Ack {
        match self.bug {
            Some(Bug::AckBeforeArrival) if self.random.one_in(10) => {
                let sent = self.sides[1 - from].outbound.next_seq();
                if ack.next_seq < sent {
                    ack.next_seq = ack.next_seq.next();
                    ack.sack = wire::control::Sack::default();
                }
            }
            Some(Bug::DeliveredBeforeTaken) => {
                let streams = &self.streams[1 - from];
                ack.total_delivered_bytes = streams.iter().map(|stream| stream.handed_up).sum();
                for (channel, bytes) in &mut ack.delivered {
                    *bytes = streams[usize::from(channel.0)].handed_up;
                }
            }
            _ => {}
        }
        ack
    }

    pub(super) fn check_health(&mut self, side: usize) {
        let now = self.now;
        if now.since(self.sides[side].checked_at) < self.plan.check_every_ns {
            return;
        }
        self.sides[side].checked_at = now;
        if self.bug == Some(Bug::SilenceHidden) {
            self.sides[side].outbound.heard(now);
        }
        while let Some(verdict) = self.sides[side].outbound.poll_health(now) {
            self.trace.note(now, || format!("{side}: {verdict:?}"));
            match verdict {
                // The side that was dialled can only wait for the other.
                Verdict::Suspect(lane) => {
                    self.end.suspects += 1;
                    self.replace_lane(side, lane);
                }
                Verdict::Redial => {
                    self.end.redials += 1;
                    for lane in (0..self.plan.lanes).map(LaneIx) {
                        if self.bug != Some(Bug::RedialIgnored) {
                            self.replace_lane(side, lane);
                        }
                    }
                }
                Verdict::Expired => self.sides[side].expired = true,
            }
        }
        if side == SOURCE {
            self.net.dial_missing(self.wanted_lanes, now);
        }
    }

    fn replace_lane(&mut self, side: usize, lane: LaneIx) {
        if side == SOURCE && self.net.is_open(side, lane) {
            self.net.close_by_source(lane, self.now, &mut self.random);
            self.lane_down(side, lane);
        }
    }
}

fn encode(keys: &FrameKeys, header: &DataHeader, ratio: u64) -> Result<SimFrame, Broken> {
    let mut frame = [0; BATCH_HEADER_BYTES + PAYLOAD_BYTES];
    frame[BATCH_HEADER_BYTES..].copy_from_slice(&payload(header));
    seal_data(keys, header, &mut frame)?;
    Ok(SimFrame {
        bytes: Arc::from(&frame[..]),
        wire_bytes: (BATCH_HEADER_BYTES + PAYLOAD_BYTES) as u64 + u64::from(header.raw_len) / ratio,
    })
}
