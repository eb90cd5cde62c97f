//! How sessions that go over one link share it.
//!
//! In: what each session has sent and how long it waited, ten times a second. Out: for each a rate that it
//! may not pass for now, or none. Promises: of sessions that wait for the link, none gets ahead of another by
//! more than a fraction of a second's worth, whatever the network below favours; a session that wants little,
//! or is held up by something else, costs the others nothing for long; no clock is read.
//!
//! Each session has a virtual time, the bytes it sent while others waited too. Who is ahead of the last one by
//! more than the slack is slowed to less than an even part, and what it leaves goes to the others
//! (start-time fair queueing, Goyal et al., SIGCOMM 1996, with the network as the server: its rate is what all
//! sent). A link that carries less when the leaders are slowed is not what the last one waits for: then the
//! past is forgiven.

#[cfg(test)]
mod tests;

/// Sessions that are looked at, at most.
pub const CLAIMS_MAX: usize = dwcp_api::session::SESSIONS_MAX;

/// Time between two looks.
pub const LOOK_EVERY_NS: u64 = 100_000_000;
/// A look that comes later than this begins anew.
const GAP_NS: u64 = 1_000_000_000;
/// Nobody is slowed for being ahead by less than this.
const SLACK_BYTES_MIN: u64 = 128 << 10;
/// Or by less than an even part of so many milliseconds.
const SLACK_MS: u64 = 150;
/// Who is ahead by nothing may have so many hundredths of an even part, and by each slack more so many fewer:
/// an even part at the slack itself, where a favoured session comes to rest.
const SLOWED_FROM_PERCENT: u64 = 125;
/// See [`SLOWED_FROM_PERCENT`].
const SLOWED_BY_PERCENT: u64 = 25;
/// Nobody gets less.
const SLOWED_LEAST_PERCENT: u64 = 60;
/// After so many looks with somebody slowed it is judged whether that was of use.
const JUDGED_AFTER: u32 = 20;
/// It was when the link still carries so many hundredths of what it did.
const OF_USE_PERCENT: u64 = 75;
/// How long nobody is slowed after the past was forgiven.
const FORGIVEN_LOOKS: u32 = 30;

/// One session, as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Which link it goes over; those with the same number share it.
    pub link: u64,
    /// Bytes sent since it began.
    pub sent_bytes: u64,
    /// Time since it began for which something waited to be sent.
    pub waited_ns: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Session {
    known: bool,
    link: u64,
    sent_bytes: u64,
    waited_ns: u64,
    rate: u64,
    /// Virtual time, bytes.
    time: u64,
    contends: bool,
    slowed: bool,
}

/// One link.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    number: u64,
    /// The least virtual time of those that waited for it last.
    clock: u64,
    /// The best rate of late.
    best: u64,
    slowed_looks: u32,
    /// What the link carried, added up over these.
    slowed_rates: u64,
    forgiven_looks: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Sharing {
    sessions: [Session; CLAIMS_MAX],
    /// A free place has number 0.
    links: [Link; CLAIMS_MAX],
    looked_ns: u64,
}

impl Default for Sharing {
    fn default() -> Self {
        Self {
            sessions: [Session::default(); CLAIMS_MAX],
            links: [Link::default(); CLAIMS_MAX],
            looked_ns: 0,
        }
    }
}

impl Sharing {
    /// One look. `claims` has a place for each session that there may be; `rates` gets for each the bytes a
    /// second that it may send for now, 0 for no limit.
    pub fn look(
        &mut self,
        now_ns: u64,
        claims: &[Option<Claim>; CLAIMS_MAX],
        rates: &mut [u64; CLAIMS_MAX],
    ) {
        rates.fill(0);
        let passed_ns = now_ns.saturating_sub(self.looked_ns);
        self.looked_ns = now_ns;
        let anew = passed_ns == 0 || passed_ns > GAP_NS;
        for (session, claim) in self.sessions.iter_mut().zip(claims) {
            session.take(*claim, passed_ns, anew);
        }
        if anew {
            self.links = [Link::default(); CLAIMS_MAX];
            return;
        }
        for index in 0..CLAIMS_MAX {
            let number = self.sessions[index].link;
            let first = self.sessions[..index]
                .iter()
                .all(|earlier| !earlier.known || earlier.link != number);
            if self.sessions[index].known && first {
                self.divide(number, rates);
            }
        }
        let used = |number| {
            let mut sessions = self.sessions.iter();
            sessions.any(|session| session.known && session.link == number)
        };
        let gone: Vec<usize> = (0..CLAIMS_MAX)
            .filter(|&at| self.links[at].number != 0 && !used(self.links[at].number))
            .collect();
        for at in gone {
            self.links[at] = Link::default();
        }
    }

    fn divide(&mut self, number: u64, rates: &mut [u64; CLAIMS_MAX]) {
        let Some(at) = self.link_at(number) else {
            return;
        };
        let link = &mut self.links[at];
        let sessions = &mut self.sessions;
        let here = |session: &&mut Session| session.known && session.link == number;
        let mut all = 0_u64;
        let mut count = 0_u64;
        let mut least = u64::MAX;
        for session in sessions.iter_mut().filter(here) {
            all = all.saturating_add(session.rate);
            if session.contends {
                session.time = session.time.max(link.clock);
                count += 1;
                least = least.min(session.time);
            } else {
                session.slowed = false;
            }
        }
        link.best = all.max(link.best - link.best / 64);
        if count < 2 {
            (link.slowed_looks, link.slowed_rates) = (0, 0);
            if count == 1 {
                link.clock = least;
            }
            sessions
                .iter_mut()
                .filter(here)
                .for_each(|session| session.slowed = false);
            return;
        }
        link.clock = least;
        let even = link.best / count;
        let slack = SLACK_BYTES_MIN.max(even / 1_000 * SLACK_MS);
        if link.forgiven_looks > 0 {
            link.forgiven_looks -= 1;
            return;
        }
        let mut any = false;
        for (session, rate) in sessions.iter_mut().zip(rates.iter_mut()) {
            if !session.known || session.link != number || !session.contends {
                continue;
            }
            let ahead = session.time - least;
            // A small lead is how packets fall.
            session.slowed = ahead > slack / 4;
            if session.slowed {
                any |= ahead > slack / 2;
                let less = SLOWED_BY_PERCENT.saturating_mul(ahead) / slack;
                let percent = SLOWED_FROM_PERCENT.saturating_sub(less);
                *rate = (even / 100 * percent.max(SLOWED_LEAST_PERCENT)).max(1);
            }
        }
        if any {
            link.slowed_looks += 1;
            link.slowed_rates = link.slowed_rates.saturating_add(all);
        } else {
            (link.slowed_looks, link.slowed_rates) = (0, 0);
        }
        if link.slowed_looks >= JUDGED_AFTER {
            let mean = link.slowed_rates / u64::from(link.slowed_looks);
            (link.slowed_looks, link.slowed_rates) = (0, 0);
            if mean < link.best / 100 * OF_USE_PERCENT {
                let first = sessions
                    .iter()
                    .filter(|session| session.known && session.link == number)
                    .map(|session| session.time)
                    .max();
                let first = first.unwrap_or(0);
                for (session, rate) in sessions.iter_mut().zip(rates.iter_mut()) {
                    if session.known && session.link == number {
                        session.time = session.time.max(first);
                        session.slowed = false;
                        *rate = 0;
                    }
                }
                link.clock = first;
                link.forgiven_looks = FORGIVEN_LOOKS;
            }
        }
    }

    fn link_at(&mut self, number: u64) -> Option<usize> {
        let known = self.links.iter().position(|link| link.number == number);
        let at = known.or_else(|| self.links.iter().position(|link| link.number == 0))?;
        if known.is_none() {
            self.links[at] = Link {
                number,
                ..Link::default()
            };
        }
        Some(at)
    }
}

impl Session {
    fn take(&mut self, claim: Option<Claim>, passed_ns: u64, anew: bool) {
        let Some(claim) = claim else {
            *self = Self::default();
            return;
        };
        let fresh = !self.known || self.link != claim.link || claim.sent_bytes < self.sent_bytes;
        if fresh || anew {
            *self = Self {
                known: true,
                link: claim.link,
                sent_bytes: claim.sent_bytes,
                waited_ns: claim.waited_ns,
                ..Self::default()
            };
            return;
        }
        let bytes = claim.sent_bytes - self.sent_bytes;
        let waited_ns = claim.waited_ns.saturating_sub(self.waited_ns);
        self.sent_bytes = claim.sent_bytes;
        self.waited_ns = claim.waited_ns;
        let now = u128::from(bytes) * 1_000_000_000 / u128::from(passed_ns);
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        self.rate = self.rate - self.rate / 4 + now / 4;
        self.contends = waited_ns >= passed_ns / 2;
        if self.contends {
            self.time = self.time.saturating_add(bytes);
        }
    }
}
