"""Small configurations for tests: names of files, guest configs, and the front end's answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pvefw_nft.pipeline import Checked, Source, check_root

if TYPE_CHECKING:
    from pathlib import Path

NODE = "n1"
PVE = "etc/pve"

FILES = {
    "cluster": f"{PVE}/firewall/cluster.fw",
    "host": f"{PVE}/local/host.fw",
    "corosync": f"{PVE}/corosync.conf",
}
"""Short names of files; ``100.fw``, ``100.conf`` (a VM), ``200.ct`` (a container) and ``x.vnet`` are known too."""

VM = "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1\n"
CONTAINER = "net0: name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:02,firewall=1,ip=10.0.0.2/24,type=veth\n"


class MakeRoot(Protocol):
    """Writes a configuration; cluster.fw is enabled where it is not given."""

    def __call__(self, files: dict[str, str | bytes] | None = None) -> Path: ...


def file_path(name: str) -> str:
    """Return where a file lies below the root, by its short name."""
    if name in FILES:
        return FILES[name]
    stem, _, suffix = name.partition(".")
    return {
        "fw": f"{PVE}/firewall/{stem}.fw",
        "conf": f"{PVE}/qemu-server/{stem}.conf",
        "ct": f"{PVE}/lxc/{stem}.conf",
        "vnet": f"{PVE}/sdn/firewall/{stem}.fw",
    }[suffix]


def check(root: Path, local_network: str | None = "10.0.0.0/24") -> Checked:
    """Check a configuration of node n1."""
    return check_root(Source(root, NODE, lambda: local_network))


def complaints(printed: str) -> list[str]:
    """Return the lines that tools printed as errors, but for a remark.

    The reference writes ``-s ! MAC`` for ebtables, and since iptables 1.8.11 ebtables-restore says that it would rather
    have ``! -s MAC``.
    """
    return [line for line in printed.splitlines() if "intrapositioned negation" not in line]
