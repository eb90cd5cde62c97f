//! Who may do what, how often, and what was done.
//!
//! | module | what |
//! |---|---|
//! | [`scope`] | what a token allows |
//! | [`tokens`] | tokens that were handed out, stored as digests |
//! | [`rate`] | requests a second, for each who asks |
//! | [`idempotency`] | a request sent twice runs once |
//! | [`audit`] | every change and who made it |

pub mod audit;
pub mod idempotency;
pub mod rate;
pub mod scope;
pub mod tokens;
