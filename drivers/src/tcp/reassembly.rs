//! A byte stream cut back into frames.
//!
//! Comes in: bytes as they arrive, in pieces of any size. Goes out: whole frames. Promises: a length
//! is checked before a buffer is taken; at most one buffer is held; no byte is taken while there is
//! no buffer for it; a frame that is not complete is never handed out.

use crate::MAX_FRAME_BYTES;
use crate::frame::{Frame, FrameMut, FramePools, PREFIX_BYTES};
use crate::lane::LaneClosed;

enum State {
    /// Within the length prefix.
    Prefix {
        bytes: [u8; PREFIX_BYTES],
        have: usize,
    },
    /// The length is known and good, and the pools had no buffer.
    Waiting { len: usize },
    /// Within the payload.
    Body {
        frame: FrameMut,
        len: usize,
        filled: usize,
    },
}

impl State {
    const START: Self = Self::Prefix {
        bytes: [0; PREFIX_BYTES],
        have: 0,
    };
}

/// What one step came to.
#[derive(Debug)]
pub(super) enum Step {
    /// A whole frame.
    Frame(Frame),
    /// All input was taken; more is needed.
    NeedInput,
    /// The pools are empty; the rest of the input was not taken.
    NoBuffer,
}

/// One lane's place in its incoming stream.
pub(super) struct Reassembler {
    state: State,
}

impl Reassembler {
    pub(super) fn new() -> Self {
        Self {
            state: State::START,
        }
    }

    /// Whether the stream stands inside a frame, so that its end here is a cut.
    pub(super) fn mid_frame(&self) -> bool {
        !matches!(self.state, State::Prefix { have: 0, .. })
    }

    /// Whether the next step gives a frame without any input.
    pub(super) fn complete(&self) -> bool {
        matches!(self.state, State::Body { len, filled, .. } if filled == len)
    }

    /// Takes bytes from the front of `input` up to the end of one frame.
    ///
    /// # Errors
    /// [`LaneClosed::BadLength`]; the stream is useless from there on.
    pub(super) fn step(
        &mut self,
        input: &mut &[u8],
        pools: &FramePools,
    ) -> Result<Step, LaneClosed> {
        loop {
            match &mut self.state {
                State::Prefix { bytes, have } => {
                    *have += fill(&mut bytes[*have..], input);
                    if *have < PREFIX_BYTES {
                        return Ok(Step::NeedInput);
                    }
                    let announced_bytes = u32::from_le_bytes(*bytes);
                    let len = announced_bytes as usize;
                    if !(1..=MAX_FRAME_BYTES).contains(&len) {
                        return Err(LaneClosed::BadLength { announced_bytes });
                    }
                    self.state = State::Waiting { len };
                }
                State::Waiting { len } => match pools.take(*len) {
                    Some(frame) => {
                        self.state = State::Body {
                            frame,
                            len: *len,
                            filled: 0,
                        }
                    }
                    None => return Ok(Step::NoBuffer),
                },
                State::Body { frame, len, filled } => {
                    *filled += fill(&mut frame.payload_mut()[*filled..*len], input);
                    if *filled < *len {
                        return Ok(Step::NeedInput);
                    }
                    break;
                }
            }
        }
        match std::mem::replace(&mut self.state, State::START) {
            State::Body { frame, len, .. } => match frame.freeze(len) {
                Ok(frame) => Ok(Step::Frame(frame)),
                // `take` gave a buffer of at least `len`, so this is not reached; if it were, the
                // stream could not go on.
                Err(_) => Err(LaneClosed::Truncated),
            },
            State::Prefix { .. } | State::Waiting { .. } => Ok(Step::NeedInput),
        }
    }

    /// The part of the payload that is missing, for a read straight into it. What was read is told
    /// to [`Reassembler::filled`]; until then the memory must not be touched otherwise.
    pub(super) fn missing(&mut self) -> Option<&mut [u8]> {
        match &mut self.state {
            State::Body { frame, len, filled } if *filled < *len => {
                frame.payload_mut().get_mut(*filled..*len)
            }
            _ => None,
        }
    }

    /// `bytes` more of the payload are in place.
    pub(super) fn filled(&mut self, bytes: usize) {
        if let State::Body { len, filled, .. } = &mut self.state {
            *filled = (*filled + bytes).min(*len);
        }
    }
}

/// Moves as much as fits from the front of `input`.
fn fill(space: &mut [u8], input: &mut &[u8]) -> usize {
    let taken = space.len().min(input.len());
    let (now, later) = input.split_at(taken);
    space[..taken].copy_from_slice(now);
    *input = later;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FramePoolsConfig;
    use dwcp_hugepages::arena::BackingPolicy;
    use proptest::prelude::*;

    fn pools(each: usize) -> FramePools {
        FramePools::new(&FramePoolsConfig {
            small: each,
            medium: each,
            large: each,
            backing: BackingPolicy::Ordinary,
        })
        .unwrap()
    }

    fn stream(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut wire = Vec::new();
        for frame in frames {
            wire.extend_from_slice(&(frame.len() as u32).to_le_bytes());
            wire.extend_from_slice(frame);
        }
        wire
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_frames(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..5000), 1..12),
            cuts in prop::collection::vec(1usize..3000, 1..40),
        ) {
            let pools = pools(4);
            let wire = stream(&frames);
            let mut reassembler = Reassembler::new();
            let mut got = Vec::new();
            let mut rest = &wire[..];
            for cut in cuts.iter().cycle() {
                let (mut piece, later) = rest.split_at((*cut).min(rest.len()));
                rest = later;
                while let Step::Frame(frame) = reassembler.step(&mut piece, &pools).unwrap() {
                    got.push(frame.bytes().to_vec());
                }
                prop_assert!(piece.is_empty());
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(got, frames);
            prop_assert!(!reassembler.mid_frame());
        }

        #[test]
        fn hostile_bytes_hold_one_buffer_at_most(
            bytes in prop::collection::vec(any::<u8>(), 0..9000),
        ) {
            let pools = pools(2);
            let before = pools.available();
            let mut reassembler = Reassembler::new();
            let mut input = &bytes[..];
            while let Ok(Step::Frame(_)) = reassembler.step(&mut input, &pools) {}
            let now = pools.available();
            let held = before.small + before.medium + before.large
                - now.small - now.medium - now.large;
            prop_assert!(held <= 1);
        }
    }

    #[test]
    fn a_bad_length_takes_no_buffer() {
        let pools = pools(1);
        let before = pools.available();
        for announced_bytes in [0, MAX_FRAME_BYTES as u32 + 1, u32::MAX] {
            let wire = announced_bytes.to_le_bytes();
            let refused = Reassembler::new().step(&mut &wire[..], &pools).unwrap_err();
            assert_eq!(refused, LaneClosed::BadLength { announced_bytes });
            assert_eq!(pools.available(), before);
        }
    }

    #[test]
    fn without_a_buffer_no_payload_byte_is_taken_and_none_is_lost() {
        let pools = FramePools::new(&FramePoolsConfig {
            small: 1,
            medium: 0,
            large: 0,
            backing: BackingPolicy::Ordinary,
        })
        .unwrap();
        let held = pools.take(1).unwrap();
        let wire = stream(&[vec![7; 100]]);
        let mut input = &wire[..];
        let mut reassembler = Reassembler::new();
        assert!(matches!(
            reassembler.step(&mut input, &pools),
            Ok(Step::NoBuffer)
        ));
        assert_eq!(input.len(), 100);
        assert!(reassembler.mid_frame());
        drop(held);
        let Ok(Step::Frame(frame)) = reassembler.step(&mut input, &pools) else {
            panic!("a buffer was free")
        };
        assert_eq!(frame.bytes(), &[7; 100]);
    }

    #[test]
    fn direct_reads_complete_a_frame() {
        let pools = pools(1);
        let wire = stream(&[vec![9; 50_000]]);
        let mut reassembler = Reassembler::new();
        let mut input = &wire[..1004];
        assert!(matches!(
            reassembler.step(&mut input, &pools),
            Ok(Step::NeedInput)
        ));
        let missing = reassembler.missing().unwrap();
        assert_eq!(missing.len(), 49_000);
        missing.fill(9);
        reassembler.filled(48_999);
        assert!(matches!(
            reassembler.step(&mut &[][..], &pools),
            Ok(Step::NeedInput)
        ));
        reassembler.filled(1);
        let Ok(Step::Frame(frame)) = reassembler.step(&mut &[][..], &pools) else {
            panic!("the frame is complete")
        };
        assert_eq!(frame.bytes(), &[9; 50_000][..]);
    }
}
