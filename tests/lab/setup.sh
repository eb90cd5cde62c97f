#!/bin/sh
# Makes a fresh Debian 12 ready for the lab: QEMU 10.0 from backports, busybox, small tools, what builds
# the disk of guests with an operating system, and in the lab's cache a guest kernel, QEMU 7.2, and the
# kernel and modules of virtual machines. May be run again; when all is there it is done in a second and
# needs no network.
set -eu
. "$(dirname "$0")/../packages.sh"

cache=${DWCP_LAB_CACHE:-/var/cache/dwcp/lab}
say() { echo "lab setup: $*"; }
die() { echo "lab setup: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "run as root: packages are installed and network namespaces made"
[ "$(dpkg --print-architecture)" = amd64 ] || die "only amd64 is supported"
export DEBIAN_FRONTEND=noninteractive

updated=no
update() {
    [ $updated = yes ] && return
    say "reading package lists"
    apt-get update -qq || die "cannot read package lists; check the network and the apt sources"
    updated=yes
}

# Backports come from wherever this machine gets its main packages: the first matching source is
# copied and only its suite changed.
enable_backports() {
    [ -n "$(grep -rls 'bookworm-backports' /etc/apt/sources.list /etc/apt/sources.list.d)" ] && return
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -e "$file" ] || continue
        awk 'BEGIN { RS = ""; ORS = "\n\n" }
             /(^|\n)Suites:[^\n]*bookworm( |\n|$)/ && !done {
                 sub(/(^|\n)Suites:[^\n]*/, "\nSuites: bookworm-backports"); sub(/^\n/, ""); print; done = 1
             }' "$file" > /etc/apt/sources.list.d/dwcp-backports.sources
        [ -s /etc/apt/sources.list.d/dwcp-backports.sources ] && { updated=no; return; }
        rm -f /etc/apt/sources.list.d/dwcp-backports.sources
    done
    awk '/^deb / { for (i = 2; i <= NF; i++) if ($i == "bookworm") { $i = "bookworm-backports"; print; exit } }' \
        /etc/apt/sources.list > /etc/apt/sources.list.d/dwcp-backports.list 2>/dev/null || true
    [ -s /etc/apt/sources.list.d/dwcp-backports.list ] && { updated=no; return; }
    rm -f /etc/apt/sources.list.d/dwcp-backports.list
    die "no apt source for bookworm found to derive backports from; add bookworm-backports by hand"
}

need busybox-static cpio zstd iproute2 jq socat mmdebstrap e2fsprogs qemu-utils

if ! qemu-system-x86_64 --version 2>/dev/null | grep -q 'version 10\.'; then
    enable_backports
    update
    say "installing QEMU 10 from backports"
    apt-get install -y -qq --no-install-recommends -t bookworm-backports \
        qemu-system-x86 qemu-system-common qemu-system-data seabios ipxe-qemu >/dev/null \
        || die "cannot install QEMU from backports"
    qemu-system-x86_64 --version | grep -q 'version 10\.' || die "backports hold no QEMU 10"
fi

# Downloads packages without installing them and unpacks them into a folder.
unpack() {
    into=$1
    shift
    update
    work=$(mktemp -d)
    # apt downloads as a user of its own.
    chmod 755 "$work"
    (cd "$work" && apt-get download -qq "$@" 2>/dev/null) || die "cannot download $*"
    for deb in "$work"/*.deb; do
        dpkg -x "$deb" "$into"
    done
    rm -rf "$work"
}

mkdir -p "$cache"
if [ ! -s "$cache/vmlinuz" ]; then
    update
    kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-6/ { print $2; exit }')
    [ -n "$kernel" ] || die "no cloud kernel in the package lists"
    say "fetching the guest kernel $kernel"
    unpack "$cache/kernel.partial" "$kernel"
    cp "$cache"/kernel.partial/boot/vmlinuz-* "$cache/vmlinuz.partial"
    mv "$cache/vmlinuz.partial" "$cache/vmlinuz"
    rm -rf "$cache/kernel.partial"
fi

# Virtual machines need modules that the cloud kernel lacks. Kept is what their shapes may need, not
# the drivers of every machine.
if [ ! -s "$cache/vm-kernel/vmlinuz" ]; then
    update
    kernel=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image-6/ { print $2; exit }')
    [ -n "$kernel" ] || die "no kernel in the package lists"
    say "fetching the virtual machines' kernel $kernel"
    rm -rf "$cache/vm-kernel" "$cache/vm-kernel.partial" "$cache/vm-kernel.unpacked"
    unpack "$cache/vm-kernel.unpacked" "$kernel"
    mkdir -p "$cache/vm-kernel.partial/modules"
    cp "$cache"/vm-kernel.unpacked/boot/vmlinuz-* "$cache/vm-kernel.partial/vmlinuz"
    for tree in arch/x86/crypto crypto drivers/dca drivers/i2c drivers/infiniband \
        drivers/net/ethernet/intel drivers/net/veth.ko drivers/vfio drivers/virtio \
        fs/9p fs/configfs fs/fscache fs/netfs fs/overlayfs lib net virt; do
        mkdir -p "$cache/vm-kernel.partial/modules/$(dirname $tree)"
        cp -r "$cache"/vm-kernel.unpacked/lib/modules/*/kernel/$tree \
            "$cache/vm-kernel.partial/modules/$tree"
    done
    rm -rf "$cache/vm-kernel.unpacked"
    mv "$cache/vm-kernel.partial" "$cache/vm-kernel"
fi

if [ ! -x "$cache/qemu-7.2/usr/bin/qemu-system-x86_64" ]; then
    update
    # The newest 7.2 that any configured source has; the installed one is from backports.
    version_of() { apt-cache madison "$1" | awk -v p="$2" '$3 ~ p { print $3; exit }'; }
    x86=$(version_of qemu-system-x86 '^1:7[.]2')
    data=$(version_of qemu-system-data '^1:7[.]2')
    bios=$(version_of seabios '^1[.]16[.]2-1$')
    [ -n "$x86" ] && [ -n "$data" ] && [ -n "$bios" ] || die "no QEMU 7.2 in the package lists"
    say "fetching QEMU $x86"
    rm -rf "$cache/qemu-7.2" "$cache/qemu-7.2.partial"
    unpack "$cache/qemu-7.2.partial" "qemu-system-x86=$x86" "qemu-system-common=$x86" \
        "qemu-system-data=$data" "seabios=$bios"
    mv "$cache/qemu-7.2.partial" "$cache/qemu-7.2"
fi
"$cache/qemu-7.2/usr/bin/qemu-system-x86_64" --version >/dev/null 2>&1 \
    || die "QEMU 7.2 does not start: $("$cache/qemu-7.2/usr/bin/qemu-system-x86_64" --version 2>&1)"

[ -c /dev/net/tun ] || die "/dev/net/tun is missing: load the tun module (modprobe tun)"
say "ready: $(qemu-system-x86_64 --version | head -n 1), kernels and QEMU 7.2 in $cache"
