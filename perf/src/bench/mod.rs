//! What can be measured, by name. In: a name and how often. Out: rows. Promises: ours and the reference
//! take turns in one run, so that what else the machine does meets both.

mod inpath;
mod ring;
mod rollback;

use crate::row::Row;

/// One bench.
pub struct Bench {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it measures.
    pub about: &'static str,
    /// Measures, as often as asked for or as often as it thinks right.
    pub run: fn(Option<usize>) -> anyhow::Result<Vec<Row>>,
}

/// All there are.
pub const BENCHES: [Bench; 3] = [
    Bench {
        name: "inpath",
        about: "a migration through two data planes against the hypervisor alone, on a free link",
        run: inpath::run,
    },
    Bench {
        name: "ring",
        about: "records a second through the shared ring against rtrb, 64-byte records",
        run: ring::run,
    },
    Bench {
        name: "rollback",
        about: "from the kill switch's request to the first v1 batch, under a running migration",
        run: rollback::run,
    },
];

/// The bench of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Bench> {
    BENCHES.iter().find(|bench| bench.name == name)
}

/// All names, for people.
#[must_use]
pub fn names() -> String {
    BENCHES.map(|bench| bench.name).join(", ")
}
