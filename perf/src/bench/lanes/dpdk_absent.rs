//! The bench of DPDK lanes in a build without DPDK. In: nothing. Out: an error that says how to build it.

use anyhow::bail;

use crate::row::Row;

pub(super) fn run(_: Option<usize>) -> anyhow::Result<Vec<Row>> {
    bail!(
        "this dwcp-perf was built without DPDK: install libdpdk-dev, libclang-dev and pkg-config, then \
         cargo run --release -p dwcp-perf --features dpdk -- bench lanes-dpdk"
    )
}
