//! Carries a plan out.
//!
//! In: a profile. Out: a NIC that is as the profile wants it, or as it was. Promises: the plan is made
//! afresh and checked just before, under a lock; each change is on disk before it is made and read back
//! afterwards; if one fails, all are taken back, and what cannot be taken back is named.

use crate::change::Change;
use crate::journal::{Journal, JournalError, Journals};
use crate::kernel::Kernel;
use crate::pci::PciAddress;
use crate::plan::{self, Plan, PlanError};
use crate::profile::Profile;
use crate::revert::{Leftover, undo};

/// Why a plan was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// There is none, or the kernel did not answer. Nothing was changed.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The journal. Nothing was changed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It is not the plan that was looked at. Nothing was changed.
    #[error(
        "the machine has changed since plan {wanted} was made: it is plan {found} now; look at it with `dwcpctl nic plan`"
    )]
    Another {
        /// The plan asked for.
        wanted: String,
        /// The plan as it would be now.
        found: String,
    },
    /// There is something to take back first. Nothing was changed.
    #[error(
        "{nic} carries plan {plan}, {state}: revert that first with `dwcpctl nic revert {nic}`, so that what was there before is not forgotten"
    )]
    Carries {
        /// The NIC.
        nic: PciAddress,
        /// Its plan.
        plan: String,
        /// How far it got.
        state: &'static str,
    },
    /// A change failed.
    #[error("{setting} could not be changed: {reason}\n{}", after(.left, .nic))]
    Failed {
        /// The NIC.
        nic: PciAddress,
        /// The setting.
        setting: String,
        /// Why.
        reason: String,
        /// What could not be taken back.
        left: Vec<Leftover>,
    },
}

fn after(left: &[Leftover], nic: &PciAddress) -> String {
    if left.is_empty() {
        return "everything is as it was; correct the profile or the machine, then apply again"
            .to_owned();
    }
    let left: Vec<_> = left.iter().map(ToString::to_string).collect();
    format!(
        "not everything could be taken back ({}); remove the cause, then: dwcpctl nic revert {nic}",
        left.join("; ")
    )
}

/// Applies a profile. With `expected`, only if its plan is still the one of that id.
///
/// # Errors
/// [`ApplyError`].
pub fn apply(
    kernel: &dyn Kernel,
    journals: &Journals,
    profile: &Profile,
    expected: Option<&str>,
) -> Result<Plan, ApplyError> {
    let _lock = journals.lock()?;
    let plan = plan::plan(kernel, profile)?;
    let view = plan.view();
    if let Some(wanted) = expected
        && wanted != view.id
    {
        return Err(ApplyError::Another {
            wanted: wanted.to_owned(),
            found: view.id,
        });
    }
    if plan.changes.is_empty() {
        return Ok(plan);
    }
    if let Some(record) = journals.read(kernel, plan.nic)?
        && !record.stale
    {
        return Err(ApplyError::Carries {
            nic: plan.nic,
            plan: record.beginning.plan,
            state: if record.complete {
                "which was applied"
            } else {
                "which was cut off while it was applied"
            },
        });
    }
    // What is left there was forgotten by a restart, or never begun.
    journals.close(plan.nic)?;
    let mut journal = journals.begin(kernel, &view)?;
    let mut begun = Vec::new();
    let made = make(kernel, profile, &plan, &mut journal, &mut begun);
    let Err(Stopped { setting, reason }) = made else {
        return Ok(plan);
    };
    let mut left = undo(kernel, &begun);
    if left.is_empty()
        && let Err(error) = journals.close(plan.nic)
    {
        left.push(Leftover {
            setting: "the journal".to_owned(),
            reason: error.to_string(),
        });
    }
    Err(ApplyError::Failed {
        nic: plan.nic,
        setting,
        reason,
        left,
    })
}

/// Where a plan stopped, and why.
struct Stopped {
    setting: String,
    reason: String,
}

/// Makes all changes; those that were begun are in `begun`, whatever comes of it.
fn make(
    kernel: &dyn Kernel,
    profile: &Profile,
    plan: &Plan,
    journal: &mut Journal,
    begun: &mut Vec<Change>,
) -> Result<(), Stopped> {
    let stopped = |setting: &str, reason: &dyn ToString| Stopped {
        setting: setting.to_owned(),
        reason: reason.to_string(),
    };
    for change in &plan.changes {
        let setting = change.line().setting;
        let change = change
            .observed(kernel)
            .map_err(|error| stopped(&setting, &error))?;
        journal
            .intend(&change)
            .map_err(|error| stopped(&setting, &error))?;
        begun.push(change.clone());
        change
            .make(kernel)
            .map_err(|error| stopped(&setting, &error))?;
    }
    // One change may have undone another: drivers reset rings with queues.
    let rest = plan::difference(kernel, profile).map_err(|error| stopped("the profile", &error))?;
    if let Some(line) = rest.changes.first().map(Change::line) {
        let reason = format!(
            "it was made {}, and another change made it {} again",
            line.to, line.from
        );
        return Err(stopped(&line.setting, &reason));
    }
    journal
        .complete()
        .map_err(|error| stopped("the journal", &error))
}
