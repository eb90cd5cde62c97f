//! The parts of a worker's work, for counters and flame graphs: the names under which time and bytes
//! are shown. In: a number. Out: a name, and what it stands for. A worker is in one stage at a time.

use crate::ids::closed_set;

closed_set! {
    /// A part of a worker's work.
    Stage {
        /// Reading hypervisors' connections.
        Intake = 0, "intake";
        /// Cutting what was read into batches of tokens.
        Stream = 1, "stream";
        /// Encoding batches, and the digest that vouches for them.
        Codec = 2, "codec";
        /// Sequence, windows, acknowledgements, headers.
        Transport = 3, "transport";
        /// The driver: frames to and from lanes.
        Lanes = 4, "lanes";
        /// Decoding batches, and checking their digest.
        Decode = 5, "decode";
        /// Writing hypervisors' connections.
        Release = 6, "release";
        /// The rest: messages, timers, readiness of descriptors, pictures of sessions.
        Engine = 7, "engine";
    }
}

/// How many stages there are.
pub const STAGES: usize = Stage::ALL.len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_places_in_an_array() {
        for (place, stage) in Stage::ALL.iter().enumerate() {
            assert_eq!(stage.code() as usize, place);
        }
    }
}
