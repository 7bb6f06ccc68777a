"""Merging rules never changes the treatment of a packet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from pvefw_nft.backends.nft.intervals import merged
from pvefw_nft.backends.nft.keys import intervals_of
from pvefw_nft.backends.nft.merge import MAX_RUN, Run, runs
from pvefw_nft.ir.nodes import (
    Accept,
    Address,
    Drop,
    Family,
    Jump,
    Log,
    Origin,
    PortRange,
    Ports,
    Prefix,
    Protocol,
    ProtocolMatch,
    Provenance,
    Return,
    Rule,
    Side,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pvefw_nft.ir.nodes import Action, Match

ORIGIN = Origin(Provenance.USER, "100.fw", 1)
TCP, UDP = ProtocolMatch(Protocol(6, "tcp")), ProtocolMatch(Protocol(17, "udp"))


def ports(first: int, last: int | None = None) -> Ports:
    return Ports(Side.DESTINATION, (PortRange(first, first if last is None else last, ""),))


def source(number: int, length: int = 32) -> Address:
    return Address(Side.SOURCE, (Prefix(4, number, length, ""),))


def rule(*matches: Match, action: Action, families: Family = Family.BOTH, log: Log | None = None) -> Rule:
    return Rule(matches, action, ORIGIN, families, log)


# --- packets through rules, and through runs ----------------------------------------------------------------

Packet = tuple[int, int, int]
"""Protocol, source and destination port, of IPv4."""


def matches(match: Match, packet: Packet) -> bool:
    value = {ProtocolMatch: packet[0], Address: packet[1], Ports: packet[2]}[type(match)]
    return any(first <= value <= last for first, last in intervals_of(match))


def walk_rules(rules: Iterable[Rule], packet: Packet) -> list[Action]:
    """Return the actions on a packet: jumps come back, all else ends the walk."""
    done: list[Action] = []
    for one in rules:
        if one.families & Family.V4 and all(matches(match, packet) for match in one.matches):
            done.append(one.action)
            if not isinstance(one.action, Jump):
                break
    return done


def walk_runs(found: Iterable[Run], packet: Packet) -> list[Action]:
    """Return the same for runs. Each does one action: the action of its first rule with the packet's keys."""
    done: list[Action] = []
    for run in found:
        hit = next((one.action for one in run.rules if walk_rules([one], packet)), None)
        if hit is not None:
            done.append(hit)
            if not isinstance(hit, Jump):
                break
    return done


actions = st.sampled_from([Accept(), Drop(), Return(), Jump("a"), Jump("b")])
small = st.integers(0, 3)
rules_strategy = st.lists(
    st.builds(
        lambda protocol, address, length, first, size, action, families: rule(
            source(address >> (32 - length) << (32 - length), length),
            protocol,
            ports(first, first + size),
            action=action,
            families=families,
        ),
        st.sampled_from([TCP, UDP]),
        small,
        st.sampled_from([32, 32, 31]),
        small,
        st.sampled_from([0, 0, 1]),
        actions,
        st.just(Family.V4),
    ),
    max_size=7,
)


@given(rules_strategy, st.tuples(st.sampled_from([6, 17, 1]), small, small))
def test_runs_treat_a_packet_as_their_rules_do(rules: list[Rule], packet: Packet) -> None:
    assert walk_runs(runs(rules), packet) == walk_rules(rules, packet)


@given(rules_strategy)
def test_keys_of_a_concatenation_are_single_values(rules: list[Rule]) -> None:
    for run in runs(rules):
        if run.is_concatenation:
            for one in run.rules:
                for key in run.keys:
                    ((first, last),) = merged(intervals_of(one.matches[key]))
                    assert first == last


# --- merged and unmerged rules ------------------------------------------------------------------------


def shape(rules: list[Rule]) -> list[int]:
    return [len(run.rules) for run in runs(rules)]


def test_the_same_action_for_several_ports() -> None:
    assert shape([rule(TCP, ports(number), action=Accept()) for number in (22, 80, 443)]) == [3]


def test_different_actions_for_different_ports() -> None:
    (run,) = runs([rule(TCP, ports(22), action=Accept()), rule(TCP, ports(23), action=Drop())])
    assert run.is_map


def test_a_rule_in_between_parts_a_run() -> None:
    rules = [rule(TCP, ports(22), action=Accept()), rule(action=Jump("a")), rule(TCP, ports(23), action=Accept())]
    assert shape(rules) == [1, 1, 1]


def test_a_port_that_a_jump_may_bring_back_is_not_merged() -> None:
    assert shape([rule(TCP, ports(22), action=Jump("a")), rule(TCP, ports(22, 23), action=Accept())]) == [1, 1]


def test_rules_that_log_are_not_merged() -> None:
    log = Log(6, 100, "tap100i0-IN", "DROP: ", None)
    rules = [rule(TCP, ports(22), action=Drop(), log=log), rule(TCP, ports(23), action=Drop())]
    assert shape(rules) == [1, 1]


def test_a_network_of_all_addresses_is_not_a_key() -> None:
    assert shape([rule(source(0, 0), action=Drop()), rule(source(1), action=Drop())]) == [1, 1]


def test_intervals_do_not_go_into_a_concatenation() -> None:
    rules = [rule(source(1), TCP, ports(22), action=Drop()), rule(source(2), TCP, ports(80, 90), action=Drop())]
    assert shape(rules) == [1, 1]


def test_a_run_ends_where_its_comment_would_not_fit() -> None:
    assert shape([rule(TCP, ports(number), action=Drop()) for number in range(MAX_RUN + 1)]) == [MAX_RUN, 1]
