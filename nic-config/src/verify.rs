//! Compares a NIC with its profile.
//!
//! In: a profile. Out: what still differs. Promise: nothing is changed, and only what was read from the
//! kernel just now counts as done.

use serde::Serialize;

use crate::kernel::Kernel;
use crate::plan::{PlanError, PlanView, difference};
use crate::profile::Profile;

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Nothing differs that can be changed without a restart.
    pub holds: bool,
    /// What differs, as a plan.
    pub plan: PlanView,
}

/// Verifies.
///
/// # Errors
/// [`PlanError`] if the profile cannot hold here at all.
pub fn verify(kernel: &dyn Kernel, profile: &Profile) -> Result<Verified, PlanError> {
    let plan = difference(kernel, profile)?;
    Ok(Verified {
        holds: plan.changes.is_empty(),
        plan: plan.view(),
    })
}
