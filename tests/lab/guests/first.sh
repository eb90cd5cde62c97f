#!/bin/busybox sh
# A guest's first program: finds the disk and goes on there.
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t proc none /proc
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
    /bin/busybox insmod /$module.ko || exit 1
done
/bin/busybox mount -t ext4 -o rw,noatime /dev/vda /root || exit 1
/bin/busybox umount /proc
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /usr/lib/dwcp/init
