//! Shows a migration while it runs, on standard error: a bar on a terminal, else one plain line a
//! second and one at each change of state.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::say;
use crate::view::Migration;

/// Steps of the bar.
const STEPS: u64 = 1_000;
/// Time between two plain lines of one state.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Bytes from the hypervisor before a share of them means something.
const SAVED_AFTER_BYTES: u64 = 100_000;

/// The display.
pub struct Progress {
    bar: Option<ProgressBar>,
    last: Option<(Instant, String)>,
    began: Instant,
}

impl Progress {
    /// A bar if standard error is a terminal.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr());
            // No colours, so that NO_COLOR holds by itself.
            if let Ok(style) = ProgressStyle::with_template("[{bar:24}] {percent:>3} %  {wide_msg}")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        Self {
            bar,
            last: None,
            began: Instant::now(),
        }
    }

    /// Shows a view.
    pub fn show(&mut self, view: &Migration) {
        let text = describe(view);
        if let Some(bar) = &self.bar {
            let fraction = view.progress.unwrap_or(0.0).clamp(0.0, 1.0);
            // Between 0 and STEPS, so the cast is exact enough.
            bar.set_position((fraction * STEPS as f64) as u64);
            bar.set_message(text);
            return;
        }
        let due = self
            .last
            .as_ref()
            .is_none_or(|(at, state)| *state != view.state || at.elapsed() >= LINE_EVERY);
        if due {
            let percent = view.progress.map_or_else(|| "  ? %".to_owned(), percent);
            say::aside(format_args!(
                "{:>5} s  {percent}  {text}",
                self.began.elapsed().as_secs()
            ));
            self.last = Some((Instant::now(), view.state.clone()));
        }
    }

    /// Says something beside the display.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => say::aside(format_args!("{text}")),
        }
    }

    /// Takes the display away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn percent(fraction: f64) -> String {
    format!("{:>3.0} %", fraction.clamp(0.0, 1.0) * 100.0)
}

fn describe(view: &Migration) -> String {
    let phase = if view.phase.is_empty() {
        &view.state
    } else {
        &view.phase
    };
    let mut text = printable(phase);
    let rates = &view.rates;
    if rates.hypervisor_bytes_per_s > 0.0 || rates.wire_bytes_per_s > 0.0 {
        text += &format!(
            "  in {}/s  out {}/s",
            size(rates.hypervisor_bytes_per_s),
            size(rates.wire_bytes_per_s)
        );
    }
    // Before that the greetings weigh more than the guest.
    let enough = view.bytes.hypervisor >= SAVED_AFTER_BYTES;
    if let Some(saved) = view.bytes.saved_fraction.filter(|_| enough) {
        text += &format!("  saved {:.0} %", saved * 100.0);
    }
    if let Some(version) = &view.version {
        text += &format!("  {}", printable(version));
    }
    match view.expected_finish_s {
        Some(left) if left >= 1.0 && !view.is_final() => {
            text += &format!("  ends in about {left:.0} s")
        }
        _ => {}
    }
    text
}

/// Bytes for people, in powers of 1000.
pub fn size(bytes: f64) -> String {
    let mut value = bytes.max(0.0);
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            return if unit == "B" || value >= 99.5 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1_000.0;
    }
    format!("{value:.1} TB")
}

/// Text from elsewhere without what could steer a terminal.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_never_wrong_by_a_unit() {
        for (bytes, text) in [
            (0.0, "0 B"),
            (999.0, "999 B"),
            (999.9, "1.0 kB"),
            (12_345.0, "12.3 kB"),
            (123_456_789.0, "123 MB"),
            (999_950_000.0, "1.0 GB"),
            (5e13, "50.0 TB"),
            (-1.0, "0 B"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_terminal_is_not_steered_from_afar() {
        assert_eq!(printable("a\x1b[31mb\n"), "a\u{fffd}[31mb\u{fffd}");
    }
}
