//! UNIX and TCP sockets as the data plane needs them: non-blocking, closed on exec, paths owned.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};

/// Connections that may wait to be accepted: a hypervisor opens all its channels at once.
const BACKLOG: i32 = 128;
/// The same for peers, among whom may be a crowd that says nothing.
const PEER_BACKLOG: i32 = 1024;

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Listens on a UNIX socket that only this user may connect to. A socket that a dead process left at
/// the path is replaced; one that somebody still answers on is not.
///
/// # Errors
/// What the system said.
pub fn listen_unix(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    if path.exists() {
        let probe = socket_with(AddressFamily::UNIX, kind, FLAGS, None)?;
        match connect(&probe, &address) {
            Err(rustix::io::Errno::CONNREFUSED) => std::fs::remove_file(path)?,
            _ => return Err(rustix::io::Errno::ADDRINUSE.into()),
        }
    }
    let socket = socket_with(AddressFamily::UNIX, kind, FLAGS, None)?;
    bind(&socket, &address)?;
    rustix::fs::chmod(path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Takes one waiting connection.
///
/// # Errors
/// What the system said; `WouldBlock` if none waits.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    Ok(accept_with(listener, FLAGS)?)
}

/// Connects to a hypervisor's UNIX socket without waiting.
///
/// # Errors
/// What the system said; `WouldBlock` if its backlog is full.
pub fn connect_unix(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Listens for peers.
///
/// # Errors
/// What the system said.
pub fn listen_tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket_with(family(address), SocketType::STREAM, FLAGS, None)?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    listen(&socket, PEER_BACKLOG)?;
    Ok(socket)
}

/// Begins to connect to a peer: the socket becomes writable when it is decided.
///
/// # Errors
/// What the system said.
pub fn dial_tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket_with(family(address), SocketType::STREAM, FLAGS, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

const fn family(address: SocketAddr) -> AddressFamily {
    match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    }
}

/// Is a socket that was being connected connected now?
///
/// # Errors
/// Why it never will be.
pub fn is_connected(socket: impl AsFd) -> io::Result<bool> {
    rustix::net::sockopt::socket_error(&socket)??;
    match rustix::net::getpeername(&socket) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::INPROGRESS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The peer's address.
///
/// # Errors
/// What the system said.
pub fn peer_address(socket: impl AsFd) -> io::Result<SocketAddr> {
    let address = rustix::net::getpeername(socket)?;
    internet(address.ok_or_else(|| io::Error::other("the peer has no address"))?)
}

/// Our own address.
///
/// # Errors
/// What the system said.
pub fn local_address(socket: impl AsFd) -> io::Result<SocketAddr> {
    internet(rustix::net::getsockname(socket)?)
}

fn internet(address: rustix::net::SocketAddrAny) -> io::Result<SocketAddr> {
    SocketAddr::try_from(address).map_err(|_| io::Error::other("not an internet address"))
}
