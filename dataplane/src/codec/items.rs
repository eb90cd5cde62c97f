//! A batch as the encoders see it: raw stretches, pages and ZERO records with their addresses.
//!
//! In: the batch's bytes and tokens. Out: [`Item`]s that cover the bytes in order. Promises: whatever
//! an item leaves out (record headers, the byte of a ZERO record) follows from its address, because
//! the bytes were compared; a token that its bytes do not bear out becomes raw. Neighbouring raw
//! stretches are one. A ZERO record whose address costs more than it saves is raw, so that no
//! sequence of tokens grows by more than a constant a page.

use super::ops::{Cursor, INDEX_END, Jump};
use super::{EncodeError, PAGE_BYTES, Page};
use crate::stream::{PageAddr, Token};

/// A ZERO record takes 9 bytes; 5 for its operation leave 4 for that of the raw stretch it ends.
const ZERO_JUMP_BYTES_MAX: usize = 4;

/// A stretch of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item<'a> {
    /// Bytes as they are, at least one.
    Raw(&'a [u8]),
    /// A page body, with the record header before it or not.
    Page {
        addr: PageAddr,
        jump: Option<Jump>,
        header: bool,
        /// Where in the batch `page` begins.
        at: usize,
        page: &'a Page,
    },
    /// A ZERO record.
    Zero { addr: PageAddr, jump: Option<Jump> },
}

/// Checks that the tokens cover the bytes.
pub(super) fn check_cover(raw: &[u8], tokens: &[Token]) -> Result<(), EncodeError> {
    let mut token_bytes = 0usize;
    for token in tokens {
        token_bytes = token_bytes.saturating_add(token.len());
    }
    if token_bytes == raw.len() {
        Ok(())
    } else {
        Err(EncodeError::TokensDoNotCover {
            token_bytes,
            raw_bytes: raw.len(),
        })
    }
}

/// The items of a batch that [`check_cover`] passed.
pub(super) struct Items<'a> {
    raw: &'a [u8],
    tokens: std::slice::Iter<'a, Token>,
    cursor: Cursor,
    /// Start of the raw stretch not yet handed out, and end of what was looked at.
    raw_start: usize,
    at: usize,
    /// An item found behind a raw stretch.
    held: Option<Item<'a>>,
}

impl<'a> Items<'a> {
    pub(super) fn new(raw: &'a [u8], tokens: &'a [Token]) -> Self {
        let tokens = tokens.iter();
        Self {
            raw,
            tokens,
            cursor: Cursor::new(),
            raw_start: 0,
            at: 0,
            held: None,
        }
    }

    /// What the token at `bytes` is, unless it is raw.
    fn recognise(&self, token: &Token, bytes: &'a [u8]) -> Option<Item<'a>> {
        let (Token::Page { addr } | Token::Body { addr } | Token::Zero { addr }) = *token else {
            return None;
        };
        if addr.index >= INDEX_END {
            return None;
        }
        let jump = self.cursor.jump_to(addr);
        if let Token::Zero { .. } = token {
            let pays = jump.is_none_or(|jump| jump.len() <= ZERO_JUMP_BYTES_MAX);
            return (pays && bytes == addr.zero_record()).then_some(Item::Zero { addr, jump });
        }
        let header = matches!(token, Token::Page { .. });
        let body = if header {
            bytes.strip_prefix(&addr.page_header())?
        } else {
            bytes
        };
        let page = <&Page>::try_from(body).ok()?;
        Some(Item::Page {
            addr,
            jump,
            header,
            at: self.at - PAGE_BYTES,
            page,
        })
    }

    /// The address and the bytes of the page that comes next, if the next token is one.
    pub(super) fn upcoming(&self) -> Option<(PageAddr, &'a Page)> {
        let token = self.tokens.as_slice().first()?;
        let (Token::Page { addr } | Token::Body { addr }) = *token else {
            return None;
        };
        let page = self.raw[..self.at + token.len()].last_chunk()?;
        Some((addr, page))
    }

    fn take_raw(&mut self, end: usize) -> Option<Item<'a>> {
        let bytes = &self.raw[self.raw_start..end];
        self.raw_start = end;
        (!bytes.is_empty()).then_some(Item::Raw(bytes))
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        if let Some(held) = self.held.take() {
            return Some(held);
        }
        while let Some(token) = self.tokens.next() {
            let start = self.at;
            self.at += token.len();
            let Some(item) = self.recognise(token, &self.raw[start..self.at]) else {
                continue;
            };
            if let Item::Page { addr, .. } | Item::Zero { addr, .. } = item {
                self.cursor.pass(addr);
            }
            let raw = self.take_raw(start);
            self.raw_start = self.at;
            if raw.is_none() {
                return Some(item);
            }
            self.held = Some(item);
            return raw;
        }
        self.take_raw(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::BlockId;

    const fn addr(index: u64) -> PageAddr {
        PageAddr {
            block: BlockId(0),
            index,
        }
    }

    #[test]
    fn merges_raw_and_keeps_pages_and_zeros() {
        let mut raw = vec![1, 2, 3];
        raw.extend_from_slice(&addr(0).page_header());
        raw.extend_from_slice(&[7; PAGE_BYTES]);
        raw.extend_from_slice(&addr(1).zero_record());
        raw.push(9);
        let tokens = [
            Token::Raw { len: 1 },
            Token::Raw { len: 2 },
            Token::Page { addr: addr(0) },
            Token::Zero { addr: addr(1) },
            Token::Raw { len: 1 },
        ];
        assert!(check_cover(&raw, &tokens).is_ok());
        let items: Vec<_> = Items::new(&raw, &tokens).collect();
        let page = &[7; PAGE_BYTES];
        assert_eq!(
            items,
            [
                Item::Raw(&[1, 2, 3]),
                Item::Page {
                    addr: addr(0),
                    jump: None,
                    header: true,
                    at: 3 + 8,
                    page
                },
                Item::Zero {
                    addr: addr(1),
                    jump: None
                },
                Item::Raw(&[9]),
            ]
        );
    }

    #[test]
    fn a_token_that_lies_is_raw() {
        let mut raw = addr(5).page_header().to_vec();
        raw.extend_from_slice(&[7; PAGE_BYTES]);
        raw.extend_from_slice(&addr(5).zero_record());
        let tokens = [Token::Page { addr: addr(4) }, Token::Zero { addr: addr(6) }];
        assert_eq!(
            Items::new(&raw, &tokens).collect::<Vec<_>>(),
            [Item::Raw(&raw)]
        );
        // An index whose offset does not fit 64 bits has no record header.
        let far = [
            Token::Page {
                addr: addr(INDEX_END + 5),
            },
            Token::Zero { addr: addr(5) },
        ];
        assert_eq!(Items::new(&raw, &far).count(), 2);
    }

    #[test]
    fn a_zero_far_away_is_raw() {
        let far = addr(1 << 40);
        let raw = far.zero_record();
        let tokens = [Token::Zero { addr: far }];
        assert_eq!(
            Items::new(&raw, &tokens).collect::<Vec<_>>(),
            [Item::Raw(&raw)]
        );
    }

    #[test]
    fn tokens_must_cover_the_bytes() {
        let error = check_cover(&[0; 4], &[Token::Raw { len: 3 }]);
        assert!(matches!(
            error,
            Err(EncodeError::TokensDoNotCover {
                token_bytes: 3,
                raw_bytes: 4
            })
        ));
    }
}
