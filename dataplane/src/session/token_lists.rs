//! Lists for the tokens of batches that are kept for a rollback.
//!
//! In: the tokens of a batch that leaves, lists of batches that are confirmed. Out: lists with such tokens; how many
//! tokens the next batch may have. Promises: the side that sends the guest makes its lists when the session begins,
//! and none of them grows: where the long ones are out, batches are cut earlier.

use crate::intake::BATCH_TOKENS;
use crate::stream::Token;
use crate::transport::MAX_IN_FLIGHT;

/// Tokens of a batch of whole pages, two each, with some to spare.
const SHORT_TOKENS: usize = 640;
/// Lists for batches that have more, as those of zero pages do.
const LONG_LISTS: usize = 16;

/// See the module.
#[derive(Debug)]
pub struct TokenLists {
    short: Vec<Vec<Token>>,
    long: Vec<Vec<Token>>,
}

impl TokenLists {
    /// What they take at most.
    pub const BYTES: usize = MAX_IN_FLIGHT
        * (SHORT_TOKENS * size_of::<Token>() + size_of::<Vec<Token>>())
        + LONG_LISTS * (BATCH_TOKENS * size_of::<Token>() + size_of::<Vec<Token>>());

    /// A list for every batch that may be in flight; the side that receives the guest has too little to send.
    #[must_use]
    pub fn new(is_source: bool) -> Self {
        let made = |lists: usize, tokens: usize| {
            let mut all = Vec::with_capacity(lists);
            let now = if is_source { lists } else { 0 };
            all.resize_with(now, || Vec::with_capacity(tokens));
            all
        };
        Self {
            short: made(MAX_IN_FLIGHT, SHORT_TOKENS),
            long: made(LONG_LISTS, BATCH_TOKENS),
        }
    }

    /// Tokens of the next batch, at most.
    #[must_use]
    pub const fn limit(&self) -> usize {
        if self.long.is_empty() {
            SHORT_TOKENS
        } else {
            BATCH_TOKENS
        }
    }

    /// A list with these tokens.
    pub fn copy(&mut self, tokens: &[Token]) -> Vec<Token> {
        let long = (tokens.len() > SHORT_TOKENS).then(|| self.long.pop());
        let mut list = long
            .flatten()
            .or_else(|| self.short.pop())
            .unwrap_or_default();
        list.extend_from_slice(tokens);
        list
    }

    /// Takes a list back.
    pub fn give_back(&mut self, mut list: Vec<Token>) {
        list.clear();
        if list.capacity() >= BATCH_TOKENS {
            self.long.push(list);
        } else {
            self.short.push(list);
        }
    }

    /// What they take now, those that are out left out.
    #[cfg(test)]
    pub(super) fn taken_bytes(&self) -> usize {
        let of = |lists: &Vec<Vec<Token>>| {
            let tokens: usize = lists.iter().map(Vec::capacity).sum();
            lists.capacity() * size_of::<Vec<Token>>() + tokens * size_of::<Token>()
        };
        of(&self.short) + of(&self.long)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_list_grows_and_the_next_batch_is_told_when_the_long_ones_are_out() {
        let mut lists = TokenLists::new(true);
        let before = lists.taken_bytes();
        assert_eq!(before, TokenLists::BYTES);
        let tokens = vec![Token::Raw { len: 1 }; BATCH_TOKENS];
        let mut out = Vec::new();
        for _ in 0..LONG_LISTS {
            assert_eq!(lists.limit(), BATCH_TOKENS);
            out.push(lists.copy(&tokens));
        }
        while out.len() < MAX_IN_FLIGHT {
            assert_eq!(lists.limit(), SHORT_TOKENS);
            out.push(lists.copy(&tokens[..lists.limit()]));
        }
        assert!(out.iter().all(|list| !list.is_empty()));
        out.into_iter().for_each(|list| lists.give_back(list));
        assert_eq!((lists.taken_bytes(), lists.limit()), (before, BATCH_TOKENS));
        let short = lists.copy(&tokens[..SHORT_TOKENS]);
        assert!(
            short.capacity() < BATCH_TOKENS,
            "a long list for few tokens"
        );
    }
}
