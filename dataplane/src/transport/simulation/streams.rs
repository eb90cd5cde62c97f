//! The hypervisors of a world: who writes what when, and what came out at the other end.
//!
//! In: the time, batches handed up in sequence. Out: what may be read, what was taken. Promise: a
//! byte lost, doubled or swapped, within a channel or between two, is told at the batch that shows
//! it. Bytes are not carried: a batch carries a fingerprint of the bytes it stands for, and, like
//! the product's, a digest chained with every batch before it on its channel.

use std::collections::VecDeque;

use super::super::Nanos;
use super::super::wire::batch::{BATCH_HEADER_BYTES, BatchHeader, BatchKind, DataHeader};
use super::super::{ChannelId, Version};
use super::plan::Plan;
use super::random::mix;
use super::truth::Broken;

/// Bytes of the fingerprint that stands for a batch's payload.
pub const PAYLOAD_BYTES: usize = 8;

/// The bytes of a channel in one direction.
#[derive(Debug, Default, Clone)]
pub struct Stream {
    pub total: u64,
    /// What the next batch should hold.
    pub wanted: u64,
    pub read: u64,
    chain_out: u64,
    pub open: bool,
    pub close_sent: bool,
    pub handed_up: u64,
    chain_in: u64,
    /// Handed up and not yet taken.
    queued: VecDeque<u64>,
    pub taken: u64,
    pub close_seen: bool,
    pub untaken_until: Nanos,
}

impl Stream {
    pub fn new(total: u64) -> Self {
        Self {
            total,
            ..Self::default()
        }
    }

    /// Bytes that the hypervisor has offered by now.
    pub fn offered(&self, plan: &Plan, now: Nanos) -> u64 {
        if now.0 >= plan.offer_ns {
            return self.total;
        }
        let part = u128::from(self.total) * u128::from(now.0) / u128::from(plan.offer_ns);
        part as u64
    }

    /// When it will have offered `bytes`.
    pub fn offered_at(&self, plan: &Plan, bytes: u64) -> Nanos {
        let ns = u128::from(plan.offer_ns) * u128::from(bytes) / u128::from(self.total.max(1));
        Nanos(ns as u64 + 1)
    }

    /// The digest that a batch of the next `raw_len` bytes carries.
    pub fn read_on(&mut self, channel: u16, raw_len: u64) -> u64 {
        self.chain_out = chained(self.chain_out, channel, self.read, raw_len);
        self.read += raw_len;
        self.chain_out
    }

    /// A batch of this channel was handed up.
    pub fn on_batch(&mut self, header: &BatchHeader, frame: &[u8]) -> Result<(), Broken> {
        let (channel, raw_len) = (header.channel.0, u64::from(header.raw_len));
        match header.kind {
            BatchKind::Open => {}
            BatchKind::HalfClose => {
                self.close_seen = true;
                Broken::unless(self.handed_up == self.total, || {
                    format!("channel {channel} closed at {} bytes", self.handed_up)
                })?;
            }
            BatchKind::Abort => return Err(Broken::new("nobody aborts here")),
            BatchKind::Baseline => return Err(Broken::new("nobody keeps baselines here")),
            BatchKind::Data => {
                let expected = fingerprint(header.version, channel, self.handed_up, raw_len);
                Broken::unless(frame[BATCH_HEADER_BYTES..] == expected, || {
                    format!("channel {channel}: other bytes at {}", self.handed_up)
                })?;
                self.chain_in = chained(self.chain_in, channel, self.handed_up, raw_len);
                Broken::unless(header.digest[..8] == self.chain_in.to_le_bytes(), || {
                    format!("channel {channel}: the chain breaks at {}", self.handed_up)
                })?;
                self.handed_up += raw_len;
                self.queued.push_back(raw_len);
            }
        }
        Ok(())
    }

    /// The hypervisor takes at most `most` bytes.
    pub fn take(&mut self, mut most: u64) -> u64 {
        let before = self.taken;
        while most > 0
            && let Some(first) = self.queued.front_mut()
        {
            let bytes = most.min(*first);
            *first -= bytes;
            most -= bytes;
            self.taken += bytes;
            if *first == 0 {
                self.queued.pop_front();
            }
        }
        self.taken - before
    }

    pub fn is_waiting(&self) -> bool {
        !self.queued.is_empty()
    }

    pub fn is_finished(&self) -> bool {
        self.close_seen && self.taken == self.total
    }
}

fn chained(before: u64, channel: u16, offset: u64, raw_len: u64) -> u64 {
    mix(before ^ mix(offset ^ mix(raw_len ^ (u64::from(channel) << 48))))
}

/// What stands for the bytes of a batch; another in each format, as encodings are.
fn fingerprint(version: Version, channel: u16, offset: u64, raw_len: u64) -> [u8; PAYLOAD_BYTES] {
    let place = mix(offset ^ (u64::from(channel) << 48));
    mix(place ^ raw_len ^ ((version as u64) << 56)).to_le_bytes()
}

/// The payload of the batch that `header` stands in front of.
pub fn payload(header: &DataHeader) -> [u8; PAYLOAD_BYTES] {
    let ChannelId(channel) = header.channel;
    let raw_len = u64::from(header.raw_len);
    fingerprint(header.version, channel, header.offset, raw_len)
}
