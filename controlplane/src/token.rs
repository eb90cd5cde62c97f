//! The bearer token of the API.
//!
//! In: a file that its owner alone may read, and what a client sent. Out: yes or no, in a time that
//! depends on neither. Promise: no token, no service; the token itself is never printed.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;

/// Shortest token taken: below this it can be guessed.
pub const TOKEN_CHARS_MIN: usize = 16;
/// Longest token taken.
pub const TOKEN_CHARS_MAX: usize = 512;

/// A token that was read and checked.
#[derive(Clone)]
pub struct Token {
    text: String,
    /// Fresh per process, so that digests mean nothing elsewhere.
    key: [u8; 32],
    digest: [u8; 32],
}

/// Why a token file is not used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error(
        "cannot read the token file {path}: {reason}; create one with: (umask 077; head -c 32 /dev/urandom | base64 > {path})"
    )]
    Unreadable {
        /// File meant.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Others may read it.
    #[error("the token file {path} has mode {mode:o}, which lets others read it: chmod 600 {path}")]
    TooOpen {
        /// File meant.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// What it holds is no token.
    #[error(
        "the token file {path} must hold one line of {TOKEN_CHARS_MIN} to {TOKEN_CHARS_MAX} printable characters without spaces; write a new one"
    )]
    NoToken {
        /// File meant.
        path: PathBuf,
    },
    /// The system gave no random key.
    #[error("no random bytes from the system: {0}")]
    NoEntropy(String),
}

impl Token {
    /// Reads the token from a file.
    ///
    /// # Errors
    /// [`TokenError`] if the file is missing, open to others, or holds no token.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let unreadable = |error: std::io::Error| TokenError::Unreadable {
            path: path.to_path_buf(),
            reason: error.to_string(),
        };
        let file = File::open(path).map_err(unreadable)?;
        // The opened file is asked, not the path, so that the two cannot differ.
        let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TokenError::TooOpen {
                path: path.to_path_buf(),
                mode,
            });
        }
        let mut text = String::new();
        let bound = TOKEN_CHARS_MAX as u64 + 2;
        file.take(bound)
            .read_to_string(&mut text)
            .map_err(unreadable)?;
        let text = text.trim_end_matches(['\n', '\r']);
        Self::new(text)?.ok_or_else(|| TokenError::NoToken {
            path: path.to_path_buf(),
        })
    }

    /// Takes a token from memory; `None` if the text cannot be one.
    ///
    /// # Errors
    /// [`TokenError::NoEntropy`].
    pub fn new(text: &str) -> Result<Option<Self>, TokenError> {
        let length_fits = (TOKEN_CHARS_MIN..=TOKEN_CHARS_MAX).contains(&text.len());
        if !length_fits || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(None);
        }
        let mut key = [0u8; 32];
        getrandom::fill(&mut key).map_err(|error| TokenError::NoEntropy(error.to_string()))?;
        let digest = *blake3::keyed_hash(&key, text.as_bytes()).as_bytes();
        Ok(Some(Self {
            text: text.to_owned(),
            key,
            digest,
        }))
    }

    /// Is this the token? Digests of one length are compared, so the time tells nothing.
    #[must_use]
    pub fn matches(&self, offered: &[u8]) -> bool {
        let offered = blake3::keyed_hash(&self.key, offered);
        self.digest.ct_eq(offered.as_bytes()).into()
    }

    /// The token itself, for a request of ours to a peer.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    #[test]
    fn only_the_same_text_matches() {
        let (_folder, path) = file("0123456789abcdef\n", 0o600);
        let token = Token::read(&path).unwrap();
        assert!(token.matches(b"0123456789abcdef"));
        for wrong in [
            &b""[..],
            b"0123456789abcdeg",
            b"0123456789abcde",
            b"0123456789abcdef\n",
        ] {
            assert!(!token.matches(wrong));
        }
        assert!(!format!("{token:?}").contains("0123"));
    }

    #[test]
    fn a_file_open_to_others_is_refused() {
        for mode in [0o640, 0o604, 0o660, 0o610] {
            let (_folder, path) = file("0123456789abcdef", mode);
            assert!(matches!(
                Token::read(&path),
                Err(TokenError::TooOpen { .. })
            ));
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let long = "x".repeat(TOKEN_CHARS_MAX + 1);
        for text in [
            "",
            "\n",
            "short",
            "two words in a line",
            "one-line-of-text\nanother",
            &long,
        ] {
            let (_folder, path) = file(text, 0o600);
            assert!(
                matches!(Token::read(&path), Err(TokenError::NoToken { .. })),
                "{text:?}"
            );
        }
        let missing = Path::new("/nonexistent/token");
        assert!(matches!(
            Token::read(missing),
            Err(TokenError::Unreadable { .. })
        ));
    }
}
