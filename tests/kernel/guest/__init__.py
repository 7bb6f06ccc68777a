"""A throw-away virtual machine on this machine's own files, with Debian's generic kernel.

The firewall needs parts of the kernel that a container's or a cloud machine's kernel may lack (bridge
connection tracking, rejections in the bridge family). :mod:`.image` fetches Debian's kernel and makes it
bootable, :mod:`.machine` boots it under QEMU without hardware virtualisation and talks to :mod:`.agent`,
which runs commands and functions in there.
"""
