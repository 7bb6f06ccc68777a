#!/bin/busybox sh
# The first program in the guest: mounts the host's files below an overlay in memory and hands over to guest-init.sh.
# Kernel command line: lab.share=DIR (the writable share), lab.modules=DIR (…/lib/modules/VERSION),
# lab.init=FILE (what to run as process 1).
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
while read -r module; do $B insmod "/modules/$module"; done < /modules/order
for word in $($B cat /proc/cmdline); do
  case $word in
    lab.share=*) share=${word#*=} ;;
    lab.modules=*) modules=${word#*=} ;;
    lab.init=*) init=${word#*=} ;;
  esac
done
nine=trans=virtio,version=9p2000.L,msize=512000,access=any
fail() { echo "lab: $1"; echo o > /proc/sysrq-trigger; $B sleep 10; }
$B mount -t 9p -o "ro,cache=loose,$nine" root /ro || fail "the host's files cannot be mounted"
$B mount -t tmpfs rw /rw
$B mkdir /rw/upper /rw/work
$B mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work,index=off,xino=off root /new || fail "no overlay"
for dir in proc sys dev; do $B mount --move /$dir /new/$dir; done
$B mount -t tmpfs run /new/run
version=$($B uname -r)
# On a host that runs this kernel version the folder is there already, on others it is made in the overlay.
$B mkdir -p "/new/lib/modules/$version"
$B mount --bind "/new$modules" "/new/lib/modules/$version" || fail "no modules"
$B mkdir -p "/new$share"
$B mount -t 9p -o "rw,cache=none,$nine" share "/new$share" || fail "the share cannot be mounted"
exec $B switch_root /new /bin/sh "$init"
