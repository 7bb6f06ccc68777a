"""The standard chains: every ruleset has them, in every configuration.

They carry the names and the order of the reference: ``PVEFW-Drop`` and ``PVEFW-Reject`` run before a policy of
that name takes effect, ``PVEFW-reject`` tells the sender, the rest are looked up by the input filters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.config import netdb
from pvefw_nft.ir.nodes import (
    Accept,
    Address,
    AddressKind,
    AddressType,
    ConnState,
    Drop,
    Family,
    Goto,
    IcmpType,
    Jump,
    Layer,
    Origin,
    PortRange,
    Ports,
    Prefix,
    Protocol,
    ProtocolMatch,
    Provenance,
    Reject,
    RejectKind,
    Return,
    Rule,
    SetAcceptMark,
    Side,
    State,
    TcpFlag,
    TcpFlags,
)
from pvefw_nft.ir.rules import ICMPV6, REJECT, TCP, UDP

if TYPE_CHECKING:
    from pvefw_nft.ir.nodes import Action, Match
    from pvefw_nft.ir.rules import Chains, Context

_ORIGIN = Origin(Provenance.STANDARD, reason="standard chain")
_ICMP = ProtocolMatch(Protocol(1, "icmp"))
_MULTICAST_V4 = Prefix(4, 0xE0000000, 4, "224.0.0.0/4")
_MULTICAST_V6 = Prefix(6, 0xFF << 120, 8, "ff00::/8")
_ANY_HOST = Prefix(4, 0, 32, "0.0.0.0/32")
_SYN_FLAGS = TcpFlag.FIN | TcpFlag.SYN | TcpFlag.RST | TcpFlag.ACK
_ALL_FLAGS = _SYN_FLAGS | TcpFlag.PSH | TcpFlag.URG

NEW_CONNECTION = TcpFlags(_SYN_FLAGS, TcpFlag.SYN)
"""A TCP segment that opens a connection."""


def _rule(*matches: Match, action: Action, families: Family = Family.BOTH) -> Rule:
    return Rule(matches, action, _ORIGIN, families)


def _dport(*ports: str) -> Ports:
    return Ports(Side.DESTINATION, tuple(_port(text) for text in ports))


def _sport(text: str) -> Ports:
    return Ports(Side.SOURCE, (_port(text),))


def _port(text: str) -> PortRange:
    first, _, last = text.partition(":")
    return PortRange(int(first), int(last or first), text)


def _icmp(version: int, name: str) -> tuple[Match, Match]:
    known = netdb.icmp_type(version, name)
    if known is None:
        raise KeyError(name)
    return (_ICMP if version == 4 else ICMPV6, IcmpType(version, *known, name))


def add_standard_chains(context: Context, chains: Chains) -> None:
    """Add all standard chains; their log levels are options of the host."""
    options = context.node.host.options
    chains.add(Layer.FILTER, "PVEFW-Drop", _before_policy(Drop()))
    chains.add(Layer.FILTER, "PVEFW-Reject", _before_policy(REJECT))
    chains.add(Layer.FILTER, "PVEFW-DropBroadcast", _drop_broadcast())
    chains.add(Layer.FILTER, "PVEFW-reject", reject_rules())
    chains.add(Layer.FILTER, "PVEFW-SET-ACCEPT-MARK", [_rule(action=SetAcceptMark(on=True))])
    chains.add(Layer.FILTER, "PVEFW-tcpflags", _tcp_flags())
    log = context.log(options.tcp_flags_log_level, 0, "PVEFW-logflags", "DROP")
    chains.add(Layer.FILTER, "PVEFW-logflags", [Rule((), Drop(), _ORIGIN, log=log)])
    chains.add(Layer.FILTER, "PVEFW-smurfs", _smurfs(), Family.V4)
    log = context.log(options.smurf_log_level, 0, "PVEFW-smurflog", "DROP")
    chains.add(Layer.FILTER, "PVEFW-smurflog", [Rule((), Drop(), _ORIGIN, Family.V4, log)], Family.V4)


def _before_policy(netbios: Action) -> list[Rule]:
    """Return the rules of PVEFW-Drop and PVEFW-Reject, which treat the noise of Windows networks differently."""
    return [
        # port 43, and IPv6 only, as the reference has it
        _rule(TCP, _dport("43"), action=REJECT, families=Family.V6),
        _rule(action=Jump("PVEFW-DropBroadcast")),
        # path MTU discovery needs these errors (RFC 1191, RFC 8201)
        _rule(*_icmp(4, "fragmentation-needed"), action=Accept(), families=Family.V4),
        _rule(*_icmp(4, "time-exceeded"), action=Accept(), families=Family.V4),
        _rule(*_icmp(6, "destination-unreachable"), action=Accept(), families=Family.V6),
        _rule(*_icmp(6, "time-exceeded"), action=Accept(), families=Family.V6),
        _rule(*_icmp(6, "packet-too-big"), action=Accept(), families=Family.V6),
        _rule(ConnState((State.INVALID,)), action=Drop()),
        # RPC, NetBIOS and SMB of Windows
        _rule(UDP, _dport("135", "445"), action=netbios),
        _rule(UDP, _dport("137:139"), action=netbios),
        _rule(UDP, _sport("137"), _dport("1024:65535"), action=netbios),
        _rule(TCP, _dport("135", "139", "445"), action=netbios),
        _rule(UDP, _dport("1900"), action=Drop()),  # SSDP
        _rule(TCP, TcpFlags(_SYN_FLAGS, TcpFlag.SYN, negated=True), action=Drop()),
        _rule(UDP, _sport("53"), action=Drop()),  # late answers of name servers
    ]


def _drop_broadcast() -> list[Rule]:
    return [
        *(
            _rule(AddressType(Side.DESTINATION, kind), action=Drop(), families=Family.V4)
            for kind in (AddressKind.BROADCAST, AddressKind.MULTICAST, AddressKind.ANYCAST)
        ),
        _rule(Address(Side.DESTINATION, (_MULTICAST_V4,)), action=Drop(), families=Family.V4),
        _rule(Address(Side.DESTINATION, (_MULTICAST_V6,)), action=Drop(), families=Family.V6),
    ]


def reject_rules() -> list[Rule]:
    """Return the rules of PVEFW-reject: tell the sender, as his protocol expects it, unless that would amplify."""
    v4, v6 = Family.V4, Family.V6
    return [
        _rule(AddressType(Side.DESTINATION, AddressKind.BROADCAST), action=Drop(), families=v4),
        _rule(Address(Side.SOURCE, (_MULTICAST_V4,)), action=Drop(), families=v4),
        # no error about an ICMP error (RFC 1122, section 3.2.2; RFC 4443, section 2.4)
        _rule(_ICMP, action=Drop(), families=v4),
        _rule(ICMPV6, action=Drop(), families=v6),
        _rule(TCP, action=Reject(RejectKind.TCP_RESET)),
        _rule(UDP, action=Reject(RejectKind.PORT_UNREACHABLE)),
        _rule(_ICMP, action=Reject(RejectKind.HOST_UNREACHABLE), families=v4),  # never met; in the reference
        _rule(action=Reject(RejectKind.ADMIN_PROHIBITED)),
    ]


def _tcp_flags() -> list[Rule]:
    """Return the rules that catch combinations of flags that no TCP implementation sends."""
    fin, syn, rst, psh, urg = TcpFlag.FIN, TcpFlag.SYN, TcpFlag.RST, TcpFlag.PSH, TcpFlag.URG
    goto = Goto("PVEFW-logflags")
    return [
        _rule(TCP, TcpFlags(_ALL_FLAGS, fin | psh | urg), action=goto),  # Xmas scan
        _rule(TCP, TcpFlags(_ALL_FLAGS, TcpFlag(0)), action=goto),  # null scan
        _rule(TCP, TcpFlags(syn | rst, syn | rst), action=goto),
        _rule(TCP, TcpFlags(fin | syn, fin | syn), action=goto),
        _rule(TCP, _sport("0"), TcpFlags(_SYN_FLAGS, syn), action=goto),  # port 0 is reserved (RFC 6335)
    ]


def _smurfs() -> list[Rule]:
    """Return the rules that catch packets whose sender is a broadcast address (RFC 2644)."""
    goto = Goto("PVEFW-smurflog")
    return [
        # DHCP clients without an address send from 0.0.0.0 (RFC 2131, section 4.1)
        _rule(Address(Side.SOURCE, (_ANY_HOST,)), action=Return(), families=Family.V4),
        _rule(AddressType(Side.SOURCE, AddressKind.BROADCAST), action=goto, families=Family.V4),
        _rule(Address(Side.SOURCE, (_MULTICAST_V4,)), action=goto, families=Family.V4),
    ]
