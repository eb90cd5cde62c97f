//! Baselines: blocks that both hosts already have, on disk, by tenant.
//!
//! In: disk images, and the pages of migrations that went well. Out: manifests, ordered lists of block
//! digests with a name that is the same on every host which indexed the same contents; and blocks by their
//! number in a manifest. Promises: a block is handed out only if its digest agrees; a kill at any moment, a
//! full disk or a flipped byte leaves a store that opens and lies about nothing; the store stays within its
//! bound by giving up whole manifests, those unused for longest first; a tenant sees its own manifests alone.
//!
//! | module | what |
//! |---|---|
//! | [`names`] | tenants and manifest ids |
//! | [`block`] | blocks and their digest |
//! | [`hash`] | the fast keyed hash of a page |
//! | [`manifest`] | the manifest file |
//! | [`baseline`] | a manifest in memory: find a block by its contents, read one by its number |
//! | [`store`] | the folder: open, list, load, remove, collect what is left over |
//! | [`add`] | writing a manifest and the blocks that are new |
//! | [`check`] | verifying, and putting a damaged block right |
//! | [`image`] | disk images as blocks |
//! | [`error`] | what can go wrong |
//!
//! ```text
//! DIR/lock                     taken by whoever writes
//! DIR/secret                   keys the fast hash of this store
//! DIR/tenants/T/ID.manifest    see the manifest module; its time of change is its last use
//! DIR/tenants/T/N.blocks       blocks of 4096 bytes, nothing else; a manifest says which is where
//! ```
//!
//! [`Store::held`] is all that anybody who wants to replicate a store's contents needs to ask.

pub mod add;
pub mod baseline;
pub mod block;
pub mod check;
pub mod error;
mod files;
pub mod hash;
pub mod image;
pub mod manifest;
pub mod names;
pub mod store;
#[cfg(test)]
mod tests;

pub use add::Blocks;
pub use baseline::{Baseline, BlockError};
pub use block::{BLOCK_BYTES, Block, Digest};
pub use check::Report;
pub use error::StoreError;
pub use manifest::{Kind, Summary};
pub use names::{ManifestId, Tenant};
pub use store::{Limits, Store};
