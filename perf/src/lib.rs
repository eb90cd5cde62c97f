//! How fast the product is, measured against what it is to beat.
//!
//! - [`row`]: one measured figure beside its reference, medians, the table and the JSON
//! - [`bench`]: what can be measured, by name
//! - [`processes`]: processor time of running processes

pub mod bench;
pub mod processes;
pub mod row;
