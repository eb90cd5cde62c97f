#!/usr/bin/env bash
# The Debian package is installed, its programs are started as its units start them, and it is removed and purged,
# in a copy-on-write view of this machine that vanishes at the end. Root. Takes the package's path, or makes one of
# the debug programs that are built. Before that: how much of the machine the units leave open to them.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" != --inside ]; then
    for unit in deploy/systemd/*.service; do
        # Tenths. A plain unit has 96.
        told=$(systemd-analyze security --offline=true --threshold=15 "$unit") ||
            { echo "package: $unit is open too far: $(tail -n 1 <<<"$told")" >&2 && exit 1; }
        grep Overall <<<"$told"
    done
    deb=${1:-}
    if [ -z "$deb" ]; then
        deb=$(mktemp -d)/dwcp.deb
        bash deploy/package.sh --debug --output "$deb" >/dev/null
    fi
    exec unshare --mount --pid --ipc --net --fork --kill-child bash "$0" --inside "$(realpath "$deb")"
fi

deb=$2
fail() { echo "package: $*" >&2; exit 1; }
scratch=$(mktemp -d)
mount -t tmpfs none "$scratch"
mkdir "$scratch"/{upper,work,root}
mount -t overlay none -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
root=$scratch/root
mount -t proc none "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs none "$root/run"
cp "$deb" "$root/root/dwcp.deb"
ip link set lo up
export DEBIAN_FRONTEND=noninteractive
within() { chroot "$root" "$@"; }
# What the package may leave nothing of.
listing() { within find /etc/dwcp /var/lib/dwcp /run/dwcp /usr/bin /lib/systemd/system -name '*dwcp*' 2>/dev/null | sort || true; }
before=$(listing)

packed=$(dpkg-deb -c "$deb")
for file in man/man1/dwcpctl-migrate.1.gz bash-completion/completions/dwcpctl zsh/vendor-completions/_dwcpctl; do
    grep -q "$file" <<<"$packed" || fail "it has no $file"
done
within dpkg -i /root/dwcp.deb >/dev/null 2>"$scratch/words" || fail "it does not install: $(cat "$scratch/words")"
grep -q "copy it to the other hosts" "$scratch/words" || fail "nobody is told about the key"
[ "$(within stat -c '%U %a' /etc/dwcp/token)" = "dwcp 600" ] || fail "the token is not its user's alone"
first=$(within sha256sum /etc/dwcp/token)

# As the units do: their user, no capability, their folders; a manager that waits for READY=1.
within install -d -o dwcp -g dwcp -m 0770 /run/dwcp /run/dwcp/qmp /run/dwcp/sessions
# No function, so that what runs in the background is the program itself and gets the signals.
as_unit=(chroot "$root" setpriv --reuid dwcp --regid dwcp --clear-groups --bounding-set=-all --inh-caps=-all
    --no-new-privs)
start() {
    local name=$1
    "${as_unit[@]}" "/usr/bin/$name" config check >/dev/null || fail "$name: its settings are not good"
    python3 - "$root/run/$name.notify" "$scratch/$name.ready" <<'PYTHON' &
import os, socket, sys
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o666)
seen = set()
while not {"READY=1", "WATCHDOG=1"} <= seen:
    seen |= set(manager.recv(4096).decode().split("\n"))
open(sys.argv[2], "w").close()
PYTHON
    until [ -S "$root/run/$name.notify" ]; do sleep 0.05; done
    "${as_unit[@]}" env NOTIFY_SOCKET="/run/$name.notify" WATCHDOG_USEC=1000000 "/usr/bin/$name" 2>"$scratch/$name.log" &
    for _ in $(seq 100); do
        [ -e "$scratch/$name.ready" ] && return
        sleep 0.1
    done
    fail "$name never said that it is ready and alive: $(tail -5 "$scratch/$name.log")"
}
start dwcp-dataplane
data_plane=$!
start dwcp-controlplane
control_plane=$!
for _ in $(seq 50); do
    health=$(within /usr/bin/dwcpctl --token-file /etc/dwcp/token health 2>&1) && break
    sleep 0.1
done
grep -qi "ok\|healthy" <<<"$health" || fail "the node is not healthy: $health"
kill -TERM $control_plane $data_plane
wait $control_plane || fail "the control plane did not end cleanly"
wait $data_plane || fail "the data plane did not end cleanly"

within dpkg -i /root/dwcp.deb >/dev/null 2>&1 || fail "it does not install over itself"
[ "$(within sha256sum /etc/dwcp/token)" = "$first" ] || fail "an upgrade changed the token"
within dpkg -r dwcp >/dev/null 2>&1 || fail "it cannot be removed"
within test ! -e /usr/bin/dwcpctl || fail "a program is left"
within test -e /etc/dwcp/token || fail "a removal took the token, which only a purge may"
within dpkg -P dwcp >/dev/null 2>&1 || fail "it cannot be purged"
[ "$(listing)" = "$before" ] || fail "left behind: $(diff <(echo "$before") <(listing))"
within getent passwd dwcp >/dev/null && fail "the user is left"
echo "package: installed, started, replaced, removed and purged"
