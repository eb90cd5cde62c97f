//! Metric families as text.
//!
//! In: a picture. Out: OpenMetrics 1.0 text for a scraper that asks for it, Prometheus 0.0.4 text for
//! everybody else (`curl`, `promtool check metrics`). The two differ in a few lines: the older one
//! names a counter's family with its `_total`, and knows neither `# UNIT` nor `# EOF`.

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use super::picture::Picture;

/// Content type of [`openmetrics`].
pub const OPENMETRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Content type of [`prometheus`].
pub const PROMETHEUS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// OpenMetrics text.
///
/// # Errors
/// None in practice: the text goes to memory.
pub fn openmetrics(picture: Picture) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(picture));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

/// Prometheus text of the same.
#[must_use]
pub fn prometheus(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len() + 1_024);
    let lines: Vec<&str> = openmetrics.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        if *line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        match line
            .strip_prefix("# HELP ")
            .or_else(|| line.strip_prefix("# TYPE "))
        {
            Some(rest) => {
                let (family, text) = rest.split_once(' ').unwrap_or((rest, ""));
                // A family's TYPE follows its HELP.
                let typed = [Some(line), lines.get(at + 1)];
                let declared = format!("# TYPE {family} counter");
                let counter = typed.into_iter().flatten().any(|near| **near == declared);
                let suffix = if counter { "_total" } else { "" };
                out.push_str(&line[..7]);
                out.push_str(family);
                out.push_str(suffix);
                out.push(' ');
                out.push_str(text);
            }
            None => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_counters_are_renamed() {
        let open = "# HELP a Of a.\n# TYPE a counter\na_total{x=\"# EOF\"} 1\n# HELP b Of b.\n# TYPE b gauge\nb 2\n# EOF\n";
        let plain = "# HELP a_total Of a.\n# TYPE a_total counter\na_total{x=\"# EOF\"} 1\n# HELP b Of b.\n# TYPE b gauge\nb 2\n";
        assert_eq!(prometheus(open), plain);
    }
}
