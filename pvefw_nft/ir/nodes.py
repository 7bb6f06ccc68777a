"""The nodes of the IR: a closed union of frozen dataclasses.

The IR holds the rules, not a tool's spelling of them. One :class:`Ruleset` holds chains in six layers:

``raw``
    IP chains that run before connection tracking (synflood protection, conntrack helpers).
``filter``
    IP chains of the host and of the guests' NICs, with the names of the reference ruleset.
``forward``
    IP chains of FORWARD rules (host, cluster, VNets), which the reference ruleset cannot carry out.
``link``
    layer 2 chains (MAC, ARP senders, ether types) for frames that guests send.
``stateless``
    chains that see every frame at the ports of firewall bridges before IP defragmentation and connection tracking.
    They only drop. The reference ruleset has nothing like them: their drops make a ruleset stricter.
``limit``
    chains that new connections of guests enter first; they only drop, too.

One rule serves IPv4 and IPv6 (``Rule.families`` says which); the chains of a family are the rules without the rules of
the other family. If a node has a ``spelling``, it is the user's own text for the value beside it: equal in meaning,
kept because a ruleset is easier to recognise when it uses the words of its configuration.

Example: the line ``IN SSH(ACCEPT) -source 10.0.0.0/8`` of ``100.fw`` becomes, in chain ``tap100i0-IN``::

    Rule(matches=(Address(Side.SOURCE, (Prefix(4, 0x0A000000, 8, "10.0.0.0/8"),)),
                  ProtocolMatch(Protocol(6, "tcp")),
                  Ports(Side.DESTINATION, (PortRange(22, 22, "22"),))),
         action=Accept(), origin=Origin(Provenance.USER, "…/100.fw", 4, macro="SSH"), families=Family.V4)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntFlag
from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.config.values import MAX_SOURCE_RATE
from pvefw_nft.config.values import Family as Family
from pvefw_nft.config.values import PortRange as PortRange
from pvefw_nft.config.values import Prefix as Prefix
from pvefw_nft.config.values import Protocol as Protocol
from pvefw_nft.config.values import RateLimit as RateLimit
from pvefw_nft.config.values import SetKey as SetKey

if TYPE_CHECKING:
    from collections.abc import Mapping

ACCEPT_MARK = 0x80000000
"""The bit of the packet mark that says "accepted by a group or by the sender's OUT chain". pvefw uses no other."""


class Side(Enum):
    """Which end of a packet a match looks at."""

    SOURCE = "src"
    DESTINATION = "dst"


class Direction(Enum):
    """Which way a packet goes, seen from the guest: IN is towards it, OUT is from it."""

    IN = "IN"
    OUT = "OUT"


class Layer(Enum):
    """Where a chain runs; see the module's docstring."""

    RAW = "raw"
    FILTER = "filter"
    FORWARD = "forward"
    LINK = "link"
    STATELESS = "stateless"
    LIMIT = "limit"


class HookPoint(Enum):
    """Where packets enter the ruleset."""

    PREROUTING = "PREROUTING"
    INPUT = "INPUT"
    OUTPUT = "OUTPUT"
    FORWARD = "FORWARD"


# --- values: of the language (config.values), and of the IR alone ------------------------------------------------


@dataclass(frozen=True, slots=True)
class Log:
    """A log line: syslog ``level`` 0 to 7, the VMID (0: the host or a group), the chain, and the message.

    Log entries carry the prefix ``:VMID:LEVEL:CHAIN: MESSAGE``. ``limit`` is None if log rate limits
    are switched off.
    """

    level: int
    vmid: int
    chain: str
    message: str
    limit: RateLimit | None

    @property
    def prefix(self) -> str:
        """The prefix as it appears in the log."""
        return f":{self.vmid}:{self.level}:{self.chain}: {self.message}"


class Provenance(Enum):
    """Why a rule is there."""

    USER = "user"
    """a rule of a file"""
    STANDARD = "standard"
    """a standard chain that every ruleset has"""
    POLICY = "policy"
    """the policy of a guest or host"""
    BUILTIN = "builtin"
    """added because an option, a NIC or the cluster asks for it"""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a rule comes from: a line of a file, or the option or feature that asks for it (``reason``)."""

    provenance: Provenance
    file: str | None = None
    line: int = 0
    macro: str | None = None
    group: str | None = None
    reason: str | None = None

    def __str__(self) -> str:
        """Return the short form used in comments and listings, for example ``100.fw:12 (SSH)``."""
        parts = []
        if self.file is not None:
            name = self.file.rsplit("/", 1)[-1]
            parts.append(f"{name}:{self.line}" if self.line else name)
        if self.reason is not None:
            parts.append(self.reason)
        if self.macro is not None:
            parts.append(f"({self.macro})")
        return " ".join(parts) or self.provenance.value


# --- matches ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Interface:
    """The host's interface a packet comes in by (IN) or leaves by (OUT)."""

    direction: Direction
    name: str


@dataclass(frozen=True, slots=True)
class Bridged:
    """The packet crosses a firewall bridge: IN towards the guest behind it, OUT from that guest."""

    direction: Direction


@dataclass(frozen=True, slots=True)
class NicPort:
    """The packet goes to (IN) the guest NIC with this host-side interface name, or comes from it (OUT)."""

    direction: Direction
    name: str


@dataclass(frozen=True, slots=True)
class Address:
    """The address on that side lies in one of the prefixes, which are all of one family."""

    side: Side
    prefixes: tuple[Prefix, ...]


@dataclass(frozen=True, slots=True)
class AddressRange:
    """The address on that side lies between ``first`` and ``last``, both included."""

    side: Side
    version: int
    first: int
    last: int
    spelling: str


@dataclass(frozen=True, slots=True)
class InSet:
    """The address on that side is in the set (or, negated, is not)."""

    side: Side
    key: SetKey
    negated: bool = False


class AddressKind(Enum):
    """Kinds of addresses, as the host's routing table sees them."""

    BROADCAST = "BROADCAST"
    MULTICAST = "MULTICAST"
    ANYCAST = "ANYCAST"


@dataclass(frozen=True, slots=True)
class AddressType:
    """The address on that side is of this kind."""

    side: Side
    kind: AddressKind


@dataclass(frozen=True, slots=True)
class ProtocolMatch:
    """The packet's IP protocol."""

    protocol: Protocol


@dataclass(frozen=True, slots=True)
class IcmpType:
    """The ICMP (version 4) or ICMPv6 (version 6) type, and code if it matters; ``type`` None: any.

    Comes after the :class:`ProtocolMatch` of the rule.
    """

    version: int
    type: int | None
    code: int | None
    spelling: str


@dataclass(frozen=True, slots=True)
class Ports:
    """The port on that side lies in one of the ranges. Comes after the :class:`ProtocolMatch` of the rule."""

    side: Side
    ranges: tuple[PortRange, ...]


class TcpFlag(IntFlag):
    """The flag bits of a TCP header (RFC 9293, section 3.1)."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20


@dataclass(frozen=True, slots=True)
class TcpFlags:
    """Of the flags in ``mask`` just those in ``flags`` are set (or, negated, not so)."""

    mask: TcpFlag
    flags: TcpFlag
    negated: bool = False


class State(Enum):
    """States of connection tracking."""

    INVALID = "INVALID"
    NEW = "NEW"
    RELATED = "RELATED"
    ESTABLISHED = "ESTABLISHED"


@dataclass(frozen=True, slots=True)
class ConnState:
    """The packet's connection is in one of these states."""

    states: tuple[State, ...]


@dataclass(frozen=True, slots=True)
class AcceptMark:
    """The accept mark (:data:`ACCEPT_MARK`) is set on the packet."""


@dataclass(frozen=True, slots=True)
class SourceMac:
    """The frame's sender has this MAC address (or, negated, another). ``spelling`` is the guest config's text."""

    mac: int
    spelling: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class RateOver:
    """More than ``rate`` packets per second came from this source, beyond ``burst``.

    Sources are counted by address in IPv4 and by /64 in IPv6; a source is forgotten after ``expire`` ms. ``sources``:
    how many are counted at once, of which one port of the host has at most a part; None: as many as the reference's
    hashlimit counts, from wherever they come. A source that finds no place is over the rate.
    """

    rate: int
    burst: int
    expire: int
    sources: int | None = None

    def loadable(self) -> RateOver:
        """Return the nearest that the kernel's tools accept: mostly the same (libxt_hashlimit.c)."""
        return RateOver(
            min(max(self.rate, 1), MAX_SOURCE_RATE),
            min(max(self.burst, 1), MAX_SOURCE_RATE),
            min(max(self.expire, 1000), 2**32 - 1),
            self.sources,
        )


@dataclass(frozen=True, slots=True)
class EtherType:
    """The frame carries this protocol (``spelling``: its name in /etc/ethertypes)."""

    number: int
    spelling: str


@dataclass(frozen=True, slots=True)
class ArpSender:
    """The sender's IPv4 address in an ARP packet lies in this prefix."""

    prefix: Prefix


@dataclass(frozen=True, slots=True)
class ArpSenderMac:
    """An ARP packet names another sender than this MAC address. ``spelling`` is the guest config's text."""

    mac: int
    spelling: str


@dataclass(frozen=True, slots=True)
class AdvertisedOutside:
    """A neighbour advertisement (RFC 4861, section 4.4) is about an address that is not in the set."""

    key: SetKey


@dataclass(frozen=True, slots=True)
class Fragment:
    """The IP packet is a fragment, the first one or a later one."""


@dataclass(frozen=True, slots=True)
class FilteredPort:
    """The frame comes in by one of the two ports of the firewall bridge of a filtered NIC: of one whose guest may send
    and get frames with two VLAN tags (``qinq``), or of any other.
    """

    qinq: bool = False


@dataclass(frozen=True, slots=True)
class TagOfVlanZero:
    """Of the VLAN tags of a frame with more than one, the outermost (``number`` 1) or the next (2) names VLAN 0."""

    number: int


@dataclass(frozen=True, slots=True)
class ThirdTag:
    """The frame has a third VLAN tag."""


@dataclass(frozen=True, slots=True)
class OtherEtherType:
    """The frame carries, behind at most one VLAN tag, none of these protocols."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ConnectionsOver:
    """The NIC has opened more than ``number`` connections that connection tracking still knows."""

    number: int


@dataclass(frozen=True, slots=True)
class NicRateOver:
    """The NIC sends more than ``rate`` packets per second of the kind that the matches before this one tell."""

    rate: int


Match: TypeAlias = (
    Interface
    | Bridged
    | NicPort
    | Address
    | AddressRange
    | InSet
    | AddressType
    | ProtocolMatch
    | IcmpType
    | Ports
    | TcpFlags
    | ConnState
    | AcceptMark
    | SourceMac
    | RateOver
    | EtherType
    | ArpSender
    | ArpSenderMac
    | AdvertisedOutside
    | Fragment
    | FilteredPort
    | TagOfVlanZero
    | ThirdTag
    | OtherEtherType
    | NicRateOver
    | ConnectionsOver
)


# --- actions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accept:
    """The packet passes this hook."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The packet is gone."""


class RejectKind(Enum):
    """How the sender is told."""

    TCP_RESET = "tcp-reset"
    PORT_UNREACHABLE = "port-unreachable"
    HOST_UNREACHABLE = "host-unreachable"
    ADMIN_PROHIBITED = "admin-prohibited"


@dataclass(frozen=True, slots=True)
class Reject:
    """The packet is gone and the sender is told."""

    kind: RejectKind


@dataclass(frozen=True, slots=True)
class Return:
    """Back to the chain that jumped here; from a hook's own chain, the packet passes."""


@dataclass(frozen=True, slots=True)
class Jump:
    """On to another chain of the same layer, and back here when it returns."""

    chain: str


@dataclass(frozen=True, slots=True)
class Goto:
    """On to another chain of the same layer; when it returns, back to the chain that jumped to this one."""

    chain: str


@dataclass(frozen=True, slots=True)
class Queue:
    """To the user space queue ``first``, or to those from ``first`` to ``last``, balanced by connection.

    With ``bypass`` the packet is accepted if no program listens. ``first`` None: queue 0 by default.
    """

    first: int | None
    last: int | None
    bypass: bool = True


Verdict: TypeAlias = Accept | Drop | Reject | Return | Jump | Goto | Queue


@dataclass(frozen=True, slots=True)
class SetAcceptMark:
    """Set or clear the accept mark; the packet goes on with the next rule."""

    on: bool


@dataclass(frozen=True, slots=True)
class SetConnmark:
    """Mark the connection; the packet goes on with the next rule."""

    value: int


@dataclass(frozen=True, slots=True)
class AssignHelper:
    """Have this conntrack helper read the connection; the packet goes on with the next rule."""

    name: str


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Jump to the chain of the guest NIC that the packet goes to (IN) or comes from (OUT), if there is one.

    In layer ``filter`` that is ``Nic.in_chain`` or ``Nic.out_chain``, in layer ``link`` ``Nic.link_chain``, in layer
    ``stateless`` ``Nic.stateless_chain``, in layer ``limit`` ``Nic.limit_chain``.
    """

    direction: Direction


Statement: TypeAlias = SetAcceptMark | SetConnmark | AssignHelper | Dispatch
Action: TypeAlias = Verdict | Statement


# --- structure ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """When all matches hold: log (if ``log``), then act."""

    matches: tuple[Match, ...]
    action: Action
    origin: Origin
    families: Family = Family.BOTH
    log: Log | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """Rules in order. A packet that falls off the end returns; a chain exists only in its ``families``."""

    name: str
    rules: tuple[Rule, ...]
    families: Family = Family.BOTH


@dataclass(frozen=True, slots=True)
class Hook:
    """Packets at this point enter the chain; those that return from it pass."""

    layer: Layer
    point: HookPoint
    chain: str


@dataclass(frozen=True, slots=True)
class SetEntry:
    """A member of a set, or with ``nomatch`` a hole in it: of all entries with an address, the longest counts."""

    prefix: Prefix
    nomatch: bool = False


@dataclass(frozen=True, slots=True)
class AddressSet:
    """An address set, for both families. ``counted`` is the number of entries its hash is sized for.

    ``origin`` is the place of its header, None if no file has one.
    """

    key: SetKey
    entries: tuple[SetEntry, ...]
    counted: int
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Nic:
    """A filtered guest NIC: ``interface`` is its host side (``tap100i0``, ``veth200i0``).

    ``link`` is the firewall bridge's port towards the guest's bridge (``fwln100i0``): what enters the firewall
    bridge there goes to this NIC. ``link_chain`` is None if layer 2 is not filtered,
    ``stateless_chain`` if every frame of the NIC may go on to connection tracking, ``limit_chain``
    if it may open as many connections as it likes. ``qinq``: its frames may have
    two VLAN tags.
    """

    interface: str
    link: str
    vmid: int
    index: int
    in_chain: str
    out_chain: str
    link_chain: str | None
    stateless_chain: str | None = None
    limit_chain: str | None = None
    qinq: bool = False


@dataclass(frozen=True, slots=True)
class Vnet:
    """A bridge whose ports' traffic among one another is filtered by a chain of layer ``forward``."""

    bridge: str
    chain: str


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All that a configuration means. Disabled: no chains, no sets, nothing is filtered.

    ``chains`` holds the chains of each layer by name. ``host_forward`` names the chain of layer ``forward``
    that sees routed packets, if there is one. ``zones`` gives by firewall bridge the connection tracking zone of
    packets that cross it, for all NICs with firewall=1 (see :mod:`.zones`); None: one for all.
    ``vnets_cover_host``: rules of VNets also hold between their guests and the host's own interface on that bridge.
    """

    enabled: bool
    chains: Mapping[Layer, Mapping[str, Chain]] = field(default_factory=dict)
    hooks: tuple[Hook, ...] = ()
    sets: tuple[AddressSet, ...] = ()
    nics: tuple[Nic, ...] = ()
    vnets: tuple[Vnet, ...] = ()
    host_forward: str | None = None
    zones: Mapping[str, int] | None = None
    vnets_cover_host: bool = False
