//! Numbers of traces and spans, and the header that carries them to the peer.
//!
//! In: a session, a share. Out: whether it is traced, and its `traceparent`. Promise: the same session gives the same
//! answer everywhere, without anything being kept.

use std::cell::Cell;

use dwcp_api::SessionId;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

/// Name of the header.
pub const TRACEPARENT: &str = "traceparent";

/// Which migrations are traced.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0..=1 of them.
    share: f64,
}

impl Sampling {
    /// This share of all, 0 to 1.
    #[must_use]
    pub const fn new(share: f64) -> Self {
        Self { share }
    }

    /// Is this one among them? Sessions' numbers are random, so their front is as good as a die.
    #[must_use]
    pub fn takes(self, session: SessionId) -> bool {
        let mut front = [0; 4];
        front.copy_from_slice(&session.0[..4]);
        // 2^32 places: 1.0 takes the last one too.
        f64::from(u32::from_be_bytes(front)) < self.share * 4_294_967_296.0
    }

    /// The header for the peer; none if the migration is not traced.
    #[must_use]
    pub fn header(self, session: SessionId) -> Option<String> {
        let root = root(session);
        self.takes(session).then(|| {
            let (trace, span) = (root.trace_id(), root.span_id());
            format!("00-{trace}-{span}-01")
        })
    }
}

/// The span of a whole migration at its source.
#[must_use]
pub fn root(session: SessionId) -> SpanContext {
    let digest = blake3::keyed_hash(b"dwcp root span of a migration 01", &session.0);
    let mut span = [0; 8];
    span.copy_from_slice(&digest.as_bytes()[..8]);
    SpanContext::new(
        TraceId::from_bytes(session.0),
        SpanId::from_bytes(span),
        TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    )
}

/// What a peer's header says; none if it is none, or says that nothing is traced.
#[must_use]
pub fn parse(header: &str) -> Option<SpanContext> {
    let mut parts = header.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let whole = version.len() == 2 && trace.len() == 32 && span.len() == 16 && flags.len() == 2;
    // A later version may have more parts; its first four mean the same.
    let known = version == "00" && parts.next().is_none() || version != "00" && version != "ff";
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let good = whole && known && sampled && trace != TraceId::INVALID && span != SpanId::INVALID;
    good.then(|| {
        SpanContext::new(
            trace,
            span,
            TraceFlags::SAMPLED,
            true,
            TraceState::default(),
        )
    })
}

thread_local! {
    /// The numbers of the span that this thread begins next.
    static NEXT: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

/// Gives random numbers, but for spans that are begun within [`numbered`].
#[derive(Debug, Default)]
pub struct Numbers {
    chance: RandomIdGenerator,
}

impl IdGenerator for Numbers {
    fn new_trace_id(&self) -> TraceId {
        let next = NEXT.get().map(|(trace, _)| trace);
        next.unwrap_or_else(|| self.chance.new_trace_id())
    }

    fn new_span_id(&self) -> SpanId {
        let next = NEXT.get().map(|(_, span)| span);
        next.unwrap_or_else(|| self.chance.new_span_id())
    }
}

/// Begins one span with the numbers of `context`.
pub fn numbered<T>(context: &SpanContext, begin: impl FnOnce() -> T) -> T {
    NEXT.set(Some((context.trace_id(), context.span_id())));
    let begun = begin();
    NEXT.set(None);
    begun
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: SessionId = SessionId([7; 16]);

    #[test]
    fn the_header_reads_back() {
        let header = Sampling::new(1.0).header(SESSION).unwrap();
        let read = parse(&header).unwrap();
        assert_eq!(read.trace_id(), TraceId::from_bytes(SESSION.0));
        assert_eq!(read.span_id(), root(SESSION).span_id());
        assert_eq!(Sampling::new(0.0).header(SESSION), None);
    }

    #[test]
    fn anything_else_is_no_header() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(parse(good).is_some());
        assert!(parse(&good.replacen("00", "01", 1).replace("-01", "-01-more")).is_some());
        for bad in [
            "",
            "-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-zzf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_share_takes_its_share() {
        let taken = |share: f64| {
            let sampling = Sampling::new(share);
            let sessions = (0..1_000_u32).map(|at| {
                let mut id = [0; 16];
                id[..4].copy_from_slice(&(at * 4_294_967).to_be_bytes());
                SessionId(id)
            });
            sessions.filter(|one| sampling.takes(*one)).count()
        };
        assert_eq!((taken(0.0), taken(1.0)), (0, 1_000));
        assert!((245..=255).contains(&taken(0.25)));
        assert!(Sampling::new(1.0).takes(SessionId([0xff; 16])));
    }
}
