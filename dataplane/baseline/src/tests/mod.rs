//! The store against kills, full disks, flipped bytes, changed images and other tenants.

mod faults;
mod life;

use crate::add::Blocks;
use crate::block::{BLOCK_BYTES, Block};
use crate::error::StoreError;
use crate::manifest::{Kind, Summary};
use crate::names::Tenant;
use crate::store::{Limits, Store};

/// Blocks by number: block `n` is filled from `n`, block 0 is zero.
pub struct Numbered {
    numbers: Vec<u64>,
    at: usize,
}

pub fn numbered(numbers: impl IntoIterator<Item = u64>) -> Numbered {
    Numbered {
        numbers: numbers.into_iter().collect(),
        at: 0,
    }
}

pub fn block(number: u64) -> Block {
    let mut block = [0; BLOCK_BYTES];
    if number != 0 {
        blake3::Hasher::new()
            .update(&number.to_le_bytes())
            .finalize_xof()
            .fill(&mut block);
    }
    block
}

impl Blocks for Numbered {
    fn next(&mut self, into: &mut Block) -> Result<bool, StoreError> {
        let Some(&number) = self.numbers.get(self.at) else {
            return Ok(false);
        };
        *into = block(number);
        self.at += 1;
        Ok(true)
    }

    fn position(&self) -> u64 {
        (self.at * BLOCK_BYTES) as u64
    }
}

pub const LIMITS: Limits = Limits {
    bytes_max: 64 << 20,
    migrations_max: 2,
};

pub fn tenant(name: &str) -> Tenant {
    Tenant::new(name).unwrap()
}

pub fn add(
    store: &Store,
    owner: &str,
    numbers: impl IntoIterator<Item = u64>,
) -> Result<Summary, StoreError> {
    let named = (Kind::Image, "an image");
    store.add(&tenant(owner), named, &mut numbered(numbers), &mut |_| true)
}

/// Every block of a manifest is what it was.
pub fn is_intact(store: &Store, owner: &str, summary: &Summary) -> bool {
    let report = store.verify(&tenant(owner), summary.id, &mut |_| true);
    report.is_ok_and(|report| report.damaged == 0 && report.blocks == summary.blocks)
}
