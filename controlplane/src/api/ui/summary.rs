//! What one looks at first: is this node fit, which version is in force, what moves, what was saved.

use maud::{Markup, html};

use super::Look;
use super::words::{NOTHING, bytes, figure, ms, share};
use crate::flags::FlagsView;
use crate::host::HostStatus;
use crate::jobs::view::MigrationState;

/// Makes it.
pub fn make(look: &Look<'_>) -> Markup {
    let flags = look.app.flags.view();
    let jobs = look.app.jobs.list();
    let with = |state: MigrationState| jobs.iter().filter(|job| job.state == state).count();
    let moving = jobs.iter().filter(|job| !job.state.is_final()).count();
    let (taken, wire) = jobs.iter().fold((0_u64, 0_u64), |(taken, wire), job| {
        (taken + job.bytes.hypervisor, wire + job.bytes.wire)
    });
    let saved = figure(taken) - figure(wire);
    let last = jobs
        .iter()
        .find(|job| job.state == MigrationState::Completed);
    html! {
        dl.tiles {
            (node(&look.app.host.status()))
            (version(&flags))
            div.tile {
                dt { "Migrations" }
                dd { (moving) span.unit { " under way" } }
                dd.note { (with(MigrationState::Completed)) " completed, " (with(MigrationState::Failed)) " failed, " (with(MigrationState::Cancelled)) " cancelled" }
            }
            div.tile {
                dt { "Saved on the wire" }
                @if taken == 0 {
                    dd { (NOTHING) }
                    dd.note { "nothing was moved yet" }
                } @else {
                    dd { (share(saved / figure(taken))) }
                    dd.note { (bytes(figure(wire))) " sent for " (bytes(figure(taken))) " of the guests" }
                }
            }
            div.tile {
                dt { "Last downtime" }
                @match last.and_then(|job| job.downtime_ms) {
                    Some(downtime_ms) => {
                        dd { (ms(figure(downtime_ms))) }
                        @match last.and_then(|job| job.expected_downtime_ms) {
                            Some(expected_ms) => dd.note { (ms(figure(expected_ms))) " were predicted" },
                            None => dd.note { "measured by the hypervisor" },
                        }
                    }
                    None => {
                        dd { (NOTHING) }
                        dd.note { "no migration has completed" }
                    }
                }
            }
        }
    }
}

fn node(status: &HostStatus) -> Markup {
    html! {
        div.tile {
            dt { "This node" }
            @match status {
                HostStatus::Connected { workers, listen, .. } => {
                    dd.good { "ready" }
                    dd.note { "data plane at " (listen) ", " (workers) " worker(s)" }
                }
                HostStatus::Disconnected { reason, .. } => {
                    dd.bad { "no data plane" }
                    dd.note { (reason) }
                }
            }
        }
    }
}

fn version(flags: &FlagsView) -> Markup {
    let v3 = flags
        .flags
        .iter()
        .filter(|flag| flag.version_here == "v3")
        .count();
    html! {
        div.tile {
            dt { "Version in force" }
            @if flags.force_v1 {
                dd.warn { "v1" }
                dd.note { "forced by the kill switch" }
            } @else if v3 == 0 {
                dd { "v1" }
                dd.note { "no flag lets v3 in here" }
            } @else {
                dd { "v3" }
                dd.note { "in " (v3) " of " (flags.flags.len()) " components" }
            }
            @if !flags.in_force {
                dd.note.bad { "the data plane does not say so yet" }
            }
        }
    }
}
