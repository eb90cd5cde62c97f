//! `--watch`: the same question again and again, told when the answer changes.
//!
//! In: a question. Out: on a terminal the newest answer in place of the one before; elsewhere each answer that differs
//! from the one before it, so `--json` gives one line for each change. Promise: a control plane that is gone for a
//! moment is asked again; one that refuses ends it.

use std::io::IsTerminal;
use std::time::Duration;

use crate::client::ApiError;
use crate::exit::Exit;
use crate::say;

/// Time between two questions.
const EVERY: Duration = Duration::from_secs(1);
/// Clears a terminal and begins at its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Asks until it is interrupted.
///
/// # Errors
/// What the control plane refuses; and that it is not there, if it never was.
pub async fn watch<A>(ask: impl Fn() -> A) -> Result<Exit, ApiError>
where
    A: Future<Output = Result<Exit, ApiError>>,
{
    let in_place = std::io::stdout().is_terminal();
    let mut before = None;
    loop {
        let (asked, told) = say::held(ask()).await;
        match asked {
            Ok(_) if before.as_ref() != Some(&told) => {
                if in_place {
                    say::raw(CLEAR);
                }
                say::raw(&told);
                before = Some(told);
            }
            Ok(_) => {}
            Err(error) if error.exit() == Exit::Unreachable && before.is_some() => {
                say::aside(format_args!("dwcpctl: {error}"));
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(EVERY).await;
    }
}
