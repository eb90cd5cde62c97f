//! Migrations: those under way with all their figures, and those that are over.
//!
//! What an operator wants to know comes in this order: is the guest safe, how far is it, does it come to an end, how
//! long will it stand still, what does it cost, which version and why.

use maud::{Markup, html};

use super::Look;
use super::chart;
use super::versions::badge;
use super::words::{bytes, figure, moment, ms, or_nothing, rate, share};
use crate::jobs::IncomingView;
use crate::jobs::MigrationView;
use crate::jobs::view::{GuestSide, GuestVerdict, IncomingState, MigrationState};

/// Of those that are over, so many are shown.
const OVER_MAX: usize = 20;

/// Makes the section.
pub fn make(look: &Look<'_>) -> Markup {
    let jobs = look.app.jobs.list();
    let (over, moving): (Vec<_>, Vec<_>) = jobs.iter().partition(|job| job.state.is_final());
    let incoming = look.app.jobs.incoming_list();
    let arriving: Vec<&IncomingView> = incoming
        .iter()
        .filter(|one| !one.state.is_final())
        .collect();
    html! {
        @if moving.is_empty() && arriving.is_empty() {
            p.note { "Nothing is moving." }
        }
        @for job in &moving {
            (card(job, look))
        }
        @if !arriving.is_empty() {
            h3 { "Arriving here" }
            ul.arriving {
                @for one in &arriving { (arrival(one)) }
            }
        }
        @if !over.is_empty() {
            h3 { "Over" }
            (table(&over))
            @if over.len() > OVER_MAX {
                p.note { (over.len() - OVER_MAX) " more in " code { "GET /v1/migrations" } "." }
            }
        }
    }
}

fn card(job: &MigrationView, look: &Look<'_>) -> Markup {
    let samples = look.app.ui.history.of(&job.id);
    let percent = job.progress.map(|progress| progress * 100.0);
    html! {
        article.card aria-labelledby=(title(job)) {
            h3 id=(title(job)) {
                (name(job)) span.to { " to " (destination(job)) } " "
                span.badge { (job.state.as_str().replace('_', " ")) }
            }
            p.guest { (guest(job.guest)) " " span.note { (sentence(&job.phase)) } }
            div.progress {
                @match percent {
                    Some(percent) => {
                        progress max="100" value=(format!("{percent:.1}")) aria-label=(format!("Progress of {}", name(job))) {}
                        b { (format!("{percent:.0} %")) }
                    }
                    None => {
                        progress max="100" aria-label=(format!("Progress of {}", name(job))) {}
                        b { "not known yet" }
                    }
                }
                span.note { (end(job)) }
            }
            (chart::draw(&samples))
            dl.figures {
                (pair("Throughput", &rate(job.rates.hypervisor_bytes_per_s)))
                (pair("Dirty rate", &or_nothing(job.rates.dirty_bytes_per_s, rate)))
                (pair("On the wire", &rate(job.rates.wire_bytes_per_s)))
                (pair("Saved", &or_nothing(job.bytes.saved_fraction, share)))
                (pair("Left to send", &or_nothing(job.remaining_bytes, |left| bytes(figure(left)))))
                (pair("Passes over memory", &job.rounds.to_string()))
                (pair("Predicted downtime", &or_nothing(job.expected_downtime_ms, |it| ms(figure(it)))))
                (pair("Downtime limit", &ms(figure(job.options.downtime_limit_ms))))
                (pair("Held between the hosts", &format!("{} of {}", bytes(figure(job.held_bytes)), bytes(figure(job.held_bytes_limit)))))
                (pair("Round trip", &ms(figure(job.rtt_us) / 1_000.0)))
                (pair("Lanes", &format!("{} of {} up", job.lanes.up, job.lanes.wanted)))
                (pair("Mode", job.mode.as_deref().unwrap_or("not known yet")))
            }
            p { "Version " (version(job)) }
            @for note in &job.notes { p.note { (note) } }
        }
    }
}

/// Words as a sentence.
fn sentence(words: &str) -> String {
    let mut rest = words.chars();
    let first = rest.next().map(char::to_uppercase);
    first.map_or_else(String::new, |first| format!("{first}{}.", rest.as_str()))
}

fn title(job: &MigrationView) -> String {
    format!("job-{}", job.id)
}

fn pair(name: &str, value: &str) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

fn name(job: &MigrationView) -> &str {
    job.vm.name.as_deref().unwrap_or(&job.vm.qmp)
}

/// The host of the destination's API.
fn destination(job: &MigrationView) -> &str {
    let api = &job.destination.api;
    api.split_once("://").map_or(api.as_str(), |(_, rest)| rest)
}

fn guest(side: GuestSide) -> Markup {
    html! {
        @match side {
            GuestSide::Source => strong.good { "The guest runs at the source." },
            GuestSide::Destination => strong.good { "The guest is at the destination." },
            GuestSide::Undecided => strong.bad { "It is not known yet which side runs the guest; both are held." },
        }
    }
}

fn end(job: &MigrationView) -> String {
    let dirties_more = job
        .rates
        .dirty_bytes_per_s
        .is_some_and(|dirty| dirty > job.rates.hypervisor_bytes_per_s);
    match job.expected_finish_s {
        Some(left_s) => format!("about {} left", ms(left_s * 1_000.0)),
        None if job.state != MigrationState::Active => String::new(),
        None if dirties_more => {
            "no end in sight: the guest dirties memory faster than it is carried".to_owned()
        }
        None => "no end in sight yet".to_owned(),
    }
}

/// Which version, and why that one.
fn version(job: &MigrationView) -> Markup {
    let Some(now) = job.version.as_deref() else {
        return html! { span.note { "not chosen yet" } };
    };
    let why = if now == "v3" {
        "both ends may use it and the flags let it".to_owned()
    } else if job.negotiated_version.as_deref() == Some("v1") {
        "one of the two ends speaks v1 alone".to_owned()
    } else if let Some(rollback) = &job.rollback {
        match rollback.rollback_us {
            Some(us) => format!(
                "the kill switch was thrown; the first batch in v1 left {} after it",
                ms(figure(us) / 1_000.0)
            ),
            None => "the kill switch was thrown".to_owned(),
        }
    } else {
        "the flags of this node say so".to_owned()
    };
    html! { (badge(now)) " " span.note { (why) "." } }
}

fn arrival(one: &IncomingView) -> Markup {
    let state = match one.state {
        IncomingState::Setup => "being prepared",
        IncomingState::Active => "receiving",
        IncomingState::PostcopyActive => "runs here and fetches the rest of its memory",
        IncomingState::PostcopyPaused => "runs here, but its memory does not come",
        IncomingState::Completed => "is here",
        IncomingState::Failed => "failed",
        IncomingState::Undecided => "not known yet",
    };
    let verdict = match one.guest {
        GuestVerdict::Here => "The guest is here.",
        GuestVerdict::HereInPart => "The guest is here, the rest of its memory is at the source.",
        GuestVerdict::NeverHere => "The guest never ran here.",
        GuestVerdict::Unknown => "The guest runs at the source until it is settled.",
    };
    html! { li { code { (&one.session) } ": " (state) ". " span.note { (verdict) } } }
}

fn table(over: &[&MigrationView]) -> Markup {
    html! {
        div.wide tabindex="0" role="region" aria-label="Migrations that are over" {
            table {
                thead { tr {
                    th scope="col" { "Guest" }
                    th scope="col" { "Result" }
                    th scope="col" { "Began" }
                    th.number scope="col" { "Took" }
                    th.number scope="col" { "Downtime" }
                    th.number scope="col" { "Predicted" }
                    th.number scope="col" { "Wire" }
                    th.number scope="col" { "Saved" }
                    th scope="col" { "Version" }
                } }
                tbody {
                    @for job in over.iter().take(OVER_MAX) {
                        tr {
                            th scope="row" { (name(job)) br; span.note { "to " (destination(job)) } }
                            td.why[job.failure.is_some()] { (result(job)) }
                            td { (moment(job.started_unix_ms)) }
                            td.number { (ms(figure(job.total_ms))) }
                            td.number { (or_nothing(job.downtime_ms, |it| ms(figure(it)))) }
                            td.number { (or_nothing(job.expected_downtime_ms, |it| ms(figure(it)))) }
                            td.number { (bytes(figure(job.bytes.wire))) }
                            td.number { (or_nothing(job.bytes.saved_fraction, share)) }
                            td { @match &job.version { Some(version) => (badge(version)), None => "–" } }
                        }
                    }
                }
            }
        }
    }
}

fn result(job: &MigrationView) -> Markup {
    html! {
        @match job.state {
            MigrationState::Completed => span.good { "completed" },
            MigrationState::Cancelled => span { "cancelled" },
            _ => span.bad { "failed" },
        }
        @if let Some(failure) = &job.failure {
            br; span.note { (failure.detail) " " (failure.cure) }
        }
    }
}
