"""The links of the kernel: names, kinds, bridges and their ports, MTUs, VLANs. Read in one dump."""

from __future__ import annotations

import socket
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import HostError

from . import tools

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# include/uapi/linux/rtnetlink.h: RTEXT_FILTER_BRVLAN_COMPRESSED, RTEXT_FILTER_SKIP_STATS
_VLANS_COMPRESSED = 1 << 2
_SKIP_STATS = 1 << 3
# include/uapi/linux/if.h and if_bridge.h
_IFF_UP = 1
_VLAN_PVID = 1 << 1
_VLAN_UNTAGGED = 1 << 2
_VLAN_RANGE_BEGIN = 1 << 3
_VLAN_RANGE_END = 1 << 4


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """The settings a firewall bridge copies from the guest's bridge, as netlink gives them.

    Times are in hundredths of a second, ``priority`` is the bridge priority of IEEE 802.1D.
    """

    ageing_time: int
    stp_state: int
    priority: int
    forward_delay: int
    hello_time: int
    max_age: int
    multicast_snooping: int
    multicast_querier: int


@dataclass(frozen=True, slots=True, order=True)
class VlanRange:
    """VLANs ``first`` to ``last`` that pass a port. ``pvid``: untagged frames that enter get this VLAN."""

    first: int
    last: int
    pvid: bool = False
    untagged: bool = False

    def __str__(self) -> str:
        span = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return span + (" pvid" if self.pvid else "") + (" untagged" if self.untagged else "")


@dataclass(frozen=True, slots=True)
class Link:
    """One network interface.

    ``master`` is the bridge (or bond) it is a port of, ``lower`` the link a veth or VLAN leads to (the veth's
    peer), both by name; ``bridge`` is None for other links. ``vlans`` is filled for ports of
    VLAN-aware bridges only.
    """

    name: str
    index: int
    kind: str | None
    mtu: int
    up: bool
    master: str | None = None
    lower: str | None = None
    vlan: int | None = None
    alias: str | None = None
    bridge: BridgeSettings | None = None
    vlan_aware: bool = False
    default_pvid: int = 0
    vlans: tuple[VlanRange, ...] = ()


class Links:
    """The links by name. A plan changes its own copy as it goes, so that later steps see earlier ones."""

    def __init__(self, links: Iterable[Link]) -> None:
        self._links: dict[str, Link] = {}
        self._ports: dict[str, set[str]] = defaultdict(set)
        for link in links:
            self.put(link)

    def get(self, name: str) -> Link | None:
        """Return the link of that name, or None."""
        return self._links.get(name)

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links.values())

    def ports(self, bridge: str) -> list[str]:
        """Return the names of a bridge's ports, sorted."""
        return sorted(self._ports.get(bridge, ()))

    def put(self, link: Link) -> None:
        """Add a link, or replace the one of that name."""
        old = self._links.get(link.name)
        if old is not None and old.master is not None:
            self._ports[old.master].discard(link.name)
        self._links[link.name] = link
        if link.master is not None:
            self._ports[link.master].add(link.name)

    def change(self, name: str, **fields: Any) -> None:  # noqa: ANN401 (the fields of Link)
        """Replace fields of a link."""
        self.put(replace(self._links[name], **fields))

    def remove(self, name: str) -> None:
        """Take a link out; its ports lose their master, and the other end of a veth goes with it."""
        link = self._links.pop(name, None)
        if link is None:
            return
        if link.master is not None:
            self._ports[link.master].discard(name)
        for port in self.ports(name):
            self.change(port, master=None)
        if link.kind == "veth" and link.lower is not None:
            self.remove(link.lower)


def read_links(route: Any) -> Links:  # noqa: ANN401 (pyroute2 is untyped)
    """Return all links of this network namespace; ``route`` is a pyroute2 IPRoute."""
    messages = _dump(route, ext_mask=_SKIP_STATS)
    names = {message["index"]: message.get_attr("IFLA_IFNAME") for message in messages}
    links = [_link(message, names) for message in messages]
    if any(link.vlan_aware for link in links):
        vlans = _port_vlans(route)
        links = [replace(link, vlans=vlans.get(link.index, ())) for link in links]
    return Links(links)


def _dump(route: Any, **asked: int) -> list[Any]:  # noqa: ANN401 (pyroute2 is untyped)
    """Return the messages of all links, asked for with these fields of the request."""
    # pyroute2 0.7.2 takes ext_mask for an attribute that links must have, and so finds none. A match of our own ends
    # that, but has 0.9.7 leave out the fields of the request.
    return list(route.link("dump", **asked)) or list(route.link("dump", **asked, match=lambda _: True))


def open_route() -> Any:  # noqa: ANN401 (pyroute2 is untyped)
    """Open an rtnetlink socket. Raises :class:`HostError` if pyroute2 is not installed or no descriptor is left."""
    try:
        _say_nothing_of_half_made_loops()
        from pyroute2 import IPRoute

        return IPRoute()
    except ImportError as err:
        raise HostError(
            "the Python module pyroute2 is not installed",
            "apt-get install python3-pyroute2; ./pvefw in a checkout brings its own",
        ) from err
    except OSError as err:
        hint = tools.LIMIT_HINTS.get(err.errno or 0)
        raise HostError(f"the kernel cannot be asked about links: {err.strerror or err}", hint) from err


@cache
def _say_nothing_of_half_made_loops() -> None:
    """Keep asyncio, which pyroute2 uses, from printing a traceback where no descriptor is left for its event loop.

    ``BaseEventLoop.__del__`` of a loop whose ``__init__`` failed raises AttributeError; it can be raised to no caller.
    """
    before = sys.unraisablehook

    def hook(found: sys.UnraisableHookArgs) -> None:
        of_a_loop = getattr(found.object, "__qualname__", "") == "BaseEventLoop.__del__"
        if not (of_a_loop and isinstance(found.exc_value, AttributeError)):
            before(found)

    sys.unraisablehook = hook


def coalesce(vlans: Iterable[VlanRange]) -> tuple[VlanRange, ...]:
    """Return the ranges in order, neighbours with the same flags joined.

    Example: ``2, 3, 4 pvid`` becomes ``2-3, 4 pvid``.
    """
    joined: list[VlanRange] = []
    for vlan in sorted(vlans):
        last = joined[-1] if joined else None
        if (
            last is not None
            and vlan.first <= last.last + 1
            and (vlan.pvid, vlan.untagged) == (last.pvid, last.untagged)
            and not vlan.pvid
        ):
            joined[-1] = replace(last, last=max(last.last, vlan.last))
        else:
            joined.append(vlan)
    return tuple(joined)


def _link(message: Any, names: dict[int, str]) -> Link:  # noqa: ANN401 (a netlink message)
    info = message.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else None
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    bridge = data if kind == "bridge" else None
    lower = None
    # a link in another namespace has an index of that namespace
    if message.get_attr("IFLA_LINK_NETNSID") is None and message.get_attr("IFLA_LINK"):
        lower = names.get(message.get_attr("IFLA_LINK"))
    return Link(
        name=message.get_attr("IFLA_IFNAME"),
        index=message["index"],
        kind=kind,
        mtu=message.get_attr("IFLA_MTU"),
        up=bool(message["flags"] & _IFF_UP),
        master=names.get(message.get_attr("IFLA_MASTER") or 0),
        lower=lower,
        vlan=data.get_attr("IFLA_VLAN_ID") if kind == "vlan" and data is not None else None,
        alias=message.get_attr("IFLA_IFALIAS"),
        bridge=_bridge_settings(bridge) if bridge is not None else None,
        vlan_aware=bool(bridge is not None and bridge.get_attr("IFLA_BR_VLAN_FILTERING")),
        default_pvid=(bridge.get_attr("IFLA_BR_VLAN_DEFAULT_PVID") or 0) if bridge is not None else 0,
    )


def _bridge_settings(data: Any) -> BridgeSettings:  # noqa: ANN401 (a netlink attribute)
    return BridgeSettings(
        ageing_time=data.get_attr("IFLA_BR_AGEING_TIME"),
        stp_state=data.get_attr("IFLA_BR_STP_STATE"),
        priority=data.get_attr("IFLA_BR_PRIORITY"),
        forward_delay=data.get_attr("IFLA_BR_FORWARD_DELAY"),
        hello_time=data.get_attr("IFLA_BR_HELLO_TIME"),
        max_age=data.get_attr("IFLA_BR_MAX_AGE"),
        # absent where the kernel has no IGMP snooping
        multicast_snooping=data.get_attr("IFLA_BR_MCAST_SNOOPING") or 0,
        multicast_querier=data.get_attr("IFLA_BR_MCAST_QUERIER") or 0,
    )


def _port_vlans(route: Any) -> dict[int, tuple[VlanRange, ...]]:  # noqa: ANN401 (pyroute2 is untyped)
    found: dict[int, tuple[VlanRange, ...]] = {}
    for message in _dump(route, family=socket.AF_BRIDGE, ext_mask=_VLANS_COMPRESSED):
        spec = message.get_attr("IFLA_AF_SPEC")
        ranges: list[VlanRange] = []
        begin = 0
        for attribute in spec.get_attrs("IFLA_BRIDGE_VLAN_INFO") if spec else ():
            flags, vid = attribute["flags"], attribute["vid"]
            if flags & _VLAN_RANGE_BEGIN:
                begin = vid
                continue
            first = begin if flags & _VLAN_RANGE_END else vid
            ranges.append(VlanRange(first, vid, bool(flags & _VLAN_PVID), bool(flags & _VLAN_UNTAGGED)))
        found[message["index"]] = coalesce(ranges)
    return found


def vlan_attributes(vlan: VlanRange) -> dict[str, Any]:
    """Return the netlink attributes (if_bridge.h: bridge_vlan_info) that name a range of VLANs."""
    flags = (_VLAN_PVID if vlan.pvid else 0) | (_VLAN_UNTAGGED if vlan.untagged else 0)
    if vlan.first == vlan.last:
        infos = [{"vid": vlan.first, "flags": flags}]
    else:
        infos = [
            {"vid": vlan.first, "flags": flags | _VLAN_RANGE_BEGIN},
            {"vid": vlan.last, "flags": flags | _VLAN_RANGE_END},
        ]
    return {"attrs": [("IFLA_BRIDGE_VLAN_INFO", info) for info in infos]}
