//! Which version each component runs in here, and why.

use maud::{Markup, html};

use super::Look;
use super::words::{NOTHING, moment};
use crate::flags::FlagView;

/// Makes the section.
pub fn make(look: &Look<'_>) -> Markup {
    let view = look.app.flags.view();
    html! {
        div.wide tabindex="0" role="region" aria-label="Versions of the components" {
            table {
                thead { tr {
                    th scope="col" { "Component" }
                    th scope="col" { "Here" }
                    th scope="col" { "Why" }
                    th scope="col" { "Flag" }
                    th.number scope="col" { "Share" }
                    th.number scope="col" { "Kept out" }
                    th scope="col" { "Changed" }
                } }
                tbody {
                    @for flag in &view.flags {
                        tr {
                            th scope="row" { (name(flag.feature)) br; code { (flag.feature) } }
                            td { (badge(flag.version_here)) }
                            td.why { (why(flag, view.node.as_str(), view.force_v1)) }
                            td { @if flag.flag.enabled { "on" } @else { "off" } }
                            td.number { (percent(flag.flag.percentage.buckets())) }
                            td.number { (flag.flag.excluded_nodes.len()) }
                            td {
                                @if flag.flag.changed_unix_ms == 0 { (NOTHING) }
                                @else { (moment(flag.flag.changed_unix_ms)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A version, so that it is seen at once.
pub fn badge(version: &str) -> Markup {
    html! { span.badge.v3[version == "v3"] { (version) } }
}

fn name(feature: &str) -> &'static str {
    match feature {
        "dwcp_v3_amst" => "Transport",
        "dwcp_v3_hde" => "Encoding",
        "dwcp_v3_pba" => "Prediction",
        "dwcp_v3_ass" => "State sync",
        "dwcp_v3_acp" => "Consensus",
        "dwcp_v3_itp" => "Placement",
        _ => "Component",
    }
}

/// Thousandths of a percent, as they are read.
fn percent(buckets: u32) -> String {
    format!("{} %", f64::from(buckets) / 1_000.0)
}

fn why(flag: &FlagView, node: &str, forced: bool) -> String {
    if forced {
        return "The kill switch is on.".to_owned();
    }
    if !flag.available {
        return "This release has it in v1 alone.".to_owned();
    }
    if !flag.flag.enabled {
        return "Its flag is off.".to_owned();
    }
    let excluded = flag
        .flag
        .excluded_nodes
        .iter()
        .any(|other| other.as_str() == node);
    if excluded {
        return "This node is kept out of it.".to_owned();
    }
    let (here, share) = (
        percent(flag.bucket),
        percent(flag.flag.percentage.buckets()),
    );
    if flag.bucket < flag.flag.percentage.buckets() {
        format!("This node stands at {here}, inside the share of {share}.")
    } else {
        format!("This node stands at {here}, outside the share of {share}.")
    }
}
