//! Measured figures. In: samples of ours and of a reference, taken in alternation. Out: rows of medians
//! for people and for programs. Promise: nothing is left out of a row's samples, and a figure without
//! a reference has none, not a zero.

use std::fmt::Write as _;

use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// In what.
    pub unit: String,
    /// Median of our samples.
    pub ours: f64,
    /// Median of the reference's samples, taken in alternation with ours.
    pub reference: Option<f64>,
    /// `ours / reference`.
    pub ratio: Option<f64>,
    /// Samples of ours.
    pub n: usize,
    /// Least of ours.
    pub min: f64,
    /// Greatest of ours.
    pub max: f64,
    /// What the reader must know to judge it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Row {
    /// A row of samples of ours beside the reference's, if there is one. No sample: the row says so.
    #[must_use]
    pub fn new(name: &str, unit: &str, ours: &[f64], reference: &[f64]) -> Self {
        let middle = median(ours).unwrap_or(f64::NAN);
        let reference = median(reference);
        let ends = |pick: fn(f64, f64) -> f64| ours.iter().copied().fold(f64::NAN, pick);
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            ours: middle,
            reference,
            ratio: reference.map(|reference| middle / reference),
            n: ours.len(),
            min: ends(f64::min),
            max: ends(f64::max),
            note: None,
        }
    }

    /// The same row with a note.
    #[must_use]
    pub fn noted(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

/// The middle sample, or the mean of the two in the middle; none without samples.
#[must_use]
pub fn median(samples: &[f64]) -> Option<f64> {
    let sorted = sorted(samples);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = sorted.get(sorted.len() / 2 - 1)?;
    Some(f64::midpoint(*lower, upper))
}

/// The sample that this share of all samples does not exceed (nearest rank); none without samples.
#[must_use]
pub fn percentile(samples: &[f64], percent: u32) -> Option<f64> {
    let sorted = sorted(samples);
    let rank = (sorted.len() * percent.min(100) as usize).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Two samples between which the median of all that could have been drawn lies, with 95 % confidence or more,
/// whatever its distribution (the sign test turned around); none with too few samples for that.
#[must_use]
pub fn median_interval(samples: &[f64]) -> Option<(f64, f64)> {
    let sorted = sorted(samples);
    let count = i32::try_from(sorted.len()).ok()?;
    // The chance that exactly `below` of all samples are less than the median, added up from none.
    let (mut chance, mut total, mut below) = (0.5_f64.powi(count), 0.0, 0);
    while total + chance <= 0.025 {
        total += chance;
        chance *= f64::from(count - below) / f64::from(below + 1);
        below += 1;
    }
    let rank = usize::try_from(below).ok()?.checked_sub(1)?;
    Some((*sorted.get(rank)?, *sorted.get(sorted.len() - 1 - rank)?))
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The rows as a table for people.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let width = rows
        .iter()
        .map(|row| row.name.chars().count())
        .max()
        .unwrap_or(0)
        .max(4);
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<width$} {:>10} {:>12} {:>12} {:>8} {:>4} {:>12} {:>12}",
        "name", "unit", "ours", "reference", "ratio", "n", "min", "max"
    );
    let or_dash = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
    for row in rows {
        let _ = writeln!(
            text,
            "{:<width$} {:>10} {:>12.3} {:>12} {:>8} {:>4} {:>12.3} {:>12.3}",
            row.name,
            row.unit,
            row.ours,
            or_dash(row.reference),
            or_dash(row.ratio),
            row.n,
            row.min,
            row.max,
        );
        if let Some(note) = &row.note {
            let _ = writeln!(text, "  {note}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_even_and_odd_and_none() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_percentile_is_a_sample() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&samples, 50), Some(50.0));
        assert_eq!(percentile(&samples, 99), Some(99.0));
        assert_eq!(percentile(&samples, 100), Some(100.0));
        assert_eq!(percentile(&samples[..3], 99), Some(100.0));
        assert_eq!(percentile(&[], 99), None);
    }

    /// Ranks as tables of the sign test have them.
    #[test]
    fn the_median_lies_between_ranks_of_the_sign_test() {
        let of = |count: u32| {
            let samples: Vec<f64> = (1..=count).rev().map(f64::from).collect();
            median_interval(&samples)
        };
        assert_eq!((of(0), of(5)), (None, None));
        assert_eq!(of(6), Some((1.0, 6.0)));
        assert_eq!(of(10), Some((2.0, 9.0)));
        assert_eq!(of(20), Some((6.0, 15.0)));
        assert_eq!(of(40), Some((14.0, 27.0)));
    }

    #[test]
    fn a_row_holds_every_sample_and_no_invented_reference() {
        let row = Row::new("a", "ms", &[2.0, 9.0, 1.0], &[4.0]);
        assert_eq!((row.ours, row.min, row.max, row.n), (2.0, 1.0, 9.0, 3));
        assert_eq!((row.reference, row.ratio), (Some(4.0), Some(0.5)));
        let alone = Row::new("b", "ms", &[2.0], &[]);
        assert_eq!((alone.reference, alone.ratio), (None, None));
        let json = serde_json::to_value(&alone).unwrap();
        assert!(json["reference"].is_null() && json.get("note").is_none());
    }
}
