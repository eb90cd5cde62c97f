//! Plots as SVG. In: named figures, or values over time. Out: text for a page. Promises: bars begin at zero
//! and show the spread; nothing is drawn for what was not measured; colours follow the page's own words, so
//! that a dark page is dark here too.

use std::fmt::Write as _;

use super::summary::Figure;

const WIDTH: f64 = 460.0;
const LABEL: f64 = 105.0;
const ROW: f64 = 24.0;
const CURVE_HEIGHT: f64 = 200.0;
const MARGIN: f64 = 40.0;

/// Bars with their least and greatest, one a row; the class `c0`, `c1`, … is the row's colour.
pub(super) fn bars(title: &str, unit: f64, rows: &[(&str, Option<Figure>)]) -> String {
    let greatest = rows
        .iter()
        .filter_map(|(_, figure)| figure.map(|f| f.max / unit))
        .fold(0.0, f64::max);
    let height = ROW * (rows.len() as f64 + 1.0) + 6.0;
    let mut svg = open(title, height);
    let scale = (WIDTH - LABEL - 80.0) / if greatest > 0.0 { greatest } else { 1.0 };
    for (index, (name, figure)) in rows.iter().enumerate() {
        let top = ROW * (index as f64 + 1.0);
        let middle = top + ROW / 2.0;
        text(&mut svg, LABEL - 6.0, middle + 4.0, "end", name);
        let Some(figure) = figure else {
            text(&mut svg, LABEL, middle + 4.0, "start", "not measured");
            continue;
        };
        let [median, min, max] = [figure.median, figure.min, figure.max].map(|v| v / unit * scale);
        let _ = write!(
            svg,
            "<rect class=\"c{index}\" x=\"{LABEL}\" y=\"{:.1}\" width=\"{median:.1}\" height=\"{:.1}\"/>\
             <path class=\"spread\" d=\"M{:.1} {middle:.1}H{:.1}\"/>",
            top + 4.0,
            ROW - 8.0,
            LABEL + min,
            LABEL + max,
        );
        let value = figure.median / unit;
        let digits = if value < 10.0 {
            2
        } else {
            usize::from(value < 100.0)
        };
        text(
            &mut svg,
            LABEL + max + 6.0,
            middle + 4.0,
            "start",
            &format!("{value:.digits$}"),
        );
    }
    svg + "</svg>"
}

/// Curves over time, `slot_s` seconds from value to value; `top` is drawn as a line across, if given.
pub(super) fn curves(
    title: &str,
    slot_s: f64,
    top: Option<f64>,
    curves: &[(&str, &[f64])],
) -> String {
    let slots = curves
        .iter()
        .map(|(_, values)| values.len())
        .max()
        .unwrap_or(0);
    let greatest = curves
        .iter()
        .flat_map(|(_, values)| values.iter().copied())
        .chain(top)
        .fold(1.0, f64::max);
    let mut svg = open(title, CURVE_HEIGHT + 2.0 * MARGIN);
    let x = |slot: f64| MARGIN + slot * (WIDTH - 2.0 * MARGIN) / (slots.max(1) as f64);
    let y = |value: f64| MARGIN + CURVE_HEIGHT * (1.0 - value / greatest);
    if let Some(top) = top {
        let _ = write!(
            svg,
            "<path class=\"rate\" d=\"M{MARGIN} {:.1}H{:.1}\"/>",
            y(top),
            WIDTH - MARGIN
        );
    }
    let _ = write!(
        svg,
        "<path class=\"axis\" d=\"M{MARGIN} {MARGIN}V{:.1}H{:.1}\"/>",
        y(0.0),
        WIDTH - MARGIN
    );
    text(
        &mut svg,
        MARGIN - 4.0,
        y(greatest) + 4.0,
        "end",
        &format!("{greatest:.0}"),
    );
    text(&mut svg, MARGIN - 4.0, y(0.0), "end", "0");
    let end_s = slots as f64 * slot_s;
    text(
        &mut svg,
        WIDTH - MARGIN,
        y(0.0) + 14.0,
        "end",
        &format!("{end_s:.1} s"),
    );
    for (index, (_, values)) in curves.iter().enumerate() {
        let mut path = String::new();
        for (slot, value) in values.iter().enumerate() {
            let word = if slot == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{word}{:.1} {:.1}", x(slot as f64 + 0.5), y(*value));
        }
        if !path.is_empty() {
            let _ = write!(svg, "<path class=\"curve c{index}\" d=\"{path}\"/>");
        }
    }
    svg + "</svg>"
}

fn open(title: &str, height: f64) -> String {
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" role=\"img\" aria-label=\"{}\">",
        escaped(title)
    );
    let _ = write!(
        svg,
        "<text class=\"title\" x=\"4\" y=\"15\">{}</text>",
        escaped(title)
    );
    svg
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = escaped(words);
    let _ = write!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
    );
}

/// Text that cannot end or begin an element or an attribute.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_figure() {
        let rows = [
            ("a", Figure::of(&[50.0])),
            ("b", Figure::of(&[100.0])),
            ("c", None),
        ];
        let svg = bars("t", 1.0, &rows);
        let widths: Vec<f64> = svg
            .split("width=\"")
            .skip(2)
            .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(widths.len(), 2, "{svg}");
        assert!((widths[1] / widths[0] - 2.0).abs() < 0.01, "{widths:?}");
        assert!(svg.contains("not measured"));
    }

    #[test]
    fn nothing_measured_is_drawn_without_a_number_that_is_none() {
        for svg in [
            bars("t", 1.0, &[]),
            curves("t", 0.1, None, &[]),
            curves("t", 0.1, Some(0.0), &[("a", &[])]),
        ] {
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>"));
        }
    }

    #[test]
    fn words_cannot_become_elements() {
        let svg = bars("<b>\"&", 1.0, &[("</text><script>", Figure::of(&[1.0]))]);
        assert!(!svg.contains("<script") && !svg.contains("<b>"), "{svg}");
    }
}
