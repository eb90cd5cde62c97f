//! The settings in force, for a person or a program.
//!
//! In: the settings and who set each. Out: one line or one object for each key. Promise: what is shown is what the
//! program uses, defaults included.

use std::fmt;

use serde::Serialize;

use crate::layers::{Origin, flatten};

/// One setting.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its key, with dots between the parts.
    pub key: String,
    /// Its value.
    pub value: toml::Value,
    /// Where that came from.
    pub from: String,
}

/// All settings, by key.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// In the order of their keys.
    pub settings: Vec<Row>,
}

/// Puts settings and their origins together.
///
/// # Errors
/// A setting that TOML cannot hold.
pub fn show<T: Serialize>(
    settings: &T,
    origin: impl Fn(&str) -> Origin,
) -> Result<Shown, toml::ser::Error> {
    let table = toml::Table::try_from(settings)?;
    let mut settings: Vec<Row> = flatten(&table)
        .into_iter()
        .map(|(key, value)| Row {
            from: origin(&key).to_string(),
            key,
            value,
        })
        .collect();
    settings.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(Shown { settings })
}

impl Shown {
    /// As JSON.
    ///
    /// # Errors
    /// A value that JSON cannot hold.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }
}

impl fmt::Display for Shown {
    /// One line for each key; they are TOML with their origin as a comment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<(String, &str)> = self
            .settings
            .iter()
            .map(|row| (format!("{} = {}", row.key, row.value), row.from.as_str()))
            .collect();
        let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
        for (line, from) in lines {
            writeln!(f, "{line:width$}  # {from}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_shown_can_be_read_back() {
        let table: toml::Table =
            toml::from_str("node = \"a\"\ncores = [1, 2]\n[tls]\nca = \"/x\"\n").unwrap();
        let shown = show(&table, |key| match key {
            "node" => Origin::Environment("DWCP_NODE".into()),
            _ => Origin::Default,
        })
        .unwrap();
        let text = shown.to_string();
        assert_eq!(toml::from_str::<toml::Table>(&text).unwrap(), table);
        assert!(
            text.contains("node = \"a\"      # environment DWCP_NODE\n"),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&shown.json().unwrap()).unwrap();
        assert_eq!(json["settings"][0]["key"], "cores");
        assert_eq!(json["settings"][2]["from"], "default");
        assert_eq!(json["settings"][2]["value"], "/x");
    }
}
