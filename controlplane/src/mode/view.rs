//! What the API says about modes. In: a peer's state. Out: its JSON. Promise: a mode never stands without its reason.

use std::net::IpAddr;

use dwcp_api::session::SessionSnapshot;
use dwcp_api::{Mode, monotonic_ns};
use serde::Serialize;

use super::Override;
use super::decider::{Bandwidth, FAR_US, FAST_BYTES_PER_S, MARGIN_PERCENT, Medians, NEAR_US, Rule};
use super::peers::{Peer, sessions_of};

/// Answer of `GET /v1/modes`.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct ModesView {
    /// The override of all peers; null: none.
    #[serde(rename = "override")]
    pub all: Option<OverrideView>,
    /// Every peer known.
    pub peers: Vec<PeerView>,
}

/// An override.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct OverrideView {
    /// The mode that was said.
    pub mode: &'static str,
    /// Who said it.
    pub by: String,
    /// When, milliseconds since 1970.
    pub since_unix_ms: u64,
}

impl From<&Override> for OverrideView {
    fn from(said: &Override) -> Self {
        Self {
            mode: said.mode.as_str(),
            by: said.by.clone(),
            since_unix_ms: said.since_unix_ms,
        }
    }
}

/// One peer.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct PeerView {
    /// Its data plane's address.
    #[schema(value_type = String)]
    pub peer: IpAddr,
    /// Its mode; null: not known yet.
    pub mode: Option<&'static str>,
    /// Who decided: `measured`, `override_of_peer`, `override_of_all`; null: nobody yet.
    pub by: Option<&'static str>,
    /// Why, in words.
    pub reason: Option<String>,
    /// The override of this peer; null: none.
    #[serde(rename = "override")]
    pub said: Option<OverrideView>,
    /// What was measured, overridden or not.
    pub measured: Option<MeasuredView>,
    /// Running sessions, as the data plane has them.
    pub sessions: Vec<SessionView>,
    /// The last changes, the newest first.
    pub changes: Vec<ChangeView>,
}

/// What was measured of a path.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct MeasuredView {
    /// The mode that follows from it; null before the third sample.
    pub mode: Option<&'static str>,
    /// The rule that it follows from, by the present medians.
    #[schema(value_type = Option<String>)]
    pub rule: Option<Rule>,
    /// Medians of the last samples.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub medians: Medians,
    /// Samples so far.
    pub samples: u64,
}

/// A session of a peer.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SessionView {
    /// Its id.
    pub session: String,
    /// Our end of it.
    pub role: Option<&'static str>,
    /// The mode in force there; null: none yet.
    pub mode: Option<&'static str>,
    /// For how long, milliseconds.
    pub for_ms: Option<u64>,
    /// Since when, `CLOCK_MONOTONIC` nanoseconds of this host.
    pub since_ns: Option<u64>,
    /// Number of its last sample.
    pub sample: u64,
    /// Its round trip.
    pub rtt_us: u64,
    /// How its bandwidth is to be read: `idle`, `free` or `full`.
    pub load: &'static str,
    /// Its bandwidth.
    pub bytes_per_s: u64,
}

/// A change of a peer's mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ChangeView {
    /// The peer.
    #[schema(value_type = String)]
    pub peer: IpAddr,
    /// The mode before; null at the first.
    pub from: Option<&'static str>,
    /// The mode from then on.
    pub mode: &'static str,
    /// Who decided, as in [`PeerView::by`].
    pub by: &'static str,
    /// Why, in words.
    pub reason: String,
    /// When, milliseconds since 1970.
    pub at_unix_ms: u64,
}

/// The mode that counts for a peer, who decided it, and why.
pub(super) fn ruling(peer: &Peer, all: Option<&Override>) -> Option<(Mode, &'static str, String)> {
    if let Some(said) = &peer.said {
        let reason = format!("{} said so for this peer", said.by);
        return Some((said.mode, "override_of_peer", reason));
    }
    if let Some(said) = all {
        let reason = format!("{} said so for all peers", said.by);
        return Some((said.mode, "override_of_all", reason));
    }
    let decision = peer.decision?;
    let reason = words(decision.rule, decision.medians);
    Some((decision.to, "measured", reason))
}

/// A rule and what it was applied to, in words.
fn words(rule: Rule, medians: Medians) -> String {
    let ms = |us: u64| us as f64 / 1e3;
    let mbit = |bytes_per_s: u64| bytes_per_s as f64 * 8.0 / 1e6;
    let rtt = format!("round trip {:.1} ms", ms(medians.rtt_us));
    let bandwidth = match medians.bandwidth {
        Bandwidth::Nothing => "bandwidth not known".to_owned(),
        Bandwidth::AtLeast(bytes_per_s) => {
            format!("not the bottleneck at {:.0} Mbit/s", mbit(bytes_per_s))
        }
        Bandwidth::Measured(bytes_per_s) => format!("{:.0} Mbit/s", mbit(bytes_per_s)),
    };
    let (near, far, fast) = (ms(NEAR_US), ms(FAR_US), mbit(FAST_BYTES_PER_S));
    let limits = match rule {
        Rule::Far => format!("over {far:.0} ms"),
        Rule::Thin => format!("under {fast:.0} Mbit/s"),
        Rule::NearAndFast => format!("under {near:.0} ms and not under {fast:.0} Mbit/s"),
        Rule::Between => format!("between {near:.0} and {far:.0} ms, {fast:.0} Mbit/s or more"),
    };
    format!("{rtt}, {bandwidth}: {limits}, with a margin of {MARGIN_PERCENT} % to leave a mode")
}

/// A peer as the API shows it.
pub(super) fn peer(
    address: IpAddr,
    peer: &Peer,
    all: Option<&Override>,
    sessions: &[SessionSnapshot],
) -> PeerView {
    let ruling = ruling(peer, all);
    let measured = peer.decider.medians().map(|medians| MeasuredView {
        mode: peer.decider.mode().map(Mode::as_str),
        rule: peer.decider.rule(),
        medians,
        samples: peer.decider.samples(),
    });
    PeerView {
        peer: address,
        mode: peer.mode.map(Mode::as_str),
        by: ruling.as_ref().map(|(_, by, _)| *by),
        reason: ruling.map(|(_, _, reason)| reason),
        said: peer.said.as_ref().map(OverrideView::from),
        measured,
        sessions: sessions_of(sessions, address).map(session).collect(),
        changes: peer.changes.iter().cloned().collect(),
    }
}

fn session(session: &SessionSnapshot) -> SessionView {
    let for_ns = monotonic_ns().saturating_sub(session.mode_since_ns);
    SessionView {
        session: session.id.to_string(),
        role: session.role().map(dwcp_api::Role::as_str),
        mode: session.mode().map(Mode::as_str),
        for_ms: session.mode().map(|_| for_ns / 1_000_000),
        since_ns: session.mode().map(|_| session.mode_since_ns),
        sample: session.path_samples,
        rtt_us: session.path_rtt_us,
        load: session.path_load().as_str(),
        bytes_per_s: session.path_bytes_per_s,
    }
}
