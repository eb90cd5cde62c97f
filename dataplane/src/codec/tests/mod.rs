//! The codec as a whole: synthetic guests on one side, hostile peers on the other.

mod guest;
mod hostile;
mod known;
mod round_trip;
mod seeds;
