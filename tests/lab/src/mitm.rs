//! A man in the middle of TCP connections.
//!
//! In: an address to listen on, one to forward to, a list of [`Fault`]s. Out: the same bytes, with
//! the faults at their exact offsets. Promise: without faults every byte and every half-close
//! passes; each fault happens at most once and is counted.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Which way bytes go, seen from the side that connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    Forward,
    /// From the server to the client.
    Backward,
}

/// What happens to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Both directions end at once.
    Cut,
    /// One bit of one byte is turned over.
    Corrupt,
    /// So many bytes are left out.
    Drop(u64),
    /// So many bytes come twice.
    Repeat(u64),
    /// The so many bytes before and those before them change places.
    Swap(u64),
}

/// One fault.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The connection, counted from 0 in the order of acceptance.
    pub connection: u64,
    /// The direction.
    pub way: Way,
    /// The byte of that direction at which it happens, from 0.
    pub offset: u64,
    /// What happens.
    pub damage: Damage,
}

#[derive(Default)]
struct State {
    faults: Mutex<Vec<Fault>>,
    forward_bytes: AtomicU64,
    backward_bytes: AtomicU64,
    connections: AtomicU64,
    struck: AtomicU64,
    stop: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
    /// What came from either side of each connection, if it is written down.
    heard: Mutex<Option<Heard>>,
}

type Heard = std::collections::BTreeMap<(u64, bool), Vec<u8>>;

/// A running man in the middle.
pub struct Mitm {
    address: SocketAddr,
    state: Arc<State>,
}

impl Mitm {
    /// Forwards every connection to `listener` on to `target`. Outgoing connections are made by
    /// `connect`, so that they can start on another host.
    pub fn start(
        listener: TcpListener,
        connect: impl Fn() -> io::Result<TcpStream> + Send + 'static,
        faults: Vec<Fault>,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            faults: Mutex::new(faults),
            ..State::default()
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if shared.stop.load(Ordering::Relaxed) {
                    return;
                }
                // A target that refuses looks to the client like a connection that ends.
                if let Ok(server) = connect() {
                    let _ = join(&shared, client, server);
                }
            }
        });
        Ok(Self { address, state })
    }

    /// Where to connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds a fault while traffic flows.
    pub fn add(&self, fault: Fault) {
        locked(&self.state.faults).push(fault);
    }

    /// Writes down from now on what passes, as it came.
    pub fn listen_in(&self) {
        locked(&self.state.heard).get_or_insert_default();
    }

    /// What came from the clients (forward) or the servers, by the number of the connection.
    #[must_use]
    pub fn heard(&self, way: Way) -> std::collections::BTreeMap<u64, Vec<u8>> {
        let heard = locked(&self.state.heard);
        let of_way = heard.iter().flatten();
        of_way
            .filter(|((_, forward), _)| *forward == (way == Way::Forward))
            .map(|((connection, _), bytes)| (*connection, bytes.clone()))
            .collect()
    }

    /// Ends all connections at once; new ones are still accepted.
    pub fn cut(&self) {
        for stream in locked(&self.state.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Payload bytes that came from clients and from servers.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (
            load(&self.state.forward_bytes),
            load(&self.state.backward_bytes),
        )
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Faults that happened: a test whose fault never struck has shown nothing.
    #[must_use]
    pub fn struck(&self) -> u64 {
        self.state.struck.load(Ordering::Relaxed)
    }
}

impl Drop for Mitm {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        self.cut();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn join(state: &Arc<State>, client: TcpStream, server: TcpStream) -> io::Result<()> {
    let number = state.connections.fetch_add(1, Ordering::Relaxed);
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        locked(&state.open).push(stream.try_clone()?);
    }
    let pairs = [
        (Way::Forward, client.try_clone()?, server.try_clone()?),
        (Way::Backward, server, client),
    ];
    for (way, from, to) in pairs {
        let state = Arc::clone(state);
        std::thread::spawn(move || {
            if pump(&state, number, way, &from, &to).is_ok() {
                let _ = to.shutdown(Shutdown::Write);
            } else {
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            }
        });
    }
    Ok(())
}

fn pump(
    state: &State,
    connection: u64,
    way: Way,
    mut from: &TcpStream,
    mut to: &TcpStream,
) -> io::Result<()> {
    let counter = match way {
        Way::Forward => &state.forward_bytes,
        Way::Backward => &state.backward_bytes,
    };
    let mut block = vec![0; 64 * 1024];
    let (mut offset, mut skip) = (0_u64, 0_u64);
    loop {
        let count = from.read(&mut block)?;
        if count == 0 {
            return Ok(());
        }
        counter.fetch_add(count as u64, Ordering::Relaxed);
        let mut bytes = block[..count].to_vec();
        if let Some(heard) = locked(&state.heard).as_mut() {
            let of_way = heard.entry((connection, way == Way::Forward));
            of_way.or_default().extend_from_slice(&bytes);
        }
        let range = offset..offset + count as u64;
        let due = take_due(state, |fault| {
            fault.connection == connection && fault.way == way && range.contains(&fault.offset)
        });
        offset = range.end;
        // From the last to the first, so that earlier offsets stay right.
        for fault in due.iter().rev() {
            state.struck.fetch_add(1, Ordering::Relaxed);
            let at = usize::try_from(fault.offset - range.start).unwrap_or(0);
            match fault.damage {
                Damage::Cut => {
                    bytes.truncate(at);
                    to.write_all(&bytes)?;
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                Damage::Corrupt => bytes[at] ^= 0x10,
                Damage::Drop(length) => {
                    let end = at.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
                    skip += length.saturating_sub((bytes.len() - at) as u64);
                    bytes.drain(at..end.min(bytes.len()));
                }
                Damage::Swap(length) => {
                    let length = usize::try_from(length).unwrap_or(usize::MAX).min(at / 2);
                    let (first, second) = bytes[at - 2 * length..at].split_at_mut(length);
                    first.swap_with_slice(second);
                }
                Damage::Repeat(length) => {
                    let start = at.saturating_sub(usize::try_from(length).unwrap_or(at));
                    let again = bytes[start..at].to_vec();
                    bytes.splice(at..at, again);
                }
            }
        }
        if due.is_empty() && skip > 0 {
            let now = skip.min(bytes.len() as u64);
            bytes.drain(..usize::try_from(now).unwrap_or(0));
            skip -= now;
        }
        to.write_all(&bytes)?;
    }
}

fn take_due(state: &State, is_due: impl Fn(&Fault) -> bool) -> Vec<Fault> {
    let mut faults = locked(&state.faults);
    let (mut due, rest): (Vec<_>, Vec<_>) = faults.drain(..).partition(is_due);
    *faults = rest;
    due.sort_by_key(|fault| fault.offset);
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends 300,000 bytes through and returns what arrived.
    fn through(faults: Vec<Fault>) -> (Vec<u8>, Vec<u8>, u64) {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = server.local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mitm = Mitm::start(listener, move || TcpStream::connect(target), faults).unwrap();
        let sent: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let mut client = TcpStream::connect(mitm.address()).unwrap();
        let (mut stream, _) = server.accept().unwrap();
        let copy = sent.clone();
        let sender = std::thread::spawn(move || {
            let _ = client.write_all(&copy);
            let _ = client.shutdown(Shutdown::Write);
            client
        });
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        let _client = sender.join().unwrap();
        (sent, got, mitm.struck())
    }

    fn fault(offset: u64, damage: Damage) -> Vec<Fault> {
        vec![Fault {
            connection: 0,
            way: Way::Forward,
            offset,
            damage,
        }]
    }

    #[test]
    fn without_faults_everything_passes() {
        let (sent, got, struck) = through(vec![]);
        assert!(sent == got && struck == 0);
    }

    #[test]
    fn each_damage_happens_at_its_byte() {
        let (sent, got, struck) = through(fault(200_000, Damage::Corrupt));
        let differing: Vec<usize> = (0..sent.len()).filter(|i| sent[*i] != got[*i]).collect();
        assert_eq!((differing, struck), (vec![200_000], 1));

        let (sent, got, _) = through(fault(100_000, Damage::Cut));
        assert_eq!(got, sent[..100_000]);

        let (sent, got, _) = through(fault(150_000, Damage::Drop(100_000)));
        assert_eq!(got, [&sent[..150_000], &sent[250_000..]].concat());

        let (sent, got, _) = through(fault(150_000, Damage::Swap(100)));
        assert!(got != sent && got.len() == sent.len());

        let (_, got, struck) = through(fault(150_000, Damage::Repeat(100)));
        assert!(got.len() > 300_000 && got.len() <= 300_100 && struck == 1);
    }
}
