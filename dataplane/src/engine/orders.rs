//! What a worker is asked to do: sessions opened, cancelled, resolved, limited and forgotten, lanes handed
//! over, hypervisors that connect without being announced.
//!
//! In: messages from the control thread and the door. Out: sessions in the worker's table, answers.
//! Promises: a command that comes twice does no harm; what a command or a peer asks for is cut to this
//! node's own limits; a session that cannot be opened leaves nothing behind.

use dwcp_api::event::Event;
use dwcp_api::switches::Switches;
use dwcp_api::text::Text;
use dwcp_api::worker::WorkerCounters;
use dwcp_api::{Failure, Role, SessionId, monotonic_ns};
use dwcp_drivers::lane::LaneGroup;

use super::drivers::LaneEndpoint;
use super::messages::{
    DestinationOrder, Expected, Offer, Peer, SourceOrder, ToControl, ToDoor, ToWorker,
};
use super::room::Room;
use super::routes::Routes;
use super::sockets;
use super::worker::Worker;
use crate::session::{Fault, Session, SessionOptions};
use crate::transport::handshake::Way;
use crate::transport::streams::StreamLimits;

impl<G: LaneGroup<Endpoint = LaneEndpoint>> Worker<G> {
    fn answer(&self, command: Option<u64>, session: SessionId, outcome: Result<(), Fault>) {
        let (failure, detail) = match outcome {
            Ok(()) => (Failure::None, String::new()),
            Err(fault) => (fault.failure, fault.detail),
        };
        let Some(command_id) = command else {
            if failure != Failure::None {
                tracing::warn!(%session, %failure, detail, "a session could not be opened");
            }
            return;
        };
        let detail = Text::clipped(&detail);
        let event = Event::Answer {
            command_id,
            session,
            failure,
            detail,
        };
        if let Err(error) = self.control.send(ToControl::Event(event)) {
            tracing::error!(%error, "an answer was lost");
        }
    }

    /// Tells the border that a session which was to be opened is not here.
    fn note_refusal(&self, session: SessionId) {
        if self.slot_of(session).is_none() {
            self.tell_border(ToControl::Forgotten(session));
        }
    }

    fn tell_border(&self, message: ToControl) {
        if let Err(error) = self.control.send(message) {
            tracing::error!(%error, "the border does not know who has a session");
        }
    }

    pub(super) fn take_message(
        &mut self,
        message: ToWorker,
        counters: &WorkerCounters,
        switches: &Switches,
    ) {
        let unknown = || {
            Err(Fault::new(
                Failure::BadCommand,
                "this data plane has no such session",
            ))
        };
        match message {
            ToWorker::OpenSource(order, command) => {
                let session = order.session;
                let outcome = self.open_source(*order, counters, switches);
                self.note_refusal(session);
                self.answer(command, session, outcome);
            }
            ToWorker::OpenDestination(order, command) => {
                let session = order.session;
                let outcome = self.open_destination(*order, counters, switches);
                if outcome.is_err() && command.is_none() {
                    // The door let the peer in by the target's name: its next lane is told better.
                    let _ = self.door.send(ToDoor::Forget(session));
                }
                self.note_refusal(session);
                self.answer(command, session, outcome);
            }
            ToWorker::Cancel(id, command) => {
                let outcome = self.slot_of(id).and_then(|slot| {
                    self.with_session(slot, counters, switches, |session, hands| {
                        session.cancel(hands)
                    })
                });
                self.answer(Some(command), id, outcome.unwrap_or_else(unknown));
            }
            ToWorker::Resolve(id, verdict, command) => {
                let outcome = self.slot_of(id).and_then(|slot| {
                    self.with_session(slot, counters, switches, |session, hands| {
                        session.resolve(verdict, hands)
                    })
                });
                self.answer(Some(command), id, outcome.unwrap_or_else(unknown));
            }
            ToWorker::Limit(id, bytes_per_s, command) => {
                let outcome = self.slot_of(id).and_then(|slot| {
                    self.with_session(slot, counters, switches, |session, hands| {
                        session.set_rate_limit(bytes_per_s, hands.now_ns);
                        Ok(())
                    })
                });
                self.answer(Some(command), id, outcome.unwrap_or_else(unknown));
            }
            ToWorker::SetMode(id, mode, command) => {
                let outcome = self.slot_of(id).and_then(|slot| {
                    self.with_session(slot, counters, switches, |session, _| {
                        session.set_mode(mode);
                        Ok(())
                    })
                });
                self.answer(Some(command), id, outcome.unwrap_or_else(unknown));
            }
            ToWorker::Redirect(id, peer, command) => {
                let outcome = self.slot_of(id).and_then(|slot| {
                    self.with_session(slot, counters, switches, |session, hands| {
                        session.redirect(peer, hands)
                    })
                });
                self.answer(Some(command), id, outcome.unwrap_or_else(unknown));
            }
            ToWorker::Forget(id, command) => {
                let outcome = self.forget(id, counters, switches);
                self.answer(Some(command), id, outcome);
            }
            ToWorker::Baselines(id, list) => {
                if let Some(slot) = self.slot_of(id) {
                    self.with_session(slot, counters, switches, |session, _| {
                        session.on_baselines(list);
                    });
                }
            }
            ToWorker::LaneUp(lane_up) => {
                if let Some(slot) = self.slot_of(lane_up.session) {
                    self.with_session(slot, counters, switches, |session, hands| {
                        session.on_lane_up(*lane_up, hands);
                    });
                }
            }
            ToWorker::LaneFailed {
                session,
                lane,
                over,
                failure,
                detail,
                fatal,
            } => {
                if let Some(slot) = self.slot_of(session) {
                    let fault = Fault::new(failure, detail);
                    self.with_session(slot, counters, switches, |session, hands| {
                        session.on_lane_failed(lane, over, &fault, fatal, hands);
                    });
                }
            }
            ToWorker::Stop => {
                self.stopping = true;
                let slots: Vec<u32> = self.sessions.iter().map(|(slot, _)| *slot).collect();
                for slot in slots {
                    self.with_session(slot, counters, switches, |session, hands| {
                        session.stop(hands);
                    });
                }
            }
        }
    }

    fn forget(
        &mut self,
        id: SessionId,
        counters: &WorkerCounters,
        switches: &Switches,
    ) -> Result<(), Fault> {
        let Some(slot) = self.slot_of(id) else {
            return Ok(());
        };
        let over = self.with_session(slot, counters, switches, |session, hands| {
            session.is_over().then(|| session.release_lanes(hands))
        });
        let Some(memory) = over.flatten() else {
            return Err(Fault::new(
                Failure::BadCommand,
                "the session is still running: cancel it first",
            ));
        };
        self.leaving.extend(memory);
        self.sessions.retain(|(known, _)| *known != slot);
        counters.sessions.set(self.sessions.len() as u64);
        self.tell_border(ToControl::Forgotten(id));
        Ok(())
    }

    /// Is this session here already (a repeated command), and is there room for one more?
    fn admit(
        &mut self,
        id: SessionId,
        role: Role,
        counters: &WorkerCounters,
        switches: &Switches,
    ) -> Result<bool, Fault> {
        if self.stopping {
            return Err(Fault::new(
                Failure::Limit,
                "this data plane is being stopped and waits for a switchover: start it again, or use \
                 another host",
            ));
        }
        if let Some((_, known)) = self.sessions.iter().find(|(_, session)| session.id() == id) {
            if known.is_source() == (role == Role::Source) {
                return Ok(false);
            }
            return Err(Fault::new(
                Failure::BadCommand,
                "this session is open here with the other role; source and destination must be \
                 different data planes",
            ));
        }
        let running = self
            .sessions
            .iter()
            .filter(|(_, session)| !session.is_over())
            .count();
        if running >= self.config.sessions_max {
            return Err(Fault::new(
                Failure::Limit,
                "sessions_max is reached; wait for a migration to end or raise it",
            ));
        }
        if self.sessions.len() >= dwcp_api::session::SESSIONS_MAX / 2 {
            // Nobody asked for the oldest ended one to be forgotten; its picture has been shown.
            let oldest = self.sessions.iter().find(|(_, session)| session.is_over());
            if let Some(oldest) = oldest.map(|(_, session)| session.id()) {
                self.forget(oldest, counters, switches)?;
            }
        }
        Ok(true)
    }

    fn offer_with(&self, limits: &dwcp_api::command::SessionLimits) -> Offer {
        let or = |asked: u64, own: u64| if asked == 0 { own } else { asked.min(own) };
        Offer {
            store_bytes: or(limits.store_bytes, self.offer.store_bytes),
            window_limit_bytes: or(limits.window_limit_bytes, self.offer.window_limit_bytes),
            ..self.offer
        }
    }

    fn open_source(
        &mut self,
        order: SourceOrder,
        counters: &WorkerCounters,
        switches: &Switches,
    ) -> Result<(), Fault> {
        if !self.admit(order.session, Role::Source, counters, switches)? {
            return Ok(());
        }
        let offer = self.offer_with(&order.limits);
        let encoders = self.encoders.count();
        let Room { mut offer, memory } = Room::reserve(&self.budget, offer, true, encoders)?;
        if order.max_version == dwcp_api::Version::V1 {
            offer.max_version = dwcp_api::Version::V1;
        }
        let slot = self.next_slot;
        let (path, listener) = match order.listen {
            Some(path) => {
                let listener = sockets::listen_unix(&path, rustix::net::SocketType::STREAM)
                    .map_err(|error| {
                        Fault::new(
                            Failure::System,
                            format!(
                                "{}: {error}; give a path in an existing directory",
                                path.display()
                            ),
                        )
                    })?;
                self.poller
                    .add_readable(&listener, Routes::token(slot, Routes::LISTENER))?;
                (path, Some(listener))
            }
            None => (std::path::PathBuf::new(), None),
        };
        let options = SessionOptions {
            id: order.session,
            role: Role::Source,
            slot,
            worker: self.index,
            socket_path: path,
            listener,
            peer: Some(order.peer),
            offer,
            memory,
            way: self.way,
            driver_fallback: self.config.driver_fallback,
            backing: self.config.hugepages.policy(),
            resume_limit_ns: self.resume_limit_ns(&order.limits),
            setup_limit_ns: self.config.setup_limit_ms.saturating_mul(1_000_000),
            rate_limit_bytes_per_s: order.limits.rate_limit_bytes_per_s,
            streams: self.stream_limits(),
            tenant: order.tenant,
            keeper: self.keeper.clone(),
        };
        self.add_session(options, counters)?;
        if let Some(first) = order.first {
            self.with_session(slot, counters, switches, |session, hands| {
                session.take_connection(first, hands);
            });
        }
        Ok(())
    }

    fn open_destination(
        &mut self,
        order: DestinationOrder,
        counters: &WorkerCounters,
        switches: &Switches,
    ) -> Result<(), Fault> {
        if !self.admit(order.session, Role::Destination, counters, switches)? {
            return Ok(());
        }
        let Room { offer, memory } = match order.room {
            Some(room) => room,
            None => Room::reserve(&self.budget, self.offer_with(&order.limits), false, 0)?,
        };
        let options = SessionOptions {
            id: order.session,
            role: Role::Destination,
            slot: self.next_slot,
            worker: self.index,
            socket_path: order.connect,
            listener: None,
            peer: None,
            offer,
            memory,
            way: Way::Tcp,
            driver_fallback: true,
            backing: self.config.hugepages.policy(),
            resume_limit_ns: self.resume_limit_ns(&order.limits),
            setup_limit_ns: self.config.setup_limit_ms.saturating_mul(1_000_000),
            rate_limit_bytes_per_s: order.limits.rate_limit_bytes_per_s,
            streams: self.stream_limits(),
            tenant: order.tenant,
            keeper: self.keeper.clone(),
        };
        self.add_session(options, counters)?;
        let expected = Expected {
            session: order.session,
            worker: self.index,
            offer,
        };
        self.door
            .send(ToDoor::Expect(Box::new(expected)))
            .map_err(|error| Fault::new(Failure::Limit, error.to_string()))
    }

    fn stream_limits(&self) -> StreamLimits {
        StreamLimits {
            lanes_min: self.config.lanes_min,
            lanes_start: self.config.lanes_v3,
            lanes_max: self.config.lanes_max,
        }
    }

    fn resume_limit_ns(&self, limits: &dwcp_api::command::SessionLimits) -> u64 {
        let asked_ms = limits.resume_limit_ms;
        let limit_ms = if asked_ms == 0 {
            self.config.resume_limit_ms
        } else {
            asked_ms
        };
        limit_ms.saturating_mul(1_000_000)
    }

    fn add_session(
        &mut self,
        options: SessionOptions,
        counters: &WorkerCounters,
    ) -> Result<(), Fault> {
        let cell = self.board.take_cell().ok_or_else(|| {
            Fault::new(
                Failure::Limit,
                "the session table is full: forget sessions that ended",
            )
        })?;
        let slot = options.slot;
        self.next_slot += 1;
        let (session, worker) = (options.id, self.index);
        if let Some(keeper) = &self.keeper {
            keeper.load(session, options.tenant.clone(), self.own.clone());
        }
        self.tell_border(ToControl::Opened { session, worker });
        self.sessions
            .push((slot, Session::new(options, cell, monotonic_ns())));
        counters.sessions_opened_total.add(1);
        Ok(())
    }

    /// A hypervisor connected without being announced.
    pub(super) fn take_passive(
        &mut self,
        index: usize,
        counters: &WorkerCounters,
        switches: &Switches,
    ) {
        while let Some((source, listener)) = self.passive.get(index) {
            let Ok(fd) = sockets::accept(listener) else {
                return;
            };
            let source = source.clone();
            // A connection joins the session that this socket has open; only when there is none, or
            // it is past its switchover, does a new one begin.
            let open = self
                .sessions
                .iter()
                .find(|(_, session)| session.takes_passive(&source));
            if let Some(slot) = open.map(|(slot, _)| *slot) {
                self.with_session(slot, counters, switches, |session, hands| {
                    session.take_connection(fd, hands);
                });
                continue;
            }
            let mut id = [0; 16];
            if getrandom::fill(&mut id).is_err() {
                tracing::error!("the system has no random bytes to give");
                return;
            }
            let order = SourceOrder {
                session: SessionId(id),
                listen: None,
                first: Some(fd),
                peer: Peer {
                    address: source.peer,
                    target: Some(source.target),
                    node: source.node,
                },
                max_version: self.offer.max_version,
                limits: dwcp_api::command::SessionLimits::default(),
                tenant: dwcp_baseline::Tenant::default(),
            };
            let outcome = self.open_source(order, counters, switches);
            self.answer(None, SessionId(id), outcome);
        }
    }
}
