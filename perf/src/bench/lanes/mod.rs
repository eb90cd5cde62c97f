//! Every lane back end against what it is to beat. In: how many pairs. Out: rows by back end: rate, rate by
//! second of processor time, system calls. Promises: a back end and its reference take turns over the same
//! cable, each with one worker a side on the same cores; a back end that cannot run here is an error that
//! says why, not a row less.
//!
//! A back end has a module here with a `run`, and a line in [`BACK_ENDS`]; [`end`] drives any
//! [`dwcp_drivers::lane::LaneGroup`] from one end, in a process of its own.

#[cfg(feature = "dpdk")]
pub mod dpdk;
#[cfg(not(feature = "dpdk"))]
#[path = "dpdk_absent.rs"]
mod dpdk;
pub mod end;
#[cfg(feature = "dpdk")]
mod hop;
mod rdma;
mod tcp;

use super::{Bench, Kind};
use crate::row::Row;

/// The back ends, each a bench of its own too.
pub(super) const BACK_ENDS: [Bench; 3] = [
    Bench {
        name: "lanes-rdma",
        about: "an RDMA lane against ib_write_bw, over software devices in a virtual machine",
        kind: Kind::Own,
        run: rdma::run,
    },
    Bench {
        name: "lanes-dpdk",
        about: "a reliable lane over memif against dpdk-testpmd txonly to rxonly",
        kind: Kind::Own,
        run: dpdk::run,
    },
    Bench {
        name: "lanes-tcp",
        about: "a TCP lane over a veth pair against iperf3 with a single stream",
        kind: Kind::Own,
        run: tcp::run,
    },
];

/// All back ends.
pub(super) fn run(runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for back_end in &BACK_ENDS {
        rows.extend((back_end.run)(runs)?);
    }
    Ok(rows)
}

/// A core for each side; the same one if there is only one.
fn cores() -> [usize; 2] {
    let all = core_affinity::get_core_ids().unwrap_or_default();
    let at = |index: usize| {
        all.get(index)
            .or_else(|| all.last())
            .map_or(0, |core| core.id)
    };
    [at(0), at(1)]
}
