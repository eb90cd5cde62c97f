//! What encryption costs. In: how many rounds. Out: bytes a second on one core, sealing a batch as a session
//! over TLS does (header, tag and payload, in place) and opening it, beside AES-128-GCM of ring over the
//! same bytes in place; and sealing without encryption. Promise: all take turns on batches of one size,
//! larger than the caches together.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dwcp_dataplane::transport::wire::batch::{
    BATCH_HEADER_BYTES, DataHeader, open_batch, open_payload, seal_data,
};
use dwcp_dataplane::transport::wire::keys::{Direction, FrameKeys, KeyHalf, Psk, SessionKey};
use dwcp_dataplane::transport::{BatchSeq, ChannelId, NodeId, SessionEpoch, SessionId, Version};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::row::Row;

const ROUNDS: usize = 9;
/// All batches of a round together.
const BYTES: usize = 64 << 20;
/// Encoded bytes of a batch: a small one, the usual one, the largest.
const BATCH_BYTES: [usize; 3] = [16 << 10, 512 << 10, 1 << 20];

fn keys(over_tls: bool) -> FrameKeys {
    let (a, b) = (NodeId::of_name("a"), NodeId::of_name("b"));
    let (id, epoch) = (SessionId([1; 16]), SessionEpoch(0));
    let key = if over_tls {
        let halves = [&KeyHalf([1; 32]), &KeyHalf([2; 32])];
        SessionKey::of_halves(halves, id, a, b, epoch)
    } else {
        SessionKey::derive(&Psk([1; 32]), id, a, b, epoch)
    };
    key.frame_keys(Direction::ToAcceptor)
}

fn header(seq: u64, raw_bytes: usize) -> DataHeader {
    DataHeader {
        version: Version::V3,
        method: 0,
        flags: 0,
        channel: ChannelId(0),
        seq: BatchSeq(seq),
        offset: 0,
        raw_len: raw_bytes as u32,
        digest: [7; 16],
    }
}

fn gb_per_s(bytes: usize, took: Duration) -> f64 {
    bytes as f64 / 1e9 / took.as_secs_f64()
}

pub(super) fn run(runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let core = core_affinity::get_core_ids().and_then(|cores| cores.last().copied());
    let pinned = core.is_some_and(core_affinity::set_for_current);
    ensure!(pinned, "the bench cannot be pinned to a core");
    let mut rows = Vec::new();
    for batch_bytes in BATCH_BYTES {
        rows.extend(one_size(batch_bytes, runs.unwrap_or(ROUNDS))?);
    }
    Ok(rows)
}

fn one_size(batch_bytes: usize, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let (tls, plain) = (keys(true), keys(false));
    let count = BYTES / batch_bytes;
    let total = count * batch_bytes;
    let fresh = |room: usize| vec![vec![0x5a; BATCH_HEADER_BYTES + batch_bytes + room]; count];
    let (mut sealed, mut bare, mut gcm) = (
        fresh(tls.seal_bytes()),
        fresh(0),
        fresh(AES_128_GCM.tag_len()),
    );
    let key = UnboundKey::new(&AES_128_GCM, &[3; 16])
        .ok()
        .context("a key")?;
    let key = LessSafeKey::new(key);
    let nonce = |at: usize| {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&(at as u64).to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    };
    let [mut seals, mut opens, mut others, mut other_opens, mut bares] = [const { Vec::new() }; 5];
    for _ in 0..rounds {
        let begun = Instant::now();
        for (at, frame) in sealed.iter_mut().enumerate() {
            seal_data(&tls, &header(at as u64, batch_bytes), frame)?;
        }
        seals.push(gb_per_s(total, begun.elapsed()));

        let begun = Instant::now();
        for (at, frame) in gcm.iter_mut().enumerate() {
            let (header, rest) = frame.split_at_mut(BATCH_HEADER_BYTES);
            let (payload, tag) = rest.split_at_mut(batch_bytes);
            let made = key
                .seal_in_place_separate_tag(nonce(at), Aad::from(&header), payload)
                .ok()
                .context("sealing")?;
            tag.copy_from_slice(made.as_ref());
        }
        others.push(gb_per_s(total, begun.elapsed()));

        let begun = Instant::now();
        for frame in &mut sealed {
            open_batch(&tls, frame)?;
            let left = open_payload(&tls, frame)?;
            ensure!(left == BATCH_HEADER_BYTES + batch_bytes, "a batch grew");
        }
        opens.push(gb_per_s(total, begun.elapsed()));

        let begun = Instant::now();
        for (at, frame) in gcm.iter_mut().enumerate() {
            let (header, rest) = frame.split_at_mut(BATCH_HEADER_BYTES);
            key.open_in_place(nonce(at), Aad::from(&header), rest)
                .ok()
                .context("opening")?;
        }
        other_opens.push(gb_per_s(total, begun.elapsed()));

        let begun = Instant::now();
        for (at, frame) in bare.iter_mut().enumerate() {
            seal_data(&plain, &header(at as u64, batch_bytes), frame)?;
        }
        bares.push(gb_per_s(total, begun.elapsed()));
    }
    let kib = batch_bytes >> 10;
    let row = |what: &str, ours: &[f64], reference: &[f64]| {
        Row::new(&format!("{what}, {kib} KiB"), "GB/s", ours, reference)
    };
    Ok(vec![
        row("seal and encrypt; AES-128-GCM", &seals, &others),
        row("open and decrypt; AES-128-GCM", &opens, &other_opens),
        row("seal without encryption", &bares, &[]),
    ])
}
