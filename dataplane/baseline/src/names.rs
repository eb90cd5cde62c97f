//! Names: who owns baselines, and which is which.
//!
//! In: text of any provenance. Out: names that are safe as file names. Promise: no name leads out of its
//! folder.

use std::fmt;

/// Bytes of a tenant's name at most.
pub const TENANT_BYTES_MAX: usize = 32;

/// Who owns a baseline. 1 to 32 of `a-z 0-9 - _ .`, beginning with a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(String);

impl Tenant {
    /// The tenant of whoever names none.
    pub const DEFAULT: &'static str = "default";

    /// Checks a name.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        let first = name.chars().next()?;
        let fits = name.len() <= TENANT_BYTES_MAX && name.chars().all(inner);
        let begins = first.is_ascii_lowercase() || first.is_ascii_digit();
        (fits && begins).then(|| Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Tenant {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names a manifest: BLAKE3 over its list of block digests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ManifestId(pub [u8; 32]);

impl ManifestId {
    /// Reads 64 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut id = [0; 32];
        hex::decode_to_slice(text, &mut id).ok()?;
        Some(Self(id))
    }
}

impl fmt::Display for ManifestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ManifestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ManifestId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leads_out_of_its_folder() {
        for good in ["default", "a", "7", "team-a.prod_2", &"x".repeat(32)] {
            assert_eq!(Tenant::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            ".a",
            "a/b",
            "A",
            "é",
            "a b",
            "-a",
            &"x".repeat(33),
        ] {
            assert_eq!(Tenant::new(bad), None, "{bad}");
        }
    }

    #[test]
    fn ids_are_64_digits() {
        let id = ManifestId([0xab; 32]);
        assert_eq!(ManifestId::parse(&id.to_string()), Some(id));
        for bad in ["", "ab", &"g".repeat(64), &"a".repeat(65)] {
            assert_eq!(ManifestId::parse(bad), None);
        }
    }
}
