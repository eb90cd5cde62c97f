//! One hypervisor connection of a session, both ways.
//!
//! In: readiness, batches' worth of room. Out: cuts for the encoder, bytes for the hypervisor, half
//! closes in either direction. Promises: each direction is closed once, after its last byte, and closing
//! is `shutdown(2)`, which the hypervisor sees whoever else holds the descriptor.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::net::Shutdown;

use crate::codec::{Chain, Direction as ChainDirection};
use crate::intake::Intake;
use crate::release::Release;
use crate::stream::ChannelKind;
use crate::transport::ChannelId;
use crate::transport::wire::batch;

/// Batches of one connection that are remembered without taking more memory.
const UNTAKEN_ROOM: usize = 64;

/// A batch that fills a buffer at the far end until its hypervisor takes it.
#[derive(Clone, Copy, Debug)]
pub struct Untaken {
    /// Where in the connection it ends.
    pub end: u64,
    /// It needs a buffer of the largest size.
    pub large: bool,
}

/// What a session does with one connection.
pub struct Channel {
    /// Its number in the session.
    pub id: ChannelId,
    /// What it carries, as its first bytes said.
    pub kind: ChannelKind,
    /// The socket.
    pub fd: OwnedFd,
    /// From the hypervisor.
    pub intake: Intake,
    /// To the hypervisor.
    pub release: Release,
    /// The socket may have something to read.
    pub readable: bool,
    /// The socket may have room.
    pub writable: bool,
    /// Nothing more was read on the last look: what waits is cut at the next.
    pub quiet: bool,
    /// No descriptor will announce that the next look is due.
    pub look_again: bool,
    /// When the first byte that waits to be cut was read.
    pub waiting_since_ns: u64,
    /// Batches sent that the far hypervisor has not taken whole, oldest first.
    pub untaken: VecDeque<Untaken>,
    /// Our half close was sent to the peer.
    pub end_sent: bool,
    /// Our side towards the hypervisor was shut down.
    pub end_released: bool,
    /// Its bytes leave at once, however few: the guest waits for them.
    pub urgent: bool,
    /// And before all others.
    pub express: bool,
    /// Vouches for what we send.
    pub chain_out: Chain,
    /// Checks what we get.
    pub chain_in: Chain,
    /// The last digest sent.
    pub last_out: [u8; 16],
    /// The last digest that agreed.
    pub last_in: [u8; 16],
}

/// The keys of both directions' chains.
pub struct ChainKeys<'a> {
    /// For what we send.
    pub out: &'a [u8; 32],
    /// For what we get.
    pub into: &'a [u8; 32],
    /// We send towards the destination.
    pub is_source: bool,
}

impl Channel {
    /// A connection at its first byte. `kind` is what the sending hypervisor's first bytes said;
    /// at the destination what comes back is the return path.
    pub fn new(id: ChannelId, kind: ChannelKind, fd: OwnedFd, keys: &ChainKeys<'_>) -> Self {
        let (out, into) = if keys.is_source {
            (ChainDirection::ToDestination, ChainDirection::ToSource)
        } else {
            (ChainDirection::ToSource, ChainDirection::ToDestination)
        };
        let read_as = match (keys.is_source, kind) {
            (true, kind) => kind,
            (false, ChannelKind::Main | ChannelKind::Resumed) => ChannelKind::ReturnPath,
            (false, _) => ChannelKind::Opaque,
        };
        let express = keys.is_source && kind == ChannelKind::Urgent;
        Self {
            id,
            kind,
            fd,
            intake: Intake::new(read_as),
            release: Release::new(),
            readable: true,
            writable: true,
            quiet: false,
            look_again: false,
            waiting_since_ns: 0,
            untaken: VecDeque::with_capacity(UNTAKEN_ROOM),
            end_sent: false,
            end_released: false,
            urgent: read_as == ChannelKind::ReturnPath || express,
            express,
            chain_out: Chain::new(keys.out, id.0, out),
            chain_in: Chain::new(keys.into, id.0, into),
            last_out: [0; 16],
            last_in: [0; 16],
        }
    }

    /// Both directions are over.
    pub const fn is_closed(&self) -> bool {
        self.end_sent && self.end_released
    }

    /// Tells the hypervisor that nothing more comes from us.
    pub fn shut_release(&mut self) {
        self.end_released = true;
        // The hypervisor may have gone before: then it knows.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
    }

    /// Ends the connection for the hypervisor at once, both ways, and drops what was queued.
    pub fn sever(&mut self) {
        self.release.abandon();
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }
}

/// The kind of a channel as the peer is told.
pub const fn wire_kind(kind: ChannelKind) -> batch::ChannelKind {
    match kind {
        ChannelKind::Main => batch::ChannelKind::Main,
        ChannelKind::Multifd => batch::ChannelKind::Multifd,
        ChannelKind::Resumed => batch::ChannelKind::Resumed,
        ChannelKind::Urgent => batch::ChannelKind::Urgent,
        ChannelKind::ReturnPath | ChannelKind::Opaque => batch::ChannelKind::Opaque,
    }
}

/// The kind of a channel as the peer told it.
pub const fn stream_kind(kind: batch::ChannelKind) -> ChannelKind {
    match kind {
        batch::ChannelKind::Main => ChannelKind::Main,
        batch::ChannelKind::Multifd => ChannelKind::Multifd,
        batch::ChannelKind::Resumed => ChannelKind::Resumed,
        batch::ChannelKind::Urgent => ChannelKind::Urgent,
        batch::ChannelKind::Opaque => ChannelKind::Opaque,
    }
}
