//! Figures with their units, as people read them.
//!
//! In: bytes, milliseconds, shares, moments. Out: words. Promises: a unit always stands with its figure; what nobody
//! measured is a dash, never a zero.

use maud::{Markup, html};
use time::OffsetDateTime;

/// What nobody measured.
pub const NOTHING: &str = "–";

/// Bytes, in units of a thousand.
#[must_use]
pub fn bytes(count: f64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value.abs() < 999.5 {
            break;
        }
        value /= 1_000.0;
        unit = next;
    }
    if unit == "B" || value.abs() >= 99.5 {
        format!("{value:.0} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// Bytes a second.
#[must_use]
pub fn rate(bytes_per_s: f64) -> String {
    format!("{}/s", bytes(bytes_per_s))
}

/// A time.
#[must_use]
pub fn ms(count: f64) -> String {
    if count < 1_000.0 {
        format!("{count:.0} ms")
    } else if count < 60_000.0 {
        format!("{:.1} s", count / 1_000.0)
    } else {
        let whole_s = (count / 1_000.0).round();
        let (minutes, s) = ((whole_s / 60.0).floor(), whole_s % 60.0);
        format!("{minutes:.0} min {s:.0} s")
    }
}

/// A share of one, in percent.
#[must_use]
pub fn share(of_one: f64) -> String {
    format!("{:.1} %", of_one * 100.0)
}

/// Something, or the dash.
#[must_use]
pub fn or_nothing<T>(value: Option<T>, word: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| NOTHING.to_owned(), word)
}

/// A count as a figure: exact below 2^53, and what is counted here stays far below.
#[allow(clippy::cast_precision_loss)]
#[must_use]
pub const fn figure(count: u64) -> f64 {
    count as f64
}

/// A moment, in universal time.
#[must_use]
pub fn moment(unix_ms: u64) -> Markup {
    let at = i64::try_from(unix_ms / 1_000).ok();
    let Some(at) = at.and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok()) else {
        return html! { (NOTHING) };
    };
    let (date, time) = (at.date(), at.time());
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    let (hour, minute, second) = (time.hour(), time.minute(), time.second());
    let machine = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z");
    let people = format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC");
    html! { time datetime=(machine) { (people) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_units() {
        for (count, word) in [
            (0.0, "0 B"),
            (999.0, "999 B"),
            (999.6, "1.0 kB"),
            (148_800_000.0, "149 MB"),
            (12_340_000.0, "12.3 MB"),
            (5e15, "5000 TB"),
            (-2_000.0, "-2.0 kB"),
        ] {
            assert_eq!(bytes(count), word);
        }
        assert_eq!(rate(50e6), "50.0 MB/s");
        assert_eq!(
            (ms(4.2), ms(1_234.0), ms(119_600.0)),
            (
                "4 ms".to_owned(),
                "1.2 s".to_owned(),
                "2 min 0 s".to_owned()
            )
        );
        assert_eq!(share(0.7116), "71.2 %");
        assert_eq!(or_nothing(None::<f64>, ms), "–");
    }

    #[test]
    fn moments_are_universal() {
        assert_eq!(
            moment(1_796_061_303_000).into_string(),
            "<time datetime=\"2026-11-30T17:55:03Z\">2026-11-30 17:55:03 UTC</time>"
        );
        assert_eq!(moment(u64::MAX).into_string(), "–");
    }
}
