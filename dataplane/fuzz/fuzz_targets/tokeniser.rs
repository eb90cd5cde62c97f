//! Any bytes on any channel, in any pieces: lossless, canonical, bounded.
//!
//! Input: one byte for the kind of channel, one for the number of cuts, per cut two bytes of
//! length and one whose low bit says flush, one byte of token capacity, then the stream.

#![no_main]

use dwcp_dataplane::stream::{
    BlockTable, ChannelKind, MAX_BLOCKS, MAX_CARRY_BYTES, Token, TokenBuf, Tokeniser,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [kind, cuts, rest @ ..] = data else {
        return;
    };
    let kind = match kind % 8 {
        0 => ChannelKind::Main,
        1 => ChannelKind::Multifd,
        2 => ChannelKind::ReturnPath,
        4 => ChannelKind::Resumed,
        5 => ChannelKind::Urgent,
        _ => ChannelKind::Opaque,
    };
    let Some((cuts, rest)) = rest.split_at_checked(usize::from(cuts % 16) * 3) else {
        return;
    };
    let Some((capacity, stream)) = rest.split_first() else {
        return;
    };

    let mut tokeniser = Tokeniser::new(kind);
    let mut blocks = BlockTable::new();
    let mut out = TokenBuf::with_capacity(usize::from(*capacity));
    let (mut pos, mut end) = (0, 0);
    let cuts = cuts.chunks_exact(3).map(|cut| {
        (
            usize::from(u16::from_be_bytes([cut[0], cut[1]])),
            cut[2] & 1 == 1,
        )
    });
    for (len, flush) in cuts.chain([(stream.len(), true)]) {
        end = stream.len().min(end + len);
        while pos < end {
            out.clear();
            let room = out.room();
            let consumed = tokeniser.feed(&stream[pos..end], flush, &mut blocks, &mut out);
            assert!(out.as_slice().len() <= room);
            check(&stream[pos..pos + consumed], out.as_slice());
            pos += consumed;
            if out.room() > 0 {
                assert!(end - pos <= if flush { 0 } else { MAX_CARRY_BYTES });
                break;
            }
        }
    }
    assert_eq!(pos, stream.len());
    assert_eq!(tokeniser.facts().bytes, stream.len() as u64);
    assert!(blocks.len() <= MAX_BLOCKS);
});

/// The tokens cover the bytes, and what a token regenerates is what was there.
fn check(mut bytes: &[u8], tokens: &[Token]) {
    for token in tokens {
        let (own, behind) = bytes.split_at(token.len());
        match token {
            Token::Raw { len } => assert!(*len > 0),
            Token::Page { addr } => assert_eq!(own[..8], addr.page_header()),
            Token::Body { .. } => {}
            Token::Zero { addr } => assert_eq!(own, addr.zero_record()),
        }
        bytes = behind;
    }
    assert!(bytes.is_empty());
}
