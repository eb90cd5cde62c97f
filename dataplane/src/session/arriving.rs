//! Connections of the sending hypervisor, until each has its channel.
//!
//! In: connections, in the order they came, and their first bytes. Out: channels, watched and in escrow.
//! Promises: no more connections are held than a session may have; what a connection is follows from its own
//! first bytes, and one without any is given a kind only when nothing else can be meant.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use dwcp_drivers::lane::LaneGroup;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::channel::{ChainKeys, Channel, wire_kind};
use super::{Fault, Hands, Session, forward};
use crate::engine::messages::ToControl;
use crate::engine::routes::Routes;
use crate::stream::ChannelKind;
use crate::transport::ChannelId;
use crate::transport::wire::batch::Marker;

impl Session {
    /// The hypervisor's listener became readable.
    pub fn on_knock<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) {
        while let Some(listener) = &self.listener {
            match crate::engine::sockets::accept(listener) {
                Ok(fd) => self.take_connection(fd, hands),
                Err(_) => return,
            }
        }
    }

    /// A connection of the sending hypervisor.
    pub fn take_connection<G: LaneGroup>(&mut self, fd: OwnedFd, hands: &mut Hands<'_, G>) {
        if self.channels.len() + self.unsorted.len() >= crate::transport::MAX_CHANNELS {
            tracing::warn!(session = %self.id, "more hypervisor connections than a session may have");
            return;
        }
        // Its first bytes wake us; until they come it has no channel number.
        let token = Routes::token(self.slot, Routes::UNSORTED);
        if let Err(error) = hands.poller.add_stream(&fd, token) {
            tracing::warn!(%error, "a hypervisor connection cannot be watched");
            return;
        }
        self.unsorted.push_back(fd);
        self.sort_connections(hands);
    }

    /// Gives connections whose first bytes have come their channels, in the order they came.
    pub fn sort_connections<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) {
        let mut left = VecDeque::with_capacity(self.unsorted.len());
        while let Some(fd) = self.unsorted.pop_front() {
            match first_bytes(&fd) {
                FirstBytes::NotYet if !self.expects_silent_channel() => left.push_back(fd),
                FirstBytes::Closed => hands.poller.remove(&fd),
                sniffed @ (FirstBytes::NotYet | FirstBytes::Kind(_)) => {
                    let kind = match sniffed.kind() {
                        ChannelKind::Urgent if !self.expects_silent_channel() => {
                            ChannelKind::Opaque
                        }
                        kind => kind,
                    };
                    if self
                        .link
                        .as_ref()
                        .is_none_or(|link| !link.outbound.can_push())
                    {
                        left.push_back(fd);
                        self.sort_again = true;
                        continue;
                    }
                    if let Err(fault) = self.open_channel(kind, fd, hands) {
                        self.fail(&fault, hands);
                        return;
                    }
                }
            }
        }
        self.unsorted = left;
    }

    /// Tries those again that had to wait, once there is something new to try.
    pub(super) fn sort_those_left<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) {
        let again = self.sort_again || (!self.unsorted.is_empty() && self.expects_silent_channel());
        if again
            && self
                .link
                .as_ref()
                .is_some_and(|link| link.outbound.can_push())
        {
            self.sort_again = false;
            self.sort_connections(hands);
        }
    }

    /// The pre-empt channel of post-copy says nothing until a page is asked for, and the receiving
    /// hypervisor waits for it before it runs the guest. Every other kind of channel speaks first: when all
    /// of those have spoken, one that is silent is this.
    fn expects_silent_channel(&self) -> bool {
        let facts = |channel: &Channel| {
            let facts = channel.intake.facts();
            (facts.postcopy_advised, facts.postcopy_listen_seen)
        };
        let main = self.channels.iter().find(|channel| channel.kind.is_main());
        let (advised, listening) = main.map_or((false, false), facts);
        let others = self
            .channels
            .iter()
            .any(|channel| channel.kind == ChannelKind::Multifd);
        listening || (advised && !others)
    }

    fn open_channel<G: LaneGroup>(
        &mut self,
        kind: ChannelKind,
        fd: OwnedFd,
        hands: &mut Hands<'_, G>,
    ) -> Result<(), Fault> {
        let Some(link) = self.link.as_mut() else {
            return Ok(());
        };
        let id = ChannelId(u16::try_from(self.channels.len()).unwrap_or(u16::MAX));
        hands.poller.remove(&fd);
        link.outbound.open_channel(id)?;
        link.inbound.open_channel(id)?;
        forward::push_marker(link, id, &Marker::Open(wire_kind(kind)))?;
        let keys = ChainKeys {
            out: link.keys_out.chain_key(),
            into: link.keys_in.chain_key(),
            is_source: true,
        };
        let channel = Channel::new(id, kind, fd, &keys);
        if matches!(kind, ChannelKind::Opaque | ChannelKind::Resumed) {
            // Nothing is known of such a stream, so nothing rules out that the destination runs; or it does.
            self.destination_may_run = true;
        }
        if kind == ChannelKind::Urgent {
            link.outbound.keep_express_lane();
        }
        self.adopt(channel, hands)
    }

    /// Watches a new channel and gives a second descriptor of it in escrow.
    pub(super) fn adopt<G: LaneGroup>(
        &mut self,
        channel: Channel,
        hands: &mut Hands<'_, G>,
    ) -> Result<(), Fault> {
        hands.poller.add_stream(
            &channel.fd,
            Routes::token(self.slot, u32::from(channel.id.0)),
        )?;
        let fd = channel.fd.as_fd().try_clone_to_owned()?;
        let (session, role, number) = (self.id, self.role, channel.id.0);
        if hands
            .control
            .send(ToControl::Keep {
                session,
                role,
                channel: number,
                fd,
            })
            .is_err()
        {
            tracing::warn!(%session, "a connection is not in escrow: the control thread is behind");
        }
        self.channels.push(channel);
        self.picture.channels = self.channels.len() as u64;
        Ok(())
    }
}

enum FirstBytes {
    NotYet,
    Closed,
    Kind(ChannelKind),
}

impl FirstBytes {
    /// What a connection is, said or not.
    const fn kind(&self) -> ChannelKind {
        match self {
            Self::Kind(kind) => *kind,
            Self::NotYet | Self::Closed => ChannelKind::Urgent,
        }
    }
}

fn first_bytes(fd: &OwnedFd) -> FirstBytes {
    // Asked before the bytes are looked at: if it had ended by then, no more of them will come.
    let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut polled = [PollFd::new(fd, PollFlags::RDHUP)];
    let no_wait = Timespec::default();
    let has_ended = rustix::event::poll(&mut polled, Some(&no_wait)).is_ok()
        && polled[0].revents().intersects(ended);
    let mut first = [0u8; 4];
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    match rustix::net::recv(fd, &mut first, flags) {
        Ok((0, _)) => FirstBytes::Closed,
        Ok((4, _)) => FirstBytes::Kind(ChannelKind::sniff(&first)),
        Ok(_) if has_ended => FirstBytes::Closed,
        // Fewer than four bytes: more are on their way, or the connection ends, which wakes us.
        Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => FirstBytes::NotYet,
        Err(_) => FirstBytes::Closed,
    }
}
