#!/bin/sh
# What building and testing the DPDK and RDMA back ends, alerts and units needs, on Debian 12. May be run again; when all is
# there it is done in a second and needs no network.
set -eu
. "$(dirname "$0")/packages.sh"

# System calls are counted by a tracepoint of the kernel.
[ -d /sys/kernel/tracing/events ] || mount -t tracefs nodev /sys/kernel/tracing 2>/dev/null || true

need libdpdk-dev libclang-dev pkg-config libibverbs-dev librdmacm-dev ibverbs-providers ibverbs-utils prometheus systemd
# Control planes with wrong clocks.
need faketime
# Beside which the replicated log is measured; only its programs are used, never the service that the package starts.
if ! command -v etcd >/dev/null || ! command -v etcdctl >/dev/null; then
    need etcd-server etcd-client
    systemctl disable --now etcd >/dev/null 2>&1 || true
fi
