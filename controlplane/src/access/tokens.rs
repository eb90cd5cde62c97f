//! Tokens of the API: the one of the node's file, which allows everything, and those handed out by it.
//!
//! In: what a client sent. Out: who that is and what it may do. Promises: a token that was handed out is shown once
//! and kept as a digest of its 256 random bits; one that is revoked or past its time is nobody from the next request
//! on; at most [`TOKENS_MAX`] are kept.

use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::scope::Scope;
use crate::store::{Store, StoreError};
use crate::token::Token;

/// Tokens kept at once.
pub const TOKENS_MAX: usize = 256;
/// Longest name of a token.
pub const NAME_CHARS_MAX: usize = 64;
/// Longest life that can be asked for: ten years.
pub const LIFE_S_MAX: u64 = 315_360_000;
/// Who bears the token of the node's file.
pub const FILE_ID: &str = "file";

const TABLE: &str = "tokens";
/// Makes tokens easy to find where they should not be.
const PREFIX: &str = "dwcp_";

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The token's id; [`FILE_ID`] for the node's own.
    pub id: String,
    /// The token's name.
    pub name: String,
    /// What it allows.
    pub scope: Scope,
}

/// A token as the API shows it: without its secret, which nobody has but its bearer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it allows.
    pub scope: Scope,
    /// When it was made, Unix seconds.
    pub created_unix_s: u64,
    /// Until when it is good, Unix seconds; absent: until it is revoked.
    pub expires_unix_s: Option<u64>,
    /// Who made it.
    pub created_by: String,
}

/// A token as it is handed out.
#[derive(Clone, Serialize, utoipa::ToSchema)]
pub struct NewToken {
    /// What is kept of it.
    #[serde(flatten)]
    pub view: TokenView,
    /// The token itself: shown here and never again.
    pub token: String,
}

#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    view: TokenView,
    digest: String,
}

/// Why a token is not made or revoked.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The name is none.
    #[error("a token's name has 1 to {NAME_CHARS_MAX} characters out of A-Z a-z 0-9 . _ -")]
    Name,
    /// A life of no length, or too long a one.
    #[error("a token lives 1 to {LIFE_S_MAX} seconds")]
    Life,
    /// There are too many.
    #[error("{TOKENS_MAX} tokens are kept already")]
    TooMany,
    /// Nobody has that id.
    #[error("there is no token {0}")]
    Unknown(String),
    /// The system gave no random bytes.
    #[error("no random bytes from the system: {0}")]
    NoEntropy(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All tokens; a clone is the same.
#[derive(Clone)]
pub struct Tokens {
    inner: Arc<Inner>,
}

struct Inner {
    file: Token,
    store: Store,
    kept: RwLock<Vec<Kept>>,
}

impl Tokens {
    /// The file's token and those that the store has.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(store: Store, file: Token) -> Result<Self, StoreError> {
        let rows = store.list_json::<Kept>(TABLE)?;
        let kept = RwLock::new(rows.into_iter().map(|(_, kept)| kept).collect());
        Ok(Self {
            inner: Arc::new(Inner { file, store, kept }),
        })
    }

    /// Who sent this, if anybody.
    #[must_use]
    pub fn identify(&self, offered: &[u8], now_unix_s: u64) -> Option<Identity> {
        if self.inner.file.matches(offered) {
            return Some(Self::of_file());
        }
        let text = std::str::from_utf8(offered).ok()?;
        let (id, _) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let digest = digest(text);
        let kept = self
            .inner
            .kept
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().find(|kept| kept.view.id == id)?;
        let same: bool = found.digest.as_bytes().ct_eq(digest.as_bytes()).into();
        let good = found.view.expires_unix_s.is_none_or(|end| now_unix_s < end);
        (same && good).then(|| found.identity())
    }

    /// Whose token of this id is, if it is still good.
    #[must_use]
    pub fn still(&self, id: &str, now_unix_s: u64) -> Option<Identity> {
        if id == FILE_ID {
            return Some(Self::of_file());
        }
        let kept = self
            .inner
            .kept
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().find(|kept| kept.view.id == id)?;
        let good = found.view.expires_unix_s.is_none_or(|end| now_unix_s < end);
        good.then(|| found.identity())
    }

    fn of_file() -> Identity {
        Identity {
            id: FILE_ID.to_owned(),
            name: "token_file".to_owned(),
            scope: Scope::Admin,
        }
    }

    /// Those that were handed out, the newest first.
    #[must_use]
    pub fn list(&self) -> Vec<TokenView> {
        let kept = self
            .inner
            .kept
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut views: Vec<TokenView> = kept.iter().map(|kept| kept.view.clone()).collect();
        views.sort_by(|a, b| (b.created_unix_s, &b.id).cmp(&(a.created_unix_s, &a.id)));
        views
    }

    /// Makes one. Blocks for an fsync.
    ///
    /// # Errors
    /// [`TokensError`].
    pub fn create(
        &self,
        name: &str,
        scope: Scope,
        life_s: Option<u64>,
        by: &str,
        now_unix_s: u64,
    ) -> Result<NewToken, TokensError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !(1..=NAME_CHARS_MAX).contains(&name.len()) || !name.chars().all(allowed) {
            return Err(TokensError::Name);
        }
        if life_s.is_some_and(|life_s| !(1..=LIFE_S_MAX).contains(&life_s)) {
            return Err(TokensError::Life);
        }
        let mut bytes = [0; 38];
        getrandom::fill(&mut bytes).map_err(|error| TokensError::NoEntropy(error.to_string()))?;
        let (id, secret) = bytes.split_at(6);
        let id = hex::encode(id);
        let token = format!("{PREFIX}{id}_{}", hex::encode(secret));
        let kept = Kept {
            digest: digest(&token),
            view: TokenView {
                id: id.clone(),
                name: name.to_owned(),
                scope,
                created_unix_s: now_unix_s,
                expires_unix_s: life_s.map(|life_s| now_unix_s.saturating_add(life_s)),
                created_by: by.to_owned(),
            },
        };
        let view = kept.view.clone();
        // Held over the write, so that what is in memory is what is on disk.
        let mut all = self
            .inner
            .kept
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if all.len() >= TOKENS_MAX {
            return Err(TokensError::TooMany);
        }
        self.inner.store.put_json(TABLE, &id, &kept)?;
        all.push(kept);
        Ok(NewToken { view, token })
    }

    /// Takes one back; it is nobody's from now on. Blocks for an fsync.
    ///
    /// # Errors
    /// [`TokensError::Unknown`] or [`TokensError::Store`].
    pub fn revoke(&self, id: &str) -> Result<TokenView, TokensError> {
        let mut all = self
            .inner
            .kept
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let place = all.iter().position(|kept| kept.view.id == id);
        let place = place.ok_or_else(|| TokensError::Unknown(id.chars().take(64).collect()))?;
        self.inner.store.delete(TABLE, id)?;
        Ok(all.remove(place).view)
    }
}

impl Kept {
    fn identity(&self) -> Identity {
        Identity {
            id: self.view.id.clone(),
            name: self.view.name.clone(),
            scope: self.view.scope,
        }
    }
}

fn digest(token: &str) -> String {
    blake3::hash(token.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "0123456789abcdef";

    fn open(folder: &std::path::Path) -> Tokens {
        let store = Store::open(&folder.join("s")).unwrap();
        Tokens::open(store, Token::new(FILE).unwrap().unwrap()).unwrap()
    }

    #[test]
    fn a_token_is_good_from_its_making_to_its_end_and_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let made = {
            let tokens = open(folder.path());
            tokens
                .create("ci", Scope::Operate, Some(100), "me", 1_000)
                .unwrap()
        };
        let tokens = open(folder.path());
        let who = |text: &str, now| tokens.identify(text.as_bytes(), now);
        let found = who(&made.token, 1_099).unwrap();
        assert_eq!(
            (found.id.as_str(), found.scope),
            (made.view.id.as_str(), Scope::Operate)
        );
        assert_eq!(who(&made.token, 1_100), None, "past its end");
        assert_eq!(who(FILE, u64::MAX).unwrap().scope, Scope::Admin);
        let (front, _) = made.token.rsplit_once('_').unwrap();
        for wrong in [
            "",
            "dwcp_",
            front,
            &format!("{front}_{}", "0".repeat(64)),
            &made.token[1..],
        ] {
            assert_eq!(who(wrong, 1_000), None, "{wrong}");
        }
        let text = std::fs::read(folder.path().join("s")).unwrap();
        let secret = made.token.rsplit_once('_').unwrap().1.as_bytes();
        assert!(
            !text.windows(secret.len()).any(|window| window == secret),
            "the secret is on disk"
        );
        tokens.revoke(&made.view.id).unwrap();
        assert_eq!(who(&made.token, 1_000), None, "revoked");
        assert!(matches!(
            tokens.revoke(&made.view.id),
            Err(TokensError::Unknown(_))
        ));
    }

    #[test]
    fn names_lives_and_numbers_have_limits() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = open(folder.path());
        let make = |name: &str, life| tokens.create(name, Scope::Read, life, "me", 0);
        assert!(matches!(make("", None), Err(TokensError::Name)));
        assert!(matches!(make("a b", None), Err(TokensError::Name)));
        assert!(matches!(
            make(&"x".repeat(65), None),
            Err(TokensError::Name)
        ));
        assert!(matches!(make("x", Some(0)), Err(TokensError::Life)));
        for _ in 0..TOKENS_MAX {
            make("x", None).unwrap();
        }
        assert!(matches!(make("x", None), Err(TokensError::TooMany)));
    }
}
