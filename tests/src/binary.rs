//! Test programs that run elsewhere than where they were built: in a virtual machine, on another host.
//!
//! In: a target. Out: the path of the program. Promise: it is built from the sources as they are, with every
//! back end; what the compiler says of a failure is in the error.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// All that the workspace can be built with for its tests, as `tests/run.sh` does: the same features make the
/// same parts, so that after it nothing is built again here.
const EVERY_BACK_END: [&str; 3] = [
    "--workspace",
    "--features",
    "dwcp-tests/dpdk,dwcp-tests/rdma,dwcp-perf/dpdk",
];

/// Builds the test `name` of the `tests/` folder of `package` and says where it is.
///
/// # Errors
/// What cargo said.
pub fn test(package: &str, name: &str) -> Result<PathBuf, String> {
    built(package, &["--test", name], name)
}

/// Builds the unit tests of `package` and says where they are.
///
/// # Errors
/// What cargo said.
pub fn unit_tests(package: &str) -> Result<PathBuf, String> {
    built(package, &["--lib"], &package.replace('-', "_"))
}

fn built(package: &str, target: &[&str], name: &str) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["test", "--no-run"]).args(target);
    command.args(EVERY_BACK_END);
    command.arg("--message-format=json-render-diagnostics");
    let built = command.output().map_err(|cause| cause.to_string())?;
    if !built.status.success() {
        return Err(String::from_utf8_lossy(&built.stderr).into_owned());
    }
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|said| said["target"]["name"] == name && is_of(said, package))
        .find_map(|said| said["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| format!("cargo built {name} of {package} and does not say where"))
}

/// What cargo says is about a part of `package`: several packages have tests of the same name.
fn is_of(said: &Value, package: &str) -> bool {
    let id = said["package_id"].as_str().unwrap_or_default();
    id.contains(&format!("#{package}@"))
}
