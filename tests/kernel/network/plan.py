"""The network of a configuration: bridges, guests' NICs, neighbours, addresses.

The shape is a Proxmox VE host's (plain Linux bridges), the names are those it would use::

                             namespace of the host
    outside ── eno1 ── vmbr0 ─┬─ fwpr100p0 ── fwln100i0 ─ fwbr100i0 ─ tap100i0 ── VM 100
                              ├─ fwpr200p0 ── fwln200i0 ─ fwbr200i0 ─ veth200i0 ─ CT 200
                              └─ tap9999i0 ─────────────────── an unfiltered VM
    router ── wan0 (routed)

A NIC with a VLAN tag hangs on a bridge ``vmbr0v10`` over ``eno1.10``. Every bridge of the configuration
has an uplink of its own with an outside of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
    ip_network,
)
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface

UNFILTERED_VMID = 9999
ROUTER_V4 = IPv4Interface("198.19.255.2/24")
ROUTER_V6 = IPv6Interface("2001:db8:ff::2/64")
WAN_V4 = IPv4Interface("198.19.255.1/24")
WAN_V6 = IPv6Interface("2001:db8:ff::1/64")
WAN_PORT = "wan0"
WAN_MAC = "02:fc:00:00:00:01"
DEFAULT_V4 = IPv4Network("10.0.0.0/24")
DEFAULT_V6 = IPv6Network("fd00::/64")

HOST = "host"
ROUTER = "router"
OUTSIDE = "outside"


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge of the host: its MAC, its uplink, and for one over a VLAN the tag."""

    name: str
    mac: str
    uplink: str
    tag: int | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The far end of a wire: a guest's NIC, a bridge's outside, or the router.

    ``port`` is the host's interface at this end of the wire; ``bridge`` the bridge the wire leads to, behind
    the firewall bridge where it is ``filtered``; the router has none. Where ``tag`` is set, the endpoint
    itself sends and receives frames with that VLAN tag.
    """

    name: str
    namespace: str
    port: str
    mac: str
    v4: IPv4Address
    v6: IPv6Address
    bridge: str | None = None
    tag: int | None = None
    filtered: bool = False

    @property
    def firewall_names(self) -> tuple[str, str, str]:
        """The firewall bridge of a filtered NIC, its port towards the guest's bridge, and its peer there."""
        vmid, _, index = re.sub(r"^(tap|veth)", "", self.port).partition("i")
        return f"fwbr{vmid}i{index}", f"fwln{vmid}i{index}", f"fwpr{vmid}p{index}"


class PlanError(Exception):
    """A guest configuration is not one the lab can lay wires for."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole network. ``host`` are the host's addresses on the first bridge, one of each family at least."""

    host: tuple[Interface, ...]
    bridges: tuple[Bridge, ...]
    endpoints: tuple[Endpoint, ...]

    def endpoint(self, name: str, near: str | None = None) -> Endpoint:
        """Return the endpoint called ``name``; ``outside`` means the outside of the bridge of the endpoint ``near``.

        A guest's first NIC is called both ``vm100`` and ``vm100i0``.

        Raises:
            PlanError: there is no such endpoint.
        """
        if name == OUTSIDE and near not in (None, HOST, ROUTER, OUTSIDE):
            name = f"{OUTSIDE}@{self.endpoint(str(near)).bridge}"
        elif name == OUTSIDE:
            name = f"{OUTSIDE}@{self.bridges[0].name}"
        known = {endpoint.name: endpoint for endpoint in self.endpoints}
        found = known.get(name) or known.get(re.sub(r"^((?:vm|ct)\d+)i0$", r"\1", name))
        if found is None:
            raise PlanError(f"no endpoint {name!r}; there are host and {', '.join(sorted(known))}")
        return found

    def bridge(self, name: str) -> Bridge:
        """Return the bridge of this name."""
        return next(bridge for bridge in self.bridges if bridge.name == name)

    @property
    def host_interfaces(self) -> tuple[Interface, ...]:
        """All addresses of the host with their networks, the loopback's and the one towards the router included."""
        return (*self.host, WAN_V4, WAN_V6, IPv4Interface("127.0.0.1/8"))

    def host_address(self, family: int) -> Address:
        """Return the host's own address of family 4 or 6."""
        return next(interface.ip for interface in self.host if interface.version == family)


@dataclass(frozen=True, slots=True)
class GuestNic:
    """A NIC as its guest's configuration file has it; ``kind`` is ``vm`` or ``ct``."""

    kind: str
    vmid: int
    index: int
    bridge: str
    mac: str
    firewall: bool
    tag: int | None
    v4: IPv4Address | None
    v6: IPv6Address | None

    @property
    def port(self) -> str:
        """The host's interface for this NIC."""
        return f"{'tap' if self.kind == 'vm' else 'veth'}{self.vmid}i{self.index}"


_LINK_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,14}")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")


def read_nics(root: Path, node: str) -> list[GuestNic]:
    """Return the NICs of the guests of ``node`` below ``root``, by VMID and number.

    Raises:
        PlanError: a NIC has no bridge or a MAC address that is none.
    """
    nics = []
    for folder, kind in (("qemu-server", "vm"), ("lxc", "ct")):
        for base in (root / "etc/pve", root / "etc/pve/nodes" / node):
            if not (base / folder).is_dir():
                continue
            for path in (base / folder).glob("*.conf"):
                nics += _nics_of(path, kind)
            break
    return sorted(nics, key=lambda nic: (nic.vmid, nic.index))


def _nics_of(path: Path, kind: str) -> list[GuestNic]:
    nics = []
    # Sections after the first header are snapshots.
    current = re.split(r"(?m)^\[", path.read_text())[0]
    for match in re.finditer(r"(?m)^net(\d+):\s*(\S+)", current):
        fields = dict(item.partition("=")[::2] for item in match[2].split(","))
        model = next((key for key, value in fields.items() if _MAC.fullmatch(value) and key != "hwaddr"), None)
        mac = fields.get("hwaddr") if kind == "ct" else fields.get(model or "")
        bridge = fields.get("bridge", "")
        if mac is None or _MAC.fullmatch(mac) is None or _LINK_NAME.fullmatch(bridge) is None:
            raise PlanError(f"{path}: net{match[1]} has no usable MAC address or bridge")
        v4, v6 = _static(fields.get("ip")), _static(fields.get("ip6"))
        nics.append(
            GuestNic(
                kind=kind,
                vmid=int(path.stem),
                index=int(match[1]),
                bridge=bridge,
                mac=mac.lower(),
                firewall=fields.get("firewall") == "1",
                tag=int(fields["tag"]) if "tag" in fields else None,
                v4=IPv4Address(v4) if v4 else None,
                v6=IPv6Address(v6) if v6 else None,
            )
        )
    return nics


def _static(value: str | None) -> str | None:
    """Return the address of ``ip=`` or ``ip6=``; None for ``dhcp``, ``auto`` and ``manual``."""
    if value is None or "/" not in value:
        return None
    return value.partition("/")[0]


def make_plan(root: Path, node: str, local_network: str | None = None) -> Plan:
    """Lay out the network of the configuration below ``root``.

    ``local_network`` (a CIDR, either family) is where the host and guests without configured addresses live;
    the other family gets :data:`DEFAULT_V4` or :data:`DEFAULT_V6`. One unfiltered VM is always there.
    """
    network4, network6 = DEFAULT_V4, DEFAULT_V6
    match ip_network(local_network) if local_network else None:
        case IPv4Network() as given:
            network4 = given
        case IPv6Network() as given6:
            network6 = given6
    nics = read_nics(root, node)
    if all(nic.firewall for nic in nics):
        first = nics[0].bridge if nics else "vmbr0"
        mac = "02:99:99:00:00:00"
        nics.append(GuestNic("vm", UNFILTERED_VMID, 0, first, mac, firewall=False, tag=None, v4=None, v6=None))
    bridges = _bridges(nics)
    host = _host_addresses(root, node, network4, network6)
    endpoints = [_guest(nic, number, network4, network6) for number, nic in enumerate(nics)]
    endpoints += _outsides(bridges, network4, network6)
    endpoints.append(Endpoint(ROUTER, "pvlab-router", WAN_PORT, "02:fc:00:00:00:02", ROUTER_V4.ip, ROUTER_V6.ip))
    return Plan(host, tuple(bridges), tuple(endpoints))


def _bridges(nics: list[GuestNic]) -> list[Bridge]:
    """Return the bridges that the NICs need: ``vmbr0`` first, a VLAN's bridge after the bridge below it."""
    names = sorted({"vmbr0"} | {nic.bridge for nic in nics}, key=lambda name: (name != "vmbr0", name))
    bridges = [
        Bridge(name, f"02:fd:00:00:00:{number:02x}", f"eno{number}") for number, name in enumerate(names, start=1)
    ]
    uplinks = {bridge.name: bridge.uplink for bridge in bridges}
    tagged = sorted({(nic.bridge, nic.tag) for nic in nics if nic.tag is not None})
    for number, (name, tag) in enumerate(tagged, start=len(bridges) + 1):
        bridges.append(Bridge(f"{name}v{tag}", f"02:fd:00:00:00:{number:02x}", f"{uplinks[name]}.{tag}", tag))
    return bridges


def _host_addresses(root: Path, node: str, network4: IPv4Network, network6: IPv6Network) -> tuple[Interface, ...]:
    """Return the host's addresses: the second of each network, and its own of corosync.conf."""
    own: list[Interface] = [
        IPv4Interface((network4[2], network4.prefixlen)),
        IPv6Interface((network6[2], network6.prefixlen)),
    ]
    corosync = root / "etc/pve/corosync.conf"
    if corosync.exists():
        for section in re.findall(r"\bnode\s*\{([^}]*)\}", corosync.read_text()):
            if re.search(rf"(?m)^\s*name:\s*{re.escape(node)}\s*$", section):
                addresses = re.findall(r"(?m)^\s*ring\d+_addr:\s*(\S+)\s*$", section)
                own += [ip_interface(f"{text}/{64 if ':' in text else 24}") for text in addresses]
    return tuple(dict.fromkeys(own))


def _guest(nic: GuestNic, number: int, network4: IPv4Network, network6: IPv6Network) -> Endpoint:
    name = f"{nic.kind}{nic.vmid}" + (f"i{nic.index}" if nic.index else "")
    return Endpoint(
        name=name,
        namespace=f"pvlab-{nic.port}",
        port=nic.port,
        mac=nic.mac,
        v4=nic.v4 or network4[100 + number],
        v6=nic.v6 or network6[0x100 + number],
        bridge=nic.bridge if nic.tag is None else f"{nic.bridge}v{nic.tag}",
        filtered=nic.firewall,
    )


def _outsides(bridges: list[Bridge], network4: IPv4Network, network6: IPv6Network) -> list[Endpoint]:
    """Return an outside for each bridge; a VLAN's outside shares the wire of the bridge below."""
    outsides = []
    for number, bridge in enumerate(bridges):
        port = bridge.uplink.partition(".")[0]
        outsides.append(
            Endpoint(
                name=f"{OUTSIDE}@{bridge.name}",
                namespace=f"pvlab-{port}",
                port=port,
                mac=f"02:fe:00:00:00:{int(port.removeprefix('eno')):02x}",
                v4=network4[-2 - number],
                v6=network6[0xFE00 + number],
                bridge=bridge.name,
                tag=bridge.tag,
            )
        )
    return outsides
