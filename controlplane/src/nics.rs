//! The NICs of this host: what the API may ask of [`dwcp_nic_config`].
//!
//! In: profiles as text, PCI addresses. Out: lists, plans, reports, or a refusal with its HTTP status.
//! Promises: nothing is changed on any NIC while a migration runs, since it may run over that NIC; each
//! change and each revert is logged with who asked for it. Calls block, for seconds when a driver loads.

use std::path::Path;

use dwcp_nic_config::apply::{ApplyError, apply};
use dwcp_nic_config::inventory::{self, Nic};
use dwcp_nic_config::journal::{Beginning, JournalError, Journals};
use dwcp_nic_config::kernel::KernelError;
use dwcp_nic_config::linux::Linux;
use dwcp_nic_config::pci::{NoPciAddress, PciAddress};
use dwcp_nic_config::plan::{self, PlanError, PlanView, Refusal};
use dwcp_nic_config::profile::{Profile, ProfileError};
use dwcp_nic_config::revert::{RevertError, Reverted, revert};
use dwcp_nic_config::verify::{Verified, verify};
use serde::Serialize;

use crate::jobs::Jobs;

/// The NICs of this host. Cheap to clone.
#[derive(Clone)]
pub struct Nics {
    kernel: Linux,
    journals: Journals,
    jobs: Jobs,
}

/// A NIC in the list.
#[derive(Clone, Debug, Serialize)]
pub struct NicView {
    /// What was found.
    #[serde(flatten)]
    pub nic: Nic,
    /// Why it is not touched; absent if it may be.
    pub guarded: Option<String>,
    /// The plan that it carries.
    pub plan: Option<CarriedPlan>,
}

/// A plan that a NIC carries.
#[derive(Clone, Debug, Serialize)]
pub struct CarriedPlan {
    /// Which, and since when.
    #[serde(flatten)]
    pub beginning: Beginning,
    /// `applied`, `cut_off` or `undone_by_restart`.
    pub state: &'static str,
}

/// Why a request about NICs was refused.
#[derive(Debug, thiserror::Error)]
pub enum NicsError {
    /// The address in the request.
    #[error(transparent)]
    Address(#[from] NoPciAddress),
    /// The profile.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The plan.
    #[error(transparent)]
    Plan(PlanError),
    /// What must or cannot be done.
    #[error("{}", problems(.0))]
    Refused(Vec<Refusal>),
    /// Its application.
    #[error(transparent)]
    Apply(ApplyError),
    /// Its end.
    #[error(transparent)]
    Revert(RevertError),
    /// The journals.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A NIC may carry them.
    #[error("{0} migrations run on this host, and a change of a NIC may cut them off")]
    MigrationsRun(usize),
}

fn problems(refusals: &[Refusal]) -> String {
    let problem = |refusal: &Refusal| match refusal.line {
        Some(line) => format!("profile line {line}: {}", refusal.problem),
        None => refusal.problem.clone(),
    };
    let all: Vec<_> = refusals.iter().map(problem).collect();
    all.join("; ")
}

impl From<PlanError> for NicsError {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Refused(refusals) => Self::Refused(refusals),
            PlanError::Kernel(error) => Self::Kernel(error),
            other @ PlanError::NoNic { .. } => Self::Plan(other),
        }
    }
}

impl From<ApplyError> for NicsError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Plan(error) => error.into(),
            ApplyError::Journal(error) => Self::Journal(error),
            other => Self::Apply(other),
        }
    }
}

impl From<RevertError> for NicsError {
    fn from(error: RevertError) -> Self {
        match error {
            RevertError::Guarded(refusal) => Self::Refused(vec![refusal]),
            RevertError::Kernel(error) => Self::Kernel(error),
            RevertError::Journal(error) => Self::Journal(error),
            other => Self::Revert(other),
        }
    }
}

impl NicsError {
    /// A word that programs may compare.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Address(_) => "bad_request",
            Self::Profile(_) => "nic_profile",
            Self::Plan(_) => "unknown_nic",
            Self::Refused(refusals) if guarded(refusals) => "nic_guarded",
            Self::Refused(_) => "nic_plan_refused",
            Self::Apply(ApplyError::Another { .. }) => "nic_plan_changed",
            Self::Apply(ApplyError::Carries { .. }) => "nic_carries_plan",
            Self::Apply(_) => "nic_change_failed",
            Self::Revert(RevertError::Nothing(_)) => "nic_without_plan",
            Self::Revert(_) => "nic_partly_reverted",
            Self::Journal(JournalError::Busy(_)) => "nic_busy",
            Self::Journal(_) => "nic_journal",
            Self::Kernel(_) => "kernel",
            Self::MigrationsRun(_) => "migrations_run",
        }
    }

    /// The HTTP status that says it best.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        match self.code() {
            "bad_request" | "nic_profile" => 400,
            "nic_guarded" => 403,
            "unknown_nic" | "nic_without_plan" => 404,
            "nic_plan_changed" | "nic_carries_plan" | "nic_busy" | "migrations_run" => 409,
            "nic_plan_refused" => 422,
            _ => 500,
        }
    }

    /// What to do.
    #[must_use]
    pub fn cure(&self) -> String {
        let text = match self {
            Self::Refused(refusals) => {
                let mut cures: Vec<_> = refusals.iter().map(|one| one.cure.as_str()).collect();
                cures.dedup();
                return cures.join("; ");
            }
            Self::Address(_) | Self::Plan(_) => "list the NICs with `dwcpctl nic list`",
            Self::Profile(_) => "correct that line of the profile, and send it again",
            Self::Apply(ApplyError::Another { .. }) => {
                "look at the plan again, then apply that one"
            }
            Self::Apply(ApplyError::Carries { .. }) => {
                "revert it with `dwcpctl nic revert`, then apply"
            }
            Self::Apply(_) | Self::Revert(RevertError::Partly { .. }) => {
                "look at the kernel's log for what the driver says"
            }
            Self::Revert(_) => "`dwcpctl nic list` shows which NICs carry a plan",
            Self::Journal(_) => "look at the folder `nics` in state_dir",
            Self::Kernel(_) => {
                "let the control plane run as root with sysfs and procfs writable, and look at the kernel's log"
            }
            Self::MigrationsRun(_) => "wait until they end, or cancel them, then ask again",
        };
        text.to_owned()
    }
}

fn guarded(refusals: &[Refusal]) -> bool {
    refusals.iter().any(|refusal| refusal.guard)
}

impl Nics {
    /// With sysfs and procfs where they are mounted, and journals in a folder of their own.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(
        sysfs: &Path,
        procfs: &Path,
        folder: &Path,
        jobs: Jobs,
    ) -> Result<Self, JournalError> {
        Ok(Self {
            kernel: Linux::new(sysfs, procfs),
            journals: Journals::open(folder)?,
            jobs,
        })
    }

    /// Every NIC.
    ///
    /// # Errors
    /// [`NicsError`].
    pub fn list(&self) -> Result<Vec<NicView>, NicsError> {
        let mut views = Vec::new();
        for nic in inventory::all(&self.kernel)? {
            let record = self.journals.read(&self.kernel, nic.pci)?;
            let plan = record.map(|record| CarriedPlan {
                beginning: record.beginning,
                state: match (record.stale, record.complete) {
                    (true, _) => "undone_by_restart",
                    (false, true) => "applied",
                    (false, false) => "cut_off",
                },
            });
            let guarded = plan::guarded(&self.kernel, nic.pci)?.map(|refusal| refusal.problem);
            views.push(NicView { nic, guarded, plan });
        }
        Ok(views)
    }

    /// What a profile would change.
    ///
    /// # Errors
    /// [`NicsError`].
    pub fn plan(&self, profile: &str) -> Result<PlanView, NicsError> {
        Ok(plan::plan(&self.kernel, &Profile::parse(profile)?)?.view())
    }

    /// Changes it.
    ///
    /// # Errors
    /// [`NicsError`].
    pub fn apply(
        &self,
        profile: &str,
        expected: Option<&str>,
        by: &str,
    ) -> Result<PlanView, NicsError> {
        let profile = Profile::parse(profile)?;
        self.at_rest()?;
        tracing::warn!(by, nic = ?profile.nic.value, profile = profile.name, "applying a NIC profile");
        match apply(&self.kernel, &self.journals, &profile, expected) {
            Ok(plan) => {
                let view = plan.view();
                for line in &view.lines {
                    let (setting, from, to) = (&line.setting, &line.from, &line.to);
                    tracing::warn!(by, nic = %view.nic, plan = view.id, setting, from, to,
                        needs_reboot = line.needs_reboot.is_some(), "NIC setting");
                }
                Ok(view)
            }
            Err(error) => {
                tracing::error!(by, %error, "the NIC profile was not applied");
                Err(error.into())
            }
        }
    }

    /// Compares a NIC with a profile.
    ///
    /// # Errors
    /// [`NicsError`].
    pub fn verify(&self, profile: &str) -> Result<Verified, NicsError> {
        Ok(verify(&self.kernel, &Profile::parse(profile)?)?)
    }

    /// Takes back what was done to a NIC.
    ///
    /// # Errors
    /// [`NicsError`].
    pub fn revert(&self, nic: &str, by: &str) -> Result<Reverted, NicsError> {
        let nic: PciAddress = nic.parse()?;
        self.at_rest()?;
        tracing::warn!(by, %nic, "reverting a NIC");
        match revert(&self.kernel, &self.journals, nic) {
            Ok(reverted) => {
                tracing::warn!(by, %nic, plan = reverted.plan, restored = ?reverted.restored, "NIC reverted");
                Ok(reverted)
            }
            Err(error) => {
                tracing::error!(by, %nic, %error, "the NIC was not reverted");
                Err(error.into())
            }
        }
    }

    fn at_rest(&self) -> Result<(), NicsError> {
        let (from, to) = (self.jobs.list(), self.jobs.incoming_list());
        let running = from.iter().filter(|view| !view.state.is_final()).count()
            + to.iter().filter(|view| !view.state.is_final()).count();
        if running > 0 {
            return Err(NicsError::MigrationsRun(running));
        }
        Ok(())
    }
}
