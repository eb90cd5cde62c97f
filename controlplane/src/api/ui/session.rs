//! Who has entered the page.
//!
//! In: a token that was identified; later the secret of the browser's cookie. Out: whose it is, and the proof that its
//! forms must bear. Promises: a session is never more than its token, and ends with it; the secret itself is not kept;
//! at most [`SESSIONS_MAX`] are remembered, in memory alone, each for a limited time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq;

use crate::access::tokens::{Identity, Tokens};

/// Sessions remembered; the one unused the longest gives its place to a new one.
pub const SESSIONS_MAX: usize = 256;
/// A session's longest life.
pub const LIFE: Duration = Duration::from_secs(12 * 3_600);
/// How long it may be unused.
pub const IDLE: Duration = Duration::from_secs(3_600);

const SECRET_BYTES: usize = 32;

/// The sessions.
#[derive(Default)]
pub struct Sessions {
    kept: Mutex<HashMap<[u8; 32], Kept>>,
}

struct Kept {
    token: String,
    born: Instant,
    used: Instant,
}

/// A browser that has entered.
pub struct Entered {
    /// What its token allows.
    pub identity: Identity,
    /// What its forms must bear.
    pub proof: String,
}

impl Sessions {
    fn kept(&self) -> MutexGuard<'_, HashMap<[u8; 32], Kept>> {
        // Each change is one step.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a session; gives the secret for the cookie.
    ///
    /// # Errors
    /// What the system's source of chance says.
    pub fn begin(&self, identity: &Identity, now: Instant) -> Result<String, getrandom::Error> {
        let mut bytes = [0; SECRET_BYTES];
        getrandom::fill(&mut bytes)?;
        let secret = hex::encode(bytes);
        let mut kept = self.kept();
        kept.retain(|_, one| one.is_good(now));
        if kept.len() >= SESSIONS_MAX
            && let Some(oldest) = kept
                .iter()
                .min_by_key(|(_, one)| one.used)
                .map(|(digest, _)| *digest)
        {
            kept.remove(&oldest);
        }
        kept.insert(
            digest(&secret),
            Kept {
                token: identity.id.clone(),
                born: now,
                used: now,
            },
        );
        Ok(secret)
    }

    /// Whose secret this is, if anybody's.
    pub fn find(
        &self,
        secret: &str,
        tokens: &Tokens,
        now: Instant,
        now_unix_s: u64,
    ) -> Option<Entered> {
        let digest = digest(secret);
        let mut kept = self.kept();
        let one = kept.get_mut(&digest)?;
        let identity = tokens
            .still(&one.token, now_unix_s)
            .filter(|_| one.is_good(now));
        if let Some(identity) = identity {
            one.used = now;
            return Some(Entered {
                identity,
                proof: proof(secret),
            });
        }
        kept.remove(&digest);
        None
    }

    /// Ends a session.
    pub fn end(&self, secret: &str) {
        self.kept().remove(&digest(secret));
    }
}

impl Kept {
    fn is_good(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.born) < LIFE
            && now.saturating_duration_since(self.used) < IDLE
    }
}

impl Entered {
    /// Does a form bear the proof?
    #[must_use]
    pub fn proves(&self, offered: &str) -> bool {
        self.proof.as_bytes().ct_eq(offered.as_bytes()).into()
    }
}

fn digest(secret: &str) -> [u8; 32] {
    *blake3::hash(secret.as_bytes()).as_bytes()
}

/// Another value of the same secret: whoever reads the page's text does not learn the cookie.
fn proof(secret: &str) -> String {
    let key = blake3::derive_key("dwcp ui 2026 proof of a form", secret.as_bytes());
    hex::encode(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::scope::Scope;
    use crate::store::Store;
    use crate::token::Token;

    const FILE: &str = "0123456789abcdef";

    fn tokens(folder: &std::path::Path) -> Tokens {
        let store = Store::open(&folder.join("s")).unwrap();
        Tokens::open(store, Token::new(FILE).unwrap().unwrap()).unwrap()
    }

    #[test]
    fn a_session_ends_with_its_token_its_time_and_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(folder.path());
        let made = tokens
            .create("ops", Scope::Read, Some(100), "me", 1_000)
            .unwrap();
        let identity = tokens.identify(made.token.as_bytes(), 1_000).unwrap();
        let sessions = Sessions::default();
        let start = Instant::now();
        let secret = sessions.begin(&identity, start).unwrap();
        let find = |at: Instant, unix_s| sessions.find(&secret, &tokens, at, unix_s);
        let entered = find(start, 1_000).unwrap();
        assert_eq!(entered.identity.scope, Scope::Read);
        assert!(entered.proves(&entered.proof) && !entered.proves(&secret) && !entered.proves(""));
        assert!(find(start + IDLE - Duration::from_secs(1), 1_050).is_some());
        assert!(find(start + IDLE, 1_100).is_none(), "past the token's end");
        assert!(find(start, 1_050).is_none(), "an ended one comes back");

        let secret = sessions.begin(&identity, start).unwrap();
        assert!(
            sessions
                .find(&secret, &tokens, start + IDLE, 1_000)
                .is_none(),
            "unused for too long"
        );
        let secret = sessions.begin(&identity, start).unwrap();
        sessions.end(&secret);
        assert!(sessions.find(&secret, &tokens, start, 1_000).is_none());
        let secret = sessions.begin(&identity, start).unwrap();
        tokens.revoke(&made.view.id).unwrap();
        assert!(
            sessions.find(&secret, &tokens, start, 1_000).is_none(),
            "revoked"
        );
    }

    #[test]
    fn a_used_session_has_a_longest_life() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(folder.path());
        let identity = tokens.identify(FILE.as_bytes(), 0).unwrap();
        let sessions = Sessions::default();
        let start = Instant::now();
        let secret = sessions.begin(&identity, start).unwrap();
        let mut at = start;
        while at + IDLE / 2 < start + LIFE {
            at += IDLE / 2;
            assert!(sessions.find(&secret, &tokens, at, 0).is_some());
        }
        assert!(sessions.find(&secret, &tokens, start + LIFE, 0).is_none());
    }

    #[test]
    fn memory_is_bounded_and_the_unused_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(folder.path());
        let identity = tokens.identify(FILE.as_bytes(), 0).unwrap();
        let sessions = Sessions::default();
        let start = Instant::now();
        let first = sessions.begin(&identity, start).unwrap();
        let second = sessions
            .begin(&identity, start + Duration::from_millis(1))
            .unwrap();
        let later = start + Duration::from_secs(1);
        assert!(sessions.find(&first, &tokens, later, 0).is_some());
        for _ in 0..SESSIONS_MAX - 1 {
            sessions.begin(&identity, later).unwrap();
        }
        assert_eq!(sessions.kept().len(), SESSIONS_MAX);
        assert!(sessions.find(&second, &tokens, later, 0).is_none());
        assert!(sessions.find(&first, &tokens, later, 0).is_some());
    }
}
