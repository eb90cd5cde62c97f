//! A comparison as text. In: a [`Comparison`]. Out: a table for a terminal, the same in Markdown. Promise:
//! every figure stands with its median, its least and its greatest; runs that failed have a column and a line
//! each.

use std::fmt::Write as _;

use super::migrate::Sample;
use super::summary::{Comparison, ConfigFigures, Figure};

pub(super) const HEAD: [&str; 9] = [
    "",
    "n",
    "failed",
    "total s",
    "downtime ms",
    "longest gap ms",
    "wire MB",
    "CPU s",
    "link used",
];

/// A row under [`HEAD`].
pub(super) fn cells(config: &ConfigFigures) -> [String; 9] {
    let figure = |figure: Option<Figure>, unit: f64, digits: usize| {
        figure.map_or_else(
            || "-".to_owned(),
            |f| {
                let [median, min, max] = [f.median, f.min, f.max].map(|value| value / unit);
                format!("{median:.digits$} ({min:.digits$}–{max:.digits$})")
            },
        )
    };
    let mut cpu = figure(config.cpu_s, 1.0, 1);
    if let Some(planes) = config.planes_cpu_s.filter(|planes| planes.max > 0.0) {
        let _ = write!(cpu, ", planes {:.1}", planes.median);
    }
    [
        config.name.to_owned(),
        config.total_ms.map_or(0, |figure| figure.n).to_string(),
        config.failed.len().to_string(),
        figure(config.total_ms, 1e3, 2),
        figure(config.downtime_ms, 1.0, 0),
        figure(config.gap_ms, 1.0, 0),
        figure(config.wire_bytes, 1e6, 1),
        cpu,
        figure(config.link_used, 1.0, 3),
    ]
}

/// How the product stands, in a sentence; without the product or its rivals there is none.
pub(super) fn standing(comparison: &Comparison) -> Option<String> {
    let ratio = &comparison.ratio;
    let (total, wire, gap) = (ratio.total?, ratio.wire?, ratio.gap?);
    Some(format!(
        "dwcp over QEMU's best of each: total {total:.2}, wire {wire:.2}, gap {gap:.2}"
    ))
}

pub(super) fn title(comparison: &Comparison) -> String {
    format!(
        "{} over {} ({})",
        comparison.guest, comparison.link, comparison.link_about
    )
}

fn failures(comparison: &Comparison) -> impl Iterator<Item = String> {
    comparison.configs.iter().flat_map(|config| {
        let first = |why: &String| why.lines().next().unwrap_or_default().to_owned();
        config
            .failed
            .iter()
            .map(move |why| format!("{} failed: {}", config.name, first(why)))
    })
}

/// For a terminal.
pub(super) fn text(comparison: &Comparison) -> String {
    let rows: Vec<[String; 9]> = std::iter::once(HEAD.map(str::to_owned))
        .chain(comparison.configs.iter().map(cells))
        .collect();
    let width = |column: usize| {
        let lengths = rows.iter().map(|row| row[column].chars().count());
        lengths.max().unwrap_or(0)
    };
    let mut text = title(comparison) + "\n";
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            let _ = if column == 0 {
                write!(text, "{cell:<width$}")
            } else {
                write!(text, "  {cell:>width$}")
            };
        }
        text.push('\n');
    }
    for line in standing(comparison).into_iter().chain(failures(comparison)) {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// For a document.
pub(super) fn markdown(comparison: &Comparison) -> String {
    let mut text = format!("### {}\n\n", title(comparison));
    let _ = writeln!(text, "| {} |", HEAD.join(" | "));
    let _ = writeln!(text, "|---|{}", "---:|".repeat(HEAD.len() - 1));
    for config in &comparison.configs {
        let _ = writeln!(text, "| {} |", cells(config).join(" | "));
    }
    text.push_str("\nMedians, in brackets the least and the greatest.");
    for line in standing(comparison).into_iter().chain(failures(comparison)) {
        let _ = write!(text, " {}.", line.replace('|', "/"));
    }
    text.push_str("\n\n");
    text
}

/// One run, while it is measured.
pub(super) fn line(sample: &Sample) -> String {
    let used = sample
        .link_used
        .map_or_else(String::new, |used| format!(", link used {used:.3}"));
    format!(
        "{:.2} s, down {:.0} ms, gap {:.0} ms, {:.1} MB, CPU {:.1} s and planes {:.1} s{used}",
        sample.total_ms / 1e3,
        sample.downtime_ms,
        sample.gap_ms,
        sample.wire_bytes / 1e6,
        sample.qemu_cpu_s,
        sample.planes_cpu_s,
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::compare::configs::Config;
    use crate::compare::summary::{Ratio, Runs};

    /// Two ways, one of which failed once and one of which always did.
    pub(in super::super) fn comparison() -> Comparison {
        let of = |samples: &[f64]| Figure::of(samples);
        let dwcp = ConfigFigures {
            name: "dwcp",
            total_ms: of(&[5_000.0, 6_000.0]),
            downtime_ms: of(&[200.0, 240.0]),
            gap_ms: of(&[210.0, 250.0]),
            wire_bytes: of(&[100e6, 102e6]),
            cpu_s: of(&[9.0, 9.5]),
            qemu_cpu_s: of(&[7.0, 7.5]),
            planes_cpu_s: of(&[2.0, 2.0]),
            link_used: of(&[0.91, 0.93]),
            failed: vec!["no end within 300 s: a | b\nmore".to_owned()],
            timeline: vec![0.0, 190.0, 200.0, 80.0],
        };
        let plain = Runs {
            config: Config::Plain,
            samples: Vec::new(),
            failed: vec!["<refused> & lost".to_owned()],
        }
        .figures();
        Comparison {
            guest: "redis",
            link: "wan200",
            link_about: "200 Mbit/s, 40 ms one way".to_owned(),
            configs: vec![dwcp, plain],
            ratio: Ratio {
                total: Some(0.5),
                wire: Some(0.75),
                gap: Some(1.0),
            },
        }
    }

    #[test]
    fn every_figure_has_its_spread_and_every_failure_its_line() {
        let text = text(&comparison());
        assert!(text.contains("5.50 (5.00–6.00)"), "{text}");
        assert!(text.contains("9.2 (9.0–9.5), planes 2.0"), "{text}");
        assert!(text.contains("total 0.50, wire 0.75, gap 1.00"), "{text}");
        assert!(
            text.contains("dwcp failed: no end within 300 s: a | b\n"),
            "{text}"
        );
        assert!(text.contains("plain failed: <refused>"), "{text}");
        let plain = text
            .lines()
            .find(|line| line.starts_with("plain  "))
            .unwrap();
        assert_eq!(
            plain.split_whitespace().collect::<Vec<_>>()[..4],
            ["plain", "0", "1", "-"]
        );
    }

    #[test]
    fn markdown_rows_have_as_many_cells_as_the_head() {
        let text = markdown(&comparison());
        let bars: Vec<usize> = text
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.matches('|').count())
            .collect();
        assert_eq!(bars, [10, 10, 10, 10], "{text}");
    }
}
