//! The node that a certificate is for: one URI `dwcp://node/NAME` among its names, and no other name.
//!
//! In: the names of a certificate, of any provenance. Out: the node's name. Promise: a certificate that
//! names anything else too, a web server say, is not for migration alone and names no node.

/// What the URI begins with.
pub const SCHEME: &str = "dwcp://node/";
/// Bytes of a name at most.
pub const MAX_NAME_BYTES: usize = 64;

/// The URI for a node; `None` for a name that no certificate can carry.
#[must_use]
pub fn uri_of(name: &str) -> Option<String> {
    is_name(name).then(|| format!("{SCHEME}{name}"))
}

/// The name in a certificate's URI.
#[must_use]
pub fn node_of(uri: &str) -> Option<&str> {
    uri.strip_prefix(SCHEME).filter(|name| is_name(name))
}

/// The node of a certificate with these names.
#[must_use]
pub fn only_node<'a>(
    uris: impl Iterator<Item = &'a str>,
    others: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let mut uris = uris;
    let node = node_of(uris.next()?)?;
    let alone = uris.next().is_none() && others.into_iter().next().is_none();
    alone.then_some(node)
}

/// Letters, digits, dot, dash and underscore: nothing that a URI would have to escape.
fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_nothing_else_is_one() {
        assert_eq!(
            node_of(&uri_of("host-a.example_1").unwrap()),
            Some("host-a.example_1")
        );
        for bad in ["", "a b", "a/b", "ä", "a%20b", &"x".repeat(65)] {
            assert_eq!(uri_of(bad), None, "{bad}");
            assert_eq!(node_of(&format!("{SCHEME}{bad}")), None, "{bad}");
        }
        for bad in [
            "dwcp://node",
            "DWCP://node/a",
            "https://node/a",
            "dwcp://nodes/a",
        ] {
            assert_eq!(node_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_certificate_for_more_than_migration_is_for_no_node() {
        let only = |uris: &[&'static str], others: &[&'static str]| {
            only_node(uris.iter().copied(), others.iter().copied())
        };
        assert_eq!(only(&["dwcp://node/a"], &[]), Some("a"));
        assert_eq!(only(&[], &[]), None);
        assert_eq!(only(&["dwcp://node/a", "dwcp://node/b"], &[]), None);
        assert_eq!(only(&["dwcp://node/a", "https://a"], &[]), None);
        assert_eq!(only(&["https://a", "dwcp://node/a"], &[]), None);
        assert_eq!(only(&["dwcp://node/a"], &["www.example.org"]), None);
    }
}
