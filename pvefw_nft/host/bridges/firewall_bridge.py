"""The firewall bridges of filtered guest NICs.

``physdev`` and the bridge hooks see only bridged packets. So each filtered NIC gets a bridge of its own,
joined to the guest's bridge by a pair of links, and every packet of the NIC is bridged there::

    tap100i0 ── fwbr100i0 ── fwln100i0 ═ fwpr100p0 ── vmbr0 ── eno1

A plan is worked out from the links as they are (:func:`plan_plug`, :func:`plan_unplug`) and is data; executing
it twice equals executing it once, and a half-built firewall bridge of a killed run is completed.

The firewall bridge must not be a way around the filter: a guest that reaches the host's IP stack through it
is routed, not bridged, and no rule for bridged packets sees that. So on every link that is built IPv6 is off,
and IPv4 answers no ARP, accepts no sender (no route leads back there) and forwards nothing (kernel:
ip-sysctl.rst, arp_ignore, rp_filter, forwarding).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError, UsageError

from .. import sysctl
from ..links import BridgeSettings, Link, Links, VlanRange, coalesce
from .linksteps import (
    ConfigureBridge,
    CreateBridge,
    CreateVeth,
    CreateVlan,
    DeleteLink,
    SetAlias,
    SetLinkSysctl,
    SetMaster,
    SetMtu,
    SetPortVlans,
    SetUp,
    Step,
    apply_to_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_NAME = 15
"""Longest name of a link: IFNAMSIZ (include/uapi/linux/if.h) less the closing NUL."""
MAX_VLAN = 4094
ALIAS = "pvefw"
"""The note on VLAN links and bridges that were made here, and so may be removed here."""

_NAME = re.compile(r"[^\s/:]{1,15}")
_GUEST_NIC = re.compile(r"(?:tap|veth)(\d+)i(\d+)")
_GUEST_PORT = re.compile(r"(?:tap|veth|fwln|link)\d+i\d+|fwpr\d+p\d+|link\d+i\d+p")
# what a bridge's way to the outside can be made of; None: a network card
_UPLINK_KINDS = frozenset({None, "bond", "team", "vlan", "macsec", "dummy", "vxlan", "geneve", "gretap"})

# net/<family>/conf/<link>/<key>: see the module's docstring. arp_ignore 8: no answer for any local address.
_SHUT = (
    ("ipv6", "disable_ipv6", "1"),
    ("ipv4", "arp_ignore", "8"),
    ("ipv4", "rp_filter", "1"),
    ("ipv4", "forwarding", "0"),
)


class Naming(Enum):
    """How the pair of links between the two bridges is called."""

    CURRENT = "current"
    """``fwln100i0`` and ``fwpr100p0``, which the rulesets match"""
    OLDER = "older"
    """``link100i0`` and ``link100i0p``, as hosts of long ago have it; today's rulesets do not match them"""


@dataclass(frozen=True, slots=True)
class Nic:
    """A guest's NIC as the host sees it: ``interface`` (``tap100i0``), a port of ``bridge``.

    ``tag``: the VLAN the guest is in; ``trunks``: VLANs it may use with tags of its own; ``mtu``: of the NIC,
    None for the bridge's. Raises :class:`UsageError` if a name cannot be one of a link or a VLAN is none.
    """

    interface: str
    bridge: str
    vmid: int
    index: int
    tag: int | None = None
    trunks: tuple[VlanRange, ...] = ()
    mtu: int | None = None

    def __post_init__(self) -> None:
        for name in (self.interface, self.bridge):
            if _NAME.fullmatch(name) is None or name in {".", ".."}:
                raise UsageError(f"not a name of a network link: {name!r}", "names have 1 to 15 characters")
        vlans = [
            *((self.tag,) if self.tag is not None else ()),
            *(v for t in self.trunks for v in (t.first, t.last)),
        ]
        for vlan in vlans:
            if not 1 <= vlan <= MAX_VLAN:
                raise UsageError(f"{self.interface}: no such VLAN: {vlan}", f"VLANs are 1 to {MAX_VLAN}")
        if any(trunk.first > trunk.last for trunk in self.trunks):
            raise UsageError(f"{self.interface}: a range of VLANs that ends before it begins")
        if len(self.firewall_bridge) > MAX_NAME:
            raise UsageError(
                f"{self.interface}: {self.firewall_bridge} is longer than a link's {MAX_NAME} characters",
                "use a NIC below net10, or a shorter VMID",
            )

    @property
    def firewall_bridge(self) -> str:
        """The name of the NIC's own bridge."""
        return f"fwbr{self.vmid}i{self.index}"

    def pair(self, naming: Naming) -> tuple[str, str]:
        """Return the names of the pair's ends: in the firewall bridge, in the guest's bridge."""
        if naming is Naming.OLDER:
            name = f"link{self.vmid}i{self.index}"
            if len(name) >= MAX_NAME:
                raise UsageError(f"{self.interface}: {name}p is longer than the {MAX_NAME} characters of a link")
            return name, f"{name}p"
        return f"fwln{self.vmid}i{self.index}", f"fwpr{self.vmid}p{self.index}"


def guest_nic(interface: str) -> tuple[int, int] | None:
    """Return VMID and index of a guest NIC's name (``tap100i0``: 100, 0), or None for any other name."""
    found = _GUEST_NIC.fullmatch(interface)
    return (int(found[1]), int(found[2])) if found else None


def parse_trunks(text: str) -> tuple[VlanRange, ...]:
    """Read trunks as a guest's configuration has them: ``5;10-20``. Raises :class:`UsageError`."""
    ranges = []
    for part in text.replace(",", ";").split(";"):
        found = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if found is None:
            raise UsageError(f"not a list of VLANs: {text!r}", "write it like 5;10-20")
        ranges.append(VlanRange(int(found[1]), int(found[2] or found[1])))
    return tuple(ranges)


def plan_plug(
    nic: Nic,
    links: Links,
    naming: Naming = Naming.CURRENT,
    setting: Callable[[str], str | None] = sysctl.read,
) -> list[Step]:
    """Return the steps that put the NIC behind its firewall bridge; none if all is as it should be.

    ``links`` is changed to what the steps lead to. ``setting`` reads a kernel setting by its path below
    /proc/sys. Raises :class:`HostError` if links are missing, or foreign links have their names.

    Example: a NIC ``tap100i0`` in ``vmbr0`` gives ``ip link add fwbr100i0 …``, the pair, their settings, and
    last ``ip link set tap100i0 master fwbr100i0``.
    """
    return _Plan(links, setting).plug(nic, naming)


def plan_unplug(nic: Nic, links: Links) -> list[Step]:
    """Return the steps that remove the NIC's firewall bridge; none if it has none.

    The NIC itself, where it still exists, is left in no bridge: back in the guest's bridge it would be
    unfiltered. A VLAN's bridge and links go with their last guest if they were made here.
    Raises :class:`HostError` if links that pvefw did not make have the names of a firewall bridge's links.
    """
    return _Plan(links, sysctl.read).unplug(nic)


class _Plan:
    """Steps so far, and the links as they will be after them."""

    def __init__(self, links: Links, setting: Callable[[str], str | None]) -> None:
        self._links = links
        self._setting = setting
        self._steps: list[Step] = []
        self._new: set[str] = set()

    def plug(self, nic: Nic, naming: Naming) -> list[Step]:
        guest_bridge = self._bridge_for(nic)
        port = self._links.get(nic.interface)
        if port is None:
            raise HostError(f"there is no link {nic.interface}", "start the guest first: it brings its NIC")
        mtu = guest_bridge.mtu
        if nic.mtu is not None and nic.mtu > mtu:
            raise HostError(
                f"{nic.interface}: its MTU of {nic.mtu} is larger than the {mtu} of {guest_bridge.name}",
                f"lower the NIC's MTU or raise the MTU of {guest_bridge.name}",
            )
        inner, outer = nic.pair(naming)
        self._check_ours(nic)
        self._remove_other_pair(nic, naming)

        assert guest_bridge.bridge is not None
        self._ensure_bridge(nic.firewall_bridge, mtu, guest_bridge.bridge)
        self._ensure_pair(inner, outer, mtu)
        for name in (nic.firewall_bridge, inner, outer):
            self._ensure_mtu(name, mtu)
            self._shut(name)
        self._ensure_master(outer, guest_bridge.name)
        self._ensure_vlans(nic, outer, guest_bridge)
        self._ensure_master(inner, nic.firewall_bridge)
        for name in (nic.firewall_bridge, inner, outer):
            self._ensure_up(name)

        self._ensure_mtu(nic.interface, nic.mtu or mtu)
        self._shut(nic.interface)
        self._ensure_master(nic.interface, nic.firewall_bridge)
        self._ensure_mtu(nic.firewall_bridge, mtu)
        self._ensure_up(nic.interface)
        return self._steps

    def unplug(self, nic: Nic) -> list[Step]:
        self._check_ours(nic)
        port = self._links.get(nic.interface)
        if port is not None and port.master == nic.firewall_bridge:
            self._do(SetMaster(nic.interface, None))
        bridges = set()
        for naming in Naming:
            for end in nic.pair(naming):
                link = self._links.get(end)
                if link is not None and link.master is not None:
                    bridges.add(link.master)
            if self._links.get(nic.pair(naming)[0]) is not None:
                self._do(DeleteLink(nic.pair(naming)[0]))
        if self._links.get(nic.firewall_bridge) is not None:
            self._do(DeleteLink(nic.firewall_bridge))
        for bridge in sorted(bridges):
            self._remove_vlan_bridge(bridge)
        return self._steps

    # --- the guest's bridge ---------------------------------------------------------------------------------

    def _bridge_for(self, nic: Nic) -> Link:
        """Return the bridge the NIC belongs in; on a plain bridge, make the bridge of its VLAN."""
        bridge = self._links.get(nic.bridge)
        if bridge is None:
            raise HostError(f"{nic.interface}: there is no bridge {nic.bridge}", "check `bridge=` of the guest's NIC")
        if bridge.bridge is None:
            raise HostError(
                f"{nic.interface}: {nic.bridge} is not a Linux bridge but {_kind(bridge)}",
                "Open vSwitch bridges are not supported",
            )
        if bridge.vlan_aware or (nic.tag is None and not nic.trunks):
            return bridge
        if nic.trunks:
            raise HostError(
                f"{nic.interface}: {nic.bridge} does not know VLANs, and cannot keep the guest to its trunks",
                f"make the bridge VLAN-aware (ip link set {nic.bridge} type bridge vlan_filtering 1)",
            )
        assert nic.tag is not None
        return self._vlan_bridge(bridge, nic.tag)

    def _vlan_bridge(self, parent: Link, tag: int) -> Link:
        assert parent.bridge is not None
        name = _fit(f"{parent.name}v{tag}", parent.name)
        existing = self._links.get(name)
        if existing is not None and existing.bridge is None:
            raise HostError(f"{name} exists and is no bridge but {_kind(existing)}", "rename or remove it")
        uplinks = [port for port in self._links.ports(parent.name) if self._is_uplink(port)]
        if not uplinks:
            raise HostError(
                f"{parent.name} has no way to the outside that could carry VLAN {tag}",
                "add the network card to the bridge, or make the bridge VLAN-aware",
            )
        if existing is None:
            self._do(CreateBridge(name, parent.mtu, parent.bridge))
            self._do(SetAlias(name, ALIAS))
            self._new.add(name)
        for uplink in uplinks:
            self._ensure_vlan_port(name, uplink, tag)
        self._ensure_mtu(name, parent.mtu)
        bridge = self._links.get(name)
        assert bridge is not None
        if bridge.alias == ALIAS:  # a bridge of the administrator's may hold addresses of the host
            self._shut(name)
        self._ensure_up(name)
        return bridge

    def _is_uplink(self, port: str) -> bool:
        link = self._links.get(port)
        return link is not None and link.kind in _UPLINK_KINDS and _GUEST_PORT.fullmatch(port) is None

    def _ensure_vlan_port(self, bridge: str, uplink: str, tag: int) -> None:
        # under any name: the kernel allows one link for a VLAN of a link
        port = next((link for link in self._links if link.lower == uplink and link.vlan == tag), None)
        if port is None:
            name = _fit(f"{uplink}.{tag}", uplink)
            if self._links.get(name) is not None:
                raise HostError(f"{name} exists and is not VLAN {tag} of {uplink}", "rename or remove it")
            self._do(CreateVlan(name, uplink, tag))
            self._do(SetAlias(name, ALIAS))
            self._new.add(name)
            port = self._links.get(name)
            assert port is not None
        if port.master not in {None, bridge}:
            raise HostError(
                f"VLAN {tag} of {uplink} ({port.name}) is in {port.master} already",
                f"put the guest's NIC into {port.master} without a tag",
            )
        if port.alias == ALIAS:
            self._shut(port.name)
        self._ensure_master(port.name, bridge)
        self._ensure_up(port.name)

    def _remove_vlan_bridge(self, name: str) -> None:
        bridge = self._links.get(name)
        if bridge is None or bridge.alias != ALIAS:
            return
        ports = [self._links.get(port) for port in self._links.ports(name)]
        if any(port is None or port.vlan is None for port in ports):
            return
        for port in ports:
            assert port is not None
            if port.alias == ALIAS:
                self._do(DeleteLink(port.name))
        self._do(DeleteLink(name))

    # --- links that exist already ------------------------------------------------------------------------------

    def _check_ours(self, nic: Nic) -> None:
        """Refuse links with the names of this NIC's firewall bridge that cannot be part of it."""
        bridge = self._links.get(nic.firewall_bridge)
        ends = {end for naming in Naming for end in nic.pair(naming)}
        if bridge is not None:
            if bridge.bridge is None:
                raise self._not_ours(bridge.name, f"it is {_kind(bridge)}, not a bridge")
            inner = {nic.pair(naming)[0] for naming in Naming}
            foreign = set(self._links.ports(bridge.name)) - inner - {nic.interface}
            if foreign:
                raise self._not_ours(bridge.name, f"it has other ports: {', '.join(sorted(foreign))}")
        for naming in Naming:
            inner_end, outer_end = nic.pair(naming)
            for end, other in ((inner_end, outer_end), (outer_end, inner_end)):
                link = self._links.get(end)
                if link is None:
                    continue
                if link.kind != "veth" or link.lower != other:
                    raise self._not_ours(end, f"it is {_kind(link)} and not paired with {other}")
                if link.master in ends:
                    raise self._not_ours(end, f"it is a port of {link.master}")

    @staticmethod
    def _not_ours(name: str, reason: str) -> HostError:
        return HostError(f"{name} is not part of a firewall bridge of pvefw: {reason}", "rename or remove it")

    def _remove_other_pair(self, nic: Nic, naming: Naming) -> None:
        """Remove the pair of the other naming: two pairs between the same bridges would be a loop."""
        for other in Naming:
            inner, _ = nic.pair(other)
            if other is not naming and self._links.get(inner) is not None:
                self._do(DeleteLink(inner))

    # --- single conditions of a link -----------------------------------------------------------------------

    def _ensure_bridge(self, name: str, mtu: int, settings: BridgeSettings) -> None:
        # a user space spanning tree daemon (2) knows nothing of our bridge: the kernel's own runs there
        settings = replace(settings, stp_state=min(settings.stp_state, 1))
        link = self._links.get(name)
        if link is None:
            self._do(CreateBridge(name, mtu, settings))
            self._new.add(name)
        elif link.bridge != settings:
            self._do(ConfigureBridge(name, settings))

    def _ensure_pair(self, inner: str, outer: str, mtu: int) -> None:
        if self._links.get(inner) is None:
            self._do(CreateVeth(inner, _mac(inner), outer, _mac(outer), mtu))
            self._new.update((inner, outer))

    def _ensure_mtu(self, name: str, mtu: int) -> None:
        link = self._links.get(name)
        if link is not None and link.mtu != mtu:
            self._do(SetMtu(name, mtu))

    def _ensure_master(self, name: str, master: str) -> None:
        link = self._links.get(name)
        if link is not None and link.master != master:
            if (
                link.master is not None
                and (bridge := self._links.get(link.master)) is not None
                and bridge.bridge is None
            ):
                raise HostError(
                    f"{name} is a port of {link.master}, which is not a Linux bridge",
                    f"take {name} out of it",
                )
            self._do(SetMaster(name, master))

    def _ensure_vlans(self, nic: Nic, port: str, bridge: Link) -> None:
        if not bridge.vlan_aware:
            return
        link = self._links.get(port)
        assert link is not None
        wanted = port_vlans(nic, bridge.default_pvid)
        if coalesce(link.vlans) != wanted:
            self._do(SetPortVlans(port, link.vlans, wanted))

    def _ensure_up(self, name: str) -> None:
        link = self._links.get(name)
        if link is not None and not link.up:
            self._do(SetUp(name))

    def _shut(self, name: str) -> None:
        """Keep the host's IP stack off a link that only carries frames."""
        for family, key, value in _SHUT:
            step = SetLinkSysctl(name, family, key, value)
            if family == "ipv6" and self._setting("net/ipv6/conf/all/disable_ipv6") is None:
                continue  # a kernel without IPv6
            now = self._setting(step.path)
            # systemd sets rp_filter to 2 on links that appear; on one without an address it refuses as much
            if name in self._new or not (now == value or (key == "rp_filter" and now == "2")):
                self._do(step)

    def _do(self, step: Step) -> None:
        self._steps.append(step)
        apply_to_model(step, self._links)


def port_vlans(nic: Nic, default_pvid: int) -> tuple[VlanRange, ...]:
    """Return the VLANs of a NIC's port on a VLAN-aware bridge with this default VLAN (0: none).

    Example: tag 5 and trunks 10-12 give ``5 pvid untagged, 10-12``; neither of them gives all VLANs, the
    bridge's default one untagged.
    """
    native = nic.tag if nic.tag is not None else default_pvid
    ranges = [VlanRange(native, native, pvid=True, untagged=True)] if native else []
    if nic.trunks:
        tagged: Iterable[VlanRange] = nic.trunks
    else:
        tagged = () if nic.tag is not None else (VlanRange(1, MAX_VLAN),)
    for trunk in tagged:
        below = VlanRange(trunk.first, min(trunk.last, native - 1)) if native else trunk
        above = VlanRange(max(trunk.first, native + 1), trunk.last)
        ranges += [part for part in ((below, above) if native else (trunk,)) if part.first <= part.last]
    return coalesce(ranges)


def _mac(name: str) -> str:
    """Return a MAC address for one of our links, always the same.

    A bridge without an address of its own takes its lowest port's. Ours begin with fe (locally administered,
    as libvirt does it), so the guest's bridge keeps the network card's address.
    """
    digest = hashlib.sha256(name.encode()).digest()
    return ":".join(["fe", *(f"{octet:02x}" for octet in digest[:5])])


def _fit(name: str, parent: str) -> str:
    if len(name) > MAX_NAME:
        raise HostError(
            f"the name {name} is longer than the {MAX_NAME} characters of a link",
            f"make the bridge of {parent} VLAN-aware, or make that VLAN's link and bridge yourself",
        )
    return name


def _kind(link: Link) -> str:
    return f"a {link.kind} link" if link.kind else "a network card"
