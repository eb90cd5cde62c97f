#!/usr/bin/env bash
# Makes the Debian package and prints its path. Options: --debug (for tests: what lies in target/debug, which is not
# built here), --output FILE.
set -euo pipefail
cd "$(dirname "$0")/.."
profile=release
output=()
while [ $# -gt 0 ]; do
    case $1 in
    --debug) profile=dev ;;
    --output) output=(--output "$2") && shift ;;
    *) echo "package: what is $1?" >&2 && exit 2 ;;
    esac
    shift
done
command -v cargo-deb >/dev/null || cargo install --locked --version 3.8.0 cargo-deb >&2
if [ $profile = release ]; then
    cargo build --release --package dwcp-dataplane --package dwcp-controlplane --package dwcpctl >&2
fi
# Made by the program that is packed, so that they say what it takes.
programs=target/release
[ $profile = release ] || programs=target/debug
words=target/words
rm -rf $words && mkdir -p $words
$programs/dwcpctl man $words/man 2>/dev/null
for shell in bash zsh fish; do $programs/dwcpctl completions $shell >$words/dwcpctl.$shell; done
exec cargo deb --package dwcp-service --no-build --profile $profile --fast "${output[@]}"
