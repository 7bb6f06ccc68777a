"""Which addresses guests use, and which guests run on other nodes, as far as the files tell.

Nothing is filtered by this: it is for ``simulate``, which needs an address for each end of a packet. A guest's
addresses are, in this order: a container's ``ip=`` and ``ip6=``, a VM's ``ipconfigN`` (set by cloud-init), and the
single addresses of its ipset ``ipfilter-netN`` (its allowed senders).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.config import resolve
from pvefw_nft.config.findings import Findings
from pvefw_nft.config.load import read_nics
from pvefw_nft.config.model import Guest
from pvefw_nft.config.rules import Names
from pvefw_nft.config.values import BadValue, Prefix, read_prefix
from pvefw_nft.errors import ConfigurationError, UnusableFileError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pvefw_nft.config.load import Configuration, Root
    from pvefw_nft.config.model import ClusterConfig, GuestConfig, GuestKind

_IPCONFIG = re.compile(r"ipconfig([0-9]{1,2})[ \t]*:[ \t]*(\S+)")
_BRIDGE = re.compile(r"bridge=(?=([^,\s]*))")
"""Any mention of a bridge, also in a comment or a snapshot. Matches may overlap, so none hides another."""
_BITS = {4: 32, 6: 128}


class Addresses(NamedTuple):
    """The known addresses of a NIC: ``hosts`` are its own, ``networks`` those it may take one from."""

    hosts: tuple[Prefix, ...] = ()
    networks: tuple[Prefix, ...] = ()


def guest_addresses(root: Root, cluster: ClusterConfig, guest: Guest) -> dict[int, Addresses]:
    """Return the addresses of a guest's NICs in its files, by the NIC's number.

    An unusable file gives none; compiling it reports that.
    """
    given = _cloud_init(_text(root, guest.file))
    firewall = _firewall(root, cluster, guest.vmid)
    found = {}
    for nic in guest.nics:
        hosts = [*nic.addresses, *given.get(nic.index, ())]
        networks: list[Prefix] = []
        own = firewall.ipsets.get(f"ipfilter-net{nic.index}") if firewall is not None else None
        for entry in own.entries if own is not None else ():
            if not entry.nomatch:
                single = entry.prefix.length == _BITS[entry.prefix.version]
                (hosts if single else networks).append(entry.prefix)
        found[nic.index] = Addresses(tuple(hosts), tuple(networks))
    return found


def guest_elsewhere(root: Root, kind: GuestKind, vmid: int, path: str) -> Guest:
    """Read a guest of another node. Its NICs are read, its rules are not: the other node filters it."""
    return Guest(vmid, kind, read_nics(vmid, kind, path, _text(root, path)), None, path)


def bridges_in_use(root: Root, configuration: Configuration, guests: Iterable[tuple[int, GuestKind, str]]) -> set[str]:
    """Return the bridges of the NICs of guests, each given by VMID, kind and path of its config.

    A config is read as text; only one that mentions a bridge not found before is read line by line. So a node of
    many guests on few bridges costs little more than the reading of its files. Raises as reading the guests.
    """
    found: set[str] = set()
    for vmid, kind, path in guests:
        try:
            text = root.files.text(path) or ""
        except UnusableFileError:
            continue  # such a guest has NICs on no bridge
        if not found.issuperset(_BRIDGE.findall(text)):
            guest = configuration.read_guest(vmid, kind, path, rules=False)
            found.update(nic.bridge for nic in guest.nics if nic.bridge is not None)
    return found


def _firewall(root: Root, cluster: ClusterConfig, vmid: int) -> GuestConfig | None:
    """Return a guest's firewall file if it has sets of addresses; reading all of its rules takes time."""
    path = root.pve / "firewall" / f"{vmid}.fw"
    text = _text(root, path)
    if "ipfilter-net" not in text.lower():
        return None
    names = Names(0, dict(cluster.aliases), dict(cluster.ipsets))
    return resolve.read_guest(str(path), text, Findings(), cluster, names, vmid)


def _text(root: Root, path: Path | str) -> str:
    try:
        return root.files.text(path) or ""
    except ConfigurationError:
        return ""


def _cloud_init(text: str) -> dict[int, list[Prefix]]:
    """Return the addresses of ``ipconfigN: ip=192.0.2.5/24,gw=…,ip6=…`` by N; ``dhcp`` and ``auto`` give none."""
    found: dict[int, list[Prefix]] = {}
    for line in text.split("\n"):
        body = line.strip()
        if body.startswith("["):
            break  # a snapshot's section: former settings
        setting = _IPCONFIG.match(body)
        if setting is None:
            continue
        for part in setting[2].split(","):
            key, _, value = part.partition("=")
            if key not in ("ip", "ip6"):
                continue
            try:
                found.setdefault(int(setting[1]), []).append(read_prefix(value.partition("/")[0]))
            except BadValue:
                continue
    return found
