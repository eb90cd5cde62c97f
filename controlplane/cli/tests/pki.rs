//! `dwcpctl pki`: an authority in a folder. What it makes is used by the data plane's tests over TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Exit code and what was said on standard output and error.
fn pki(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_dwcpctl"))
        .arg("pki")
        .args(arguments)
        // No control plane is asked, so no token is needed.
        .env_remove("DWCP_TOKEN")
        .env("DWCP_TOKEN_FILE", "/nowhere")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn json(arguments: &[&str]) -> Value {
    let (code, said, error) = pki(&[arguments, &["--json"]].concat());
    assert_eq!(code, 0, "{error}");
    serde_json::from_str(&said).unwrap()
}

/// Every file below `dir` with its content and mode.
fn files(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32)> {
    let mut all = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        assert_eq!(
            std::fs::metadata(&folder).unwrap().permissions().mode() & 0o077,
            0,
            "{} is open to others",
            folder.display()
        );
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            if path.is_dir() {
                folders.push(path);
            } else {
                all.insert(path.clone(), (std::fs::read(&path).unwrap(), mode));
            }
        }
    }
    all
}

#[test]
fn an_authority_is_made_once_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let ca_text = ca.to_str().unwrap();
    let (code, said, error) = pki(&["issue", ca_text, "a"]);
    assert_eq!(code, 2, "{said}");
    assert!(error.contains("dwcpctl pki init"), "{error}");

    let made = json(&["init", ca_text]);
    assert!(
        made["name"].as_str().unwrap().starts_with("DWCP "),
        "{made}"
    );
    let issued = json(&["issue", ca_text, "host-a.example"]);
    assert_eq!(issued["node"], "host-a.example");
    for copy in issued["copy"].as_array().unwrap() {
        let path = Path::new(copy["from"].as_str().unwrap());
        assert!(path.is_file(), "{copy}");
    }
    let before = files(&ca);
    for (path, (_, mode)) in &before {
        let secret = path.extension().is_some_and(|end| end == "key") || path.ends_with("key.pem");
        assert_eq!(
            mode & 0o077 == 0,
            secret || path.ends_with("lock"),
            "{path:?}"
        );
    }

    for again in [
        &["init", ca_text][..],
        &["issue", ca_text, "host-a.example"],
    ] {
        let (code, _, error) = pki(again);
        assert_eq!(code, 1);
        assert!(
            error.contains("not overwritten") && error.contains("next:"),
            "{error}"
        );
    }
    for name in ["", "a b", "../a", "ä", "."] {
        let (code, ..) = pki(&["issue", ca_text, name]);
        assert_eq!(code, 2, "{name:?}");
    }
    assert_eq!(files(&ca), before);
}

#[test]
fn a_rotated_certificate_stays_good_until_it_is_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let ca_text = ca.to_str().unwrap();
    json(&["init", ca_text, "--name", "lab"]);
    let first = json(&["issue", ca_text, "a"])["serial"].clone();
    let list = || std::fs::read(ca.join("crl.pem")).unwrap();
    let empty = list();
    let folder = ca.join("nodes/a");
    let old = std::fs::read(folder.join("cert.pem")).unwrap();
    let second = json(&["rotate", ca_text, "a", "--days", "30"])["serial"].clone();
    assert_ne!(first, second);
    let kept = folder.join(format!("cert.pem.{}", first.as_str().unwrap()));
    assert_eq!(std::fs::read(kept).unwrap(), old);
    assert_eq!(list(), empty, "rotation revokes nothing");

    let revoked = json(&["revoke", ca_text, "a", "--old"]);
    assert_eq!(revoked["revoked"], serde_json::json!([first]));
    assert_ne!(list(), empty);
    let (code, _, error) = pki(&["revoke", ca_text, "a", "--old"]);
    assert_eq!(code, 2, "{error}");
    let revoked = json(&["revoke", ca_text, "a"]);
    assert_eq!(revoked["revoked"], serde_json::json!([second]));
    let (code, said, _) = pki(&["rotate", ca_text, "nobody"]);
    assert_eq!(code, 2, "{said}");
    let (code, said, _) = pki(&["rotate", ca_text, "a"]);
    assert_eq!(code, 0);
    assert!(said.contains("/etc/dwcp/tls/key.pem (mode 0600)"), "{said}");
}
