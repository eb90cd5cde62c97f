//! What a session has once the two sides agree: keys, sequence, codecs, buffers.
//!
//! In: the outcome of the handshake and our limits. Out: the two directions' machinery with all memory
//! taken. Promises: what a peer asks for is cut to our own limits before a byte is taken for it.

use dwcp_api::Version as ApiVersion;
use dwcp_api::switches::SwitchView;
use dwcp_drivers::frame::{Frame, FrameMut, FramePools, FramePoolsError};
use dwcp_hugepages::arena::BackingPolicy;

use crate::codec::{CodecConfig, CodecError, Decoder, Encoder};
use crate::engine::encoders::Encoders;
use crate::engine::mailbox::Sender;
use crate::engine::messages::ToWorker;
use crate::intake::BATCH_TOKENS;
use crate::stream::{BlockTable, Token, TokenBuf};
use crate::transport::handshake::{Agreed, SessionParams};
use crate::transport::inbound::{Inbound, InboundConfig};
use crate::transport::outbound::{Outbound, OutboundConfig};
use crate::transport::wire::batch::DataHeader;
use crate::transport::wire::control::{Ack, ControlOpener, ControlSealer};
use crate::transport::wire::keys::{Direction, FrameKeys};
use crate::transport::{MAX_IN_FLIGHT, Nanos, TransportError, Version};

use super::aside::Jobs;
use super::channel::Channel;
use super::memory::{RETURN_BATCHES_MAX, SessionSize, ZSTD_LEVEL_MAX};
use super::token_lists::TokenLists;
use super::wire_rate::WireRate;

/// Between this zstd level and [`ZSTD_LEVEL_MAX`] the encoder chooses.
const ZSTD_LEVEL_MIN: i32 = 1;
/// A lane with this much unsent takes no more, however fast the line: what lies in a lane cannot be taken
/// back when the version changes.
const LANE_BACKLOG_BYTES: usize = 192 << 10;
/// The same on a slow line: what the whole line carries in half a millisecond, but never less than
/// [`LANE_BACKLOG_BYTES_MIN`].
const LANE_BACKLOG_PER_S: u64 = 2_000;
/// See [`LANE_BACKLOG_PER_S`].
const LANE_BACKLOG_BYTES_MIN: usize = 8 << 10;
/// Weight of the newest batch in what is known of how far batches compress and what that takes.
const NEWEST_SHARE: f32 = 0.25;
/// Encoding is to be this much faster than the wire.
const AHEAD_MARGIN: f32 = 1.25;
/// What may be read beyond the window for the first batch after a rollback.
const ROLLBACK_RESERVE_BYTES: u64 = 16 << 10;

/// Raw bytes behind room for a header: by themselves, or as the payload of the frame that was sent.
pub struct Kept {
    /// The buffer.
    pub frame: Frame,
    /// It was encrypted where it lies.
    pub sealed: bool,
}

/// The raw bytes of a batch that was sent in v3, kept until the peer has it: after a rollback it may
/// not go out again as it is.
pub struct Retained {
    /// Its header as it was sealed.
    pub header: DataHeader,
    /// Header room, then the raw bytes.
    pub raw: Kept,
    /// Raw bytes behind the header room.
    pub raw_bytes: usize,
    /// Their tokens.
    pub tokens: Vec<Token>,
    /// Whether the batch changed the page history.
    pub history: bool,
    /// It refers to blocks of baselines: the peer may have it and ask for it again all the same, until it has
    /// handed it up.
    pub known: bool,
}

/// See the module.
pub struct Link {
    /// Highest version both sides may use.
    pub version: Version,
    /// Pages may be references to blocks that both sides have on disk.
    pub baselines: bool,
    /// Keys of what we send.
    pub keys_out: FrameKeys,
    /// Keys of what we get.
    pub keys_in: FrameKeys,
    /// Sequence and lanes of what we send.
    pub outbound: Outbound<Frame>,
    /// Sequence of what we get.
    pub inbound: Inbound<Frame>,
    /// Seals our control frames.
    pub sealer: ControlSealer,
    /// Opens the peer's.
    pub opener: ControlOpener,
    /// Encodes what we send.
    pub encoder: Encoder,
    /// Decodes what we get.
    pub decoder: Decoder,
    /// Buffers for what we send.
    pub pools_out: FramePools,
    /// Buffers for what we get.
    pub pools_in: FramePools,
    /// RAM block names, shared by the channels.
    pub blocks: BlockTable,
    /// Tokens of the batch at hand.
    pub tokens: TokenBuf,
    /// Batches kept for transcoding, oldest first.
    pub retained: std::collections::VecDeque<Retained>,
    /// Lists for the tokens of batches that are kept.
    pub token_lists: TokenLists,
    /// Batches of more than a small size that the far hypervisor may have yet to take.
    pub large_batches_max: usize,
    /// How many there are.
    pub untaken_large: usize,
    /// And of the small ones.
    pub untaken_small: usize,
    /// Lanes for a v1 transport.
    pub lanes_v1: u16,
    /// Lanes for a v3 transport.
    pub lanes_v3: u16,
    /// The negotiated window, raw bytes.
    pub window_limit_bytes: u64,
    /// A large buffer to encode into, kept for the next batch when a batch came out small.
    pub scratch_out: Option<FrameMut>,
    /// Where a kept frame is decrypted for a rollback; empty until the first.
    pub unsealed: Vec<u8>,
    /// A large buffer to decode into.
    pub scratch_in: Option<FrameMut>,
    /// Encoded bytes for each raw one, of the latest batches.
    pub encoded_share: f32,
    /// Nanoseconds of one core for each raw byte, of the latest batches.
    encode_ns_per_byte: f32,
    /// The same of the slower ones: up at once, down as slowly as the mean.
    slow_ns_per_byte: f32,
    /// Batches that are squeezed beside the worker.
    pub jobs: Jobs,
    /// What the wire carries while it is the bottleneck.
    pub wire_rate: WireRate,
    /// The switch for which the reserve was opened last.
    reserve_opened_ns: u64,
    /// The kill switch's throw under which the last batch was cut; 0: none.
    pub cut_under_ns: u64,
}

/// Why the machinery could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Buffers.
    #[error("buffers of the session: {0}")]
    Pools(#[from] FramePoolsError),
    /// Page store or compressor.
    #[error("codec of the session: {0}")]
    Codec(#[from] CodecError),
}

/// What our side brings to [`Link::new`].
pub struct LinkOptions<'a> {
    /// We send towards the destination.
    pub is_source: bool,
    /// Where arenas come from.
    pub backing: BackingPolicy,
    /// How long the link may be gone, nanoseconds.
    pub resume_limit_ns: u64,
    /// Lanes in use at first.
    pub lanes_active: u16,
    /// Threads that squeeze batches beside the worker.
    pub encoders: &'a Encoders,
    /// The way back from them.
    pub worker: &'a Sender<ToWorker>,
}

impl LinkOptions<'_> {
    /// What the size of a link depends on that agreed on this.
    #[must_use]
    pub fn size(&self, params: &SessionParams) -> SessionSize {
        SessionSize {
            is_source: self.is_source,
            encoders: self.encoders.count(),
            store_bytes: params.page_store_bytes,
            window_limit_bytes: params.window_limit_bytes,
        }
    }
}

/// When the kill switch was thrown that is in force; 0: none is.
pub const fn thrown_ns(view: SwitchView) -> u64 {
    if view.forced_v1 { view.changed_ns } else { 0 }
}

impl Link {
    /// Has v1 been forced at a moment that no batch was cut since? Then one small batch may leave at once,
    /// even if the far hypervisor is behind.
    pub fn opens_rollback(&mut self, view: SwitchView) -> bool {
        let forced = self.version == Version::V3 && view.forced_v1;
        let news = forced && view.changed_ns != self.cut_under_ns;
        if news && self.reserve_opened_ns != view.changed_ns {
            self.reserve_opened_ns = view.changed_ns;
            self.outbound.open_reserve(ROLLBACK_RESERVE_BYTES);
        }
        news
    }

    /// Fits what lies in the lanes to what the line carries.
    pub fn fit_lane_backlog(&mut self) {
        let fast = LANE_BACKLOG_BYTES as u64;
        let rate = self.wire_rate.bytes_per_s();
        // On a far path what is on the way over all lanes is limited, what lies in them with it.
        let fitting = rate
            .filter(|_| self.outbound.carried_bytes_per_s().is_none())
            .map_or(fast, |rate| rate / LANE_BACKLOG_PER_S);
        let bytes = usize::try_from(fitting).unwrap_or(LANE_BACKLOG_BYTES);
        self.outbound
            .set_lane_backlog_limit(bytes.clamp(LANE_BACKLOG_BYTES_MIN, LANE_BACKLOG_BYTES));
    }

    /// Takes all memory the session will need.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn new(agreed: &Agreed, options: &LinkOptions<'_>, now: Nanos) -> Result<Self, LinkError> {
        let (way_out, way_in) = if options.is_source {
            (Direction::ToAcceptor, Direction::ToInitiator)
        } else {
            (Direction::ToInitiator, Direction::ToAcceptor)
        };
        let keys_out = agreed.key.frame_keys(way_out);
        let keys_in = agreed.key.frame_keys(way_in);
        let window = agreed.params.window_limit_bytes;
        let size = options.size(&agreed.params);
        let [store_out, store_in] = size.stores();
        let lanes_max = usize::from(agreed.params.lanes_v1.max(agreed.params.lanes_v3));
        let mut outbound =
            OutboundConfig::new(window, lanes_max, usize::from(options.lanes_active));
        outbound.resume_limit_ns = options.resume_limit_ns;
        outbound.lane_backlog_limit_bytes = LANE_BACKLOG_BYTES;
        let codec = |store_bytes: u64, key: &[u8; 32]| CodecConfig {
            store_bytes: usize::try_from(store_bytes).unwrap_or(usize::MAX),
            key: *key,
            backing: options.backing,
            zstd_level_min: ZSTD_LEVEL_MIN,
            zstd_level_max: ZSTD_LEVEL_MAX,
        };
        Ok(Self {
            version: agreed.version,
            baselines: agreed.params.baselines,
            outbound: Outbound::new(outbound, now),
            inbound: Inbound::new(InboundConfig {
                keys: keys_in.clone(),
                highest: agreed.version,
                window_limit_bytes: window,
            }),
            sealer: ControlSealer::new(keys_out.clone(), agreed.epoch),
            opener: ControlOpener::new(keys_in.clone(), agreed.epoch),
            jobs: Jobs::new(
                options.is_source,
                options.encoders,
                options.worker,
                &codec(store_out, keys_out.chain_key()),
            )?,
            encoder: Encoder::new(&codec(store_out, keys_out.chain_key()))?,
            decoder: Decoder::new(&codec(store_in, keys_in.chain_key()))?,
            pools_out: size.pools_out(options.backing)?,
            pools_in: size.pools_in(options.backing)?,
            blocks: BlockTable::new(),
            tokens: TokenBuf::with_capacity(BATCH_TOKENS),
            retained: std::collections::VecDeque::with_capacity(MAX_IN_FLIGHT),
            token_lists: TokenLists::new(options.is_source),
            large_batches_max: if options.is_source {
                size.large_batches_max()
            } else {
                RETURN_BATCHES_MAX
            },
            untaken_large: 0,
            untaken_small: 0,
            lanes_v1: agreed.params.lanes_v1,
            lanes_v3: agreed.params.lanes_v3,
            window_limit_bytes: window,
            scratch_out: None,
            unsealed: Vec::new(),
            scratch_in: None,
            encoded_share: 1.0,
            encode_ns_per_byte: 0.0,
            slow_ns_per_byte: 0.0,
            wire_rate: WireRate::default(),
            reserve_opened_ns: 0,
            cut_under_ns: 0,
            keys_out,
            keys_in,
        })
    }

    /// Learns from an encoded batch.
    pub fn note_encoded(&mut self, raw_bytes: usize, frame_bytes: usize, encode_ns: u64) {
        let raw_bytes = raw_bytes.max(1) as f32;
        self.encoded_share += (frame_bytes as f32 / raw_bytes - self.encoded_share) * NEWEST_SHARE;
        let per_byte = encode_ns as f32 / raw_bytes;
        self.encode_ns_per_byte += (per_byte - self.encode_ns_per_byte) * NEWEST_SHARE;
        let lately = self.slow_ns_per_byte;
        self.slow_ns_per_byte = per_byte.max(lately + (per_byte - lately) * NEWEST_SHARE);
    }

    /// Batches to have in the making at once: as many as keep the wire busy, the worker's own included.
    pub fn batches_ahead(&self) -> usize {
        let most = self.jobs.count() + 1;
        let Some(rate) = self.wire_rate.bytes_per_s() else {
            return 1;
        };
        let wire_ns_per_byte = self.encoded_share * 1e9 / rate.max(1) as f32;
        let ahead = AHEAD_MARGIN * self.encode_ns_per_byte / wire_ns_per_byte.max(1e-6);
        (ahead.ceil() as usize).clamp(1, most)
    }

    /// How long so many raw bytes may take to encode: as the slower ones of the latest batches did.
    pub fn encode_ns(&self, raw_bytes: usize) -> u64 {
        (self.slow_ns_per_byte * raw_bytes as f32) as u64
    }

    /// May another batch be begun beside those in the making?
    pub fn has_room_in_the_making(&self) -> bool {
        let reserved = self.outbound.reserved();
        reserved == 0 || reserved < self.batches_ahead()
    }

    /// Lanes that a transport of this version uses here.
    pub const fn lanes_for(&self, transport: ApiVersion) -> u16 {
        match (self.version, transport) {
            (Version::V3, ApiVersion::V3) => self.lanes_v3,
            _ => self.lanes_v1,
        }
    }

    /// What is held between the hypervisors never passes this.
    pub const fn held_limit_bytes(&self, channels: u64) -> u64 {
        self.window_limit_bytes + crate::transport::CHANNEL_GUARANTEE_BYTES * channels
    }

    /// The number of untaken batches, of the large ones or of the small.
    pub const fn untaken(&mut self, large: bool) -> &mut usize {
        if large {
            &mut self.untaken_large
        } else {
            &mut self.untaken_small
        }
    }

    /// Forgets the batches of `channel` that the far hypervisor has taken.
    pub fn note_taken(&mut self, channel: &mut Channel) {
        let taken = self.outbound.delivered_bytes(channel.id);
        while let Some(batch) = channel.untaken.pop_front_if(|batch| batch.end <= taken) {
            *self.untaken(batch.large) -= 1;
        }
    }

    /// Takes an ACK, and forgets what was kept of the batches that it confirms.
    ///
    /// # Errors
    /// [`TransportError`] for what cannot be true.
    pub fn on_ack(&mut self, ack: &Ack, now: Nanos) -> Result<(), TransportError> {
        let (retained, lists) = (&mut self.retained, &mut self.token_lists);
        self.outbound.on_ack(ack, now, |seq| {
            // Confirmed one by one, mostly from the front.
            if let Some(at) = retained.iter().position(|kept| kept.header.seq == seq)
                && !retained[at].known
                && let Some(kept) = retained.remove(at)
            {
                lists.give_back(kept.tokens);
            }
        })?;
        if self.baselines {
            self.forget_known();
        }
        Ok(())
    }

    /// Forgets what was kept of batches that the peer has handed up, whatever they refer to.
    fn forget_known(&mut self) {
        let next = self.outbound.oldest_unconfirmed();
        let done = |kept: &Retained| kept.known && kept.header.seq < next;
        while let Some(at) = self.retained.iter().position(done) {
            if let Some(kept) = self.retained.remove(at) {
                self.token_lists.give_back(kept.tokens);
            }
        }
    }
}
