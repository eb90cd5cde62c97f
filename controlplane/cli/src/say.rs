//! Writes for people and programs. A reader that has gone away (`dwcpctl … | head`) is no reason to
//! stop following a migration, so what cannot be written is dropped.

use std::fmt::Arguments;
use std::io::Write;

/// A line on standard output: a result.
pub fn result(line: Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A line on standard error: progress, notes, what went wrong.
pub fn aside(line: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
