//! Writes for people and programs. A reader that has gone away (`dwcpctl … | head`) is no reason to
//! stop following a migration, so what cannot be written is dropped.

use std::cell::RefCell;
use std::fmt::{Arguments, Write as _};
use std::io::Write;

thread_local! {
    /// Results that are held back, while they are.
    static HELD: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A line on standard output: a result.
pub fn result(line: Arguments<'_>) {
    let held = HELD.with_borrow_mut(|held| match held {
        // Writing to a string does not fail.
        Some(text) => writeln!(text, "{line}").is_ok(),
        None => false,
    });
    if !held {
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

/// Does something and holds its results back, so that they can be compared. Within one thread, one at a time.
pub async fn held<T>(work: impl Future<Output = T>) -> (T, String) {
    HELD.set(Some(String::new()));
    let done = work.await;
    (done, HELD.take().unwrap_or_default())
}

/// Text on standard output as it is.
pub fn raw(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// A line on standard error: progress, notes, what went wrong.
pub fn aside(line: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
