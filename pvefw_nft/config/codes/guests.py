"""Codes about guest configs and corosync.conf."""

from __future__ import annotations

from pvefw_nft.config.codes.declaration import (
    CONFIG,
    COROSYNC,
    GUEST,
    NIC,
    ON,
    UNTRIED,
    VNET,
    Example,
    error,
    warning,
)

CODES = (
    error(
        "bad-nic",
        "a network interface that cannot be read",
        "A line of the guest's config has a value that cannot be used. In doubt the NIC counts as filtered, so a "
        "mistake never opens it.",
        UNTRIED,
        Example(CONFIG, NIC.replace("firewall=1", "firewall=maybe"), NIC),
    ),
    error(
        "bad-mac",
        "a filtered NIC without a valid MAC address",
        "The MAC filter compares the sender of each frame with this address. Without a valid address it drops every "
        "frame of the NIC.",
        "a NIC whose MAC address cannot be read is left unfiltered.",
        Example(CONFIG, NIC.replace("BC:24:11:00:00:01", "BC:24:11:00:00"), NIC),
    ),
    error(
        "duplicate-guest",
        "one VMID for a VM and a container",
        "A VMID belongs to one guest. The container's config is ignored, so its NICs are not filtered.",
        "its API never makes two guests with one VMID; a copied file can.",
        Example(
            "etc/pve/lxc/100.conf",
            "net0: name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:02,firewall=1\n",
            None,
        ),
    ),
    warning(
        "corosync-address",
        "a corosync address that cannot be used",
        "The management rules accept the corosync addresses of the other nodes. This value is neither an address nor a "
        "name of `etc/hosts` below the root, so no rule accepts packets of this link. No name server is asked.",
        "names are looked up with the host's resolver.",
        Example(
            COROSYNC,
            "nodelist {\n  node {\n    name: n1\n    ring0_addr: no_such_name\n  }\n}\n",
            "nodelist {\n  node {\n    name: n1\n    ring0_addr: 192.0.2.1\n  }\n}\n",
        ),
    ),
    error(
        "guest-closed",
        "a guest whose files cannot be used",
        "A file of the guest is not a text file, is too large, or is a directory, or it needs more rules or ipset "
        "entries than one guest may have. Nothing passes the guest's filtered NICs until the file is mended; the other "
        "guests have their rules.",
        UNTRIED,
        Example(GUEST, ON + "\0", ON),
    ),
    error(
        "vnet-closed",
        "a VNet whose file cannot be used",
        "The VNet's firewall file is not a text file, is too large, or is a directory. Nothing is forwarded on the "
        "VNet until the file is mended; host and guests have their rules.",
        UNTRIED,
        Example(VNET, ON + "\0", ON),
    ),
)
