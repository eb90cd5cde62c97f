//! One connection under handshake.
//!
//! In: a socket that became ready. Out: bytes for the handshake's machine, bytes written. Promise: not a byte
//! is read behind the message or the record at hand, so that the lane's first frame stays in the socket.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use super::error::DoorError;
use crate::engine::messages::Dial;
use crate::tls::pipe::Pipe;
use crate::transport::NodeId;
use crate::transport::handshake::{Acceptor, Agreed, Initiator, MAX_MESSAGE_BYTES};

/// Read at once at most: a message, or a good part of a record.
pub const READ_BYTES: usize = 4096;
const _: () = assert!(READ_BYTES >= MAX_MESSAGE_BYTES);
/// The first byte of every TLS connection, and of no message: a HELLO's length is another.
const TLS_FIRST_BYTE: u8 = 22;
/// To a peer that speaks TLS with a data plane that does not: a fatal alert, handshake_failure.
pub const NO_TLS_ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];

/// What a stranger is and how far it has come.
pub enum Side {
    /// Being dialled.
    Connecting(Box<Dial>),
    /// Dialled; TLS is under way and HELLO follows.
    Securing(Box<Dial>),
    /// Dialled; HELLO is said.
    Initiator(Box<Initiator>, Box<Dial>),
    /// Dialled, proven, and nothing said since: it waits for a lane.
    Ready,
    /// Has dialled, is proven, and waits until its lane is wanted.
    Parked(Box<Acceptor>),
    /// Has dialled and said nothing yet.
    Silent,
    /// Has dialled.
    Acceptor(Box<Acceptor>),
    /// A last message is being written; then the connection is closed.
    TurnedAway,
    /// The last message is being written; then the connection is a lane.
    Welcomed(Box<Agreed>),
}

/// See the module.
pub struct Stranger {
    /// Its connection.
    pub fd: OwnedFd,
    /// TLS on it.
    pub tls: Option<Box<Pipe>>,
    /// Whose certificate it showed.
    pub node: Option<NodeId>,
    /// It has waited, or waits, for its lane.
    pub was_parked: bool,
    /// How far it has come.
    pub side: Side,
    /// What it has yet to be sent.
    pub unsent: VecDeque<u8>,
    /// When it is given up.
    pub deadline_ns: u64,
    /// Its address.
    pub peer: SocketAddr,
}

/// What [`Stranger::read`] came to.
pub enum Got {
    /// So many bytes.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
}

/// How a connection begins.
pub enum Opening {
    /// Nothing has come yet.
    Nothing,
    /// With TLS.
    Tls,
    /// With a message.
    Plain,
}

impl Stranger {
    /// Is it under handshake and did it dial us?
    pub const fn knocks(&self) -> bool {
        !matches!(
            self.side,
            Side::Connecting(_)
                | Side::Securing(_)
                | Side::Initiator(..)
                | Side::Ready
                | Side::Parked(_)
        )
    }

    /// Does it wait here until its lane is wanted?
    pub const fn is_parked(&self) -> bool {
        matches!(self.side, Side::Parked(_))
    }

    /// Our order to dial it, if there was one.
    pub const fn dial(&self) -> Option<&Dial> {
        match &self.side {
            Side::Connecting(dial) | Side::Securing(dial) | Side::Initiator(_, dial) => Some(dial),
            _ => None,
        }
    }

    /// Takes our order to dial it out of it.
    pub fn take_order(&mut self) -> Option<Box<Dial>> {
        match std::mem::replace(&mut self.side, Side::TurnedAway) {
            Side::Connecting(dial) | Side::Securing(dial) | Side::Initiator(_, dial) => Some(dial),
            side => {
                self.side = side;
                None
            }
        }
    }

    /// The node that our order to dial it names, if it names one.
    pub fn expected_node(&self) -> Option<&str> {
        self.dial().and_then(|dial| dial.peer.node.as_deref())
    }

    /// One that we dialled has come as far as `next` makes of our order.
    pub fn dialled(&mut self, next: impl FnOnce(Box<Dial>) -> Side) {
        if let Some(dial) = self.take_order() {
            self.side = next(dial);
        }
    }

    /// Writes what it can. Says whether all of it is written.
    pub fn flush(&mut self) -> Result<bool, DoorError> {
        self.flush_with(SendFlags::empty())
    }

    /// The same, with more flags.
    pub fn flush_with(&mut self, more: SendFlags) -> Result<bool, DoorError> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT | more;
        while !self.unsent.is_empty() {
            let (bytes, _) = self.unsent.as_slices();
            match rustix::net::send(&self.fd, bytes, flags) {
                Ok(sent) => {
                    self.unsent.drain(..sent);
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(DoorError::Io(error.into())),
            }
        }
        Ok(true)
    }

    /// How it begins; the bytes stay where they are.
    pub fn opening(&self) -> Result<Opening, DoorError> {
        let mut first = [0u8];
        match rustix::net::recv(&self.fd, &mut first, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(DoorError::Ended),
            Ok(_) if first[0] == TLS_FIRST_BYTE => Ok(Opening::Tls),
            Ok(_) => Ok(Opening::Plain),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Opening::Nothing),
            Err(error) => Err(DoorError::Io(error.into())),
        }
    }

    /// Reads as much as the record or the message at hand still needs.
    pub fn read(&self, bytes: &mut [u8; READ_BYTES]) -> Result<Got, DoorError> {
        let wanted = match (&self.tls, &self.side) {
            (Some(tls), _) => tls.wanted(),
            (None, Side::Initiator(initiator, _)) => initiator.wanted(),
            (None, Side::Acceptor(acceptor) | Side::Parked(acceptor)) => acceptor.wanted(),
            (None, _) => 1,
        };
        match rustix::io::read(&self.fd, &mut bytes[..wanted.clamp(1, READ_BYTES)]) {
            Ok(0) => Err(DoorError::Ended),
            Ok(got) => Ok(Got::Bytes(got)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Got::Nothing),
            Err(error) => Err(DoorError::Io(error.into())),
        }
    }

    /// Says it, inside TLS where there is TLS.
    pub fn say(&mut self, message: &[u8]) -> Result<(), DoorError> {
        match &mut self.tls {
            Some(tls) => {
                tls.say(message)?;
                tls.take_bytes(&mut self.unsent);
            }
            None => self.unsent.extend(message),
        }
        Ok(())
    }

    /// No more is sent: what was said last arrives although the peer may still be sending, which would
    /// not be so if the connection were closed. Says whether the peer has closed it.
    pub fn see_off(&self) -> bool {
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
        let mut bytes = [0u8; READ_BYTES];
        loop {
            match rustix::io::read(&self.fd, &mut bytes) {
                Ok(0) => return true,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                Err(_) => return true,
            }
        }
    }
}

/// The network that a stranger is counted under: its address, or the /64 that one host usually has.
pub fn neighbourhood(peer: SocketAddr) -> u128 {
    match peer.ip().to_canonical() {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits() >> 64 << 64,
    }
}
