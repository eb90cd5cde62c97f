//! The fleet as this node knows it: the members of its cluster, and the paths to its peers.

use dwcp_consensus::Status;
use dwcp_consensus::status::MemberView;
use maud::{Markup, html};

use super::Look;
use super::words::{NOTHING, figure, ms, or_nothing, rate};
use crate::mode::decider::Bandwidth;
use crate::mode::view::PeerView;

/// Makes the section.
pub fn make(look: &Look<'_>) -> Markup {
    let status = look.app.cluster.status();
    let sessions = look.app.host.sessions().unwrap_or_default();
    let modes = look.app.modes.view(&sessions);
    html! {
        h3 { "Members" }
        @if let Some(failed) = &status.failed {
            p.bad { strong { "This member's log is at rest: " } (failed) }
        }
        @if status.leader.is_none() {
            p.warn { strong { "No leader is known." } " Changes wait for a quorum; the kill switch does not." }
        }
        (members(&status))
        h3 { "Paths to peers" }
        @if let Some(said) = &modes.all {
            p.warn { "The mode of all peers is overridden: " strong { (said.mode) } ", by " (said.by) "." }
        }
        @if modes.peers.is_empty() {
            p.note { "No peer was spoken to yet." }
        } @else {
            (paths(&modes.peers))
        }
    }
}

fn members(status: &Status) -> Markup {
    html! {
        div.wide tabindex="0" role="region" aria-label="Members of the cluster" {
            table {
                thead { tr {
                    th scope="col" { "Node" }
                    th scope="col" { "Address" }
                    th scope="col" { "Part" }
                    th.number scope="col" { "Log agrees up to" }
                } }
                tbody {
                    @for member in &status.members {
                        tr {
                            th scope="row" {
                                (member.name)
                                @if member.id == status.id { span.note { " (this node)" } }
                            }
                            td { @if member.address.is_empty() { (NOTHING) } @else { (member.address) } }
                            td { (part(member, status)) }
                            td.number { (or_nothing(reached(member, status), |index| index.to_string())) }
                        }
                    }
                }
            }
        }
        p.note {
            "Epoch " (status.epoch) ", term " (status.term) ", committed up to "
            (or_nothing(status.committed, |index| index.to_string())) "; how far others are is known to the leader alone."
        }
    }
}

fn part(member: &MemberView, status: &Status) -> &'static str {
    if Some(member.id) == status.leader {
        "leads"
    } else if member.voter {
        "votes"
    } else {
        "learns"
    }
}

fn reached(member: &MemberView, status: &Status) -> Option<u64> {
    if member.id == status.id {
        status.last_index
    } else {
        member.matched
    }
}

fn paths(peers: &[PeerView]) -> Markup {
    html! {
        div.wide tabindex="0" role="region" aria-label="Paths to peers" {
            table {
                thead { tr {
                    th scope="col" { "Peer" }
                    th scope="col" { "Mode" }
                    th scope="col" { "Why" }
                    th.number scope="col" { "Round trip" }
                    th.number scope="col" { "Bandwidth" }
                    th.number scope="col" { "Sessions" }
                } }
                tbody {
                    @for peer in peers {
                        @let medians = peer.measured.as_ref().map(|measured| measured.medians);
                        tr {
                            th scope="row" { (peer.peer) }
                            td { (peer.mode.unwrap_or("not known yet")) }
                            td.why { (peer.reason.as_deref().unwrap_or(NOTHING)) }
                            td.number { (or_nothing(medians, |it| ms(figure(it.rtt_us) / 1_000.0))) }
                            td.number { (or_nothing(medians, |it| bandwidth(it.bandwidth))) }
                            td.number { (peer.sessions.len()) }
                        }
                    }
                }
            }
        }
    }
}

fn bandwidth(bandwidth: Bandwidth) -> String {
    match bandwidth {
        Bandwidth::Nothing => NOTHING.to_owned(),
        Bandwidth::AtLeast(bytes_per_s) => format!("at least {}", rate(figure(bytes_per_s))),
        Bandwidth::Measured(bytes_per_s) => rate(figure(bytes_per_s)),
    }
}
