"""The IR as stable text, for people and for golden tests.

Example, of the rule in :mod:`.nodes`::

    filter tap100i0-IN
      v4 src {10.0.0.0/8} proto tcp dport {22} -> accept        ; 100.fw:4 (SSH)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, assert_never

from pvefw_nft.ir.nodes import (
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
    Queue,
    RateOver,
    Reject,
    Return,
    SetAcceptMark,
    SetConnmark,
    SourceMac,
    TagOfVlanZero,
    TcpFlag,
    TcpFlags,
    ThirdTag,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.ir.nodes import Action, Match, Rule, Ruleset

_FAMILIES = {Family.V4: "v4 ", Family.V6: "v6 ", Family.BOTH: ""}


def pretty(ruleset: Ruleset) -> Iterator[str]:
    """Yield the lines of a ruleset: hooks, NICs, sets, then the chains of each layer by name."""
    if not ruleset.enabled:
        yield "disabled"
        return
    for hook in ruleset.hooks:
        yield f"hook {hook.layer.value} {hook.point.value} -> {hook.chain}"
    if ruleset.host_forward is not None:
        yield f"host forward -> {ruleset.host_forward}"
    for vnet in ruleset.vnets:
        yield f"vnet {vnet.bridge} -> {vnet.chain}"
    for nic in ruleset.nics:
        of_frames = f"link {nic.link_chain or '-'} stateless {nic.stateless_chain or '-'}"
        of_frames += "" if nic.limit_chain is None else f" limit {nic.limit_chain}"
        yield f"nic {nic.interface} in {nic.in_chain} out {nic.out_chain} {of_frames}"
    for bridge, zone in (ruleset.zones or {}).items():
        yield f"zone {bridge} {zone}"
    for made in ruleset.sets:
        entries = (f"{'!' if entry.nomatch else ''}{entry.prefix.canonical}" for entry in made.entries)
        yield f"set {made.key.scope}/{made.key.name} {{{', '.join(entries)}}}"
    for layer, chains in ruleset.chains.items():
        for name in sorted(chains):
            yield f"{layer.value} {name}{'' if chains[name].families == Family.BOTH else ' (v4)'}"
            for rule in chains[name].rules:
                yield f"  {_rule(rule)}"


def _rule(rule: Rule) -> str:
    words = [_FAMILIES[rule.families].strip(), *map(_match, rule.matches)]
    if rule.log is not None:
        limit = "" if rule.log.limit is None else f" limit {rule.log.limit.spelling}"
        words.append(f'log "{rule.log.prefix}"{limit}')
    words.append(f"-> {_action(rule.action)}")
    return f"{' '.join(filter(None, words))}  ; {rule.origin}"


def _not(negated: bool) -> str:  # noqa: FBT001 - the flag of a match, as text
    return "not " if negated else ""


_FrameMatch: TypeAlias = (
    "EtherType | OtherEtherType | ArpSender | ArpSenderMac | FilteredPort | TagOfVlanZero | ThirdTag"
)
_Excess: TypeAlias = "RateOver | NicRateOver | ConnectionsOver"


def _match(match: Match) -> str:  # noqa: C901 - one case for each kind of match
    match match:
        case Interface(direction, name):
            return f"{'iif' if direction.value == 'IN' else 'oif'} {name}"
        case Bridged(direction):
            return f"bridged {direction.value.lower()}"
        case NicPort(direction, name):
            return f"nic {direction.value.lower()} {name}"
        case Address(side, prefixes):
            return f"{side.value} {{{', '.join(prefix.canonical for prefix in prefixes)}}}"
        case AddressRange(side, _, _, _, spelling):
            return f"{side.value} {spelling}"
        case InSet(side, key, negated):
            return f"{side.value} {_not(negated)}in {key.scope}/{key.name}"
        case AddressType(side, kind):
            return f"{side.value} is {kind.value.lower()}"
        case ProtocolMatch(protocol):
            return f"proto {protocol.spelling}"
        case IcmpType(_, _, _, spelling):
            return f"icmp {spelling}"
        case Ports(side, ranges):
            return f"{side.value[0]}port {{{', '.join(ports.spelling for ports in ranges)}}}"
        case TcpFlags(mask, flags, negated):
            return f"flags {_not(negated)}{_flags(flags)} of {_flags(mask)}"
        case ConnState(states):
            return f"state {','.join(state.value.lower() for state in states)}"
        case AcceptMark():
            return "accept mark"
        case SourceMac(_, spelling, negated):
            return f"mac {_not(negated)}{spelling}"
        case AdvertisedOutside(key):
            return f"advertises outside of {key.scope}/{key.name}"
        case Fragment():
            return "fragment"
        case RateOver() | NicRateOver() | ConnectionsOver():
            return _excess(match)
        case _:
            return _frame_match(match)


def _excess(match: _Excess) -> str:
    match match:
        case RateOver(rate, burst, expire, sources):
            of = "" if sources is None else f" of {sources}"
            return f"over {rate}/second burst {burst} per source{of}, for {expire} ms"
        case NicRateOver(rate):
            return f"over {rate}/second"
        case ConnectionsOver(number):
            return f"over {number} connections"
        case _:
            assert_never(match)


def _frame_match(match: _FrameMatch) -> str:
    match match:
        case EtherType(number, spelling):
            return f"ether {spelling}/0x{number:04x}"
        case OtherEtherType(numbers):
            return f"ether none of {', '.join(f'0x{number:04x}' for number in numbers)}"
        case ArpSender(prefix):
            return f"arp sender {prefix.canonical}"
        case ArpSenderMac(_, spelling):
            return f"arp sender mac not {spelling}"
        case FilteredPort(qinq):
            return f"filtered port{' with qinq' if qinq else ''}"
        case TagOfVlanZero(number):
            return f"tag {number} of vlan 0"
        case ThirdTag():
            return "third tag"
        case _:
            assert_never(match)


def _flags(flags: TcpFlag) -> str:
    return ",".join(flag.name for flag in TcpFlag if flag in flags and flag.name) or "none"


def _action(action: Action) -> str:
    match action:
        case Accept():
            return "accept"
        case Drop():
            return "drop"
        case Reject(kind):
            return f"reject {kind.value}"
        case Return():
            return "return"
        case Jump(chain):
            return f"jump {chain}"
        case Goto(chain):
            return f"goto {chain}"
        case Queue(first, last, bypass):
            queues = "default" if first is None else str(first) if last is None else f"{first}-{last}"
            return f"queue {queues}{' bypass' if bypass else ''}"
        case SetAcceptMark(on):
            return "set accept mark" if on else "clear accept mark"
        case SetConnmark(value):
            return f"connmark {value}"
        case AssignHelper(name):
            return f"helper {name}"
        case Dispatch(direction):
            return f"dispatch {direction.value.lower()}"
        case _:
            assert_never(action)
