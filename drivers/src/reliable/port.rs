//! What carries datagrams below the reliable lanes.
//!
//! Comes in: datagrams built in place, with the address that they go to. Goes out: datagrams as they
//! arrived, each with the address that it claims to come from. Promises little: a datagram may be
//! lost, doubled, changed, or come late; it is never cut short or joined with another.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

/// One worker's way to send and receive datagrams: a queue of a device, a socket, a simulation.
/// Nothing here blocks.
pub trait DatagramPort {
    /// The longest payload that it carries, in bytes, the same for as long as the port lives.
    fn max_payload(&self) -> usize;

    /// Whether the path loses what it damages: memory that two processes share, a device that sums and checks each
    /// datagram. Both ends are asked; a sender whose port says so puts no sum over the content of frames.
    fn finds_damage(&self) -> bool {
        false
    }

    /// The port's clock, in nanoseconds from any origin. It never goes back.
    fn now_ns(&self) -> u64;

    /// Hands a burst of datagrams to `sink`, each in the memory that it arrived in, and returns how
    /// many. The memory is the port's again when `sink` returns; `sink` may write to it, so that a
    /// datagram is decrypted where it lies.
    fn recv(&mut self, sink: &mut impl FnMut(SocketAddr, &mut [u8])) -> usize;

    /// Has `fill` build one datagram for `to` in place. `fill` is called at most once, with
    /// at least [`DatagramPort::max_payload`] bytes, and returns how many of them count. False: there
    /// is no room now and `fill` was not called. What the port cannot deliver is lost, as on a network.
    fn send(&mut self, to: SocketAddr, fill: &mut impl FnMut(&mut [u8]) -> usize) -> bool;

    /// Hands over what was built. Called at the end of each poll, also when nothing was.
    fn flush(&mut self);

    /// A descriptor that becomes readable when something arrives, after
    /// [`DatagramPort::prepare_park`] said true. None: the port can only be polled.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Arms [`DatagramPort::wake_fd`]. False: something arrived already.
    fn prepare_park(&mut self) -> bool;
}
