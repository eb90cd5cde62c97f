//! How fast the product is, measured against what it is to beat.
//!
//! - [`row`]: one measured figure beside its reference, medians, the table and the JSON
//! - [`bench`]: what can be measured, by name
//! - [`ab`]: two commits side by side
//! - [`compare`]: guests moved by the product and by their hypervisor's own ways, side by side
//! - [`corpus`]: recorded migration streams of those guests
//! - [`encode`]: the codec alone, on such streams
//! - `pump`: a stream without end through two data planes
//! - `hugepages`: memory that costs the same every time
//! - [`processes`]: processor time of running processes

pub mod ab;
pub mod bench;
pub mod compare;
mod cores;
pub mod corpus;
pub mod encode;
mod hugepages;
pub mod processes;
mod pump;
pub mod row;
