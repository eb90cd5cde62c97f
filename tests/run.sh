#!/usr/bin/env bash
# Sets a fresh Debian 12 machine with Rust up and runs every test. Root; about an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$(date +%s)
step() { printf '\n== %s (%d s)\n' "$1" "$(($(date +%s) - started))"; }

step "packages"
bash tests/lab/setup.sh
bash tests/setup.sh
bash tests/page/setup.sh
for tool in nextest fuzz deny deb; do
    command -v "cargo-$tool" >/dev/null || cargo install --locked "cargo-$tool"
done

# Real hugepages where the machine has them to give; the tests say which they got.
hugepages=/proc/sys/vm/nr_hugepages
before=$(cat "$hugepages" 2>/dev/null || echo 0)
restore() { echo "$before" >"$hugepages" 2>/dev/null || true; }
trap restore EXIT
if [ "$before" -lt 64 ]; then echo 64 >"$hugepages" 2>/dev/null || true; fi
echo "hugepages of 2 MiB: $(cat "$hugepages" 2>/dev/null || echo none)"

# Nothing is built a second time after a change here, so nothing needs to be kept for that.
export CARGO_INCREMENTAL=0
# All that is tested is built as parts of one workspace with one set of features: another choice of packages or of
# features would build most of it again. It is the choice of `tests/src/binary.rs` too.
everything=(--workspace --tests --features dwcp-tests/dpdk,dwcp-tests/rdma,dwcp-perf/dpdk)

step "format, lints, licences"
cargo fmt --all --check
# Without libdpdk and libibverbs, as a newcomer builds it; then with.
cargo clippy --workspace --all-targets -- -D warnings
cargo clippy --workspace --all-features --all-targets -- -D warnings
cargo deny --all-features check bans licenses sources

step "build"
cargo build "${everything[@]}" --bins

step "the replicated log in virtual time"
DWCP_SEEDS=${DWCP_SEEDS:-1000} cargo nextest run "${everything[@]}" --no-capture -E 'package(dwcp-consensus) & test(=sim::tests::seeds_hold)'

step "package"
bash tests/package.sh

step "fuzz targets"
# libFuzzer needs unstable compiler flags; the stable compiler takes them with this variable.
export RUSTC_BOOTSTRAP=1
fuzz_seconds=${DWCP_FUZZ_SECONDS:-30}
(cd dataplane && cargo fuzz build)
fuzz() {
    local log
    log=$(mktemp)
    # New inputs go to a scratch folder: the corpus in the tree is kept as it is.
    local scratch
    scratch=$(mktemp -d)
    if (cd dataplane && cargo fuzz run "$1" "$scratch" "fuzz/corpus/$1" -- \
        -max_total_time="$fuzz_seconds" -rss_limit_mb=2048 -timeout=20 -print_final_stats=1) >"$log" 2>&1; then
        echo "fuzz $1: $(grep -o 'stat::number_of_executed_units: *[0-9]*' "$log" | grep -o '[0-9]*$') inputs, nothing found"
    else
        tail -n 40 "$log"
        echo "fuzz $1: FAILED"
        return 1
    fi
    rm -rf "$scratch" "$log"
}
targets=$(cd dataplane && cargo fuzz list)
running=()
for target in $targets; do
    fuzz "$target" &
    running+=($!)
    if [ "${#running[@]}" -eq 2 ]; then
        for job in "${running[@]}"; do wait "$job"; done
        running=()
    fi
done
for job in "${running[@]}"; do wait "$job"; done
unset RUSTC_BOOTSTRAP

step "lock-free parts under loom"
RUSTFLAGS="--cfg loom" cargo test --release --package dwcp-hugepages --lib --target-dir target/loom loom

step "examples in the documentation"
cargo test --quiet --package dwcp-hugepages --doc

# Two steps, so that the short one speaks first. `.config/nextest.toml` says what runs alone.
hosts='package(dwcp-controlplane) | package(dwcpctl) | package(dwcp-lab) | package(dwcp-tests)'
step "tests of the parts"
cargo nextest run "${everything[@]}" --filterset "not ($hosts)"

step "tests with real hosts and guests"
cargo nextest run "${everything[@]}" --filterset "$hosts"

step "done"
