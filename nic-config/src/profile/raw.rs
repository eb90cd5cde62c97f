//! A profile as TOML has it: tables and keys, each value with its place in the text.
//!
//! In: TOML. Out: [`Raw`]. Promise: a key that is not known, a value of another kind, and a list where a table
//! belongs are errors; whether a value makes sense is not looked at here.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) name: Option<String>,
    pub(super) nic: Spanned<Table<RawNic>>,
    #[serde(default)]
    pub(super) driver: Table<RawDriver>,
    #[serde(default)]
    pub(super) link: Table<RawLink>,
    #[serde(default)]
    pub(super) rings: Table<RawRings>,
    #[serde(default)]
    pub(super) queues: Table<RawQueues>,
    #[serde(default)]
    pub(super) offloads: BTreeMap<String, Spanned<bool>>,
    #[serde(default)]
    pub(super) sriov: Table<RawSriov>,
    pub(super) hugepages: Option<Table<RawHugepages>>,
    #[serde(default)]
    pub(super) cores: Table<RawCores>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNic {
    pub(super) pci: Option<Spanned<String>>,
    pub(super) interface: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDriver {
    pub(super) bind: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLink {
    pub(super) mtu: Option<Spanned<u32>>,
    pub(super) up: Option<Spanned<bool>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRings {
    pub(super) rx: Option<Spanned<Amount>>,
    pub(super) tx: Option<Spanned<Amount>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawQueues {
    pub(super) count: Option<Spanned<Amount>>,
    pub(super) cores: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSriov {
    pub(super) vfs: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHugepages {
    pub(super) size_kib: Spanned<u32>,
    pub(super) pages: Spanned<u32>,
    pub(super) nodes: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCores {
    pub(super) isolated: Option<Spanned<String>>,
}

/// A table, and nothing else: serde takes a list for a structure too, by the order of its fields.
#[derive(Default)]
pub(super) struct Table<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Table<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Table<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(entries)).map(Table)
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// A number, or a word in its place.
pub(super) enum Amount {
    Number(u32),
    Word(String),
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Amount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number or a word")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Amount, E> {
                u32::try_from(number)
                    .map(Amount::Number)
                    .map_err(|_| E::custom(format!("{number} is out of range")))
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Amount, E> {
                Ok(Amount::Word(word.to_owned()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}
