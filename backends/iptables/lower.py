"""Lowering: rules of the IR to lines of iptables and ip6tables.

Example, the chain of the IR's docstring for IPv4::

    Rule((Address(SOURCE, 10.0.0.0/8), ProtocolMatch(tcp), Ports(DESTINATION, 22)), Accept(), …)
    -A tap100i0-IN -s 10.0.0.0/8 -p tcp --dport 22 -j ACCEPT
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, assert_never

from pvefw_nft.backends.iptables import syntax
from pvefw_nft.errors import InternalError
from pvefw_nft.ir.nodes import (
    ACCEPT_MARK,
    Accept,
    AcceptMark,
    Address,
    AddressRange,
    AddressType,
    AdvertisedOutside,
    ArpSender,
    ArpSenderMac,
    AssignHelper,
    Bridged,
    ConnectionsOver,
    ConnState,
    Direction,
    Dispatch,
    Drop,
    EtherType,
    Family,
    FilteredPort,
    Fragment,
    Goto,
    IcmpType,
    InSet,
    Interface,
    Jump,
    NicPort,
    NicRateOver,
    OtherEtherType,
    Ports,
    ProtocolMatch,
    Provenance,
    Queue,
    RateOver,
    Reject,
    RejectKind,
    Return,
    SetAcceptMark,
    SetConnmark,
    Side,
    SourceMac,
    TagOfVlanZero,
    TcpFlag,
    TcpFlags,
    ThirdTag,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.backends.iptables.sets import SetNames
    from pvefw_nft.ir.nodes import Action, Chain, Log, Match, Nic, Origin, Rule

LINK_PORTS = "fwln+"
"""The ports of firewall bridges towards the guests' bridges."""

_UDP_LITE = 136

_REJECT_V4 = {
    RejectKind.TCP_RESET: "tcp-reset",
    RejectKind.PORT_UNREACHABLE: "icmp-port-unreachable",
    RejectKind.HOST_UNREACHABLE: "icmp-host-unreachable",
    RejectKind.ADMIN_PROHIBITED: "icmp-host-prohibited",
}
_REJECT_V6 = {
    RejectKind.TCP_RESET: "tcp-reset",
    RejectKind.PORT_UNREACHABLE: "icmp6-port-unreachable",
    RejectKind.HOST_UNREACHABLE: "icmp6-addr-unreachable",
    RejectKind.ADMIN_PROHIBITED: "icmp6-adm-prohibited",
}


class _Body(NamedTuple):
    """The options and the target of a rule, and whether the reference pads the place of options that are not there."""

    options: str
    target: str
    padded: bool


class ChainLowering:
    """Lowers chains for one family. A dispatch may lead to ``nics``; ``names`` are the names of the ipsets.

    ``loadable``: if iptables refuses the reference's spelling, use another one.
    """

    def __init__(self, family: Family, nics: tuple[Nic, ...], names: SetNames, *, loadable: bool) -> None:
        """Start with nothing lowered."""
        self._family = family
        self._names = names
        self._nics = nics
        self._loadable = loadable
        # The rules that many chains share are one object in the IR; their options and target are kept by identity.
        self._shared: dict[int, _Body] = {}

    def lines(self, chain: Chain) -> Iterator[tuple[str, Origin]]:
        """Yield the lines of a chain, each with the origin of its rule."""
        name, family = chain.name, self._family
        for rule in chain.rules:
            if not rule.families & family:
                continue
            if isinstance(rule.action, Dispatch):
                for line in self._dispatch(name, rule.action.direction):
                    yield line, rule.origin
                continue
            body = self._shared.get(id(rule))
            if body is None:
                body = self._body(rule)
            if rule.log is not None:
                # NFLOG does not end the packet's way, so logging takes a rule of its own
                log = _log(rule.log, loadable=self._loadable)
                yield syntax.rule(name, body.options, log, padded=True), rule.origin
            yield syntax.rule(name, body.options, body.target, padded=body.padded), rule.origin

    def _body(self, rule: Rule) -> _Body:
        body = _Body(self._options(rule), self._target(rule.action), _padded(rule))
        if rule.origin.provenance is not Provenance.USER:
            self._shared[id(rule)] = body
        return body

    def _dispatch(self, chain: str, direction: Direction) -> Iterator[str]:
        for nic in self._nics:
            if direction is Direction.IN:
                # in FORWARD the bridge has decided, so the output port is known
                port, target = syntax.bridged(port_out=nic.interface), nic.in_chain
            else:
                port, target = syntax.bridged(port_in=nic.interface), nic.out_chain
            yield syntax.rule(chain, port, syntax.jump(target))

    def _options(self, rule: Rule) -> str:
        """Return the options of a rule; the ports of both sides make one option, at the place of the first."""
        words: list[str] = []
        number, protocol = 0, ""
        ports_due = True
        for match in rule.matches:
            match match:
                case ProtocolMatch(matched):
                    number, protocol = matched.number, matched.spelling
                    words.append(syntax.protocol(protocol))
                    if _names_module(rule):
                        words.append(syntax.protocol_module(protocol))
                case Ports():
                    if ports_due:
                        ports_due = False
                        # iptables has no match module for UDP-Lite: --dport is unknown there, multiport is not.
                        multiport = self._loadable and number == _UDP_LITE
                        source, destination = _ports(rule, Side.SOURCE), _ports(rule, Side.DESTINATION)
                        words.append(syntax.ports(source, destination, multiport=multiport))
                case IcmpType(version, _, _, spelling):
                    # the reference names the module, except in rules that an option makes
                    if rule.origin.provenance is not Provenance.BUILTIN:
                        words.append(syntax.protocol_module(protocol))
                    words.append(syntax.icmp_type(version, spelling))
                case _:
                    words.append(self._option(match))
        return " ".join(words)

    def _option(self, match: Match) -> str:  # noqa: C901 - one case for each kind of match
        match match:
            case Address(side, prefixes):
                return syntax.address(side.value, [prefix.spelling for prefix in prefixes])
            case AddressRange(side, _, _, _, spelling):
                return syntax.address_range(side.value, spelling)
            case InSet(side, key, negated):
                return syntax.match_set(self._names.name(key, self._family), side.value, negated=negated)
            case Interface(direction, name):
                return syntax.in_interface(name) if direction is Direction.IN else syntax.out_interface(name)
            case Bridged(direction):
                if direction is Direction.IN:
                    return syntax.bridged(port_in=LINK_PORTS)
                return syntax.bridged(port_out=LINK_PORTS)
            case NicPort(direction, name):
                return syntax.leaving_port(name) if direction is Direction.IN else syntax.bridged(port_in=name)
            case AddressType(side, kind):
                return syntax.address_type(side.value, kind.value)
            case TcpFlags(mask, flags, negated):
                return syntax.tcp_flags(_flag_names(mask), _flag_names(flags), negated=negated)
            case ConnState(states):
                return syntax.connection_state(state.value for state in states)
            case AcceptMark():
                return syntax.mark(ACCEPT_MARK, ACCEPT_MARK)
            case SourceMac(_, spelling, negated):
                return syntax.mac_source(spelling, negated=negated)
            case RateOver():
                # the reference counts an IPv6 /64 as one source
                over = match.loadable() if self._loadable else match
                return syntax.rate_over(over.rate, over.burst, 32 if self._family is Family.V4 else 64, over.expire)
            case (
                ProtocolMatch()
                | Ports()
                | IcmpType()
                | EtherType()
                | ArpSender()
                | ArpSenderMac()
                | AdvertisedOutside()
                | Fragment()
                | FilteredPort()
                | TagOfVlanZero()
                | ThirdTag()
                | OtherEtherType()
                | NicRateOver()
                | ConnectionsOver()
            ):
                raise InternalError(f"{type(match).__name__} has no place of its own in an IP rule")
            case _:
                assert_never(match)

    def _target(self, action: Action) -> str:
        match action:
            case Accept():
                return syntax.jump("ACCEPT")
            case Drop():
                return syntax.jump("DROP")
            case Return():
                return syntax.jump("RETURN")
            case Jump(chain):
                return syntax.jump(chain)
            case Goto(chain):
                return syntax.goto(chain)
            case Reject(kind):
                return syntax.reject((_REJECT_V4 if self._family is Family.V4 else _REJECT_V6)[kind])
            case Queue(first, last, bypass):
                return syntax.nfqueue(first, last, bypass=bypass)
            case SetAcceptMark(on):
                return syntax.set_mark(ACCEPT_MARK if on else 0, ACCEPT_MARK)
            case SetConnmark(value):
                return syntax.set_connmark(value)
            case AssignHelper(name):
                return syntax.ct_helper(name)
            case Dispatch():
                raise InternalError("a dispatch is more than one rule")
            case _:
                assert_never(action)


def _log(log: Log, *, loadable: bool) -> str:
    nflog = syntax.nflog(log.prefix)
    if log.limit is None:
        return nflog
    limit = log.limit.loadable() if loadable else log.limit
    return f"{syntax.limit(limit.spelling, limit.burst)} {nflog}"


def _padded(rule: Rule) -> bool:
    """Tell whether a rule without options has two blanks, as the reference writes rules that come from files."""
    match rule.origin.provenance:
        case Provenance.USER | Provenance.STANDARD:
            return True
        case Provenance.BUILTIN:
            return False
        case Provenance.POLICY:
            return not isinstance(rule.action, Drop | Jump) and rule.action != Goto("PVEFW-reject")


def _names_module(rule: Rule) -> bool:
    """Tell whether the reference names the protocol's match module in this rule."""
    return isinstance(rule.action, AssignHelper) or TcpFlags in map(type, rule.matches)


def _ports(rule: Rule, side: Side) -> tuple[str, ...]:
    for match in rule.matches:
        if isinstance(match, Ports) and match.side is side:
            return tuple([ports.spelling for ports in match.ranges])
    return ()


def _flag_names(flags: TcpFlag) -> list[str]:
    return [flag.name for flag in TcpFlag if flag in flags and flag.name]
