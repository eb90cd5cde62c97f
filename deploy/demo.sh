#!/usr/bin/env bash
# Sets a fresh Debian 12 machine with Rust up and moves a running guest between two hosts over a thin,
# far line: by dwcpctl, then by QEMU alone. Root. Options are those of `dwcp-lab demo`:
#   --link "MBIT ONE_WAY_MS LOSS_PCT"  --no-compare  --rollback-midway  --json FILE  --multifd N
set -euo pipefail
json=()
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
    # The file is the caller's, wherever this script goes.
    --json)
        [ $# -ge 2 ] || { echo "--json needs a file" >&2; exit 2; }
        json=(--json "$(realpath -m "$2")")
        shift
        ;;
    *) arguments+=("$1") ;;
    esac
    shift
done
cd "$(dirname "$0")/.."
bash tests/lab/setup.sh
cargo build --release --package dwcp-dataplane --package dwcp-controlplane --package dwcpctl --package dwcp-lab
exec target/release/dwcp-lab demo "${arguments[@]}" "${json[@]}"
