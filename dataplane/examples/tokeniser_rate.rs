//! How fast the tokeniser cuts: plain page records, zero records, multifd packets.
//!
//! Prints gigabytes of stream per second and nanoseconds per token, best of several passes; the
//! input is larger than any cache. Run it as `cargo run --release --example tokeniser_rate`.

use std::time::Instant;

use dwcp_dataplane::stream::{
    BlockTable, ChannelKind, TokenBuf, Tokeniser,
    testing::{MultifdBuilder, RAM_SECTION, StreamBuilder},
};

const PAGES: u64 = 128 * 1024;
const BATCH_BYTES: usize = 512 << 10;

fn measure(name: &str, kind: ChannelKind, input: &[u8]) {
    let mut out = TokenBuf::with_capacity(64 << 10);
    let mut best = f64::MAX;
    let mut tokens = 0;
    for _ in 0..5 {
        let mut tokeniser = Tokeniser::new(kind);
        let mut blocks = BlockTable::new();
        let start = Instant::now();
        let mut pos = 0;
        tokens = 0;
        while pos < input.len() {
            out.clear();
            let end = input.len().min(pos + BATCH_BYTES);
            pos += tokeniser.feed(&input[pos..end], end == input.len(), &mut blocks, &mut out);
            tokens += out.as_slice().len();
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    let rate = input.len() as f64 / best / 1e9;
    println!(
        "{name:8} {rate:8.1} GB/s {:8.1} ns/token",
        best * 1e9 / tokens as f64
    );
}

fn main() {
    let page = [0x5a; 4096];
    let mut builder = StreamBuilder::new();
    builder
        .ram_start(&[("pc.ram", PAGES * 4096)])
        .part(RAM_SECTION);
    builder.page(Some("pc.ram"), 0, &page);
    let prologue = builder.bytes().to_vec();
    for index in 1..PAGES {
        builder.page(None, index, &page);
    }
    measure("page", ChannelKind::Main, &builder.finish());

    let mut builder = StreamBuilder::empty();
    builder.raw(&prologue);
    for _ in 0..64 {
        for index in 1..PAGES {
            builder.zero(None, index);
        }
    }
    measure("zero", ChannelKind::Main, &builder.finish());

    let mut builder = MultifdBuilder::new(0, [0; 16]);
    for packet in 0..PAGES / 128 {
        let pages: Vec<_> = (0..128)
            .map(|page_in| (packet * 128 + page_in, &page))
            .collect();
        builder.packet("pc.ram", &pages, &[]);
    }
    measure("multifd", ChannelKind::Multifd, &builder.finish());
}
