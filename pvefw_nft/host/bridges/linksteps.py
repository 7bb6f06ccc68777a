"""Single changes to links: data that prints as the command a person would type, carried out by netlink."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, assert_never

from pvefw_nft.errors import HostError

from .. import sysctl
from ..links import BridgeSettings, Link, Links, VlanRange, coalesce, vlan_attributes

if TYPE_CHECKING:
    from collections.abc import Sequence

# how netlink (pyroute2) names the settings of a bridge; the rest is `br_` and the field's own name
_NETLINK_NAMES = {"multicast_snooping": "br_mcast_snooping", "multicast_querier": "br_mcast_querier"}
# how ip-link(8) names them
_IP_NAMES = {"multicast_snooping": "mcast_snooping", "multicast_querier": "mcast_querier"}


@dataclass(frozen=True, slots=True)
class CreateBridge:
    """Make a bridge, still down."""

    name: str
    mtu: int
    settings: BridgeSettings

    def __str__(self) -> str:
        return f"ip link add {self.name} mtu {self.mtu} type bridge{_spell(self.settings)}"


@dataclass(frozen=True, slots=True)
class ConfigureBridge:
    """Give a bridge other settings."""

    name: str
    settings: BridgeSettings

    def __str__(self) -> str:
        return f"ip link set {self.name} type bridge{_spell(self.settings)}"


@dataclass(frozen=True, slots=True)
class CreateVeth:
    """Make a pair of links, still down; MAC addresses as ``xx:xx:xx:xx:xx:xx``."""

    name: str
    mac: str
    peer: str
    peer_mac: str
    mtu: int

    def __str__(self) -> str:
        return (
            f"ip link add {self.name} address {self.mac} mtu {self.mtu} type veth "
            f"peer name {self.peer} address {self.peer_mac} mtu {self.mtu}"
        )


@dataclass(frozen=True, slots=True)
class CreateVlan:
    """Make the link that carries the frames of one VLAN of ``lower``."""

    name: str
    lower: str
    vlan: int

    def __str__(self) -> str:
        return f"ip link add link {self.lower} name {self.name} type vlan id {self.vlan}"


@dataclass(frozen=True, slots=True)
class SetMtu:
    """Set a link's MTU, in octets."""

    name: str
    mtu: int

    def __str__(self) -> str:
        return f"ip link set {self.name} mtu {self.mtu}"


@dataclass(frozen=True, slots=True)
class SetMaster:
    """Make a link a port of a bridge, or of none (None)."""

    name: str
    master: str | None

    def __str__(self) -> str:
        return f"ip link set {self.name} " + (f"master {self.master}" if self.master else "nomaster")


@dataclass(frozen=True, slots=True)
class SetUp:
    """Bring a link up."""

    name: str

    def __str__(self) -> str:
        return f"ip link set {self.name} up"


@dataclass(frozen=True, slots=True)
class SetAlias:
    """Note on a link who made it."""

    name: str
    alias: str

    def __str__(self) -> str:
        return f"ip link set {self.name} alias {self.alias}"


@dataclass(frozen=True, slots=True)
class SetLinkSysctl:
    """Set ``net/<family>/conf/<link>/<key>``."""

    name: str
    family: str
    key: str
    value: str

    @property
    def path(self) -> str:
        """The setting's path below /proc/sys."""
        return f"net/{self.family}/conf/{self.name}/{self.key}"

    def __str__(self) -> str:
        return f"sysctl -w {self.path}={self.value}"


@dataclass(frozen=True, slots=True)
class SetPortVlans:
    """Let a port of a VLAN-aware bridge pass exactly ``vlans``; ``current`` are the VLANs that it passes now."""

    name: str
    current: tuple[VlanRange, ...]
    vlans: tuple[VlanRange, ...]

    def __str__(self) -> str:
        gone = (f"bridge vlan del dev {self.name} vid {vlan}" for vlan in self.to_remove())
        new = (f"bridge vlan add dev {self.name} vid {vlan}" for vlan in self.to_add())
        return "; ".join([*gone, *new])

    def to_remove(self) -> tuple[VlanRange, ...]:
        """Return the VLANs that pass now and shall not."""
        wanted = _by_id(self.vlans)
        return coalesce(VlanRange(vid, vid) for vid in _by_id(self.current) if vid not in wanted)

    def to_add(self) -> tuple[VlanRange, ...]:
        """Return the VLANs that shall pass and do not, or not in that way."""
        now = _by_id(self.current)
        return coalesce(
            VlanRange(vid, vid, pvid, untagged)
            for vid, (pvid, untagged) in _by_id(self.vlans).items()
            if now.get(vid) != (pvid, untagged)
        )


@dataclass(frozen=True, slots=True)
class DeleteLink:
    """Remove a link; of a veth pair, both ends."""

    name: str

    def __str__(self) -> str:
        return f"ip link delete {self.name}"


Step: TypeAlias = (
    CreateBridge
    | ConfigureBridge
    | CreateVeth
    | CreateVlan
    | SetMtu
    | SetMaster
    | SetUp
    | SetAlias
    | SetLinkSysctl
    | SetPortVlans
    | DeleteLink
)


def apply_to_model(step: Step, links: Links) -> None:
    """Change ``links`` to their state after the step."""
    match step:
        case CreateBridge(name, mtu, settings):
            links.put(Link(name, 0, "bridge", mtu, up=False, bridge=settings, default_pvid=1))
        case ConfigureBridge(name, settings):
            links.change(name, bridge=settings)
        case CreateVeth(name, _, peer, _, mtu):
            links.put(Link(name, 0, "veth", mtu, up=False, lower=peer))
            links.put(Link(peer, 0, "veth", mtu, up=False, lower=name))
        case CreateVlan(name, lower, vlan):
            parent = links.get(lower)
            mtu = parent.mtu if parent is not None else 1500
            links.put(Link(name, 0, "vlan", mtu, up=False, lower=lower, vlan=vlan))
        case SetMtu(name, mtu):
            links.change(name, mtu=mtu)
            _lower_bridge(name, links)
        case SetMaster(name, master):
            bridge = links.get(master) if master is not None else None
            aware = bridge is not None and bridge.vlan_aware and bridge.default_pvid > 0
            pvid = bridge.default_pvid if bridge is not None else 0
            vlans = (VlanRange(pvid, pvid, pvid=True, untagged=True),) if aware else ()
            links.change(name, master=master, vlans=vlans)
            _lower_bridge(name, links)
        case SetUp(name):
            links.change(name, up=True)
        case SetAlias(name, alias):
            links.change(name, alias=alias)
        case SetLinkSysctl():
            pass
        case SetPortVlans(name, _, vlans):
            links.change(name, vlans=vlans)
        case DeleteLink(name):
            links.remove(name)
        case _:
            assert_never(step)


def _lower_bridge(port: str, links: Links) -> None:
    """A bridge takes the smallest MTU of its ports, until another one is set (kernel: br_mtu_auto_adjust)."""
    link = links.get(port)
    bridge = links.get(link.master) if link is not None and link.master is not None else None
    if link is not None and bridge is not None and link.mtu < bridge.mtu:
        links.change(bridge.name, mtu=link.mtu)


def execute(steps: Sequence[Step], links: Links, route: Any) -> None:  # noqa: ANN401 (pyroute2 is untyped)
    """Carry out the steps in order; ``links`` are the links as they are before, ``route`` an IPRoute.

    Raises :class:`HostError` that names the step which failed; the steps before it stay done, and planning
    again finds the missing ones.
    """
    # a planned link has no index yet: it is looked up once the link exists
    indexes = {link.name: link.index for link in links if link.index}
    for step in steps:
        try:
            _carry_out_one(step, indexes, route)
        except HostError as err:
            raise HostError(f"{step}: {err.message}", err.hint) from err
        except OSError as err:
            code = getattr(err, "code", None) or err.errno
            raise _refused(step, code) from err


def _carry_out_one(step: Step, indexes: dict[str, int], route: Any) -> None:  # noqa: ANN401, C901 (one case a step)
    def index(name: str) -> int:
        if name not in indexes:
            found = route.link_lookup(ifname=name)
            if not found:
                raise HostError(f"there is no link {name} any more", "run the command again")
            indexes[name] = found[0]
        return indexes[name]

    match step:
        case CreateBridge(name, mtu, settings):
            route.link("add", ifname=name, kind="bridge", mtu=mtu, **_netlink(settings))
        case ConfigureBridge(name, settings):
            route.link("set", index=index(name), kind="bridge", **_netlink(settings))
        case CreateVeth(name, mac, peer, peer_mac, mtu):
            end = {"ifname": peer, "address": peer_mac, "mtu": mtu}
            route.link("add", ifname=name, kind="veth", address=mac, mtu=mtu, peer=end)
        case CreateVlan(name, lower, vlan):
            route.link("add", ifname=name, kind="vlan", link=index(lower), vlan_id=vlan)
        case SetMtu(name, mtu):
            route.link("set", index=index(name), mtu=mtu)
        case SetMaster(name, master):
            route.link("set", index=index(name), master=index(master) if master is not None else 0)
        case SetUp(name):
            route.link("set", index=index(name), state="up")
        case SetAlias(name, alias):
            route.link("set", index=index(name), ifalias=alias)
        case SetLinkSysctl(value=value):
            sysctl.write(step.path, value)
        case SetPortVlans(name):
            for gone in step.to_remove():
                route.vlan_filter("del", index=index(name), af_spec=vlan_attributes(gone))
            for new in step.to_add():
                route.vlan_filter("add", index=index(name), af_spec=vlan_attributes(new))
        case DeleteLink(name):
            route.link("del", index=index(name))
            indexes.pop(name, None)
        case _:
            assert_never(step)


def _refused(step: Step, code: int | None) -> HostError:
    """Return the error for the kernel's answer, with a remedy."""
    hints = {
        errno.EPERM: "run this as root",
        errno.EACCES: "run this as root",
        errno.EEXIST: "another program made it just now: run the command again",
        errno.ENODEV: "the link went away meanwhile: run the command again",
        errno.EOPNOTSUPP: "the kernel lacks a feature that this needs (modules bridge, veth, 8021q; VLAN filtering)",
        errno.EXFULL: "a bridge has at most 1023 ports",
        errno.ERANGE: "the guest's bridge has settings beyond the limits of spanning tree",
    }
    hint = hints.get(code) if code is not None else None
    reason = errno_text(code) if code is not None else "no reason given"
    return HostError(f"{step}: {reason}", hint)


def errno_text(code: int) -> str:
    """Return the name and meaning of an errno value, for example ``EEXIST (File exists)``."""
    return f"{errno.errorcode.get(code, code)} ({os.strerror(code)})"


def _by_id(vlans: tuple[VlanRange, ...]) -> dict[int, tuple[bool, bool]]:
    return {vid: (v.pvid, v.untagged) for v in vlans for vid in range(v.first, v.last + 1)}


def _netlink(settings: BridgeSettings) -> dict[str, int]:
    return {_NETLINK_NAMES.get(key, f"br_{key}"): value for key, value in asdict(settings).items()}


def _spell(settings: BridgeSettings) -> str:
    return "".join(f" {_IP_NAMES.get(key, key)} {value}" for key, value in asdict(settings).items())
