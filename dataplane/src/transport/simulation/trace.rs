//! The story of a world, for people.
//!
//! In: moments and what happened. Out: one line for each. Promise: a world that is not traced pays
//! nothing for it.

use super::super::Nanos;

/// See the module.
#[derive(Default)]
pub struct Trace(Option<Vec<String>>);

impl Trace {
    pub fn off() -> Self {
        Self(None)
    }

    pub fn on() -> Self {
        Self(Some(Vec::new()))
    }

    pub fn note(&mut self, now: Nanos, what: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.0 {
            let (ms, ns) = (now.0 / 1_000_000, now.0 % 1_000_000);
            lines.push(format!("{ms:>7}.{ns:06} ms  {}", what()));
        }
    }

    pub fn lines(&self) -> &[String] {
        self.0.as_deref().unwrap_or_default()
    }
}
