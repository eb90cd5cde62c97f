#!/bin/sh
# What the test of the page needs on Debian 12: a browser, Node.js, and two packages of it beside this file. May be run
# again; when all is there it is done in a second and needs no network.
set -eu
cd "$(dirname "$0")"
. ../packages.sh
wanted='chromium fonts-dejavu-core'
command -v node >/dev/null || wanted="$wanted nodejs"
command -v npm >/dev/null || wanted="$wanted npm"
# shellcheck disable=SC2086
need $wanted
# Exactly what the lock file says, and none of its scripts are run.
cmp -s package-lock.json node_modules/.of 2>/dev/null && exit 0
npm ci --silent --ignore-scripts --no-audit --no-fund
cp package-lock.json node_modules/.of
