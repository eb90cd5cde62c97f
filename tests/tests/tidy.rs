//! The house rules, as a test: boundaries between crates, sizes of files, words that do not belong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const LINES_MAX: usize = 600;
const TOP_LEVEL: &[&str] = &[
    ".ci",
    ".config",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "README.md",
    "clippy.toml",
    "consensus",
    "controlplane",
    "dataplane",
    "deny.toml",
    "deploy",
    "drivers",
    "hugepages",
    "nic-config",
    "perf",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "tests",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn tracked() -> Vec<String> {
    let out = Command::new("git")
        .arg("ls-files")
        .current_dir(root())
        .output()
        .unwrap();
    assert!(out.status.success(), "this test reads a git checkout");
    let files: Vec<String> = String::from_utf8(out.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    assert!(files.len() > 50, "git lists only {} files", files.len());
    files
        .into_iter()
        .filter(|file| root().join(file).exists())
        .collect()
}

fn sources() -> Vec<(String, String)> {
    tracked()
        .into_iter()
        .filter(|file| file.ends_with(".rs"))
        .map(|file| {
            let text = fs::read_to_string(root().join(&file)).unwrap();
            (file, text)
        })
        .collect()
}

fn dependencies(manifest: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(manifest)).unwrap();
    let value: toml::Table = text.parse().unwrap();
    value["dependencies"]
        .as_table()
        .unwrap()
        .keys()
        .cloned()
        .collect()
}

#[test]
fn the_top_level_holds_what_the_design_names() {
    let top: BTreeSet<String> = tracked()
        .iter()
        .map(|file| file.split('/').next().unwrap().to_owned())
        .collect();
    let known: BTreeSet<String> = TOP_LEVEL.iter().map(|name| (*name).to_owned()).collect();
    let strangers: Vec<_> = top.difference(&known).collect();
    assert!(strangers.is_empty(), "not in the design: {strangers:?}");
}

#[test]
fn crates_use_what_their_boundary_allows() {
    let asynchronous = ["tokio", "axum", "reqwest", "hyper", "futures-util"];
    for manifest in [
        "dataplane/Cargo.toml",
        "drivers/Cargo.toml",
        "hugepages/Cargo.toml",
        "dataplane/api/Cargo.toml",
        "dataplane/baseline/Cargo.toml",
    ] {
        for name in dependencies(manifest) {
            assert!(
                !asynchronous.contains(&name.as_str()),
                "{manifest} uses {name}"
            );
        }
    }
    let own = |manifest: &str| -> Vec<String> {
        dependencies(manifest)
            .into_iter()
            .filter(|name| name.starts_with("dwcp-"))
            .collect()
    };
    assert_eq!(own("hugepages/Cargo.toml"), Vec::<String>::new());
    assert_eq!(own("dataplane/api/Cargo.toml"), ["dwcp-hugepages"]);
    assert_eq!(own("drivers/Cargo.toml"), ["dwcp-hugepages"]);
    assert_eq!(
        own("dataplane/Cargo.toml"),
        [
            "dwcp-api",
            "dwcp-baseline",
            "dwcp-drivers",
            "dwcp-hugepages"
        ]
    );
    assert_eq!(own("dataplane/baseline/Cargo.toml"), Vec::<String>::new());
    assert_eq!(
        own("controlplane/Cargo.toml"),
        [
            "dwcp-api",
            "dwcp-baseline",
            "dwcp-consensus",
            "dwcp-hugepages",
            "dwcp-nic-config"
        ]
    );
    assert_eq!(own("nic-config/Cargo.toml"), Vec::<String>::new());
    assert_eq!(own("consensus/Cargo.toml"), Vec::<String>::new());
    assert_eq!(own("controlplane/cli/Cargo.toml"), Vec::<String>::new());
}

#[test]
fn files_hold_one_idea() {
    for (file, text) in sources() {
        let lines = text.lines().count();
        assert!(
            lines <= LINES_MAX,
            "{file} has {lines} lines: split it by what it is about"
        );
        let inside = file.split("/src/").nth(1);
        if inside.is_some_and(|path| !path.contains("tests")) {
            assert!(
                text.starts_with("//!"),
                "{file} does not begin by saying what it is"
            );
        }
    }
}

#[test]
fn nothing_is_left_for_later() {
    // Written so that this file does not find itself.
    let words = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("dbg", "!("),
        concat!("#[", "ignore"),
        concat!("assert!(", "true)"),
    ];
    for (file, text) in sources() {
        for word in words {
            assert!(!text.contains(word), "{file} contains {word}");
        }
    }
}

#[test]
fn every_fuzz_target_is_registered_and_has_seeds() {
    let manifest = fs::read_to_string(root().join("dataplane/fuzz/Cargo.toml")).unwrap();
    let mut count = 0;
    for file in tracked() {
        let Some(name) = file
            .strip_prefix("dataplane/fuzz/fuzz_targets/")
            .and_then(|rest| rest.strip_suffix(".rs"))
        else {
            continue;
        };
        count += 1;
        assert!(
            manifest.contains(&format!("name = \"{name}\"")),
            "{name} is not registered"
        );
        let corpus = root().join("dataplane/fuzz/corpus").join(name);
        assert!(
            fs::read_dir(&corpus).unwrap().count() > 0,
            "{name} has no seeds"
        );
    }
    assert!(count >= 4, "{count} fuzz targets");
}

#[test]
fn every_source_file_is_compiled() {
    let files = sources();
    for (file, _) in &files {
        if !file.contains("/src/") || file.contains("/src/bin/") {
            continue;
        }
        let path = Path::new(file);
        let stem = path.file_stem().unwrap().to_str().unwrap();
        if matches!(stem, "lib" | "main") {
            continue;
        }
        let module = if stem == "mod" {
            path.parent()
                .unwrap()
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
        } else {
            stem
        };
        let declared = files.iter().any(|(_, text)| {
            text.lines().any(|line| {
                let line = line
                    .trim()
                    .trim_end_matches(';')
                    .trim_end_matches('{')
                    .trim();
                line.ends_with(&format!("mod {module}")) || line.contains(&format!("\"{stem}.rs\""))
            })
        });
        assert!(declared, "{file} is no module of anything");
    }
}
