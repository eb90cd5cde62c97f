//! Programs of this tree that are built when a test needs them, because a feature that the workspace
//! builds without makes them.
//!
//! In: a package, a feature, a target. Out: the path of the program. Promise: it is built from the
//! sources as they are; what the compiler says of a failure is in the error.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// Builds the test `name` of the `tests/` folder of `package` and says where it is.
///
/// # Errors
/// What cargo said.
pub fn test(package: &str, feature: &str, name: &str) -> Result<PathBuf, String> {
    built(package, feature, &["--test", name], name)
}

/// Builds the unit tests of `package` and says where they are.
///
/// # Errors
/// What cargo said.
pub fn unit_tests(package: &str, feature: &str) -> Result<PathBuf, String> {
    built(package, feature, &["--lib"], &package.replace('-', "_"))
}

fn built(package: &str, feature: &str, target: &[&str], name: &str) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["test", "--no-run"]).args(target);
    command.args(["--package", package, "--features", feature]);
    command.arg("--message-format=json-render-diagnostics");
    let built = command.output().map_err(|cause| cause.to_string())?;
    if !built.status.success() {
        return Err(String::from_utf8_lossy(&built.stderr).into_owned());
    }
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|said| said["target"]["name"] == name)
        .find_map(|said| said["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| format!("cargo built {name} of {package} and does not say where"))
}
