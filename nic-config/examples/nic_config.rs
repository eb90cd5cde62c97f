//! Plans, applies, verifies and reverts a profile on this machine, without a control plane. Root.
//!
//! `nic_config list`, `nic_config plan PROFILE`, and `apply`, `verify` likewise; `nic_config revert PCI`.
//! `nic_config round PROFILE` does all of it and fails unless everything ends as it began, which is how
//! a real driver is tried out.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand};
use dwcp_nic_config::apply::apply;
use dwcp_nic_config::inventory;
use dwcp_nic_config::journal::Journals;
use dwcp_nic_config::kernel::Kernel;
use dwcp_nic_config::linux::Linux;
use dwcp_nic_config::pci::PciAddress;
use dwcp_nic_config::plan::plan;
use dwcp_nic_config::profile::Profile;
use dwcp_nic_config::revert::revert;
use dwcp_nic_config::verify::verify;

#[derive(Parser)]
struct Args {
    /// Where journals are kept
    #[arg(long, default_value = "/var/lib/dwcp/nics")]
    journals: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show all NICs as JSON
    List,
    /// Show what a profile would change
    Plan { profile: PathBuf },
    /// Change it
    Apply { profile: PathBuf },
    /// Compare
    Verify { profile: PathBuf },
    /// Put a NIC back
    Revert { nic: PciAddress },
    /// Apply, verify and revert, and compare with the beginning
    Round { profile: PathBuf },
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let kernel = Linux::default();
    match args.command {
        Command::List => println!("{}", listed(&kernel)?),
        Command::Plan { profile } => print!("{}", plan(&kernel, &read(&profile)?)?.view()),
        Command::Apply { profile } => {
            let journals = Journals::open(&args.journals)?;
            print!(
                "{}",
                apply(&kernel, &journals, &read(&profile)?, None)?.view()
            );
        }
        Command::Verify { profile } => {
            let verified = verify(&kernel, &read(&profile)?)?;
            print!("{}", verified.plan);
            ensure!(verified.holds, "the NIC is not as the profile wants it");
        }
        Command::Revert { nic } => {
            let reverted = revert(&kernel, &Journals::open(&args.journals)?, nic)?;
            println!("restored: {}", reverted.restored.join(", "));
        }
        Command::Round { profile } => round(&kernel, &args.journals, &read(&profile)?)?,
    }
    Ok(())
}

fn round(kernel: &dyn Kernel, journals: &Path, profile: &Profile) -> anyhow::Result<()> {
    let journals = Journals::open(journals)?;
    let before = listed(kernel)?;
    let plan = apply(kernel, &journals, profile, None)?;
    print!("applied: {}", plan.view());
    if plan.changes.is_empty() {
        bail!("nothing was to be changed, so nothing was tried");
    }
    let verified = verify(kernel, profile)?;
    println!("verified: {}", verified.holds);
    let reverted = revert(kernel, &journals, plan.nic)?;
    println!("reverted: {}", reverted.restored.join(", "));
    ensure!(
        verified.holds,
        "the NIC was not as the profile wants it: {}",
        verified.plan
    );
    let after = listed(kernel)?;
    ensure!(
        before == after,
        "not as it was\nbefore: {before}\nafter: {after}"
    );
    println!("all as it was");
    Ok(())
}

/// Every NIC, without the speed: a link that was just switched on negotiates for a while.
fn listed(kernel: &dyn Kernel) -> anyhow::Result<String> {
    let mut nics = inventory::all(kernel)?;
    for interface in nics.iter_mut().flat_map(|nic| &mut nic.interfaces) {
        interface.speed_mbps = None;
    }
    Ok(serde_json::to_string_pretty(&nics)?)
}

fn read(path: &Path) -> anyhow::Result<Profile> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(Profile::parse(&text)?)
}
