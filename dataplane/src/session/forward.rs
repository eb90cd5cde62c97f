//! From the hypervisor to the lanes: read, cut, encode, seal, queue.
//!
//! In: readable connections, credit, the switch words. Out: batches queued at the transport. Promises:
//! the switch words are read once for every batch; nothing is encoded ahead of what the lanes can take,
//! so batches grow when the link is the bottleneck and a rollback finds nothing old in the queue; what a
//! hypervisor wrote before it fell silent leaves without a timer.

use dwcp_api::switches::SwitchView;
use dwcp_api::{Mode, Stage, Version as ApiVersion, monotonic_ns};
use dwcp_drivers::lane::LaneGroup;

use super::aside::{self, Fresh, Given};
use super::channel::{Channel, Untaken};
use super::link::{Link, thrown_ns};
use super::{Fault, Hands, Session, encoding};
use crate::codec::{Effort, EncodeHint, EncodeStats};
use crate::intake::{Cut, HEADROOM, ReadOutcome};
use crate::stream::ChannelKind;
use crate::transport::outbound::BatchMeta;
use crate::transport::wire::batch::{
    DataHeader, FLAG_EXPRESS, MAX_MARKER_BYTES, Marker, seal_marker,
};
use crate::transport::{ChannelId, Nanos, SENT_BATCH_RAW_BYTES, Version};

/// A batch is cut when this much waits, even if more could be read.
const BATCH_BYTES: usize = 512 << 10;
/// A silent connection is cut at once when at least this much waits, else one look later.
const EAGER_CUT_BYTES: usize = 128 << 10;
/// Batches of at most this many raw bytes do not count against the number of large ones.
const SMALL_BATCH_BYTES: usize = 32 << 10;
/// Small batches that the far hypervisor may have yet to take. The receiver has twice
/// [`crate::transport::MAX_IN_FLIGHT`] buffers for them, one of which each channel may count on.
const SMALL_UNTAKEN_MAX: usize = 192;
/// So much of them fits with room to spare.
const SMALL_WINDOW_BYTES: u64 = (SMALL_BATCH_BYTES * SMALL_UNTAKEN_MAX * 3 / 4) as u64;
/// A batch is cut when so many buffers are free: one for what follows it, one to encode into.
const BUFFERS_MIN: usize = 2;
/// What takes longer to squeeze than this is left to an idle core: until it is done the worker would answer
/// nobody, neither its peer nor whoever throws the kill switch.
const ENCODE_HERE_NS_MAX: u64 = 500_000;
/// Of the large batches that the far end has room for, so many are not on the way, but there and not yet taken.
const TAKEN_PERCENT: usize = 25;
/// On a far path frames need not be smaller than this to be through their lanes soon.
const FAR_FRAME_BYTES_MIN: u64 = 64 << 10;

impl Session {
    /// Reads what may be read and sends what should be sent. Says whether anything was done.
    pub(super) fn pump_forward<G: LaneGroup>(
        &mut self,
        hands: &mut Hands<'_, G>,
    ) -> Result<bool, Fault> {
        let Some(link) = self.link.as_mut() else {
            return Ok(false);
        };
        let mut worked = false;
        let count = self.channels.len();
        let rolling_back = link.opens_rollback(hands.switches.read());
        let mut pump = Pump {
            link,
            counters: &mut self.picture,
            hands,
            rolling_back,
            in_postcopy: self.in_postcopy,
        };
        worked |= pump.take_back()?;
        // A different connection begins each turn, so that none starves the others.
        self.turn = self.turn.wrapping_add(1);
        // What a guest waits for comes before all of them.
        let rounds = (0..2 * count).map(|step| (step < count, (self.turn + step) % count));
        for (urgent, index) in rounds {
            let channel = &mut self.channels[index];
            if channel.urgent != urgent {
                continue;
            }
            link.note_taken(channel);
            if channel.end_sent {
                continue;
            }
            let mut pump = Pump {
                link,
                counters: &mut self.picture,
                hands,
                rolling_back,
                in_postcopy: self.in_postcopy,
            };
            worked |= pump.channel(channel)?;
        }
        self.note_stream();
        Ok(worked)
    }

    /// What the main channel showed decides whether the destination may take over from now on.
    fn note_stream(&mut self) {
        if !self.is_source() {
            return;
        }
        for channel in &self.channels {
            let facts = channel.intake.facts();
            if channel.kind != ChannelKind::Multifd && facts.destination_may_run() {
                self.destination_may_run = true;
            }
            if channel.kind.is_main() {
                self.in_postcopy = facts.postcopy_run_seen;
                self.postcopy_settled = facts.postcopy_settled;
                self.picture.rounds = facts.rounds;
                self.picture.ram_end = u64::from(facts.ram_end_seen);
            }
        }
    }
}

/// What is counted of an encoded batch beside its pages.
struct Batch {
    version: Version,
    raw_bytes: usize,
    frame_bytes: usize,
    encode_ns: u64,
    express: bool,
}

/// Borrowed parts of one session while one of its channels is pumped.
struct Pump<'a, 'h, G: LaneGroup> {
    link: &'a mut Link,
    counters: &'a mut dwcp_api::session::SessionSnapshot,
    hands: &'a mut Hands<'h, G>,
    /// v1 was forced and no batch was cut since: the next one goes at once, however small.
    rolling_back: bool,
    /// The guest runs at the destination and waits for single pages: what waits leaves in small pieces.
    in_postcopy: bool,
}

impl<G: LaneGroup> Pump<'_, '_, G> {
    fn channel(&mut self, channel: &mut Channel) -> Result<bool, Fault> {
        let mut worked = false;
        loop {
            let mut progressed = self.read(channel)?;
            progressed |= self.cut_while_due(channel)?;
            worked |= progressed;
            if !progressed {
                break;
            }
        }
        if channel.intake.has_ended()
            && channel.intake.waiting_bytes() == 0
            && self.link.outbound.can_push()
        {
            self.half_close(channel)?;
            worked = true;
        }
        Ok(worked)
    }

    fn read(&mut self, channel: &mut Channel) -> Result<bool, Fault> {
        if !channel.readable {
            return Ok(false);
        }
        let _intake = self.hands.stages.enter(Stage::Intake);
        let allowed = self.link.outbound.may_read(channel.id);
        match channel
            .intake
            .read(&channel.fd, allowed, &self.link.pools_out)
        {
            Ok(ReadOutcome::Bytes(bytes)) => {
                self.link.outbound.on_read(channel.id, bytes)?;
                self.counters.hypervisor_bytes_in += bytes as u64;
                let read = &self.hands.counters.hypervisor_bytes_in_total;
                read.add(bytes as u64);
                if channel.intake.waiting_bytes() == bytes {
                    channel.waiting_since_ns = self.hands.now_ns;
                }
                channel.quiet = false;
                Ok(true)
            }
            Ok(ReadOutcome::WouldBlock) => {
                channel.readable = false;
                Ok(false)
            }
            Ok(ReadOutcome::End) => {
                channel.readable = false;
                Ok(true)
            }
            Ok(ReadOutcome::Full) => Ok(false),
            Err(error) => {
                // A hypervisor that died ends its connection like one that closed it: what it wrote
                // is carried, and its peer finds the stream short.
                tracing::debug!(%error, channel = channel.id.0, "the hypervisor's connection broke");
                channel.readable = false;
                channel.intake.note_broken();
                Ok(true)
            }
        }
    }

    /// Is the link the bottleneck? Then batches may grow while it is busy.
    fn lanes_are_busy(&mut self) -> bool {
        self.link.outbound.has_queued()
    }

    /// Raw bytes of a batch at most, while buffers last: on a far path what becomes a frame that a lane carries
    /// soon, if its pages compress as pages do. In post-copy a page that the guest waits for may be in the middle
    /// of the stream, so batches are small, as far as a window of them fills the line.
    fn batch_limit_bytes(&self) -> usize {
        if self.in_postcopy && self.link.outbound.window_bytes() <= SMALL_WINDOW_BYTES {
            return SMALL_BATCH_BYTES;
        }
        let on_the_way_max = self.link.large_batches_max * (100 - TAKEN_PERCENT) / 100;
        let Some(frame) = self.link.outbound.far_frame_bytes(on_the_way_max) else {
            return SENT_BATCH_RAW_BYTES;
        };
        let frame = frame.max(FAR_FRAME_BYTES_MIN) as f64;
        // The latest batches tell how far the next will compress.
        let raw = frame / f64::from(self.link.encoded_share.max(0.01));
        (raw as usize).clamp(SMALL_BATCH_BYTES, SENT_BATCH_RAW_BYTES)
    }

    /// May a batch of `channel` be queued now?
    fn has_turn(&mut self, channel: &Channel) -> bool {
        if channel.express {
            return self.link.outbound.can_push();
        }
        let outbound = &self.link.outbound;
        let room = match self.in_postcopy {
            true => outbound.can_push_beside_express(),
            false => outbound.can_push(),
        };
        // After a rollback what is in the making is of v3, and is made again: nothing waits for it.
        let begins = self.rolling_back || self.link.has_room_in_the_making();
        room && !self.lanes_are_busy() && begins
    }

    fn cut_while_due(&mut self, channel: &mut Channel) -> Result<bool, Fault> {
        channel.look_again = false;
        let waiting = channel.intake.waiting_bytes();
        if waiting == 0 || !self.has_turn(channel) {
            return Ok(false);
        }
        // Every batch that the far hypervisor has not taken fills a buffer there. When these run short,
        // a connection may have one small batch on its way and no more, so that one which nobody
        // reads never keeps another from moving: the receiver may wait for just that one.
        let crowded = self.link.untaken_large >= self.link.large_batches_max
            || self.link.untaken_small >= SMALL_UNTAKEN_MAX;
        let urgent = self.rolling_back && self.link.untaken_small < SMALL_UNTAKEN_MAX;
        if crowded && !channel.untaken.is_empty() && !urgent {
            return Ok(false);
        }
        // Where large buffers are short here, what waits leaves in small pieces, for it fills one too.
        let free = self.link.pools_out.available();
        let short = free.large < BUFFERS_MIN;
        if short && free.medium < BUFFERS_MIN {
            return Ok(false);
        }
        // The first batch of a rollback is small, so that it is made at once.
        let limit = if crowded || short || self.rolling_back {
            SMALL_BATCH_BYTES
        } else {
            self.batch_limit_bytes()
        };
        let ended = channel.intake.has_ended();
        let silent = !channel.readable;
        let starved = self.link.outbound.may_read(channel.id) == 0;
        let eager = channel.intake.ready_bytes() >= EAGER_CUT_BYTES;
        // Without credit a small batch waits for the next acknowledgement, if there is one to come:
        // it brings credit to make it larger.
        let due = waiting >= BATCH_BYTES.min(limit)
            || ended
            || urgent
            || (starved && (eager || self.link.outbound.in_flight() == 0))
            || (silent && (eager || channel.quiet))
            || (silent && (channel.urgent || self.in_postcopy) && channel.intake.ready_bytes() > 0);
        if !due {
            // One more look at the connection before a small batch leaves.
            channel.look_again = silent && !channel.quiet;
            channel.quiet = silent;
            return Ok(false);
        }
        // Half a record stays for the next cut unless nothing is left to wait for.
        let last = ended || (channel.quiet && channel.intake.ready_bytes() == 0);
        self.send_batch(channel, last, limit)
    }

    fn send_batch(
        &mut self,
        channel: &mut Channel,
        last: bool,
        limit: usize,
    ) -> Result<bool, Fault> {
        let stages = self.hands.stages;
        let link = &mut *self.link;
        let (blocks, tokens) = (&mut link.blocks, &mut link.tokens);
        tokens.begin(link.token_lists.limit());
        let cutting = stages.enter(Stage::Stream);
        let cut = channel
            .intake
            .cut(last, limit, blocks, tokens, &link.pools_out);
        drop(cutting);
        let Some(cut) = cut else {
            return Ok(false);
        };
        let _transport = stages.enter(Stage::Transport);
        let large = cut.raw_bytes > SMALL_BATCH_BYTES;
        let end = cut.offset + cut.raw_bytes as u64;
        channel.untaken.push_back(Untaken { end, large });
        *link.untaken(large) += 1;
        let seq = link.outbound.next_seq();
        let view = self.hands.switches.read();
        self.note_cut(view);
        let link = &mut *self.link;
        let version = batch_version(link.version, view);
        let Cut {
            mut frame,
            raw_bytes,
            offset,
        } = cut;
        let raw_range = HEADROOM..HEADROOM + raw_bytes;
        let started_ns = monotonic_ns();
        let codec = stages.enter(Stage::Codec);
        let raw = &frame.payload_mut()[raw_range];
        let digest = channel.chain_out.advance(seq.0, offset, raw);
        channel.last_out = digest;
        let hint = EncodeHint {
            link_bytes_per_s: link.wire_rate.bytes_per_s(),
            backlog_bytes: 0,
            idle_cores_hint: u32::try_from(self.hands.encoders.idle()).unwrap_or(u32::MAX),
            crowd: self.hands.encoders.crowd(),
            latency_critical: {
                let facts = channel.intake.facts();
                facts.ram_end_seen || facts.postcopy_listen_seen
            },
            // Sealed where they lie, so there must be room for the seal behind them.
            accepts_raw_as_is: frame.capacity()
                >= HEADROOM + raw_bytes + link.keys_out.seal_bytes(),
            effort: effort(self.counters.mode()),
        };
        let header = DataHeader {
            version,
            method: 0,
            flags: if channel.express { FLAG_EXPRESS } else { 0 },
            channel: channel.id,
            seq,
            offset,
            raw_len: raw_bytes as u32,
            digest,
        };
        let read_at = Nanos(std::mem::replace(&mut channel.waiting_since_ns, started_ns));
        let meta = BatchMeta {
            channel: channel.id,
            raw_len: raw_bytes as u32,
            version,
            read_at,
            express: channel.express,
        };
        channel.quiet = false;
        // What a guest waits for is made here and now. So is what takes no longer than handing it over is worth.
        let aside = version == Version::V3
            && !channel.express
            && !hint.latency_critical
            && (link.batches_ahead() > 1
                || (hint.idle_cores_hint > 0 && link.encode_ns(raw_bytes) > ENCODE_HERE_NS_MAX));
        let given = if aside {
            let fresh = Fresh {
                header,
                raw: frame,
                raw_bytes,
                meta,
            };
            aside::give_away(link, self.hands.encoders, &hint, fresh)?
        } else {
            let (sent, stats) = encoding::encode(link, &hint, header, frame, raw_bytes)?;
            Given::Made(sent, stats)
        };
        drop(codec);
        let Given::Made(sent, stats) = given else {
            return Ok(true);
        };
        let batch = Batch {
            version,
            raw_bytes,
            frame_bytes: sent.bytes().len(),
            encode_ns: monotonic_ns().saturating_sub(started_ns),
            express: channel.express,
        };
        link.outbound.push(meta, sent, Nanos(monotonic_ns()))?;
        self.note_encoded(&batch, &stats);
        Ok(true)
    }

    /// Queues the frames of batches that were squeezed beside the worker.
    fn take_back(&mut self) -> Result<bool, Fault> {
        let mut worked = false;
        while let Some(made) = aside::take_back(self.link)? {
            let batch = Batch {
                version: made.header.version,
                raw_bytes: made.raw_bytes,
                frame_bytes: made.frame_bytes,
                encode_ns: made.encode_ns(),
                express: false,
            };
            self.note_encoded(&batch, &made.encoded.stats);
            self.hands.counters.batches_encoded_aside_total.add(1);
            worked = true;
        }
        Ok(worked)
    }

    fn note_encoded(&mut self, batch: &Batch, stats: &EncodeStats) {
        if !batch.express {
            self.link
                .note_encoded(batch.raw_bytes, batch.frame_bytes, batch.encode_ns);
        }
        let picture = &mut *self.counters;
        picture.pages += stats.pages;
        picture.pages_zero += stats.zero;
        picture.pages_duplicate += stats.dup;
        picture.pages_known += stats.known;
        picture.pages_delta += stats.delta;
        picture.codec_ns += batch.encode_ns;
        let counters = self.hands.counters;
        counters.pages_zero_total.add(stats.zero);
        counters.pages_duplicate_total.add(stats.dup);
        counters.pages_known_total.add(stats.known);
        counters.pages_delta_total.add(stats.delta);
        counters.pages_literal_total.add(stats.literal);
        counters.batches_encoded_total.add(1);
        let (raw_total, encoded_total, ns_total) = match batch.version {
            Version::V1 => (
                &counters.raw_bytes_v1_total,
                &counters.encoded_bytes_v1_total,
                &counters.encode_v1_ns_total,
            ),
            Version::V3 => (
                &counters.raw_bytes_v3_total,
                &counters.encoded_bytes_v3_total,
                &counters.encode_v3_ns_total,
            ),
        };
        raw_total.add(batch.raw_bytes as u64);
        encoded_total.add(batch.frame_bytes as u64);
        ns_total.add(batch.encode_ns);
    }

    fn note_cut(&mut self, view: SwitchView) {
        self.link.cut_under_ns = thrown_ns(view);
        if self.rolling_back {
            // The batch that the reserve was for has been cut, with or without it.
            self.link.outbound.open_reserve(0);
        }
        self.rolling_back = false;
    }

    fn half_close(&mut self, channel: &mut Channel) -> Result<(), Fault> {
        let marker = Marker::HalfClose {
            total_bytes: channel.intake.offset(),
            digest: channel.last_out,
        };
        push_marker(self.link, channel.id, &marker)?;
        channel.end_sent = true;
        Ok(())
    }
}

/// What bytes are worth in a mode.
const fn effort(mode: Option<Mode>) -> Effort {
    match mode {
        Some(Mode::Datacenter) => Effort::Light,
        Some(Mode::Internet) => Effort::Aggressive,
        Some(Mode::Hybrid) | None => Effort::Measured,
    }
}

/// The version of the next batch: what both sides may use and what the switches say.
fn batch_version(agreed: Version, view: SwitchView) -> Version {
    match (agreed, view.hde) {
        (Version::V3, ApiVersion::V3) => Version::V3,
        _ => Version::V1,
    }
}

/// Queues a batch that carries no bytes.
pub(super) fn push_marker(
    link: &mut Link,
    channel: ChannelId,
    marker: &Marker<'_>,
) -> Result<(), Fault> {
    let mut frame = link
        .pools_out
        .take(MAX_MARKER_BYTES)
        .ok_or_else(Fault::buffers)?;
    let seq = link.outbound.next_seq();
    let bytes = seal_marker(&link.keys_out, seq, channel, marker, frame.payload_mut())?;
    let now = Nanos(monotonic_ns());
    let meta = BatchMeta {
        channel,
        raw_len: 0,
        version: Version::V1,
        read_at: now,
        express: false,
    };
    link.outbound.push(meta, frame.freeze(bytes)?, now)?;
    Ok(())
}

const _: () = assert!(BATCH_BYTES <= SENT_BATCH_RAW_BYTES);
