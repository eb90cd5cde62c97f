#!/bin/sh
# What building and testing the DPDK and RDMA back ends, alerts and units needs, on Debian 12. May be run again; when all is
# there it is done in a second and needs no network.
set -eu

# System calls are counted by a tracepoint of the kernel.
[ -d /sys/kernel/tracing/events ] || mount -t tracefs nodev /sys/kernel/tracing 2>/dev/null || true

wanted='libdpdk-dev libclang-dev pkg-config libibverbs-dev librdmacm-dev ibverbs-providers ibverbs-utils'
wanted="$wanted prometheus systemd"
# Control planes with wrong clocks.
wanted="$wanted faketime"
# Beside which the replicated log is measured; only its programs are used, never its service.
wanted="$wanted etcd-server etcd-client"
missing=
for package in $wanted; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed \
        || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
[ "$(id -u)" = 0 ] || { echo "setup: run as root to install$missing" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
echo "setup: installing$missing"
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null \
    || { echo "setup: cannot install$missing" >&2; exit 1; }
# The package starts a service, which nothing here uses.
systemctl disable --now etcd >/dev/null 2>&1 || true
