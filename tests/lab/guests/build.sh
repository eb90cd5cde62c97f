#!/bin/sh
# Builds the disk of the guests with work of their own: Debian from its packages, the programs of the lab,
# an ext4 file system, and beside it a kernel with a first file system that finds the disk. Root.
#   build.sh OUT LOAD REDIS_WORK     OUT: an empty folder; LOAD, REDIS_WORK: the lab's static programs
# Leaves in OUT: disk.raw, vmlinuz, initramfs.cpio.
set -eu

[ $# = 3 ] || { echo "usage: build.sh OUT LOAD REDIS_WORK" >&2; exit 2; }
out=$1
load=$2
redis_work=$3
here=$(cd "$(dirname "$0")" && pwd)
say() { echo "guest disk: $*"; }
die() { echo "guest disk: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "run as root: a system is installed into a folder"
for tool in mmdebstrap mkfs.ext4 cpio; do
    command -v $tool >/dev/null || die "$tool is missing; run tests/lab/setup.sh"
done
# The same files get the same dates and the same places, whenever they are built.
export SOURCE_DATE_EPOCH=1700000000
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

# From wherever this machine gets its own packages.
mirror=$(cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null | awk '
    /^URIs:/ { print $2; exit }
    /^deb / { for (i = 2; i <= NF; i++) if ($i ~ /^https?:/) { print $i; exit } }')
[ -n "$mirror" ] || die "no apt source with a URI found"
say "installing Debian 12 from $mirror"
mmdebstrap --quiet --variant=minbase \
    --include=redis-server,postgresql,gcc,libc6-dev,libstb-dev,iproute2,procps \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    bookworm "$work/root" "$mirror" || die "the system could not be installed; its last words stand above"

mkdir -p "$work/root/usr/lib/dwcp"
install -m 755 "$here/init.sh" "$work/root/usr/lib/dwcp/init"
install -m 755 "$load" "$work/root/usr/lib/dwcp/load"
install -m 755 "$redis_work" "$work/root/usr/lib/dwcp/redis-work"

say "fetching its kernel"
mkdir "$work/kernel" "$work/first"
kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-6/ { print $2; exit }')
[ -n "$kernel" ] || die "no cloud kernel in the package lists; run apt-get update"
chmod 777 "$work/kernel"
(cd "$work/kernel" && apt-get download -qq "$kernel") || die "cannot download $kernel"
dpkg -x "$work"/kernel/*.deb "$work/kernel"
cp "$work"/kernel/boot/vmlinuz-* "$out/vmlinuz"
mkdir -p "$work/first/bin" "$work/first/dev" "$work/first/proc" "$work/first/root"
cp /bin/busybox "$work/first/bin/busybox"
install -m 755 "$here/first.sh" "$work/first/init"
for module in virtio/virtio virtio/virtio_ring virtio/virtio_pci_modern_dev \
    virtio/virtio_pci_legacy_dev virtio/virtio_pci block/virtio_blk; do
    cp "$work"/kernel/lib/modules/*/kernel/drivers/$module.ko "$work/first/"
done
(cd "$work/first" && find . | sort | cpio --quiet -o -H newc --reproducible) >"$out/initramfs.cpio"

say "writing the disk"
for program in usr/bin/redis-server usr/bin/gcc usr/bin/chrt usr/lib/postgresql/15/bin/pgbench \
    usr/include/stb/stb_image.h etc/postgresql/15/main/postgresql.conf; do
    [ -e "$work/root/$program" ] || die "$program is not in the system: a package has changed"
done
truncate -s 3G "$out/disk.raw"
mkfs.ext4 -q -d "$work/root" -L dwcp -U 6e2f2a54-6f5c-4a3e-9a57-0d1f6cf5c001 \
    -E hash_seed=6e2f2a54-6f5c-4a3e-9a57-0d1f6cf5c002,lazy_itable_init=0 "$out/disk.raw"
e2fsck -fn "$out/disk.raw" >/dev/null || die "the new file system has errors"
say "$(du -m "$out/disk.raw" | cut -f 1) MB on disk"
