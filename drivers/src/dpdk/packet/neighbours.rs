//! Who has which Ethernet address: what was asked, what was answered, how long it is believed.
//!
//! Comes in: lookups, questions and answers heard, the time. Goes out: an address to send to, and
//! whether to ask now. Promises: a table of fixed size; a stranger's packet can refresh or replace an
//! entry but never push out one that is in use; questions for one address go out at most once in
//! [`ASK_EVERY`].

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Mac;

/// Addresses known or asked for, at most.
pub const NEIGHBOURS_MAX: usize = 64;
/// Between two questions for the same address.
pub const ASK_EVERY: Duration = Duration::from_millis(200);
/// After this an address is used on, and asked for again.
pub const FRESH: Duration = Duration::from_secs(5);
/// After this an address that nobody confirmed is forgotten.
pub const BELIEVED: Duration = Duration::from_secs(60);

/// What to do about a packet for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Send it there.
    Known(Mac),
    /// Send it there, and ask whether that still holds.
    Stale(Mac),
    /// Ask.
    Ask,
    /// Wait: it was asked for a moment ago, or the table is full.
    Wait,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    ip: IpAddr,
    mac: Option<Mac>,
    confirmed: Instant,
    doubted: bool,
    asked: Option<Instant>,
    looked_up: Instant,
}

/// The table of one worker.
#[derive(Debug)]
pub struct Neighbours {
    entries: Vec<Entry>,
    generation: u32,
}

impl Default for Neighbours {
    fn default() -> Self {
        Self::new()
    }
}

impl Neighbours {
    /// An empty table, with all its memory.
    #[must_use]
    pub fn new() -> Self {
        Self {
            entries: Vec::with_capacity(NEIGHBOURS_MAX),
            generation: 0,
        }
    }

    /// Changes whenever an address that [`Neighbours::route`] gave out may be wrong.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Where a packet for `ip` goes; `ip` lies on this segment.
    pub fn route(&mut self, ip: IpAddr, now: Instant) -> Route {
        let at = match self.entries.iter().position(|entry| entry.ip == ip) {
            Some(at) => at,
            None => match self.insert(ip, now) {
                Some(at) => at,
                None => return Route::Wait,
            },
        };
        let Some(entry) = self.entries.get_mut(at) else {
            return Route::Wait;
        };
        entry.looked_up = now;
        let age = now.saturating_duration_since(entry.confirmed);
        if age >= BELIEVED {
            entry.mac = None;
        }
        let may_ask = entry
            .asked
            .is_none_or(|asked| now.saturating_duration_since(asked) >= ASK_EVERY);
        let ask = may_ask && (entry.mac.is_none() || entry.doubted || age >= FRESH);
        if ask {
            entry.asked = Some(now);
        }
        match entry.mac {
            Some(mac) if ask => Route::Stale(mac),
            Some(mac) => Route::Known(mac),
            None if ask => Route::Ask,
            None => Route::Wait,
        }
    }

    /// Another host may have come in the place of each: all are asked for again when next used.
    pub fn doubt(&mut self) {
        self.generation += 1;
        for entry in &mut self.entries {
            entry.doubted = true;
        }
    }

    /// Somebody answered. Only answers to what was looked up here are taken.
    pub fn answered(&mut self, ip: IpAddr, mac: Mac, now: Instant) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.ip == ip) {
            self.generation += u32::from(entry.mac != Some(mac));
            entry.mac = Some(mac);
            entry.confirmed = now;
            entry.doubted = false;
            entry.asked = None;
        }
    }

    /// Somebody on this segment asked for us: as a rule we talk to them next.
    pub fn asked_by(&mut self, ip: IpAddr, mac: Mac, now: Instant) {
        if !self.entries.iter().any(|entry| entry.ip == ip) {
            self.insert(ip, now);
        }
        self.answered(ip, mac, now);
    }

    /// A new entry; in a full table in the place of one that was not looked up for [`BELIEVED`].
    fn insert(&mut self, ip: IpAddr, now: Instant) -> Option<usize> {
        let entry = Entry {
            ip,
            mac: None,
            confirmed: now,
            doubted: false,
            asked: None,
            looked_up: now,
        };
        if self.entries.len() < NEIGHBOURS_MAX {
            self.entries.push(entry);
            return Some(self.entries.len() - 1);
        }
        let unused = |entry: &Entry| now.saturating_duration_since(entry.looked_up) >= BELIEVED;
        let at = self.entries.iter().position(unused)?;
        *self.entries.get_mut(at)? = entry;
        self.generation += 1;
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn host(number: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, number).into()
    }

    #[test]
    fn questions_are_asked_once_in_a_while() {
        let (mut table, start) = (Neighbours::new(), Instant::now());
        assert_eq!(table.route(host(1), start), Route::Ask);
        assert_eq!(table.route(host(1), start), Route::Wait);
        assert_eq!(table.route(host(1), start + ASK_EVERY), Route::Ask);
        table.answered(host(1), MAC, start + ASK_EVERY);
        assert_eq!(table.route(host(1), start + ASK_EVERY), Route::Known(MAC));
    }

    #[test]
    fn an_old_address_is_used_while_it_is_asked_for_again() {
        let (mut table, start) = (Neighbours::new(), Instant::now());
        table.route(host(1), start);
        table.answered(host(1), MAC, start);
        assert_eq!(table.route(host(1), start + FRESH), Route::Stale(MAC));
        assert_eq!(table.route(host(1), start + FRESH), Route::Known(MAC));
        assert_eq!(table.route(host(1), start + BELIEVED), Route::Ask);
    }

    #[test]
    fn a_host_that_came_back_with_another_address_is_followed() {
        let (mut table, start) = (Neighbours::new(), Instant::now());
        table.asked_by(host(1), MAC, start);
        let before = table.generation();
        table.asked_by(host(1), MAC, start);
        assert_eq!(table.generation(), before, "nothing changed");
        table.asked_by(host(1), OTHER, start);
        assert_ne!(table.generation(), before);
        assert_eq!(table.route(host(1), start), Route::Known(OTHER));
    }

    #[test]
    fn a_doubted_address_is_used_and_asked_for_at_once() {
        let (mut table, start) = (Neighbours::new(), Instant::now());
        table.asked_by(host(1), MAC, start);
        let before = table.generation();
        table.doubt();
        assert_ne!(table.generation(), before);
        assert_eq!(table.route(host(1), start), Route::Stale(MAC));
        assert_eq!(table.route(host(1), start), Route::Known(MAC));
        table.answered(host(1), OTHER, start);
        assert_eq!(table.route(host(1), start + ASK_EVERY), Route::Known(OTHER));
    }

    #[test]
    fn answers_that_nobody_asked_for_are_not_taken() {
        let (mut table, now) = (Neighbours::new(), Instant::now());
        table.answered(host(1), OTHER, now);
        assert_eq!(table.route(host(1), now), Route::Ask);
    }

    #[test]
    fn a_crowd_of_strangers_pushes_nobody_out() {
        let (mut table, start) = (Neighbours::new(), Instant::now());
        table.asked_by(host(0), MAC, start);
        for number in 1..=255 {
            table.asked_by(host(number), OTHER, start);
        }
        assert_eq!(table.route(host(0), start), Route::Known(MAC));
        assert_eq!(table.route(host(255), start), Route::Wait, "no room");
        // Unused ones make room later; the one in use stays.
        let later = start + BELIEVED;
        table.route(host(0), later);
        assert_eq!(table.route(host(255), later), Route::Ask);
        assert_eq!(table.entries.len(), NEIGHBOURS_MAX);
        assert!(table.entries.iter().any(|entry| entry.ip == host(0)));
    }
}
