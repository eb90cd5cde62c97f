//! Settings of three sources, laid over one another: a TOML file, the environment, flags.
//!
//! In: text of each. Out: one table, and for each key where its value came from. Promise: a later source replaces
//! a value, never a whole table, and no key is dropped: one that the program does not know is still there to be
//! refused by name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Between the parts of a key in an environment variable: `DWCP_DATAPLANE_TLS__CA` is `tls.ca`.
const PART: &str = "__";

/// Where a value came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    #[default]
    Default,
    /// A file.
    File(PathBuf),
    /// An environment variable of this name.
    Environment(String),
    /// A flag, as it was typed.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// A source that is not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayerError {
    /// The file is no TOML.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong there.
        reason: String,
    },
    /// A flag without a value.
    #[error("--set {0}: write it as KEY=VALUE, for example --set tls.ca=/etc/dwcp/tls/ca.pem")]
    Flag(String),
    /// A key that goes through something that is no table.
    #[error("{origin}: {key} is no table, so nothing can be set inside it")]
    NoTable {
        /// Who said so.
        origin: String,
        /// The key that is no table.
        key: String,
    },
}

/// The sources read so far.
#[derive(Debug, Default)]
pub struct Layers {
    table: Table,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    /// The file's layer, the lowest.
    ///
    /// # Errors
    /// [`LayerError::File`] with the place of the mistake.
    pub fn file(path: &Path, text: &str) -> Result<Self, LayerError> {
        let table: Table = toml::from_str(text).map_err(|error| LayerError::File {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let origin = Origin::File(path.to_owned());
        let origins = flatten(&table)
            .into_iter()
            .map(|(key, _)| (key, origin.clone()))
            .collect();
        Ok(Self { table, origins })
    }

    /// Lays over it what variables whose names begin with `prefix` say, but for those in `except`.
    ///
    /// # Errors
    /// [`LayerError::NoTable`].
    pub fn environment(
        &mut self,
        prefix: &str,
        except: &[&str],
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), LayerError> {
        for (name, text) in variables {
            let Some(key) = name.strip_prefix(prefix) else {
                continue;
            };
            if except.contains(&name.as_str()) {
                continue;
            }
            let key = key.to_ascii_lowercase().replace(PART, ".");
            self.set(&key, value(&text), Origin::Environment(name))?;
        }
        Ok(())
    }

    /// Lays over it what `--set KEY=VALUE` says, the last one uppermost.
    ///
    /// # Errors
    /// [`LayerError`] naming the flag.
    pub fn flags<'a>(
        &mut self,
        flags: impl IntoIterator<Item = &'a String>,
    ) -> Result<(), LayerError> {
        for flag in flags {
            let (key, text) = flag
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| LayerError::Flag(flag.clone()))?;
            self.set(key, value(text), Origin::Flag(format!("--set {key}")))?;
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: Value, origin: Origin) -> Result<(), LayerError> {
        let mut table = &mut self.table;
        let mut walked = String::new();
        let (above, last) = key.rsplit_once('.').unwrap_or(("", key));
        for part in above.split('.').filter(|part| !part.is_empty()) {
            walked.push_str(part);
            table = table
                .entry(part)
                .or_insert_with(|| Value::Table(Table::new()))
                .as_table_mut()
                .ok_or_else(|| LayerError::NoTable {
                    origin: origin.to_string(),
                    key: walked.clone(),
                })?;
            walked.push('.');
        }
        table.insert(last.to_owned(), value);
        let below = format!("{key}.");
        self.origins.retain(|name, _| !name.starts_with(&below));
        self.origins.insert(key.to_owned(), origin);
        Ok(())
    }

    /// Every value, for the program to read.
    #[must_use]
    pub const fn table(&self) -> &Table {
        &self.table
    }

    /// Where the value of a key came from.
    #[must_use]
    pub fn origin(&self, key: &str) -> Origin {
        let mut key = key;
        loop {
            if let Some(origin) = self.origins.get(key) {
                return origin.clone();
            }
            // A table given whole, in one variable, speaks for all its keys.
            match key.rsplit_once('.') {
                Some((above, _)) => key = above,
                None => return Origin::Default,
            }
        }
    }

    /// The sources over the file, for a message about a value that one of them gave.
    #[must_use]
    pub fn overrides(&self) -> Vec<String> {
        let over = |origin: &&Origin| matches!(origin, Origin::Environment(_) | Origin::Flag(_));
        self.origins
            .values()
            .filter(over)
            .map(Origin::to_string)
            .collect()
    }
}

/// A value as TOML has it; text that is none is taken as a string, so that paths and names need no quotes.
fn value(text: &str) -> Value {
    let parsed: Option<Table> = toml::from_str(&format!("value = {text}")).ok();
    parsed
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Every value of a table with its whole key; an array is one value.
#[must_use]
pub fn flatten(table: &Table) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => flat.extend(
                flatten(inner)
                    .into_iter()
                    .map(|(below, value)| (format!("{key}.{below}"), value)),
            ),
            other => flat.push((key.clone(), other.clone())),
        }
    }
    flat
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn layers(
        file: &str,
        variables: &[(&str, &str)],
        flags: &[&str],
    ) -> Result<Layers, LayerError> {
        let mut layers = Layers::file(Path::new("/f"), file)?;
        let variables = variables
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        layers.environment("P_", &["P_CONFIG"], variables)?;
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        layers.flags(&flags)?;
        Ok(layers)
    }

    #[test]
    fn the_later_source_wins_and_is_named() {
        let layers = layers(
            "a = 1\nb = 1\n[tls]\nca = \"x\"\nkey = \"y\"\n",
            &[
                ("P_B", "2"),
                ("P_C", "2"),
                ("P_TLS__CA", "/p"),
                ("P_CONFIG", "/f"),
                ("Q_A", "9"),
            ],
            &["c=3", "d=[1, 2]", "e=true"],
        )
        .unwrap();
        let expected: Table = toml::from_str(
            "a = 1\nb = 2\nc = 3\nd = [1, 2]\ne = true\ntls = { ca = \"/p\", key = \"y\" }\n",
        )
        .unwrap();
        assert_eq!(layers.table(), &expected);
        for (key, origin) in [
            ("a", "file /f"),
            ("b", "environment P_B"),
            ("c", "flag --set c"),
            ("tls.ca", "environment P_TLS__CA"),
            ("tls.key", "file /f"),
            ("z", "default"),
        ] {
            assert_eq!(layers.origin(key).to_string(), origin, "{key}");
        }
        assert_eq!(layers.overrides().len(), 5);
    }

    #[test]
    fn values_need_no_quotes_and_cannot_smuggle_keys_in() {
        let table = layers(
            "",
            &[("P_A", "1\nb = 2")],
            &["l=10.0.0.1:4790", "s=\"5\"", "m=[::1]:1"],
        );
        let table = table.unwrap().table().clone();
        assert_eq!(table["a"].as_str(), Some("1\nb = 2"));
        assert_eq!(table["l"].as_str(), Some("10.0.0.1:4790"));
        assert_eq!(table["s"].as_str(), Some("5"));
        assert_eq!(table["m"].as_str(), Some("[::1]:1"));
    }

    #[test]
    fn nonsense_is_named() {
        let told = |result: Result<Layers, LayerError>| result.unwrap_err().to_string();
        assert!(told(layers("a = ", &[], &[])).contains("/f"));
        assert!(told(layers("", &[], &["a"])).contains("KEY=VALUE"));
        assert!(told(layers("", &[], &["=1"])).contains("KEY=VALUE"));
        let inside = told(layers("a = 1", &[("P_A__B", "1")], &[]));
        assert!(
            inside.contains("P_A__B") && inside.contains("no table"),
            "{inside}"
        );
    }
}
