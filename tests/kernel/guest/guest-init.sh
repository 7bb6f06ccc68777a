#!/bin/sh
# Process 1 of the guest: the little that the lab needs of a running system, then the agent, then power off.
# Kernel command line: lab.python=FILE (the interpreter), lab.source=DIR (the folder that holds tests/).
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LC_ALL=C.UTF-8
# The console has told how far the boot came; what rules log from here on would only take the serial port's time.
echo 4 > /proc/sys/kernel/printk
mkdir -p /dev/pts /dev/shm /run/netns /run/lock
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /var/tmp
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
ip link set lo up
hostname lab
for word in $(cat /proc/cmdline); do
  case $word in
    lab.python=*) python=${word#*=} ;;
    lab.source=*) source=${word#*=} ;;
  esac
done
cd "$source" || exit 1
PYTHONDONTWRITEBYTECODE=1 "$python" -m tests.kernel.guest.agent /dev/vport*p1
echo o > /proc/sysrq-trigger
sleep 10
