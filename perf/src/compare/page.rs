//! Comparisons as one page. In: comparisons. Out: HTML that needs nothing else: no script, no font, no
//! request. Each has its table, a bar for every figure, and what the line sent over time.

use std::fmt::Write as _;

use clap::ValueEnum as _;

use super::links::Link;
use super::plot::{bars, curves, escaped};
use super::summary::{Comparison, ConfigFigures, Figure};
use super::table::{HEAD, cells, standing, title};
use super::usage::SLOT_S;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2430; --paper: #fff; --faint: #8a93a3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --paper: #14181f; --faint: #7c8798; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2em auto;
  max-width: 72em; padding: 0 1em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2em .8em; border-bottom: 1px solid var(--faint); }
th:first-child, td:first-child { text-align: left; }
.plots { display: flex; flex-wrap: wrap; gap: 1em; margin: 1em 0; }
svg { max-width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--ink); }
svg .title { font-weight: 600; } .axis, .spread { stroke: var(--ink); fill: none; }
.spread { stroke-width: 3; opacity: .6; } .rate { stroke: var(--faint); stroke-dasharray: 4 3; }
.curve { fill: none; stroke-width: 1.6; } .bad { color: #c62828; }
";
/// The product's colour first; the rest can be told apart on light and on dark.
const COLOURS: [&str; 7] = [
    "#d1495b", "#8a93a3", "#2e86ab", "#e6a23c", "#6a4c93", "#3fa34d", "#00838f",
];

type Pick = fn(&ConfigFigures) -> Option<Figure>;
const PLOTS: [(&str, f64, Pick); 6] = [
    ("Total time, s", 1e3, |config| config.total_ms),
    ("Bytes on the line, MB", 1e6, |config| config.wire_bytes),
    ("Longest gap in the guest's ticks, ms", 1.0, |config| {
        config.gap_ms
    }),
    ("Downtime by QEMU's own figure, ms", 1.0, |config| {
        config.downtime_ms
    }),
    ("Processor time of all processes, s", 1.0, |config| {
        config.cpu_s
    }),
    ("Share of the line used", 1.0, |config| config.link_used),
];

/// The page.
pub(super) fn html(comparisons: &[Comparison]) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Migrations, side by side</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}"
    );
    for (index, colour) in COLOURS.iter().enumerate() {
        let _ = write!(
            page,
            ".c{index}{{fill:{colour}}}.curve.c{index}{{fill:none;stroke:{colour}}}"
        );
    }
    page.push_str("</style></head><body><h1>Migrations, side by side</h1>");
    page.push_str(
        "<p>Medians; in brackets and as dark strokes the least and the greatest. The same saved guest in every \
         run. Total time runs from the command to the completion on both sides; bytes are those of the line, \
         both ways; processor time holds the guest's own work; the share of the line is what it sent from the \
         first bulk byte to the guest's stop at the source, over its rate times that time.</p>",
    );
    for comparison in comparisons {
        section(&mut page, comparison);
    }
    page + "</body></html>\n"
}

fn section(page: &mut String, comparison: &Comparison) {
    let _ = write!(page, "<h2>{}</h2><table><tr>", escaped(&title(comparison)));
    for name in HEAD {
        let _ = write!(page, "<th>{name}</th>");
    }
    page.push_str("</tr>");
    for config in &comparison.configs {
        page.push_str("<tr>");
        for cell in cells(config) {
            let _ = write!(page, "<td>{}</td>", escaped(&cell));
        }
        page.push_str("</tr>");
    }
    page.push_str("</table>");
    if let Some(standing) = standing(comparison) {
        let _ = write!(page, "<p>{}</p>", escaped(&standing));
    }
    for config in &comparison.configs {
        for why in &config.failed {
            let why = escaped(why);
            let _ = write!(page, "<p class=\"bad\">{} failed: {why}</p>", config.name);
        }
    }
    page.push_str("<div class=\"plots\">");
    for (title, unit, pick) in PLOTS {
        let rows: Vec<_> = comparison
            .configs
            .iter()
            .map(|config| (config.name, pick(config)))
            .collect();
        if rows.iter().any(|(_, figure)| figure.is_some()) {
            page.push_str(&bars(title, unit, &rows));
        }
    }
    let over_time: Vec<_> = comparison
        .configs
        .iter()
        .map(|config| (config.name, config.timeline.as_slice()))
        .collect();
    if over_time.iter().any(|(_, values)| !values.is_empty()) {
        let link = Link::from_str(comparison.link, false).ok();
        let rate_mbit = link.and_then(Link::shape).map(|shape| shape.rate_mbit);
        let title = "Sent by the line, Mbit/s (the run in the middle; colours as above)";
        page.push_str(&curves(title, SLOT_S, rate_mbit, &over_time));
    }
    page.push_str("</div>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::table::tests::comparison;

    #[test]
    fn a_page_stands_alone_and_says_all() {
        let page = html(&[comparison()]);
        for never in ["http:", "https:", "<script", "src=", "@import", "url("] {
            assert!(!page.contains(never), "{never}");
        }
        assert!(page.contains("&lt;refused&gt; &amp; lost"));
        assert_eq!(page.matches("<svg").count(), 7);
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(page.contains("5.50 (5.00–6.00)"));
    }
}
