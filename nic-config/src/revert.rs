//! Takes back what was done to a NIC.
//!
//! In: the NIC's journal. Out: the settings that were there before. Promises: it works from wherever an
//! apply or an earlier revert stopped; all changes are tried even if one fails; the journal stays until
//! everything is back.

use std::fmt;

use serde::Serialize;

use crate::change::Change;
use crate::journal::{JournalError, Journals};
use crate::kernel::{Kernel, KernelError};
use crate::pci::PciAddress;
use crate::plan::{Refusal, guarded};

/// Something that could not be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// The setting.
    pub setting: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.reason)
    }
}

/// A revert that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reverted {
    /// The NIC.
    pub nic: PciAddress,
    /// The plan that was taken back.
    pub plan: String,
    /// Settings that were put back; none if a restart of the machine had done it.
    pub restored: Vec<String>,
    /// The machine was restarted since the plan was applied.
    pub by_restart: bool,
}

/// Why a plan was not taken back.
#[derive(Debug, thiserror::Error)]
pub enum RevertError {
    /// Nothing was ever done to it.
    #[error("{0} carries no plan, so there is nothing to revert")]
    Nothing(PciAddress),
    /// The host needs it now.
    #[error("{0}")]
    Guarded(Refusal),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Some settings could not be put back.
    #[error("{nic} is not quite as it was ({}); remove the cause, then revert again", list(.left))]
    Partly {
        /// The NIC.
        nic: PciAddress,
        /// What is left.
        left: Vec<Leftover>,
    },
}

fn list(left: &[Leftover]) -> String {
    let texts: Vec<_> = left.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// Undoes changes, the last one first; says what could not be undone.
pub(crate) fn undo(kernel: &dyn Kernel, begun: &[Change]) -> Vec<Leftover> {
    let last = |change: &&Change| matches!(change, Change::Interrupts { .. });
    // Undoing other changes may reset interrupts, so theirs comes at the end.
    let order = begun
        .iter()
        .rev()
        .filter(|change| !last(change))
        .chain(begun.iter().filter(last));
    let mut left = Vec::new();
    for change in order {
        if let Err(error) = change.undo(kernel) {
            left.push(Leftover {
                setting: change.line().setting,
                reason: error.to_string(),
            });
        }
    }
    left
}

/// Reverts a NIC.
///
/// # Errors
/// [`RevertError`].
pub fn revert(
    kernel: &dyn Kernel,
    journals: &Journals,
    nic: PciAddress,
) -> Result<Reverted, RevertError> {
    let _lock = journals.lock()?;
    let record = journals.read(kernel, nic)?;
    let record = record.ok_or(RevertError::Nothing(nic))?;
    let mut restored = Vec::new();
    if !record.stale {
        if record.changes.iter().any(Change::touches_nic)
            && let Some(refusal) = guarded(kernel, nic)?
        {
            return Err(RevertError::Guarded(refusal));
        }
        let left = undo(kernel, &record.changes);
        if !left.is_empty() {
            return Err(RevertError::Partly { nic, left });
        }
        restored.extend(record.changes.iter().map(|change| change.line().setting));
    }
    journals.close(nic)?;
    Ok(Reverted {
        nic,
        plan: record.beginning.plan,
        restored,
        by_restart: record.stale,
    })
}
