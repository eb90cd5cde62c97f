//! Getting a hypervisor ready. In: a monitor and the options. Out: capabilities and parameters that
//! were read back as they were set, or what stands in the way.

use crate::qmp::{MigrationPhase, Qmp, QmpCommand, QmpError};

use super::error::JobError;
use super::request::MigrationOptions;
use super::settings::{End, capabilities, lists, parameters, verify};

/// Is this a hypervisor whose guest can be sent?
pub(super) async fn check_source(qmp: &Qmp, path: &str) -> Result<(), JobError> {
    let state = qmp.run_state().await?;
    if !state.running {
        return Err(JobError::WrongState {
            qmp: path.to_owned(),
            found: state.word,
            wanted: "a running guest",
        });
    }
    let info = qmp.migration().await?;
    match info.phase() {
        MigrationPhase::None
        | MigrationPhase::Completed
        | MigrationPhase::Failed
        | MigrationPhase::Cancelled => Ok(()),
        _ => Err(JobError::WrongState {
            qmp: path.to_owned(),
            found: format!("migrating already ({})", info.word.unwrap_or_default()),
            wanted: "a guest that does not migrate",
        }),
    }
}

/// Is this a hypervisor that waits for a guest?
pub(super) async fn check_destination(qmp: &Qmp, path: &str) -> Result<(), JobError> {
    let wrong = |found: String| JobError::WrongState {
        qmp: path.to_owned(),
        found,
        wanted: "a hypervisor started with -incoming defer that waits for its first guest",
    };
    let state = qmp.run_state().await?;
    if !state.is_incoming() {
        return Err(wrong(state.word));
    }
    let info = qmp.migration().await?;
    match info.phase() {
        MigrationPhase::None => Ok(()),
        _ => Err(wrong(format!(
            "receiving already ({})",
            info.word.unwrap_or_default()
        ))),
    }
}

/// Can this hypervisor send, or take, pages that a guest waits for over a connection of their own?
pub(super) async fn can_preempt(qmp: &Qmp) -> Result<bool, JobError> {
    let listed = qmp.execute(QmpCommand::QueryMigrateCapabilities).await?;
    Ok(lists(&listed, "postcopy-preempt"))
}

/// Switches capabilities, sets parameters and reads both back.
pub(super) async fn configure(
    qmp: &Qmp,
    path: &str,
    options: &MigrationOptions,
    end: End,
    preempt: bool,
) -> Result<(), JobError> {
    let unsupported = |problem: String| JobError::Unsupported {
        qmp: path.to_owned(),
        problem,
    };
    let missing = |name: &str| unsupported(format!("has no migration capability {name}"));

    let listed = qmp.execute(QmpCommand::QueryMigrateCapabilities).await?;
    let switch = capabilities(&listed, options, preempt).map_err(missing)?;
    if !switch.is_empty() {
        let switched = qmp.execute(QmpCommand::MigrateSetCapabilities(switch));
        switched.await.map_err(|error| match error {
            QmpError::Refused { description, .. } if !options.postcopy.is_never() => {
                JobError::NoPostcopy {
                    qmp: path.to_owned(),
                    problem: description,
                }
            }
            error => error.into(),
        })?;
        let listed = qmp.execute(QmpCommand::QueryMigrateCapabilities).await?;
        let left = capabilities(&listed, options, preempt).map_err(missing)?;
        if let Some((name, on)) = left.first() {
            let wanted = if *on { "on" } else { "off" };
            return Err(unsupported(format!(
                "did not switch capability {name} {wanted}"
            )));
        }
    }

    let listed = qmp.execute(QmpCommand::QueryMigrateParameters).await?;
    let set = parameters(&listed, options, end);
    qmp.execute(QmpCommand::MigrateSetParameters(set.clone()))
        .await?;
    let read_back = qmp.execute(QmpCommand::QueryMigrateParameters).await?;
    verify(&read_back, &set).map_err(unsupported)
}
