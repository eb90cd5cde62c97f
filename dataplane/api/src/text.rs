//! Bounded text inside a fixed-size record.

use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// At most `N` bytes of UTF-8, padded with zeros.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Text<const N: usize>([u8; N]);

/// A text that does not fit its field, or that holds a zero byte.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TextError {
    /// Too long.
    #[error("{found} bytes do not fit a field of {limit}: use a shorter name or path")]
    TooLong {
        /// Bytes given.
        found: usize,
        /// Bytes the field holds.
        limit: usize,
    },
    /// Zero bytes end a field, so none may be inside.
    #[error("a text with a zero byte cannot be carried")]
    ZeroByte,
}

impl<const N: usize> Text<N> {
    /// No text.
    pub const EMPTY: Self = Self([0; N]);

    /// The text, whole or not at all.
    ///
    /// # Errors
    /// [`TextError`] if it does not fit.
    pub fn new(text: &str) -> Result<Self, TextError> {
        if text.len() > N {
            return Err(TextError::TooLong {
                found: text.len(),
                limit: N,
            });
        }
        if text.as_bytes().contains(&0) {
            return Err(TextError::ZeroByte);
        }
        Ok(Self::clipped(text))
    }

    /// As much of the text as fits, cut at a character's edge: for messages, never for names.
    #[must_use]
    pub fn clipped(text: &str) -> Self {
        let mut end = text.len().min(N);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut field = [0; N];
        field[..end].copy_from_slice(&text.as_bytes()[..end]);
        Self(field)
    }

    /// What the field holds, up to its first zero. Bytes that are no UTF-8 read as empty.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(N);
        core::str::from_utf8(&self.0[..end]).unwrap_or("")
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_fits_or_is_refused() {
        assert_eq!(Text::<4>::new("abcd").unwrap().as_str(), "abcd");
        assert_eq!(
            Text::<4>::new("abcde").unwrap_err(),
            TextError::TooLong { found: 5, limit: 4 }
        );
        assert_eq!(Text::<4>::new("a\0").unwrap_err(), TextError::ZeroByte);
        assert_eq!(Text::<4>::clipped("abcé").as_str(), "abc");
    }

    #[test]
    fn foreign_bytes_never_panic() {
        assert_eq!(Text::<3>([0xff, 0xfe, 0]).as_str(), "");
    }
}
