//! Two commits side by side. In: a commit, the name of a bench, how many pairs. Out: the bench's rows, the
//! working tree as ours and the commit as the reference. Promises: both are built alike, each in its own
//! target folder; runs take turns, so that what else the machine does meets both; the working tree is
//! built as it is, with what was not committed; nothing of the commit's checkout is left behind.
//!
//! A bench that drives the product's processes is the same one for both, the tree's, with one commit's
//! programs or the other's: so a bench may be newer than the commit. One that measures code of its own
//! process is run by each commit's own `dwcp-perf`, which must know it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use crate::bench::{Bench, Kind};
use crate::row::Row;

const PAIRS: usize = 5;
/// What a bench may start.
const PACKAGES: [&str; 4] = ["dwcp-dataplane", "dwcp-controlplane", "dwcpctl", "dwcp-lab"];

/// What to compare.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The commit.
    pub base: String,
    /// Runs of each; the default if none.
    pub pairs: Option<usize>,
    /// Samples in each run; the bench's default if none.
    pub runs: Option<u32>,
}

/// One built commit.
struct Build {
    /// Where its programs lie.
    programs: PathBuf,
}

/// A row as another process wrote it.
#[derive(Debug, Deserialize)]
struct Written {
    name: String,
    unit: String,
    ours: Option<f64>,
}

/// Builds both and compares them.
///
/// # Errors
/// The first thing that went wrong, with the words of the tool it went wrong in.
pub fn run(plan: &Plan, bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let base = plan.base.as_str();
    let root = PathBuf::from(git(Path::new("."), &["rev-parse", "--show-toplevel"])?);
    let commit = git(
        &root,
        &["rev-parse", "--verify", &format!("{base}^{{commit}}")],
    )?;
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root.join("target"), PathBuf::from)
        .join("ab");
    let checkout = Checkout::new(&root, &commit)?;
    let drives = bench.kind == Kind::Product;
    let reference = build(checkout.path(), &target.join("base"), !drives)
        .with_context(|| format!("building {base}"))?;
    let ours = build(&root, &target.join("tree"), true).context("building the working tree")?;
    drop(checkout);
    let driver_of = |build: &Build| {
        let from = if drives { &ours } else { build };
        from.programs.join("dwcp-perf")
    };
    let mut samples = Samples::default();
    for pair in 0..plan.pairs.unwrap_or(PAIRS) {
        for tree in [pair % 2 == 0, pair % 2 == 1] {
            let build = if tree { &ours } else { &reference };
            let rows = measure(&driver_of(build), build, bench.name, plan.runs)?;
            eprintln!("pair {}, {}", pair + 1, if tree { "tree" } else { base });
            samples.take(rows, tree);
        }
    }
    let mut rows = samples.rows();
    let short: String = commit.chars().take(10).collect();
    if let Some(first) = rows.first_mut() {
        *first = first.clone().noted(format!(
            "ours is the working tree, the reference is {base} ({short}); each sample is a run's median"
        ));
    }
    Ok(rows)
}

/// A commit in a folder of its own, gone at the end.
struct Checkout<'r> {
    root: &'r Path,
    dir: tempfile::TempDir,
}

impl<'r> Checkout<'r> {
    fn new(root: &'r Path, commit: &str) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("dwcp-ab-").tempdir()?;
        let checkout = Self { root, dir };
        let path = checkout.path().display().to_string();
        git(root, &["worktree", "add", "--detach", &path, commit])?;
        Ok(checkout)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("base")
    }
}

impl Drop for Checkout<'_> {
    fn drop(&mut self) {
        let path = self.path().display().to_string();
        if let Err(error) = git(self.root, &["worktree", "remove", "--force", &path]) {
            eprintln!("{path} is left behind: {error:#}");
        }
    }
}

fn git(dir: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let out = Command::new("git")
        .current_dir(dir)
        .args(arguments)
        .output();
    let out = out.context("git does not run")?;
    ensure!(
        out.status.success(),
        "git {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn build(source: impl AsRef<Path>, target: &Path, driver: bool) -> anyhow::Result<Build> {
    let mut command = Command::new("cargo");
    command
        .current_dir(source)
        .args(["build", "--release", "--locked", "--bins", "--target-dir"])
        .arg(target);
    let perf = driver.then_some("dwcp-perf");
    for package in PACKAGES.into_iter().chain(perf) {
        command.args(["-p", package]);
    }
    let status = command.status().context("cargo does not run")?;
    ensure!(status.success(), "cargo: {status}");
    Ok(Build {
        programs: target.join("release"),
    })
}

fn measure(
    driver: &Path,
    build: &Build,
    bench: &str,
    runs: Option<u32>,
) -> anyhow::Result<Vec<Written>> {
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("rows.json");
    let mut command = Command::new(driver);
    command
        .env("DWCP_BIN_DIR", &build.programs)
        .args(["bench", bench, "--json"])
        .arg(&json);
    if let Some(runs) = runs {
        command.args(["--runs", &runs.to_string()]);
    }
    let out = command
        .output()
        .with_context(|| driver.display().to_string())?;
    if !out.status.success() {
        let words = String::from_utf8_lossy(&out.stderr);
        bail!("{} bench {bench}: {}", driver.display(), words.trim());
    }
    Ok(serde_json::from_str(&std::fs::read_to_string(json)?)?)
}

/// Samples of each row, in the order in which rows were first seen.
#[derive(Default)]
struct Samples(Vec<(String, String, [Vec<f64>; 2])>);

impl Samples {
    fn take(&mut self, rows: Vec<Written>, tree: bool) {
        for row in rows {
            let known = self.0.iter().position(|(name, _, _)| *name == row.name);
            let at = known.unwrap_or_else(|| {
                self.0.push((row.name, row.unit, Default::default()));
                self.0.len() - 1
            });
            let [ours, reference] = &mut self.0[at].2;
            let side = if tree { ours } else { reference };
            // A figure that is no number was not measured.
            side.extend(row.ours);
        }
    }

    fn rows(&self) -> Vec<Row> {
        self.0
            .iter()
            .map(|(name, unit, [ours, reference])| Row::new(name, unit, ours, reference))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_both_commits_meet_by_name() {
        let read = |text: &str| -> Vec<Written> { serde_json::from_str(text).unwrap() };
        let mut samples = Samples::default();
        let tree =
            r#"[{"name":"a","unit":"ms","ours":1.0,"n":1},{"name":"new","unit":"B","ours":7.0}]"#;
        samples.take(read(tree), true);
        samples.take(read(r#"[{"name":"a","unit":"ms","ours":4.0}]"#), false);
        samples.take(read(r#"[{"name":"a","unit":"ms","ours":3.0}]"#), true);
        samples.take(read(r#"[{"name":"a","unit":"ms","ours":null}]"#), false);
        let rows = samples.rows();
        assert_eq!((rows[0].ours, rows[0].n), (2.0, 2));
        assert_eq!((rows[0].reference, rows[0].ratio), (Some(4.0), Some(0.5)));
        assert_eq!((rows[1].name.as_str(), rows[1].reference), ("new", None));
    }

    #[test]
    fn a_checkout_is_the_commit_and_goes_with_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let git = |arguments: &[&str]| super::git(root, arguments).unwrap();
        git(&["init", "-q"]);
        git(&["config", "user.email", "a@b"]);
        git(&["config", "user.name", "a"]);
        std::fs::write(root.join("file"), "old").unwrap();
        git(&["add", "."]);
        git(&["commit", "-qm", "old"]);
        let commit = git(&["rev-parse", "HEAD"]);
        std::fs::write(root.join("file"), "new").unwrap();
        let checkout = Checkout::new(root, &commit).unwrap();
        let path = checkout.path();
        assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "old");
        drop(checkout);
        assert!(!path.exists());
        assert_eq!(git(&["worktree", "list"]).lines().count(), 1);
        assert!(super::git(root, &["rev-parse", "--verify", "nobody"]).is_err());
    }
}
