#!/bin/sh
# What the test of the page needs on Debian 12: a browser, Node.js, and two packages of it beside this file. May be run
# again; when all is there it is done in a second and needs no network.
set -eu
cd "$(dirname "$0")"
wanted='chromium fonts-dejavu-core'
command -v node >/dev/null || wanted="$wanted nodejs"
command -v npm >/dev/null || wanted="$wanted npm"
missing=
for package in $wanted; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed \
        || missing="$missing $package"
done
if [ -n "$missing" ]; then
    [ "$(id -u)" = 0 ] || { echo "setup: run as root to install$missing" >&2; exit 1; }
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    echo "setup: installing$missing"
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $missing >/dev/null \
        || { echo "setup: cannot install$missing" >&2; exit 1; }
fi
# Exactly what the lock file says, and none of its scripts are run.
cmp -s package-lock.json node_modules/.of 2>/dev/null && exit 0
npm ci --silent --ignore-scripts --no-audit --no-fund
cp package-lock.json node_modules/.of
