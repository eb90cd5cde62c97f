//! What the data plane tells the control plane. Events are hints to look: the truth is the session
//! table in the stats segment, so an event lost to a full ring loses no fact.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ids::{Failure, Role, SessionId, SessionState};
use crate::text::Text;

/// Longest explanation, in bytes.
pub const DETAIL_BYTES: usize = 200;

/// One slot of the event ring.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EventRecord {
    at_ns: u64,
    command_id: u64,
    session: SessionId,
    kind: u32,
    role: u32,
    state: u32,
    failure: u32,
    detail: Text<DETAIL_BYTES>,
}

/// An event that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The answer to a command: [`Failure::None`] if it was carried out.
    Answer {
        /// Id of the command.
        command_id: u64,
        /// Session it named.
        session: SessionId,
        /// What went wrong.
        failure: Failure,
        /// What to do about it.
        detail: Text<DETAIL_BYTES>,
    },
    /// A session changed its state.
    State {
        /// Which one.
        session: SessionId,
        /// Our end of it.
        role: Role,
        /// The new state.
        state: SessionState,
        /// Why, if it failed.
        failure: Failure,
        /// What to do about it.
        detail: Text<DETAIL_BYTES>,
    },
}

/// A record that is no event.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "event field {field} holds {found}, which this control plane does not know: update it to the data plane's version"
)]
pub struct EventError {
    /// Name of the field.
    pub field: &'static str,
    /// Its value.
    pub found: u32,
}

const ANSWER: u32 = 1;
const STATE: u32 = 2;

impl EventRecord {
    /// Writes an event into a record, stamped with `CLOCK_MONOTONIC` nanoseconds.
    #[must_use]
    pub fn encode(at_ns: u64, event: &Event) -> Self {
        match event {
            Event::Answer {
                command_id,
                session,
                failure,
                detail,
            } => Self {
                at_ns,
                command_id: *command_id,
                session: *session,
                kind: ANSWER,
                role: 0,
                state: 0,
                failure: failure.code(),
                detail: *detail,
            },
            Event::State {
                session,
                role,
                state,
                failure,
                detail,
            } => Self {
                at_ns,
                command_id: 0,
                session: *session,
                kind: STATE,
                role: role.code(),
                state: state.code(),
                failure: failure.code(),
                detail: *detail,
            },
        }
    }

    /// When it happened, `CLOCK_MONOTONIC` nanoseconds.
    #[must_use]
    pub const fn at_ns(&self) -> u64 {
        self.at_ns
    }

    /// Reads a record that came across the border.
    ///
    /// # Errors
    /// [`EventError`] if a field holds a value that is not known.
    pub fn decode(&self) -> Result<Event, EventError> {
        let failure = Failure::from_code(self.failure).ok_or(EventError {
            field: "failure",
            found: self.failure,
        })?;
        match self.kind {
            ANSWER => Ok(Event::Answer {
                command_id: self.command_id,
                session: self.session,
                failure,
                detail: self.detail,
            }),
            STATE => Ok(Event::State {
                session: self.session,
                role: Role::from_code(self.role).ok_or(EventError {
                    field: "role",
                    found: self.role,
                })?,
                state: SessionState::from_code(self.state).ok_or(EventError {
                    field: "state",
                    found: self.state,
                })?,
                failure,
                detail: self.detail,
            }),
            found => Err(EventError {
                field: "kind",
                found,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_reads_back() {
        let session = SessionId([9; 16]);
        let detail = Text::clipped("try again");
        let events = [
            Event::Answer {
                command_id: 4,
                session,
                failure: Failure::Limit,
                detail,
            },
            Event::State {
                session,
                role: Role::Source,
                state: SessionState::Active,
                failure: Failure::None,
                detail,
            },
        ];
        for event in events {
            let record = EventRecord::encode(11, &event);
            assert_eq!(record.at_ns(), 11);
            assert_eq!(record.decode().unwrap(), event);
        }
    }

    #[test]
    fn an_unknown_kind_is_a_typed_error() {
        let mut record = EventRecord::encode(
            0,
            &Event::Answer {
                command_id: 0,
                session: SessionId([0; 16]),
                failure: Failure::None,
                detail: Text::EMPTY,
            },
        );
        record.kind = 5;
        assert_eq!(
            record.decode(),
            Err(EventError {
                field: "kind",
                found: 5
            })
        );
    }
}
