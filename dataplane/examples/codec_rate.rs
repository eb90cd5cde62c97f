//! How fast the codec is on one core: raw bytes per second and ratio of each method, on synthetic
//! pages of several kinds.
//!
//! In: nothing, or a number of batches for each measurement. Out: a table. A kind is a guest of 64 MiB
//! that is sent again and again after something has happened to it. Time is the thread's processor
//! time, so that other work on the machine does not count.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dwcp_dataplane::codec::{
    Chain, Choice, ChoiceReason, CodecConfig, CodecVersion, Decoder, Direction, EncodeHint,
    Encoder, Method,
};
use dwcp_dataplane::stream::{BlockId, PAGE_BYTES, PageAddr, Token};
use dwcp_hugepages::arena::BackingPolicy;
use rustix::time::{ClockId, clock_gettime};

const BATCH_PAGES: usize = 96;
const GUEST_PAGES: usize = BATCH_PAGES * 170;

/// Processor time of this thread.
fn now() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Json,
    Pointers,
    Random,
    Zeros,
    /// A third JSON, a third pointers, a sixth random, a sixth zero.
    Mixed,
}

fn fill(kind: Kind, nth: usize, page: &mut [u8], random: &mut Random) {
    match kind {
        Kind::Json => {
            let mut at = 0;
            while at < page.len() {
                let id = random.next() % 1_000_000;
                let names = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot"];
                let name = names[(random.next() % 6) as usize];
                let record = format!(
                    "{{\"id\":{id},\"user\":\"{name}-{}\",\"balance\":{}.{:02},\"active\":true}},\n",
                    random.next() % 5000,
                    random.next() % 90_000,
                    random.next() % 100,
                );
                let len = record.len().min(page.len() - at);
                page[at..at + len].copy_from_slice(&record.as_bytes()[..len]);
                at += len;
            }
        }
        Kind::Pointers => {
            for (i, word) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let value = match i % 4 {
                    0 | 1 => 0xffff_8880_0000_0000 + (random.next() % (1 << 30)) / 64 * 64,
                    2 => random.next() % 300,
                    _ => 0,
                };
                *word = value.to_le_bytes();
            }
        }
        Kind::Random => {
            for word in page.as_chunks_mut::<8>().0 {
                *word = random.next().to_le_bytes();
            }
        }
        Kind::Zeros => page.fill(0),
        Kind::Mixed => {
            let kinds = [
                Kind::Json,
                Kind::Json,
                Kind::Pointers,
                Kind::Pointers,
                Kind::Random,
                Kind::Zeros,
            ];
            fill(kinds[nth % 6], nth, page, random);
        }
    }
}

fn touch(kind: Kind, words: usize, page: &mut [u8], random: &mut Random) {
    if matches!(kind, Kind::Zeros) {
        return;
    }
    for _ in 0..words {
        let at = (random.next() as usize % (PAGE_BYTES / 8)) * 8;
        page[at..at + 8].copy_from_slice(&random.next().to_le_bytes());
    }
}

fn encode(
    encoder: &mut Encoder,
    method: Method,
    raw: &[u8],
    tokens: &[Token],
    out: &mut [u8],
) -> Result<(CodecVersion, u8, bool, usize)> {
    let (version, encoded) = if matches!(method, Method::V1Lz4 | Method::V1Stored) {
        let hint = EncodeHint::default();
        (
            CodecVersion::V1,
            encoder.encode(CodecVersion::V1, &hint, raw, tokens, out)?,
        )
    } else {
        let level = i32::from(method == Method::Zstd);
        let choice = Choice {
            method,
            level,
            reason: ChoiceReason::Soonest,
        };
        (
            CodecVersion::V3,
            encoder.encode_with(choice, raw, tokens, out)?,
        )
    };
    Ok((version, encoded.method, encoded.history, encoded.len))
}

struct Rates {
    encode: f64,
    decode: f64,
    ratio: f64,
}

/// Sends the guest once, for the batches given. The rates are of raw bytes, in GB/s.
fn send(
    encoder: &mut Encoder,
    decoder: &mut Decoder,
    method: Method,
    memory: &[u8],
    first_page: usize,
    batches: usize,
) -> Result<Rates> {
    let mut raw = Vec::new();
    let mut tokens = Vec::new();
    let mut payload = vec![0; Encoder::max_encoded_len(BATCH_PAGES * (PAGE_BYTES + 8))];
    let mut out = vec![0; BATCH_PAGES * (PAGE_BYTES + 8)];
    let (mut encode_s, mut decode_s, mut raw_bytes, mut payload_bytes) = (0.0, 0.0, 0, 0);
    for (nth, pages) in memory
        .chunks(BATCH_PAGES * PAGE_BYTES)
        .take(batches)
        .enumerate()
    {
        raw.clear();
        tokens.clear();
        for (i, page) in pages.chunks(PAGE_BYTES).enumerate() {
            let addr = PageAddr {
                block: BlockId(0),
                index: (first_page + nth * BATCH_PAGES + i) as u64,
            };
            raw.extend_from_slice(&addr.page_header());
            raw.extend_from_slice(page);
            tokens.push(Token::Page { addr });
        }
        let start = now();
        let (version, code, history, len) = encode(encoder, method, &raw, &tokens, &mut payload)?;
        encode_s += (now() - start).as_secs_f64();
        let out = &mut out[..raw.len()];
        let start = now();
        decoder.decode(version, code, history, &payload[..len], out)?;
        decode_s += (now() - start).as_secs_f64();
        ensure!(out == raw, "the batch did not come back");
        raw_bytes += raw.len();
        payload_bytes += len;
    }
    let gigabytes = raw_bytes as f64 / 1e9;
    let ratio = raw_bytes as f64 / payload_bytes as f64;
    Ok(Rates {
        encode: gigabytes / encode_s,
        decode: gigabytes / decode_s,
        ratio,
    })
}

fn main() -> Result<()> {
    let batches = match std::env::args().nth(1) {
        Some(text) => text
            .parse()
            .context("the argument is a number of batches")?,
        None => GUEST_PAGES / BATCH_PAGES,
    };
    let config = CodecConfig {
        store_bytes: 2 * GUEST_PAGES * PAGE_BYTES,
        backing: BackingPolicy::PreferHuge,
        key: [1; 32],
        zstd_level_min: 1,
        zstd_level_max: 3,
    };
    println!(
        "{:<9} {:<22} {:<12} {:>8} {:>8} {:>8}",
        "pages", "round", "method", "enc GB/s", "dec GB/s", "ratio"
    );
    let kinds = [
        ("json", Kind::Json),
        ("pointers", Kind::Pointers),
        ("random", Kind::Random),
        ("zeros", Kind::Zeros),
        ("mixed", Kind::Mixed),
    ];
    let methods = [
        Method::V1Lz4,
        Method::Passthrough,
        Method::Stored,
        Method::Lz4,
        Method::Zstd,
    ];
    for (name, kind) in kinds {
        for method in methods {
            let mut random = Random(88);
            let mut memory = vec![0; GUEST_PAGES * PAGE_BYTES];
            for (nth, page) in memory.chunks_mut(PAGE_BYTES).enumerate() {
                fill(kind, nth, page, &mut random);
            }
            let mut encoder = Encoder::new(&config)?;
            let mut decoder = Decoder::new(&config)?;
            for round in [
                "first",
                "same",
                "8 words changed",
                "64 words changed",
                "copied elsewhere",
                "moved by half",
            ] {
                match round {
                    "8 words changed" => {
                        memory
                            .chunks_mut(PAGE_BYTES)
                            .for_each(|p| touch(kind, 8, p, &mut random));
                    }
                    "64 words changed" => {
                        memory
                            .chunks_mut(PAGE_BYTES)
                            .for_each(|p| touch(kind, 64, p, &mut random));
                    }
                    "moved by half" => memory.rotate_right(GUEST_PAGES / 2 * PAGE_BYTES),
                    _ => {}
                }
                let first_page = if round == "copied elsewhere" {
                    GUEST_PAGES
                } else {
                    0
                };
                let rates = send(
                    &mut encoder,
                    &mut decoder,
                    method,
                    &memory,
                    first_page,
                    batches,
                )?;
                let method = format!("{method:?}");
                println!(
                    "{name:<9} {round:<22} {method:<12} {:>8.2} {:>8.2} {:>8.2}",
                    rates.encode, rates.decode, rates.ratio
                );
            }
        }
    }
    let block = vec![7; BATCH_PAGES * PAGE_BYTES];
    let mut chain = Chain::new(&[1; 32], 0, Direction::ToDestination);
    let start = now();
    for seq in 0..500 {
        chain.advance(seq, seq * block.len() as u64, &block);
    }
    let rate = 500.0 * block.len() as f64 / 1e9 / (now() - start).as_secs_f64();
    println!("digest: {rate:.2} GB/s");
    Ok(())
}
