//! What can be measured, by name. In: a name and how often. Out: rows. Promises: ours and the reference
//! take turns in one run, so that what else the machine does meets both.

pub(crate) mod codec;
mod consensus;
mod endless;
mod inpath;
pub mod lanes;
pub mod lossy;
mod mode;
mod postcopy;
mod ring;
mod rollback;
mod sampling;
pub mod scaling;
mod scrape;
mod seal;
mod sharing;
mod stream;
mod watched;

use crate::row::Row;

/// Whose code a bench measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The product's processes, which it starts.
    Product,
    /// What was built into its own process.
    Own,
}

/// One bench.
pub struct Bench {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it measures.
    pub about: &'static str,
    /// Whose code that is.
    pub kind: Kind,
    /// Measures, as often as asked for or as often as it thinks right.
    pub run: fn(Option<usize>) -> anyhow::Result<Vec<Row>>,
}

/// All there are, but for the single back ends of `lanes`.
const BENCHES: [Bench; 16] = [
    Bench {
        name: "codec",
        about: "encoder and decoder on one core, path by path, LZ4 and zstd beside plain calls of them",
        kind: Kind::Own,
        run: codec::run,
    },
    Bench {
        name: "consensus",
        about: "commits of the replicated log against etcd's, three members each, 1 and 64 clients",
        kind: Kind::Own,
        run: consensus::run,
    },
    Bench {
        name: "inpath",
        about: "a migration through two data planes against the hypervisor alone, on a free link",
        kind: Kind::Product,
        run: inpath::run,
    },
    Bench {
        name: "lanes",
        about: "every lane back end against its reference, one worker a side",
        kind: Kind::Own,
        run: lanes::run,
    },
    Bench {
        name: "lossy",
        about: "a reliable lane against kernel TCP over a line that loses, reorders and doubles",
        kind: Kind::Own,
        run: lossy::run,
    },
    Bench {
        name: "mode",
        about: "from a change of the line to the new mode in force, under a running migration",
        kind: Kind::Product,
        run: mode::run,
    },
    Bench {
        name: "postcopy",
        about: "how long a guest waits for its pages in post-copy, over 200 Mbit/s and 40 ms",
        kind: Kind::Product,
        run: postcopy::run,
    },
    Bench {
        name: "ring",
        about: "records a second through the shared ring against rtrb, 64-byte records",
        kind: Kind::Own,
        run: ring::run,
    },
    Bench {
        name: "rollback",
        about: "from the kill switch's request to the first v1 batch, under a running migration",
        kind: Kind::Product,
        run: rollback::run,
    },
    Bench {
        name: "scrape",
        about: "what one scrape of /metrics costs the control plane of a busy node",
        kind: Kind::Product,
        run: scrape::run,
    },
    Bench {
        name: "sampling",
        about: "two data planes sampled for flame graphs against the same left alone",
        kind: Kind::Product,
        run: sampling::run,
    },
    Bench {
        name: "scaling",
        about: "what 1 to 16 workers a side carry, over loopback TCP and memif, as far as cores go",
        kind: Kind::Own,
        run: scaling::run,
    },
    Bench {
        name: "sharing",
        about: "four guests at once over one thin and far line: how evenly, and what each guest notices",
        kind: Kind::Product,
        run: sharing::run,
    },
    Bench {
        name: "seal",
        about: "encrypting and decrypting batches on one core, against AES-128-GCM of ring",
        kind: Kind::Own,
        run: seal::run,
    },
    Bench {
        name: "stream",
        about: "a stream without end through two data planes; for `ab`, it has no reference",
        kind: Kind::Product,
        run: stream::run,
    },
    Bench {
        name: "watched",
        about: "migrations that are scraped and traced, beside the same left alone",
        kind: Kind::Product,
        run: watched::run,
    },
];

/// All there are.
pub fn all() -> impl Iterator<Item = &'static Bench> {
    BENCHES.iter().chain(&lanes::BACK_ENDS)
}

/// The bench of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Bench> {
    all().find(|bench| bench.name == name)
}

/// All names, for people.
#[must_use]
pub fn names() -> String {
    all().map(|bench| bench.name).collect::<Vec<_>>().join(", ")
}
