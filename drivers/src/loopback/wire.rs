//! One direction of a lane in memory.
//!
//! Comes in: frames, an end, or a cut, from one group. Goes out: the same to the other, as the
//! mangler lets them. Promises: at most [`WIRE_BYTES_MAX`] and one frame lie on it; each change rings
//! the side that may wait for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::mangler::{Fate, Mangler};
use crate::frame::{Frame, Relief};
use crate::wake::Waker;

/// What a socket's buffers would hold.
const WIRE_BYTES_MAX: usize = 2 << 20;

struct Item {
    frame: Frame,
    /// The byte at this place is changed by these bits on arrival.
    flip: Option<(usize, u8)>,
    /// Looks of the receiver that still find nothing.
    delay_polls: u32,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    /// Waits for the next frame, to go behind it.
    overtaken: Option<Item>,
    bytes: usize,
    ended: bool,
    cut: bool,
    mangler: Option<Box<dyn Mangler>>,
    sender: Option<Arc<Waker>>,
    receiver: Option<Arc<Waker>>,
}

impl State {
    fn put(&mut self, item: Item) {
        self.bytes += item.frame.len();
        self.items.push_back(item);
        if let Some(late) = self.overtaken.take() {
            self.items.push_back(late);
        }
    }

    fn ring(&self) {
        for waker in [&self.sender, &self.receiver].into_iter().flatten() {
            waker.wake();
        }
    }

    fn cut(&mut self) {
        self.cut = true;
        self.items.clear();
        self.overtaken = None;
        self.bytes = 0;
        self.ring();
    }
}

/// What the receiver found.
pub(super) enum Arrival {
    Frame(Frame),
    /// There is a frame and no buffer for it.
    NoBuffer(Relief),
    Nothing,
    /// There is a frame that must wait; look again.
    Delayed,
    Ended,
    Cut,
}

pub(super) struct Wire {
    state: Mutex<State>,
}

impl Wire {
    pub(super) fn new(mangler: Option<Box<dyn Mangler>>) -> Self {
        Self {
            state: Mutex::new(State {
                mangler,
                ..State::default()
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn sender_is(&self, waker: &Arc<Waker>) {
        self.state().sender = Some(Arc::clone(waker));
    }

    pub(super) fn receiver_is(&self, waker: &Arc<Waker>) {
        self.state().receiver = Some(Arc::clone(waker));
    }

    /// Puts a frame on the wire, or gives it back when there is no room. On a cut wire it is lost.
    pub(super) fn push(&self, frame: Frame) -> Result<(), Frame> {
        let mut state = self.state();
        if state.cut {
            return Ok(());
        }
        if state.bytes > 0 && state.bytes + frame.len() > WIRE_BYTES_MAX {
            return Err(frame);
        }
        let fate = state
            .mangler
            .as_mut()
            .map_or(Fate::Pass, |mangler| mangler.frame(frame.bytes()));
        let mut item = Item {
            frame,
            flip: None,
            delay_polls: 0,
        };
        match fate {
            Fate::Pass => state.put(item),
            Fate::Drop => {}
            Fate::Repeat => {
                let again = Item {
                    frame: item.frame.clone(),
                    flip: None,
                    delay_polls: 0,
                };
                state.put(item);
                state.put(again);
            }
            Fate::Swap => {
                state.bytes += item.frame.len();
                if let Some(earlier) = state.overtaken.replace(item) {
                    state.items.push_back(earlier);
                }
            }
            Fate::Delay { polls } => {
                item.delay_polls = polls;
                state.put(item);
            }
            Fate::Corrupt { at, xor } => {
                item.flip = Some((at, xor));
                state.put(item);
            }
            Fate::Cut => state.cut(),
        }
        state.ring();
        Ok(())
    }

    /// Takes the next frame, copied by `land`.
    pub(super) fn pop(&self, land: impl FnOnce(&[u8]) -> Result<Frame, Relief>) -> Arrival {
        let mut state = self.state();
        if state.cut {
            return Arrival::Cut;
        }
        if state.items.is_empty()
            && let Some(late) = state.overtaken.take()
        {
            // Nothing came to overtake it.
            state.items.push_back(late);
        }
        let Some(item) = state.items.front_mut() else {
            return if state.ended {
                Arrival::Ended
            } else {
                Arrival::Nothing
            };
        };
        if item.delay_polls > 0 {
            item.delay_polls -= 1;
            return Arrival::Delayed;
        }
        let landed = match item.flip {
            Some((at, xor)) => {
                let mut bytes = item.frame.bytes().to_vec();
                let at = at % bytes.len();
                bytes[at] ^= xor;
                land(&bytes)
            }
            None => land(item.frame.bytes()),
        };
        match landed {
            Ok(frame) => {
                state.bytes -= frame.len();
                state.items.pop_front();
                state.ring();
                Arrival::Frame(frame)
            }
            Err(since) => Arrival::NoBuffer(since),
        }
    }

    /// Nothing more will be pushed.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        state.ring();
    }

    /// Takes everything off the wire, for good.
    pub(super) fn cut(&self) {
        self.state().cut();
    }

    pub(super) fn is_cut(&self) -> bool {
        self.state().cut
    }

    /// Whether the sender ended and the receiver took everything.
    pub(super) fn has_ended(&self) -> bool {
        let state = self.state();
        state.ended && state.items.is_empty() && state.overtaken.is_none()
    }

    /// Whether the receiver would find something. An end is news only to who does not know it.
    pub(super) fn has_news(&self, knows_the_end: bool) -> bool {
        let state = self.state();
        let frames = !state.items.is_empty() || state.overtaken.is_some();
        frames || state.cut || (state.ended && !knows_the_end)
    }

    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let state = self.state();
        state.cut || state.bytes == 0 || state.bytes + bytes <= WIRE_BYTES_MAX
    }
}
