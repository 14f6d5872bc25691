#!/bin/busybox sh
# The first process of the lab's host, in its initramfs: loads modules, puts the root file system
# together, and goes on in it with start.sh.
#
# In: disks, told apart by their serials. Out: `/` writable in memory over the image; `/lab/bin` with
# the programs under test, `/lab/kernel` with the guest's kernel package.
export PATH=/bin
/bin/busybox --install -s /bin

fail() {
    echo "lab: $*"
    reboot -f
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do
    insmod "/lib/lab/modules/$module" || echo "lab: module $module does not load"
done </lib/lab/modules.list

# The device with that serial.
disk() {
    for block in /sys/block/vd*; do
        if [ "$(cat "$block/serial")" = "$1" ]; then
            echo "/dev/${block##*/}"
        fi
    done
}

mkdir -p /memory /image /new
mount -t erofs -o ro "$(disk root)" /image || fail "no root file system"
mount -t tmpfs -o mode=755 tmpfs /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/image,upperdir=/memory/upper,workdir=/memory/work overlay /new ||
    fail "no overlay"
mkdir -p /new/lab/bin /new/lab/kernel /new/lab/data
mount -t erofs -o ro "$(disk programs)" /new/lab/bin || fail "no programs"
mount -t erofs -o ro "$(disk kernel)" /new/lab/kernel || fail "no guest kernel"
ln -s "$(disk data)" /new/lab/disk
tr -d '\0' <"$(disk job)" >/new/lab/job.sh
for dir in proc sys dev; do
    mount -o move "/$dir" "/new/$dir"
done
exec switch_root /new /bin/sh /lab/bin/start.sh
