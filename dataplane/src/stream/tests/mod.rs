//! Tests of the whole module; the helpers here are their oracle.

mod guest;
mod lossless;
mod multifd;
mod postcopy;
mod qemu;
mod sections;

use super::*;

/// Tokens and facts of a whole stream, presented in pieces that end where `cuts` says; a cut with
/// `true` flushes. Checks on the way everything that must hold for any input.
pub(super) fn tokenise(
    kind: ChannelKind,
    input: &[u8],
    cuts: &[(usize, bool)],
    capacity: usize,
    blocks: &mut BlockTable,
) -> (Vec<Token>, StreamFacts) {
    let mut tokeniser = Tokeniser::new(kind);
    let mut out = TokenBuf::with_capacity(capacity);
    let mut tokens = Vec::new();
    let mut pos = 0;
    for &(end, final_) in cuts.iter().chain(&[(input.len(), true)]) {
        let end = end.min(input.len());
        loop {
            if end <= pos {
                break;
            }
            out.clear();
            let consumed = tokeniser.feed(&input[pos..end], final_, blocks, &mut out);
            check_canonical(&input[pos..pos + consumed], out.as_slice());
            assert_eq!(out.bytes(), consumed);
            tokens.extend_from_slice(out.as_slice());
            pos += consumed;
            assert_eq!(tokeniser.facts().bytes, pos as u64);
            if out.room() > 0 {
                let left = end - pos;
                assert!(if final_ {
                    left == 0
                } else {
                    left <= MAX_CARRY_BYTES
                });
                break;
            }
        }
    }
    assert_eq!(pos, input.len());
    (tokens, tokeniser.facts().clone())
}

/// The same, in one piece.
pub(super) fn whole(kind: ChannelKind, input: &[u8]) -> (Vec<Token>, StreamFacts) {
    tokenise(kind, input, &[], 1 << 20, &mut BlockTable::new())
}

/// Every page and zero token must be rebuildable from its address and the page alone.
fn check_canonical(bytes: &[u8], tokens: &[Token]) {
    let mut rest = bytes;
    for token in tokens {
        let (own, behind) = rest.split_at(token.len());
        match token {
            Token::Raw { len } => assert!(*len > 0),
            Token::Page { addr } => assert_eq!(own[..8], addr.page_header()),
            Token::Body { .. } => {}
            Token::Zero { addr } => assert_eq!(own, addr.zero_record()),
        }
        rest = behind;
    }
    assert!(rest.is_empty());
}

pub(super) fn page_of(seed: u8) -> [u8; 4096] {
    let mut page = [0; 4096];
    for (i, byte) in page.iter_mut().enumerate() {
        *byte = seed ^ (i % 251) as u8 | 1;
    }
    page
}

pub(super) fn addr(block: u16, index: u64) -> PageAddr {
    PageAddr {
        block: BlockId(block),
        index,
    }
}
