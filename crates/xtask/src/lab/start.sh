# The second half of the lab host's start, in its root file system: what a host has mounted, a data
# disk, then the job; its exit status and its logs leave by ports of their own.
#
# In: /lab/job.sh. Out: what it prints on `lab.output`, or on the console where it is given a
# terminal instead; `lab.status` and `lab.logs` (a tar archive of /lab/logs). Stays the first
# process, which takes in the VMMs whose daemon has gone.
export PATH=/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TMPDIR=/lab/data/tmp LANG=C.UTF-8

# No guest runs on the first processor. QEMU changes flags of it, such as whether a guest runs there
# with nested paging, whenever another processor loads its x87 registers, and takes no lock
# (cpu_clear_ignne; seen in 7.2 and 10.0): now and then a guest lost its memory, or its host did.
taskset -pc 1,2 $$ >/dev/null

port() {
    for port in /sys/class/virtio-ports/*; do
        if [ "$(cat "$port/name" 2>/dev/null)" = "$1" ]; then
            echo "/dev/${port##*/}"
        fi
    done
}

finish() {
    if [ -n "$(ls -A /lab/logs)" ]; then
        tar -C /lab/logs -cf - . >"$(port lab.logs)"
    fi
    echo "$1" >"$(port lab.status)"
    # The machine has no power switch; QEMU ends with its reset.
    busybox reboot -f
}

mount -t devpts -o mode=620,ptmxmode=666,gid=5 devpts /dev/pts 2>/dev/null ||
    { mkdir -p /dev/pts && mount -t devpts -o mode=620,ptmxmode=666,gid=5 devpts /dev/pts; }
mkdir -p /dev/shm /lab/logs
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for link in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    ln -s "/proc/self/${link#*:}" "/dev/${link%%:*}"
done
hostname lab
ip link set lo up

# Clones share blocks on it.
mkfs.xfs -q -K -m reflink=1 /lab/disk && mount -t xfs /lab/disk /lab/data || finish 125
mkdir -m 1777 /lab/data/tmp

cd /root
output=$(port lab.output)
if [ -n "$output" ]; then
    setsid -w sh /lab/job.sh </dev/null >"$output" 2>&1
else
    setsid -w -c sh /lab/job.sh <>/dev/hvc0 >&0 2>&1
fi
finish $?
