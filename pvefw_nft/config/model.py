"""The typed model of a configuration, in Proxmox's own words.

Everything here is frozen and knows its place in the file: rules through :class:`~.grammar.RuleLine`, which knows the
column of every word, the rest through a :class:`~.grammar.Line` or a span. The front end reports and skips wrong lines,
so the model does not contain them. The options of each file are declared in :mod:`~.options`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.config.options import (
    ClusterHardening,
    ClusterOptions,
    GuestHardening,
    GuestOptions,
    HostHardening,
    HostOptions,
    VnetOptions,
)
from pvefw_nft.config.values import Family, Prefix, Range, SetKey

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.config.grammar import Line, RuleLine
    from pvefw_nft.config.values import PortRange, Protocol
    from pvefw_nft.errors import Span


class RuleType(Enum):
    """Which traffic a rule speaks of."""

    IN = "IN"
    OUT = "OUT"
    FORWARD = "FORWARD"


class RuleAction(Enum):
    """The action of a rule on packets that it matches."""

    ACCEPT = "ACCEPT"
    DROP = "DROP"
    REJECT = "REJECT"


@dataclass(frozen=True, slots=True)
class Icmp:
    """An ICMP (version 4) or ICMPv6 (version 6) type, and code if it matters; ``type`` None: any."""

    version: int
    type: int | None
    code: int | None
    spelling: str


@dataclass(frozen=True, slots=True)
class Service:
    """The tests of a rule beyond interface and addresses; one for a plain rule, several for most macros."""

    families: Family
    protocol: Protocol | None = None
    sport: tuple[PortRange, ...] = ()
    dport: tuple[PortRange, ...] = ()
    icmp: Icmp | None = None


Addresses: TypeAlias = tuple[Prefix, ...] | Range | SetKey
"""The address of a rule: prefixes of one family, a range, or the name of an ipset. Aliases are resolved."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of type IN, OUT or FORWARD. ``families`` are those that its addresses and protocol leave.

    ``log`` is a level from 0 to 7, or None.
    """

    type: RuleType
    action: RuleAction
    macro: str | None
    iface: str | None
    source: Addresses | None
    dest: Addresses | None
    services: tuple[Service, ...]
    families: Family
    log: int | None
    written: RuleLine


@dataclass(frozen=True, slots=True)
class GroupRule:
    """A rule of type GROUP: the rules of a group, in its place."""

    group: str
    iface: str | None
    written: RuleLine


RuleItem: TypeAlias = Rule | GroupRule


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for an address or network."""

    name: str
    prefix: Prefix
    line: Line


@dataclass(frozen=True, slots=True)
class IpsetEntry:
    """An entry of an ipset; with ``nomatch`` (written ``!``) a hole in it."""

    prefix: Prefix
    nomatch: bool
    line: Line


@dataclass(frozen=True, slots=True)
class Ipset:
    """A named set of addresses of both families, one entry for each network.

    ``replaced`` counts the entries whose network another text below them names again: the reference sizes a set by all.
    """

    name: str
    entries: tuple[IpsetEntry, ...]
    header: Line
    replaced: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """A named list of rules, used by rules of type GROUP."""

    name: str
    rules: tuple[Rule, ...]
    header: Line


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """cluster.fw: the settings of all nodes. Aliases, ipsets and groups by name, alias names in lower case.

    ``option_lines`` maps the options that are given to their lines; so it does in the other files. ``hardening`` are
    the options of the file's companion, cluster.pvefw; so they are for hosts and guests.
    """

    options: ClusterOptions = field(default_factory=ClusterOptions)
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    ipsets: Mapping[str, Ipset] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    rules: tuple[RuleItem, ...] = ()
    file: str = ""
    option_lines: Mapping[str, int] = field(default_factory=dict)
    hardening: ClusterHardening = field(default_factory=ClusterHardening)


@dataclass(frozen=True, slots=True)
class HostConfig:
    """host.fw: the settings of this node."""

    options: HostOptions = field(default_factory=HostOptions)
    rules: tuple[RuleItem, ...] = ()
    file: str = ""
    option_lines: Mapping[str, int] = field(default_factory=dict)
    hardening: HostHardening = field(default_factory=HostHardening)


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """A guest's firewall file."""

    options: GuestOptions = field(default_factory=GuestOptions)
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    ipsets: Mapping[str, Ipset] = field(default_factory=dict)
    rules: tuple[RuleItem, ...] = ()
    file: str = ""
    option_lines: Mapping[str, int] = field(default_factory=dict)
    hardening: GuestHardening = field(default_factory=GuestHardening)


@dataclass(frozen=True, slots=True)
class VnetConfig:
    """The firewall file of a VNet; its bridge has the same name."""

    name: str
    options: VnetOptions = field(default_factory=VnetOptions)
    rules: tuple[RuleItem, ...] = ()
    file: str = ""
    option_lines: Mapping[str, int] = field(default_factory=dict)


class GuestKind(Enum):
    """Virtual machine or container; the value is the prefix of the host-side interface's name."""

    VM = "tap"
    CONTAINER = "veth"


@dataclass(frozen=True, slots=True)
class Nic:
    """A NIC of a guest config. ``mac`` is None if it is missing or malformed, which was reported.

    ``addresses`` are a container's configured ones, as host prefixes. ``tag`` and ``trunks`` are VLAN ids.
    """

    index: int
    mac: int | None
    mac_spelling: str
    bridge: str | None
    firewall: bool
    tag: int | None
    trunks: tuple[tuple[int, int], ...]
    mtu: int | None
    addresses: tuple[Prefix, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest of this node: its NICs, and its firewall file if it has one.

    ``closed``: one of its files cannot be used, so that nothing may pass its filtered NICs.
    """

    vmid: int
    kind: GuestKind
    nics: tuple[Nic, ...]
    firewall: GuestConfig | None
    file: str
    closed: bool = False

    def interface(self, nic: Nic) -> str:
        """Return the host-side name of a NIC, such as ``tap100i0``."""
        return f"{self.kind.value}{self.vmid}i{nic.index}"


@dataclass(frozen=True, slots=True)
class CorosyncNode:
    """A node of the cluster and its address on each link (ring)."""

    name: str
    links: Mapping[int, Prefix]


@dataclass(frozen=True, slots=True)
class Corosync:
    """corosync.conf: how the nodes talk to each other."""

    transport: str
    nodes: tuple[CorosyncNode, ...]
    file: str


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """All that holds for one node, its guests aside. ``local_network`` is the network of its management.

    ``sdn_ipsets`` are the sets of the software-defined network by name; see :mod:`~.sdn`.
    """

    node: str
    cluster: ClusterConfig
    host: HostConfig
    vnets: tuple[VnetConfig, ...]
    corosync: Corosync | None
    local_network: Prefix | None
    sdn_ipsets: Mapping[str, Ipset] = field(default_factory=dict)
