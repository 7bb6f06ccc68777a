"""Small clusters for tests: nodes ``pve1`` … with guests, each with its own files where a cluster's copy has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CLUSTER = """\
[OPTIONS]
enable: 1
[ALIASES]
office 192.0.2.0/24
[IPSET web]
198.51.100.0/24
[group web]
IN HTTPS(ACCEPT) -source +web
[RULES]
IN SSH(ACCEPT) -source office
"""


def guest(vmid: int) -> str:
    """Return the firewall file of a guest."""
    rules = f"GROUP web\nIN ACCEPT -source 10.9.{vmid % 250}.0/24 -p tcp -dport {2000 + vmid}\n"
    return f"[OPTIONS]\nenable: 1\n[RULES]\n{rules}"


def make_cluster(root: Path, nodes: int, guests: int = 2, cluster: str = CLUSTER) -> Path:
    """Write a cluster of so many nodes, each with so many guests, below ``root``; return it.

    Node 1 has the guests 101, 102 …, node 2 the guests 201 …; nodes have the addresses 10.0.0.1 …
    """
    firewall = root / "etc/pve/firewall"
    firewall.mkdir(parents=True)
    (firewall / "cluster.fw").write_text(cluster)
    members = []
    for number in range(1, nodes + 1):
        folder = root / f"etc/pve/nodes/pve{number}"
        (folder / "qemu-server").mkdir(parents=True)
        (folder / "lxc").mkdir()
        (folder / "host.fw").write_text("[OPTIONS]\nenable: 1\n")
        members.append(
            f"  node {{\n    name: pve{number}\n    nodeid: {number}\n    ring0_addr: 10.0.0.{number}\n  }}\n"
        )
        for vmid in range(100 * number + 1, 100 * number + 1 + guests):
            mac = f"BC:24:11:00:{vmid // 256:02X}:{vmid % 256:02X}"
            conf = f"net0: virtio={mac},bridge=vmbr0,firewall=1\nipconfig0: ip=10.0.1.{vmid % 250}/24\n"
            (folder / f"qemu-server/{vmid}.conf").write_text(conf)
            (firewall / f"{vmid}.fw").write_text(guest(vmid))
    totem = "totem {\n  version: 2\n  transport: knet\n}\n"
    (root / "etc/pve/corosync.conf").write_text(f"{totem}nodelist {{\n{''.join(members)}}}\n")
    (root / "etc/network").mkdir()
    (root / "etc/hostname").write_text("pve1\n")
    (root / "etc/network/interfaces").write_text(
        "auto vmbr0\niface vmbr0 inet static\n\taddress 10.0.0.1/24\n\tbridge-ports eno1\n"
    )
    return root


def break_three(root: Path) -> None:
    """Break pve3 (its host.fw is binary), pve5 (a rule of its first guest) and pve7 (a guest's file is binary)."""
    (root / "etc/pve/nodes/pve3/host.fw").write_bytes(b"\0\1\2\3")
    file = root / "etc/pve/firewall/501.fw"
    file.write_text(file.read_text() + "IN SHH(ACCEPT)\n")
    (root / "etc/pve/firewall/702.fw").write_bytes(b"\xff\xfe\0\0")
