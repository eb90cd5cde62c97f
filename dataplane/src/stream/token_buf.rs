//! A reusable list of tokens with a fixed capacity.
//!
//! In: tokens from the tokeniser; out: a slice for the codec.
//! Promises: never grows past the capacity it was made with, so a stream of 9-byte records cannot
//! make a worker allocate; neighbouring raw tokens are one token.

use super::token::Token;

/// Tokens of one batch, in stream order.
#[derive(Debug)]
pub struct TokenBuf {
    tokens: Vec<Token>,
    capacity: usize,
    /// Tokens taken at most; see [`Self::begin`].
    limit: usize,
    bytes: usize,
}

impl TokenBuf {
    /// An empty list for at most `capacity` tokens (at least one); the only allocation it makes.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self {
            tokens: Vec::with_capacity(capacity),
            capacity,
            limit: capacity,
            bytes: 0,
        }
    }

    /// Forgets all tokens; until the next call at most `tokens` (at least one) are taken, and never more than it was
    /// made for.
    pub fn begin(&mut self, tokens: usize) {
        self.clear();
        self.limit = tokens.clamp(1, self.capacity);
    }

    /// The tokens, in stream order.
    #[must_use]
    pub fn as_slice(&self) -> &[Token] {
        &self.tokens
    }

    /// Bytes of the stream that the tokens stand for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// True when no token is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Tokens that still fit.
    #[must_use]
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.tokens.len())
    }

    /// What it takes.
    #[cfg(test)]
    pub(crate) const fn taken_bytes(&self) -> usize {
        self.tokens.capacity() * size_of::<Token>()
    }

    /// Forgets all tokens and keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.bytes = 0;
    }

    /// Adds `len` raw bytes, growing the last token when that is raw too. The caller checked
    /// [`Self::room`]; without room the bytes would be lost, so the list grows instead.
    pub(super) fn push_raw(&mut self, len: u32) {
        if len == 0 {
            return;
        }
        self.bytes += len as usize;
        if let Some(Token::Raw { len: last }) = self.tokens.last_mut()
            && let Some(sum) = last.checked_add(len)
        {
            *last = sum;
            return;
        }
        self.tokens.push(Token::Raw { len });
    }

    /// Adds a token other than raw. The caller checked [`Self::room`].
    pub(super) fn push(&mut self, token: Token) {
        debug_assert!(self.room() > 0, "token list is full: check room() first");
        self.bytes += token.len();
        self.tokens.push(token);
    }
}
