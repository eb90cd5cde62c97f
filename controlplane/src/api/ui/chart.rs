//! Dirty rate against throughput, as a drawing.
//!
//! In: samples of one migration. Out: an SVG with its words. Promise: whoever does not see it reads the same.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::history::Sample;
use super::words::{ms, rate};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 160.0;

/// Draws it; nothing before there is a line to draw.
pub fn draw(samples: &[Sample]) -> Markup {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        return html! {};
    };
    let span_ms = last.at_ms - first.at_ms;
    let highest = samples
        .iter()
        .flat_map(|one| [Some(one.throughput_bytes_per_s), one.dirty_bytes_per_s])
        .flatten()
        .fold(0.0, f64::max);
    if span_ms == 0 || highest <= 0.0 {
        return html! {};
    }
    let top = round_up(highest);
    let place = |at_ms: u64, value: f64| {
        let x = f64_of(at_ms - first.at_ms) / f64_of(span_ms) * WIDTH;
        (x, HEIGHT - value / top * HEIGHT)
    };
    let throughput = line(
        samples
            .iter()
            .map(|one| place(one.at_ms, one.throughput_bytes_per_s)),
    );
    let dirty = line(
        samples
            .iter()
            .filter_map(|one| Some(place(one.at_ms, one.dirty_bytes_per_s?))),
    );
    let words = words(last, span_ms);
    html! {
        figure.chart {
            div.plot {
                span.top { (rate(top)) }
                svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" role="img" aria-label=(words) {
                    @for quarter in [0.25, 0.5, 0.75] {
                        line.grid x1="0" x2=(WIDTH) y1=(HEIGHT * quarter) y2=(HEIGHT * quarter) {}
                    }
                    @if !dirty.is_empty() {
                        polyline.dirty points=(dirty) {}
                    }
                    polyline.throughput points=(throughput) {}
                }
                span.bottom { "0" }
            }
            figcaption {
                span.key.throughput { "throughput " b { (rate(last.throughput_bytes_per_s)) } }
                " "
                span.key.dirty {
                    "dirty rate "
                    b { (last.dirty_bytes_per_s.map_or_else(|| "not known yet".to_owned(), rate)) }
                }
                " "
                span.span { "over " (ms(f64_of(span_ms))) }
            }
        }
    }
}

fn words(last: &Sample, span_ms: u64) -> String {
    let dirty = match last.dirty_bytes_per_s {
        Some(dirty) if dirty > last.throughput_bytes_per_s => {
            format!(
                "the guest dirties {}, which is more than it carries",
                rate(dirty)
            )
        }
        Some(dirty) => format!("the guest dirties {}", rate(dirty)),
        None => "the dirty rate is not known yet".to_owned(),
    };
    format!(
        "Over {}: throughput {} now, {dirty}",
        ms(f64_of(span_ms)),
        rate(last.throughput_bytes_per_s)
    )
}

fn line(places: impl Iterator<Item = (f64, f64)>) -> String {
    places.fold(String::new(), |mut line, (x, y)| {
        // Writing to a string does not fail.
        let _ = write!(line, "{x:.1},{y:.1} ");
        line
    })
}

/// The next of 1, 2 and 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let step = steps.iter().find(|step| *step * power >= value);
    step.unwrap_or(&10.0) * power
}

const fn f64_of(count: u64) -> f64 {
    super::words::figure(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_ms: u64, throughput: f64, dirty: Option<f64>) -> Sample {
        Sample {
            at_ms,
            throughput_bytes_per_s: throughput,
            dirty_bytes_per_s: dirty,
        }
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        for samples in [
            &[][..],
            &[sample(0, 1e6, None)],
            &[sample(0, 0.0, None), sample(9, 0.0, None)],
        ] {
            assert_eq!(draw(samples).into_string(), "");
        }
    }

    #[test]
    fn it_says_what_it_shows() {
        let samples = [
            sample(0, 40e6, None),
            sample(1_000, 50e6, Some(60e6)),
            sample(2_000, 25e6, Some(30e6)),
        ];
        let text = draw(&samples).into_string();
        for part in [
            "throughput 25.0 MB/s now, the guest dirties 30.0 MB/s, which is more than it carries",
            "0.0,96.0 320.0,80.0 640.0,120.0 ",
            "320.0,64.0 640.0,112.0 ",
            "<span class=\"top\">100 MB/s</span>",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn the_scale_is_round() {
        assert_eq!(
            [1.0, 1.1, 2.0, 49.0, 51.0, 0.3].map(round_up),
            [1.0, 2.0, 2.0, 50.0, 100.0, 0.5]
        );
    }
}
