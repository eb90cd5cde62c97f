//! Whatever comes in, in whatever pieces, comes out as tokens of the same bytes.
//!
//! The checks themselves are in [`tokenise`]; here are the inputs.

use proptest::prelude::*;

use super::*;
use crate::stream::testing::{MultifdBuilder, RAM_SECTION, StreamBuilder};

fn main_stream() -> Vec<u8> {
    let mut builder = StreamBuilder::new();
    builder
        .configuration("configuration/uuid", &[1; 16])
        .postcopy_advise(4096 | 2 << 20);
    builder.start(RAM_SECTION, "ram", 4).be64(0x60_0000 | 4);
    builder
        .counted("pc.ram")
        .be64(0x40_0000)
        .be64(2 << 20)
        .counted("vga")
        .be64(0x20_0000);
    builder
        .ram_eos()
        .full(40, "0000:00:04.0/virtio-mem-device-early", 1);
    builder
        .be64(0)
        .be64(256 << 20)
        .be64(2 << 20)
        .be32(0)
        .be64(0)
        .raw(&[0; 16])
        .footer(40);
    builder
        .start(2, "dirty-bitmap", 1)
        .raw(&[0x1c])
        .counted("n")
        .counted("b")
        .be32(1)
        .raw(&[0, 1]);
    builder
        .footer(2)
        .part(RAM_SECTION)
        .page(Some("pc.ram"), 0, &page_of(1));
    builder
        .page(None, 1, &page_of(2))
        .zero(None, 2)
        .zero(Some("vga"), 3)
        .xbzrle(None, 1, b"delta");
    builder
        .multifd_flush()
        .ram_eos()
        .command(11, &[])
        .end(RAM_SECTION)
        .page(None, 9, &page_of(3));
    builder
        .ram_eos()
        .end(2)
        .raw(&[1])
        .footer(2)
        .device_tail(b"state");
    builder.finish()
}

fn multifd_stream() -> Vec<u8> {
    let (a, b) = (page_of(1), page_of(2));
    let mut builder = MultifdBuilder::new(0, [9; 16]);
    builder
        .packet("pc.ram", &[(0, &a), (1, &b)], &[4])
        .sync()
        .device_state("vfio", &[3; 300]);
    builder
        .compressed(2, "pc.ram", &[3], &[5; 99])
        .packet("vga", &[(8, &b)], &[]);
    builder.finish()
}

/// Facts that must not depend on how the input was cut: all but the number of raw bytes.
fn comparable(mut facts: StreamFacts) -> StreamFacts {
    facts.raw_bytes = 0;
    facts
}

#[test]
fn every_split_and_every_flush_of_a_full_stream() {
    for (kind, input) in [
        (ChannelKind::Main, main_stream()),
        (ChannelKind::Multifd, multifd_stream()),
    ] {
        let (tokens, facts) = whole(kind, &input);
        assert_eq!(facts.lost_sync, None);
        assert!(facts.ram_end_seen || kind == ChannelKind::Multifd);
        for at in 0..=input.len() {
            let split = tokenise(
                kind,
                &input,
                &[(at, false)],
                1 << 20,
                &mut BlockTable::new(),
            );
            assert_eq!(merged(&split.0), merged(&tokens), "split at {at}");
            assert_eq!(split.1, facts, "split at {at}");
            let flush = tokenise(kind, &input, &[(at, true)], 3, &mut BlockTable::new());
            assert_eq!(
                comparable(flush.1),
                comparable(facts.clone()),
                "flush at {at}"
            );
            let pages = |tokens: &[Token]| {
                tokens
                    .iter()
                    .filter(|t| t.len() >= 4096 && !matches!(t, Token::Raw { .. }))
                    .count()
            };
            assert!(pages(&flush.0) + 1 >= pages(&tokens), "flush at {at}");
        }
    }
}

#[test]
fn byte_by_byte_with_and_without_flush() {
    for (kind, input) in [
        (ChannelKind::Main, main_stream()),
        (ChannelKind::Multifd, multifd_stream()),
    ] {
        let (tokens, facts) = whole(kind, &input);
        let slow: Vec<_> = (0..input.len()).map(|at| (at, false)).collect();
        let split = tokenise(kind, &input, &slow, 2, &mut BlockTable::new());
        assert_eq!((merged(&split.0), &split.1), (merged(&tokens), &facts));
        let flushed: Vec<_> = (0..input.len()).map(|at| (at, true)).collect();
        let (_, flushed) = tokenise(kind, &input, &flushed, 1, &mut BlockTable::new());
        assert_eq!(comparable(flushed), comparable(facts));
    }
}

/// Tokens with neighbouring raw ones joined, as they are when nothing was cut.
fn merged(tokens: &[Token]) -> Vec<Token> {
    let mut out = TokenBuf::with_capacity(tokens.len());
    for token in tokens {
        match token {
            Token::Raw { len } => out.push_raw(*len),
            token => out.push(*token),
        }
    }
    out.as_slice().to_vec()
}

#[test]
fn cut_short_anywhere() {
    for (kind, input) in [
        (ChannelKind::Main, main_stream()),
        (ChannelKind::Multifd, multifd_stream()),
    ] {
        for end in 0..input.len() {
            let (_, facts) = whole(kind, &input[..end]);
            assert_eq!(facts.lost_sync, None, "{kind:?} cut at {end}");
        }
    }
}

fn kind() -> impl Strategy<Value = ChannelKind> {
    prop_oneof![
        Just(ChannelKind::Main),
        Just(ChannelKind::Multifd),
        Just(ChannelKind::ReturnPath),
        Just(ChannelKind::Opaque),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn mutated_streams(
        multifd in any::<bool>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 0..6),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..8),
        capacity in 1..20usize,
    ) {
        let (kind, mut input) = if multifd {
            (ChannelKind::Multifd, multifd_stream())
        } else {
            (ChannelKind::Main, main_stream())
        };
        for (at, value, how) in edits {
            let at = at.index(input.len());
            match how {
                0 => input[at] = value,
                1 => input[at] ^= 1 << (value % 8),
                2 => { input.remove(at); }
                _ => input.insert(at, value),
            }
        }
        let mut cuts: Vec<_> =
            cuts.into_iter().map(|(at, flush)| (at.index(input.len()), flush)).collect();
        cuts.sort_unstable();
        tokenise(kind, &input, &cuts, capacity, &mut BlockTable::new());
    }

    #[test]
    fn arbitrary_bytes(
        kind in kind(),
        input in prop::collection::vec(any::<u8>(), 1..20_000),
        cuts in prop::collection::vec((0..20_000usize, any::<bool>()), 0..8),
        capacity in 1..20usize,
    ) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        let mut blocks = BlockTable::new();
        tokenise(kind, &input, &cuts, capacity, &mut blocks);
        prop_assert!(blocks.len() <= MAX_BLOCKS);
    }
}
