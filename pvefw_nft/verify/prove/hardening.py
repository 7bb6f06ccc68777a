"""Rules of the nft ruleset that only make it stricter than the reference: a comparison across tools leaves them out.

Such a rule is in the bridge's base chain ``stateless`` or ``limits``, or in a chain that these call. It drops frames
that no guest sends that is configured as its files say: with a second VLAN tag, with another MAC address than the
NIC's, with addresses that are not in the NIC's set; or frames that an option of a companion file closes. Each rule must
be exactly one of these, with the NIC's own MAC address, and the set by which the NIC's chain filters. A base chain that
leads to any other rule is compared like the rest.

So is the base chain ``answers``, whose rules drop answers of a connection's own side, by the labels that the base chain
``sides`` gives it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.conditions import HAS_CONNECTION
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.prove.backend_differences import exceptions
from pvefw_nft.verify.prove.chain_memo import NO_MEMO

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pvefw_nft.verify.network.path import Nic
    from pvefw_nft.verify.prove.backend_differences import Exceptions
    from pvefw_nft.verify.prove.chain_memo import ChainMemo
    from pvefw_nft.verify.prove.network import Side

STRICTER = (
    "stricter nft: its chains `stateless` and `limits` also drop frames with a second VLAN tag, or one of older types;"
    " from a guest, other MAC addresses than its NIC's in the frame or in ARP, and, where the NIC has a set of"
    " addresses, neighbour advertisements, DHCP requests and fragments of addresses not in it; too many unknown sources"
    " of new connections by one port, with `protection_synflood`; and packets that an option of a .pvefw file forbids."
    " `--as-reference` compiles without these rules"
)

OWN_SIDE = (
    "stricter nft: its chains `sides` and `answers` drop answers in a connection that come from the side of the guest's"
    " firewall bridge which opened it, or to the host in one that it did not open, and errors about such."
    " `--as-reference` compiles without these rules"
)

_IN_FRAGMENTS = m.FRAGMENT.everything - IntervalSet.single(0)
_TAGS = IntervalSet.of(*((tag, tag) for tag in (0x8100, 0x88A8, 0x9100, 0x9200, 0x9300)))
_NEW = IntervalSet.single(m.CT_STATES.index("new"))
_NEVER_CLOSED = (m.IPV4, m.IPV6, m.ARP)
_TAG_FIELDS = {m.VLAN_ID, m.INNER_VLAN_ID, m.INNER_TYPE}
_ADVERTISEMENT = IntervalSet.of((136 << 8, 136 << 8 | 0xFF))
_DHCP = {m.IPV4: (68, 67), m.IPV6: (546, 547)}

_Tests = dict[m.Field, IntervalSet]


def compared(before: Side, after: Side, memo: ChainMemo = NO_MEMO) -> tuple[Side, Side, Exceptions]:
    """Return the compared parts of two sides, and the parts left out. ``memo`` knows chains that were checked."""
    found = exceptions(before, after)
    if not found.across:
        return before, after, found
    before, of_before = without_stricter_rules(before, memo)
    after, of_after = without_stricter_rules(after, memo)
    return before, after, replace(found, texts=tuple(dict.fromkeys((*found.texts, *of_before, *of_after))))


def without_stricter_rules(side: Side, memo: ChainMemo = NO_MEMO) -> tuple[Side, list[str]]:
    """Return the side without the rules that make it stricter, and a line about each kind that it had."""
    found: list[str] = []
    tables = []
    for table in side.model.tables:
        kept = dict(table.chains)
        for name, (only_stricter, text) in _CHAINS.items():
            chain = table.chains.get(name)
            if name in (SIDES, ROUTED) and "answers" in kept:
                continue  # its labels are read
            if chain is None or not chain.rules or not _is_ours(table, chain):
                continue
            if only_stricter(table, chain, tuple(side.topology.nics), memo):
                del kept[name]
                found.append(text)
        for name, chain in table.chains.items():
            if _is_of_rates(table, name) and any(map(_drops_newcomers, chain.rules)):
                rules = [rule for rule in chain.rules if not _drops_newcomers(rule)]
                kept[name] = m.Chain(name, rules, chain.policy, chain.hook)
                found.append(STRICTER)
        tables.append(m.Table(table.key, kept, table.sets, table.lookups))
    if not found:
        return side, found
    return replace(side, model=m.RulesetModel(tuple(tables), side.model.assumptions)), found


def _is_of_rates(table: m.Table, name: str) -> bool:
    return table.key.tool == "nft" and table.key.name == "pvefw" and name.startswith("raw/over-rate-")


def _drops_newcomers(rule: m.Rule) -> bool:
    """Whether a rule drops sources that are not known where too many of them come by one port."""
    tests = [condition for condition in rule.conditions if isinstance(condition, m.Test)]
    names = {(m.rate_of(test.field) or test.field).name for test in tests}
    strangers = any(name.startswith("rate of who is in @sources-") for name in names)
    too_many = any(name.startswith("rate ") and name.endswith(f" per {m.IIF}/128") for name in names)
    return rule.verdict == m.DROP and not rule.effects and strangers and too_many


def _is_ours(table: m.Table, chain: m.Chain) -> bool:
    hook = chain.hook
    if table.key.tool != "nft" or table.key.name != "pvefw" or hook is None:
        return False
    return (hook.family, hook.point) in _HOOKS.get(chain.name, _STATELESS) and chain.policy == m.ACCEPT


def _only_answers(table: m.Table, chain: m.Chain, _nics: tuple[Nic, ...], memo: ChainMemo) -> bool:
    """Whether a base chain drops nothing but answers in a connection by the side that opened it."""
    for rule in chain.rules:
        if rule.effects:
            return False
        match rule.verdict:
            # it matches no packet
            case m.Drop() if m.FALSE in rule.conditions:
                pass
            case m.Jump(name) if _ANSWER in rule.conditions or _RELATED in rule.conditions:
                if not _each(memo, table.chains[name], _drops_own_side):
                    return False
            case _:
                if not (_ANSWER in rule.conditions and _drops_own_side(rule)):
                    return False
    return True


def _drops_own_side(rule: m.Rule) -> bool:
    """Whether a rule only drops answers in connections whose label says who opened them, or lets some through."""
    if rule.effects or rule.verdict in (m.RETURN, m.ACCEPT):
        return not rule.effects
    conditions = [part for one in rule.conditions for part in (one.of if isinstance(one, m.All) else (one,))]
    tests = _tests(rule._replace(conditions=tuple(part for part in conditions if part != HAS_CONNECTION)))
    return rule.verdict == m.DROP and tests is not None and tests.keys() - {m.CT_DIRECTION} in _OPENED


def _only_labels(table: m.Table, chain: m.Chain, _nics: tuple[Nic, ...], memo: ChainMemo) -> bool:
    """Whether a base chain does nothing but note by labels which side opened a connection."""
    for rule in chain.rules:
        match rule.verdict:
            case m.Jump(name) if not rule.effects:
                if not _each(memo, table.chains[name], _labels):
                    return False
            case _:
                if not _labels(rule):
                    return False
    return True


def _labels(rule: m.Rule) -> bool:
    """Whether a rule does nothing but give a connection a label of those, or return."""
    if rule.verdict not in (None, m.RETURN):
        return False
    return all(isinstance(e, m.SetField) and {e.field} in _OPENED for e in rule.effects)


def _only_stricter(table: m.Table, chain: m.Chain, nics: tuple[Nic, ...], memo: ChainMemo) -> bool:
    """Whether a base chain drops only frames that its NICs must not send, and a second tag."""
    by_port = {m.interface_number(nic.interface): nic for nic in nics if nic.filtered}
    for rule in chain.rules:
        if rule.effects:
            return False
        match rule.verdict:
            case m.Drop():
                tests = _tests(rule)
                if tests is None or tests.keys() - _TAG_FIELDS != {m.PROTOCOL, m.IIF} or tests[m.PROTOCOL] - _TAGS:
                    return False
            case m.VerdictMap(entries) if not rule.conditions:
                if not all(_sound_entry(table, condition, verdict, by_port, memo) for condition, verdict in entries):
                    return False
            case _:
                return False
    return True


def _only_limits(table: m.Table, chain: m.Chain, nics: tuple[Nic, ...], memo: ChainMemo) -> bool:
    """Whether a base chain drops only new connections beyond a number, and packets that its NICs must not send."""
    by_port = {m.interface_number(nic.interface): nic for nic in nics if nic.filtered}
    for rule in chain.rules:
        match rule.verdict:
            case m.Return():
                pass
            case m.VerdictMap(entries) if not rule.conditions:
                if not all(_sound_entry(table, condition, verdict, by_port, memo) for condition, verdict in entries):
                    return False
            case _:
                return False
    return True


def _is_limit(rule: m.Rule) -> bool:
    tests = _tests(rule)
    if tests is None or rule.verdict != m.DROP or tests.pop(m.CT_STATE, None) != _NEW:
        return False
    return len(tests) == 1 and all(on.name.startswith("rate ") for on in tests)


def _each(memo: ChainMemo, chain: m.Chain, holds: Callable[[m.Rule], bool]) -> bool:
    """Whether something holds for each rule of a chain."""
    return memo.holds(holds.__name__, (chain,), None, lambda: all(map(holds, chain.rules)))


def _sound_entry(
    table: m.Table, condition: m.Condition, verdict: m.Verdict, by_port: Mapping[int, Nic], memo: ChainMemo
) -> bool:
    """Whether the chain of a port drops only frames that its NIC must not send."""
    if not isinstance(condition, m.Test) or condition.field is not m.IIF or not isinstance(verdict, m.Jump):
        return False
    nic = by_port.get(condition.values.smallest())
    if nic is None or condition.values != IntervalSet.single(condition.values.smallest()):
        return False
    chain, own = table.chains[verdict.chain], table.chains.get(f"{nic.interface}-OUT")

    def is_sound() -> bool:
        foreign = _foreign(own)
        return all(_is_limit(rule) or _sound_rule(rule, nic, foreign) for rule in chain.rules)

    return memo.holds("_sound_rule", (chain, own), nic, is_sound)


def _sound_rule(rule: m.Rule, nic: Nic, foreign: Mapping[int, IntervalSet]) -> bool:
    if rule.effects:
        return False
    if rule.verdict == m.RETURN:
        return True  # its accepted packets go on to all other chains
    tests = _tests(rule)
    if tests is None or rule.verdict != m.DROP:
        return False
    if not tests:
        # it drops everything: only a NIC without a valid address may send nothing
        return nic.mac is None
    protocol = tests.pop(m.PROTOCOL, m.PROTOCOL.everything)
    if not tests:  # the option l2
        return not any(number in protocol for number in _NEVER_CLOSED)
    others = m.ETHER_SRC.everything if nic.mac is None else m.ETHER_SRC.everything - IntervalSet.single(nic.mac)
    if tests.keys() == {m.ETHER_SRC}:
        return tests[m.ETHER_SRC] == others
    if tests.keys() == {m.ARP_SHA}:
        return tests[m.ARP_SHA] == others
    if m.FRAGMENT in tests and any(on.name.startswith("rate ") for on in tests):  # the option max_fragments
        return len(tests) == 2 and not tests[m.FRAGMENT] - _IN_FRAGMENTS
    for version, source in ((m.IPV4, m.SADDR4), (m.IPV6, m.SADDR6)):
        if protocol == IntervalSet.single(version):
            return _of_foreign_addresses(tests, version, source, foreign.get(version))
    return False


def _of_foreign_addresses(tests: _Tests, version: int, source: m.Field, foreign: IntervalSet | None) -> bool:
    """Whether tests of an IP packet hold only for such as speak of addresses that the NIC's chain drops."""
    if foreign is None:
        return False
    transport = tests.pop(m.L4PROTO, None)
    target = tests.pop(m.ND_TARGET, None)
    if tests.get(m.ICMP6) is not None:
        return version == m.IPV6 and tests == {m.ICMP6: _ADVERTISEMENT} and (target or source.everything) == foreign
    if tests.pop(source, source.everything) != foreign:
        return False
    if not tests:  # the option ipfilter_established
        return transport is None
    if m.FRAGMENT in tests:
        return tests.keys() == {m.FRAGMENT} and not tests[m.FRAGMENT] - _IN_FRAGMENTS
    ports = _DHCP[version]
    wanted = {on: IntervalSet.single(port) for on, port in zip((m.SPORT, m.DPORT), ports, strict=True)}
    return transport == IntervalSet.single(17) and tests == wanted


def _foreign(chain: m.Chain | None) -> dict[int, IntervalSet]:
    """Return, by IP version, the sources from which a NIC's own chain drops every new packet."""
    found: dict[int, IntervalSet] = {}
    for rule in chain.rules if chain is not None else ():
        tests = _tests(rule)
        if rule.verdict != m.DROP or tests is None:
            continue
        protocol = tests.pop(m.PROTOCOL, m.PROTOCOL.everything)
        for version, source in ((m.IPV4, m.SADDR4), (m.IPV6, m.SADDR6)):
            if version in protocol and not tests.keys() - {source}:
                found.setdefault(version, tests.get(source, source.everything))
    return found


def _tests(rule: m.Rule) -> _Tests | None:
    """Return the tested values of a rule, by field; None if that is not one set for each field."""
    tests: _Tests = {}
    for condition in rule.conditions:
        if not isinstance(condition, m.Test) or condition.field in tests:
            return None
        tests[condition.field] = condition.values
    return tests


SIDES = "sides"
"""The base chain that gives connections the labels of the side that opened them."""

ROUTED = "routed"
"""The base chain that does so for connections which the host routes."""

_OPENED = tuple({m.label_field(number)} for number in range(124, 128))
"""The labels: opened by the host, across a bridge of guests or routed, from the guest's bridge, by the guest."""
_ANSWER = m.equals(m.CT_DIRECTION, 1)
_RELATED = m.equals(m.CT_STATE, m.CT_STATES.index("related"))

_STATELESS = ((m.Family.BRIDGE, m.Point.PREROUTING),)
_HOOKS = {
    "answers": (*_STATELESS, (m.Family.INET, m.Point.INPUT)),
    SIDES: ((m.Family.BRIDGE, m.Point.FORWARD), (m.Family.INET, m.Point.OUTPUT)),
    ROUTED: ((m.Family.INET, m.Point.FORWARD),),
}
"""Where the base chains about answers are hooked in."""

_CHAINS: Mapping[str, tuple[Callable[[m.Table, m.Chain, tuple[Nic, ...], ChainMemo], bool], str]] = {
    "stateless": (_only_stricter, STRICTER),
    "limits": (_only_limits, STRICTER),
    "answers": (_only_answers, OWN_SIDE),
    SIDES: (_only_labels, OWN_SIDE),
    ROUTED: (_only_labels, OWN_SIDE),
}
"""The base chains that may make the ruleset stricter, what tells whether they do nothing else, and what to say."""
