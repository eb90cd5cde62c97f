//! The difference between what a machine has and what a profile wants of one NIC.
//!
//! In: a profile and the kernel's facts. Out: a [`Plan`]: the changes in the order in which they are
//! made, advice on what takes a restart, notes. Promise: a plan that is handed out passed every check;
//! everything that speaks against it is told at once; nothing is changed.

mod draft;

use std::fmt;

use serde::Serialize;

use crate::change::{Change, Line};
use crate::guard::{self, Needed};
use crate::kernel::{Kernel, KernelError};
use crate::pci::PciAddress;
use crate::profile::Profile;

pub use draft::difference;

/// A checked plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The NIC.
    pub nic: PciAddress,
    /// The profile's name.
    pub profile: Option<String>,
    /// What is changed, in this order.
    pub changes: Vec<Change>,
    /// What takes a restart, and so is not changed.
    pub reboot: Vec<Line>,
    /// What is good to know.
    pub notes: Vec<String>,
}

/// A plan for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlanView {
    /// The same for the same changes from the same state.
    pub id: String,
    /// The NIC.
    pub nic: PciAddress,
    /// The profile's name.
    pub profile: Option<String>,
    /// Each change, then what takes a restart.
    pub lines: Vec<Line>,
    /// What is good to know.
    pub notes: Vec<String>,
}

/// One thing that speaks against a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The line of the profile that asks for it, if one does.
    pub line: Option<usize>,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub cure: String,
    /// The host would lose its way out: no profile makes that right.
    pub guard: bool,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// No such NIC.
    #[error("profile line {line}: there is no NIC {name} here; list them with `dwcpctl nic list`")]
    NoNic {
        /// The line that names it.
        line: usize,
        /// Its name.
        name: String,
    },
    /// It must not or cannot be.
    #[error("{}", all(.0))]
    Refused(Vec<Refusal>),
}

fn all(refusals: &[Refusal]) -> String {
    let texts: Vec<_> = refusals.iter().map(ToString::to_string).collect();
    texts.join("\n")
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "profile line {line}: ")?;
        }
        write!(f, "{}; {}", self.problem, self.cure)
    }
}

impl Plan {
    /// For people and programs.
    #[must_use]
    pub fn view(&self) -> PlanView {
        let text = serde_json::to_string(&(self.nic, &self.changes)).unwrap_or_default();
        let id = blake3::hash(text.as_bytes()).to_hex();
        PlanView {
            id: id[..16].to_owned(),
            nic: self.nic,
            profile: self.profile.clone(),
            lines: self
                .changes
                .iter()
                .map(Change::line)
                .chain(self.reboot.iter().cloned())
                .collect(),
            notes: self.notes.clone(),
        }
    }
}

impl fmt::Display for PlanView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan {} for NIC {}", self.id, self.nic)?;
        for line in &self.lines {
            let Line {
                setting, from, to, ..
            } = line;
            match &line.needs_reboot {
                None => writeln!(f, "  {setting}: {from} -> {to}")?,
                Some(cure) => writeln!(f, "  {setting}: {from} -> {to}  needs reboot: {cure}")?,
            }
        }
        if self.lines.is_empty() {
            writeln!(f, "  nothing to change")?;
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        Ok(())
    }
}

/// Plans.
///
/// # Errors
/// [`PlanError`].
pub fn plan(kernel: &dyn Kernel, profile: &Profile) -> Result<Plan, PlanError> {
    let plan = difference(kernel, profile)?;
    if plan.changes.iter().any(Change::touches_nic) {
        let refusals: Vec<_> = guarded(kernel, plan.nic)?.into_iter().collect();
        if !refusals.is_empty() {
            return Err(PlanError::Refused(refusals));
        }
    }
    Ok(plan)
}

/// The refusal to touch a NIC that the host needs.
///
/// # Errors
/// [`KernelError`].
pub fn guarded(kernel: &dyn Kernel, nic: PciAddress) -> Result<Option<Refusal>, KernelError> {
    let refusal = |problem, cure: &str| Refusal {
        line: None,
        problem,
        cure: cure.to_owned(),
        guard: true,
    };
    Ok(guard::needed(kernel, nic)?.map(|needed| match needed {
        Needed::DefaultRoute(interface) => refusal(
            format!("{nic} is not touched: it carries a default route, through {interface}"),
            "take another NIC for migrations, or move the default route to another one first",
        ),
        Needed::OnlyManagement {
            interface,
            addresses,
        } => refusal(
            format!(
                "{nic} is not touched: {interface} on it has the only address that reaches this host ({})",
                addresses.join(", ")
            ),
            "take another NIC for migrations, or give this host an address on another one first",
        ),
    }))
}
