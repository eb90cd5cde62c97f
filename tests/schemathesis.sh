#!/usr/bin/env bash
# Asks a live node, both planes of it, everything that its OpenAPI document allows and much that it does not, by
# schemathesis. Takes the programs that are built in target/debug; needs Python and its package index, once.
#   DWCP_EXAMPLES: requests for each operation (default 60)
set -euo pipefail
cd "$(dirname "$0")/.."
version=4.32.5
venv=$PWD/target/schemathesis-$version
if [ ! -x "$venv/bin/schemathesis" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet "schemathesis==$version"
fi
folder=$(mktemp -d)
pids=()
stop() {
    kill "${pids[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$folder"
}
trap stop EXIT
mkdir "$folder"/{qmp,sockets,sys,proc}
(umask 077; echo "0123456789abcdef-token" >"$folder/token"; echo "0123456789abcdef0123456789abcdef" >"$folder/psk")
cat >"$folder/dataplane.toml" <<TOML
node = "tested"
listen = "127.0.0.1:0"
psk_file = "$folder/psk"
control_socket = "$folder/attach.sock"
hugepages = "off"
idle = "shared"
TOML
touch "$folder/controlplane.toml"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
DWCP_LOG=error target/debug/dwcp-dataplane --config "$folder/dataplane.toml" &
pids+=($!)
# An empty sysfs: no NIC of this machine is in reach of a lucky guess.
DWCP_LOG=error target/debug/dwcp-controlplane --config "$folder/controlplane.toml" --listen "127.0.0.1:$port" \
    --attach "$folder/attach.sock" --state-dir "$folder/state" --socket-dir "$folder/sockets" \
    --qmp-allowed-dirs "$folder/qmp" --token-file "$folder/token" --node tested --requests-per-s 0 \
    --sysfs "$folder/sys" --procfs "$folder/proc" &
pids+=($!)
api="http://127.0.0.1:$port"
bearer="Authorization: Bearer 0123456789abcdef-token"
for _ in $(seq 100); do
    curl --silent --fail --header "$bearer" "$api/v1/health" >/dev/null && break
    sleep 0.1
done
# Streams have no end, and a look from outside needs rights of its own. What a schema cannot say, such as that a
# monitor must exist, is refused with a reason: positive_data_acceptance would call that a fault.
# In the scratch folder, since it keeps what it found where it runs.
(cd "$folder" && "$venv/bin/schemathesis" run "$api/v1/openapi.json" --header "$bearer" --workers 1 --seed 1 --no-color \
    --max-examples "${DWCP_EXAMPLES:-60}" --phases examples,coverage,fuzzing \
    --exclude-path-regex '(/events|/v1/perf/flamegraph|/v1/perf/hardware)$' \
    --checks all --exclude-checks positive_data_acceptance)
kill -0 "${pids[0]}" || { echo "schemathesis: the data plane ended" >&2; exit 1; }
kill -0 "${pids[1]}" || { echo "schemathesis: the control plane ended" >&2; exit 1; }
