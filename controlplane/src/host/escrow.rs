//! Hypervisor connections kept on behalf of the data plane. In: descriptors as they are handed over.
//! Out: their end, one way or the other. While a descriptor lies here, the death of the data plane is
//! no end of file to the hypervisor, so nobody resumes before it is known where the guest runs.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;

use dwcp_api::SessionId;
use dwcp_api::session::SESSIONS_MAX;
use rustix::net::{Shutdown, shutdown};

/// Connections of one session at most: 255 multifd channels, the main one, both roles.
const PER_SESSION_MAX: usize = 512;
/// Connections at most, all sessions together.
const TOTAL_MAX: usize = 2048;
/// Sessions at most: those of a data plane and of the one before it.
const SESSIONS_KEPT_MAX: usize = 2 * SESSIONS_MAX;

/// What is kept. Channel and role tell the connections of a session apart.
#[derive(Debug, Default)]
pub(super) struct Escrow {
    sessions: HashMap<SessionId, BTreeMap<(u32, u32), OwnedFd>>,
    total: usize,
}

impl Escrow {
    /// Keeps a descriptor; one that was kept for the same connection before is replaced. False if a
    /// limit would be passed: the descriptor is then closed.
    pub(super) fn keep(
        &mut self,
        session: SessionId,
        channel: u32,
        role: u32,
        fd: OwnedFd,
    ) -> bool {
        let known = self.sessions.get(&session);
        let replaces = known.is_some_and(|kept| kept.contains_key(&(channel, role)));
        let fits = replaces
            || (self.total < TOTAL_MAX
                && known.map_or(self.sessions.len() < SESSIONS_KEPT_MAX, |kept| {
                    kept.len() < PER_SESSION_MAX
                }));
        if fits {
            self.sessions
                .entry(session)
                .or_default()
                .insert((channel, role), fd);
            self.total += usize::from(!replaces);
        }
        fits
    }

    /// Lets the descriptors of a session go. The hypervisor sees nothing as long as somebody else
    /// holds the connection too.
    pub(super) fn release(&mut self, session: SessionId) -> usize {
        let released = self.sessions.remove(&session).map_or(0, |kept| kept.len());
        self.total -= released;
        released
    }

    /// Ends the connections of a session: the hypervisor sees the end of file now.
    pub(super) fn shutdown(&mut self, session: SessionId) -> usize {
        for fd in self
            .sessions
            .get(&session)
            .into_iter()
            .flat_map(BTreeMap::values)
        {
            // A connection that has already ended is what we want.
            let _ = shutdown(fd, Shutdown::Both);
        }
        self.release(session)
    }

    /// Is anything kept for this session?
    pub(super) fn holds(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn kept(escrow: &mut Escrow, session: u8, channel: u32) -> UnixStream {
        let (ours, hypervisor) = UnixStream::pair().unwrap();
        assert!(escrow.keep(SessionId([session; 16]), channel, 1, ours.into()));
        hypervisor.set_nonblocking(true).unwrap();
        hypervisor
    }

    #[test]
    fn a_kept_connection_stays_open_until_it_is_decided() {
        let mut escrow = Escrow::default();
        let mut first = kept(&mut escrow, 1, 0);
        let mut second = kept(&mut escrow, 1, 1);
        let mut other = kept(&mut escrow, 2, 0);
        let mut byte = [0];
        assert!(
            first.read(&mut byte).is_err(),
            "no end of file while it is kept"
        );
        assert_eq!(escrow.shutdown(SessionId([1; 16])), 2);
        assert_eq!(
            (
                first.read(&mut byte).unwrap(),
                second.read(&mut byte).unwrap()
            ),
            (0, 0)
        );
        assert!(other.read(&mut byte).is_err());
        assert!(!escrow.holds(SessionId([1; 16])) && escrow.holds(SessionId([2; 16])));
        assert_eq!(escrow.release(SessionId([2; 16])), 1);
        assert_eq!(other.read(&mut byte).unwrap(), 0);
        assert_eq!(escrow.total, 0);
    }

    #[test]
    fn the_escrow_is_bounded_and_counts_replacements_once() {
        let mut escrow = Escrow::default();
        let _keep = (kept(&mut escrow, 1, 0), kept(&mut escrow, 1, 0));
        assert_eq!(escrow.total, 1);
        let mut refused = 0;
        for session in 0..=SESSIONS_KEPT_MAX {
            let mut id = [7; 16];
            id[..8].copy_from_slice(&session.to_le_bytes());
            let fd = UnixStream::pair().unwrap().0.into();
            refused += usize::from(!escrow.keep(SessionId(id), 0, 1, fd));
        }
        assert_eq!((refused, escrow.sessions.len()), (2, SESSIONS_KEPT_MAX));
    }
}
