//! How many lanes of a session are in use.
//!
//! In: the kind of path, what was sent so far, whether the lanes were the bottleneck, the time. Out: the
//! number of lanes. Promises: it stays within the path's range and the operator's; lanes are added while
//! the rate grows with them and taken back when it does not; a pause of the hypervisor, a cut and a rate
//! that swings change nothing; no clock is read and nothing is allocated.
//!
//! A climb in steps: while the lanes were the bottleneck for a whole span, its rate counts. From a rate
//! that rests, some lanes are added on trial. The next span lets them start, the one after it judges.
//! When the trial failed, the next waits longer, and some time fewer lanes are tried: those that carry
//! nothing cost both ends memory, wake-ups and a share of the line's queue.

#[cfg(test)]
mod tests;

/// What a path is like, as far as lanes are concerned (the thresholds of the modes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    /// A round trip below 10 ms.
    Datacenter,
    /// Between the two.
    Hybrid,
    /// A round trip above 50 ms.
    Internet,
}

/// Below this round trip a path is a datacenter's.
const DATACENTER_RTT_US: u64 = 10_000;
/// Above this it is the internet.
const INTERNET_RTT_US: u64 = 50_000;

impl PathKind {
    /// The kind by the round trip alone; a path of which nothing is known counts as one in between.
    #[must_use]
    pub const fn by_rtt(rtt_us: Option<u64>) -> Self {
        match rtt_us {
            Some(rtt) if rtt < DATACENTER_RTT_US => Self::Datacenter,
            Some(rtt) if rtt > INTERNET_RTT_US => Self::Internet,
            _ => Self::Hybrid,
        }
    }

    /// The fewest and the most lanes that pay on such a path. In a datacenter a few lanes fill a port
    /// that one core drives, so the range begins low and its upper end is for ports that need more.
    #[must_use]
    pub const fn range(self) -> (u16, u16) {
        match self {
            Self::Datacenter => (4, 512),
            Self::Hybrid => (4, 64),
            Self::Internet => (4, 16),
        }
    }
}

/// What the operator and the handshake allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamLimits {
    /// Never fewer; 0 leaves it to the kind of path.
    pub lanes_min: u16,
    /// In use at first; half of them once the path turns out to be a datacenter's.
    pub lanes_start: u16,
    /// Never more.
    pub lanes_max: u16,
}

impl StreamLimits {
    /// The same under what a peer allows.
    #[must_use]
    pub const fn within(self, agreed: u16) -> Self {
        let lanes_max = if self.lanes_max < agreed {
            self.lanes_max
        } else {
            agreed
        };
        Self { lanes_max, ..self }
    }

    /// The range in force on a path of `kind`.
    #[must_use]
    pub fn range(self, kind: PathKind) -> (u16, u16) {
        let (least, most) = kind.range();
        let max = self.lanes_max.max(1);
        let min = if self.lanes_min == 0 {
            least
        } else {
            self.lanes_min
        };
        // An operator who wants more than the kind of path suggests gets it.
        let most = most.max(self.lanes_min).min(max);
        (min.min(most), most)
    }
}

/// A span is so many round trips, and no shorter than [`SPAN_NS_MIN`].
const SPAN_RTTS: u64 = 4;
/// See [`SPAN_RTTS`].
const SPAN_NS_MIN: u64 = 400_000_000;
/// In a span that counts the lanes were the bottleneck at so many of 16 looks.
const BUSY_OF_16: u64 = 12;
/// The same, for looks that are too few to say anything.
const LOOKS_MIN: u64 = 4;
/// Two spans whose rates differ by less rest: one part in so many.
const REST_PART: u64 = 8;
/// Added lanes pay when the rate grows by one part in so many.
const GAIN_PART: u64 = 12;
/// Lanes taken back were of no use when the rate falls by less than one part in so many.
const LOSS_PART: u64 = 32;
/// After a failed trial so many spans pass before the next; doubled with each failure, up to
/// [`PAUSE_SPANS_MAX`].
const PAUSE_SPANS: u32 = 4;
/// See [`PAUSE_SPANS`].
const PAUSE_SPANS_MAX: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waits for a rate that rests.
    Resting,
    /// Other lanes since this span began; it does not count.
    Settling { from: u16, rate: u64 },
    /// The span that judges.
    Judging { from: u16, rate: u64 },
}

#[derive(Clone, Copy, Debug, Default)]
struct Span {
    start_ns: u64,
    start_bytes: u64,
    looks: u64,
    busy: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Streams {
    limits: StreamLimits,
    kind: PathKind,
    lanes: u16,
    phase: Phase,
    span: Option<Span>,
    /// Of the last span that counted, with these lanes.
    rate: Option<u64>,
    /// Spans to rest before the next trial, and after the next failure.
    pause: u32,
    next_pause: u32,
    /// The next trial is one with fewer lanes.
    try_fewer: bool,
    grown: u64,
    shrunk: u64,
}

impl Streams {
    /// Starts with as many as `limits` say.
    #[must_use]
    pub fn new(limits: StreamLimits) -> Self {
        let kind = PathKind::by_rtt(None);
        let (_, most) = limits.range(kind);
        Self {
            limits,
            kind,
            lanes: limits.lanes_start.clamp(1, most),
            phase: Phase::Resting,
            span: None,
            rate: None,
            pause: 0,
            next_pause: PAUSE_SPANS,
            try_fewer: false,
            grown: 0,
            shrunk: 0,
        }
    }

    /// Lanes in use.
    #[must_use]
    pub const fn lanes(&self) -> u16 {
        self.lanes
    }

    /// Times that lanes were added, and that some were taken back.
    #[must_use]
    pub const fn changes(&self) -> (u64, u64) {
        (self.grown, self.shrunk)
    }

    /// The path is of this kind from now on. Lanes that are opened together begin slowly together, so a far path
    /// begins with more of them than it needs later; a near one is done with that at once, and what is not in use
    /// there after a while wakes nobody.
    pub fn set_kind(&mut self, kind: PathKind) {
        if self.kind == kind {
            return;
        }
        self.kind = kind;
        let (least, most) = self.limits.range(kind);
        let untried = self.changes() == (0, 0);
        let lanes = if kind == PathKind::Datacenter && untried {
            (self.lanes / 2).max(1).clamp(least, most)
        } else {
            self.lanes.clamp(least, most)
        };
        if lanes != self.lanes {
            self.change(lanes);
            self.begin_anew();
        }
    }

    /// What was measured says nothing any more: lanes were lost, or the path is another.
    pub fn begin_anew(&mut self) {
        self.phase = Phase::Resting;
        self.span = None;
        self.rate = None;
    }

    /// One look, several times a round trip: `sent_bytes` went over the lanes so far; `busy` says whether
    /// they were what held the rest up; `held_back` that a limit was; `rtt_ns` is the round trip. Gives
    /// the lanes to use.
    pub fn look(&mut self, now_ns: u64, sent_bytes: u64, load: Load, rtt_ns: u64) -> u16 {
        if load == Load::HeldBack {
            // Whatever the lanes could do, they may not: a trial would see nothing.
            self.give_up_trial();
            self.span = None;
            return self.lanes;
        }
        let span = self.span.get_or_insert(Span {
            start_ns: now_ns,
            start_bytes: sent_bytes,
            looks: 0,
            busy: 0,
        });
        span.looks += 1;
        span.busy += u64::from(load == Load::Lanes);
        let length_ns = SPAN_NS_MIN.max(rtt_ns.saturating_mul(SPAN_RTTS));
        let passed_ns = now_ns.saturating_sub(span.start_ns);
        if passed_ns < length_ns || span.looks < LOOKS_MIN {
            return self.lanes;
        }
        let done = *span;
        *span = Span {
            start_ns: now_ns,
            start_bytes: sent_bytes,
            looks: 0,
            busy: 0,
        };
        // A look that came very late hides what happened: the process, or the path, stood still.
        let counts = done.busy * 16 >= done.looks * BUSY_OF_16 && passed_ns < 2 * length_ns;
        if counts {
            let bytes = u128::from(sent_bytes.saturating_sub(done.start_bytes));
            let rate = bytes * 1_000_000_000 / u128::from(passed_ns.max(1));
            self.judge(u64::try_from(rate).unwrap_or(u64::MAX));
        } else {
            self.give_up_trial();
            self.rate = None;
        }
        self.lanes
    }

    fn judge(&mut self, rate: u64) {
        match self.phase {
            Phase::Settling { from, rate } => self.phase = Phase::Judging { from, rate },
            Phase::Judging { from, rate: before } => {
                self.phase = Phase::Resting;
                self.rate = Some(rate);
                let more = self.lanes > from;
                let paid = if more {
                    rate >= before.saturating_add(before / GAIN_PART)
                } else {
                    rate >= before.saturating_sub(before / LOSS_PART)
                };
                if paid {
                    self.pause = 0;
                    self.next_pause = PAUSE_SPANS;
                    self.try_fewer = !more;
                    return;
                }
                self.change(from);
                self.rate = None;
                self.pause = self.next_pause;
                self.next_pause = (self.next_pause * 2).min(PAUSE_SPANS_MAX);
                self.try_fewer = more;
            }
            Phase::Resting => {
                let rests = self
                    .rate
                    .is_some_and(|last| rate.abs_diff(last) <= last / REST_PART);
                let mean = self.rate.map_or(rate, |last| last / 2 + rate / 2);
                self.rate = Some(rate);
                if self.pause > 0 {
                    self.pause -= 1;
                } else if rests {
                    self.begin_trial(mean);
                }
            }
        }
    }

    fn begin_trial(&mut self, rate: u64) {
        let (least, most) = self.limits.range(self.kind);
        let more = self.lanes.saturating_add((self.lanes / 2).max(1)).min(most);
        let fewer = (self.lanes - self.lanes / 4).max(least);
        let lanes = match (self.try_fewer, more > self.lanes, fewer < self.lanes) {
            (true, _, true) | (false, false, true) => fewer,
            (_, true, _) => more,
            _ => return,
        };
        let from = self.lanes;
        self.change(lanes);
        self.phase = Phase::Settling { from, rate };
    }

    /// A trial that cannot be judged is taken back.
    fn give_up_trial(&mut self) {
        if let Phase::Settling { from, .. } | Phase::Judging { from, .. } = self.phase {
            self.change(from);
            self.phase = Phase::Resting;
            self.rate = None;
        }
    }

    fn change(&mut self, lanes: u16) {
        self.grown += u64::from(lanes > self.lanes);
        self.shrunk += u64::from(lanes < self.lanes);
        self.lanes = lanes;
    }
}

/// What held the rest up, at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Nothing, or the hypervisor.
    Nothing,
    /// The lanes: they had as much as they take.
    Lanes,
    /// A limit.
    HeldBack,
}
