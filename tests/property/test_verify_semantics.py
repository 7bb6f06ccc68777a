"""Interval sets against sets of integers, ipsets against the kernel's own rule, and walks against a second walker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from pvefw_nft.verify.model import (
    ACCEPT,
    DROP,
    DSCP,
    IIF,
    MARK,
    NO_INTERFACE,
    PROTOCOL,
    RETURN,
    TTL,
    Accept,
    All,
    Any,
    Chain,
    Drop,
    Family,
    Goto,
    Hook,
    Jump,
    MarkTarget,
    Not,
    Point,
    Return,
    Rule,
    RulesetModel,
    SetMark,
    Table,
    TableKey,
    Test,
    VerdictMap,
    equals,
)
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.network.path import Topology
from pvefw_nft.verify.readers.ipset import _most_specific
from pvefw_nft.verify.simulate.packet import make_probe
from pvefw_nft.verify.simulate.spec import PacketSpec
from pvefw_nft.verify.simulate.walk import simulate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.verify.model import Condition, Field, PlainVerdict, Verdict

SIZE = 16
ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1)).map(lambda pair: (min(pair), max(pair)))
interval_sets = st.lists(ranges, max_size=4).map(IntervalSet.from_ranges)


def members(values: IntervalSet) -> set[int]:
    return {value for value in range(SIZE) if value in values}


@given(interval_sets, interval_sets)
def test_interval_sets_are_sets_of_integers(left: IntervalSet, right: IntervalSet) -> None:
    assert members(left | right) == members(left) | members(right)
    assert members(left & right) == members(left) & members(right)
    assert members(left - right) == members(left) - members(right)
    assert members(left.complement(SIZE)) == set(range(SIZE)) - members(left)
    assert (left is right) == (members(left) == members(right))
    assert left.count() == len(members(left))


@given(st.integers(0, 255), st.integers(0, 255))
def test_masks(mask: int, value: int) -> None:
    found = IntervalSet.masked(mask, value, 8)
    assert all((number & mask == value) == (number in found) for number in range(256))


prefixes = st.tuples(st.integers(0, 255), st.integers(0, 8), st.booleans())


@given(st.lists(prefixes, max_size=8, unique_by=lambda entry: (entry[0] >> (8 - entry[1]), entry[1])))
def test_the_longest_prefix_decides(entries: list[tuple[int, int, bool]]) -> None:
    networks = []
    for address, length, hole in entries:
        first = address >> (8 - length) << (8 - length)
        networks.append((first, first | ((1 << (8 - length)) - 1), hole))
    found = _most_specific(networks)
    for address in range(256):
        holding = [(last - first, hole) for first, last, hole in networks if first <= address <= last]
        assert (address in found) == (bool(holding) and not min(holding)[1])


# --- walks ------------------------------------------------------------------------------------------------------

FIELDS = (TTL, DSCP)
CHAINS = ("c0", "c1", "c2", "c3")


@dataclass(frozen=True)
class Walked:
    """The end of the second walker: the verdict or the return, and the marks at this point."""

    end: str
    marks: tuple[int, ...]


def conditions() -> st.SearchStrategy[Condition]:
    plain = st.builds(Test, st.sampled_from(FIELDS), interval_sets)
    marks = st.builds(equals, st.sampled_from(MARK[:2]), st.integers(0, 1))
    # the packets here come from the host: they have no input interface
    missing = st.builds(Test, st.just(IIF), st.just(IIF.everything - IntervalSet.single(NO_INTERFACE)))
    return st.recursive(
        st.one_of(plain, marks, missing),
        lambda inner: st.one_of(
            st.builds(All, st.lists(inner, max_size=2).map(tuple)),
            st.builds(Any, st.lists(inner, max_size=2).map(tuple)),
            st.builds(Not, inner),
        ),
        max_leaves=4,
    )


def verdicts(later: tuple[str, ...]) -> st.SearchStrategy[Verdict | None]:
    plain: list[PlainVerdict] = [ACCEPT, DROP, RETURN]
    plain += [kind(name) for kind in (Jump, Goto) for name in later]
    some = st.sampled_from(plain)
    first = Test(TTL, IntervalSet.of((0, 3)))
    second = Test(TTL, IntervalSet.of((4, 9)))
    maps = st.builds(lambda a, b: VerdictMap(((first, a), (second, b))), some, some)
    return st.one_of(st.none(), some, maps)


changes = st.builds(
    SetMark, st.just(MarkTarget.PACKET), st.integers(0, 3).map(lambda bits: 0xFFFFFFFC | bits), st.integers(0, 3)
)


@st.composite
def chain_sets(draw: st.DrawFn) -> dict[str, list[Rule]]:
    found: dict[str, list[Rule]] = {}
    for index, name in enumerate(CHAINS):
        rule = st.builds(
            Rule,
            st.lists(conditions(), max_size=2).map(tuple),
            st.lists(changes, max_size=1).map(tuple),
            verdicts(CHAINS[index + 1 :]),
        )
        found[name] = draw(st.lists(rule, max_size=4))
    return found


def true(condition: Condition, packet: dict[Field, int]) -> bool:
    """Evaluate a condition by the words of the model's documentation."""
    match condition:
        case Test(field=on, values=values):
            return on in packet and any(first <= packet[on] <= last for first, last in values)
        case All(of=parts):
            return not [part for part in parts if not true(part, packet)]
        case Any(of=parts):
            return bool([part for part in parts if true(part, packet)])
        case Not(of=inner):
            return not true(inner, packet)


def walk(chains: dict[str, list[Rule]], name: str, packet: dict[Field, int]) -> str:
    """Walk by recursion; returns accept, drop or return. A goto is a jump whose return returns on."""
    for rule in chains[name]:
        if not all(true(condition, packet) for condition in rule.conditions):
            continue
        for effect in rule.effects:
            assert isinstance(effect, SetMark)
            mark = sum(packet[bit] << number for number, bit in enumerate(MARK))
            mark = (mark & effect.keep) ^ effect.flip
            packet.update({bit: mark >> number & 1 for number, bit in enumerate(MARK)})
        end = decide(rule.verdict, chains, packet)
        if end is not None:
            return end
    return "return"


def decide(verdict: Verdict | None, chains: dict[str, list[Rule]], packet: dict[Field, int]) -> str | None:
    match verdict:
        case Accept():
            return "accept"
        case Drop():
            return "drop"
        case Return():
            return "return"
        case Jump(target):
            end = walk(chains, target, packet)
            return None if end == "return" else end
        case Goto(target):
            return walk(chains, target, packet)
        case VerdictMap(entries):
            found = [entry for condition, entry in entries if true(condition, packet)]
            return decide(found[0], chains, packet) if found else None
        case _:
            return None


PROBE = make_probe(PacketSpec("host", "host:80"), Topology())


def packets() -> Iterator[dict[Field, int]]:
    for ttl in range(0, SIZE, 3):
        for dscp in range(0, SIZE, 5):
            for marks in range(4):
                yield {TTL: ttl, DSCP: dscp, **{bit: marks >> n & 1 for n, bit in enumerate(MARK)}}


@given(chain_sets(), st.sampled_from([ACCEPT, DROP]))
def test_the_walk_equals_a_second_walker(rules: dict[str, list[Rule]], policy: Accept | Drop) -> None:
    hook = Hook(Family.IP, Point.OUTPUT, 0)
    chains = {name: Chain(name, found) for name, found in rules.items()}
    chains["c0"] = Chain("c0", rules["c0"], policy, hook)
    model = RulesetModel((Table(TableKey("nft", Family.IP, "t"), chains),))
    for fields in packets():
        probe = type(PROBE)({**PROBE.fields, **fields}, PROBE.path)
        expected = {**PROBE.fields, **fields}
        expected[PROTOCOL] = PROBE.fields[PROTOCOL]
        end = walk(rules, "c0", expected)
        dropped = end == "drop" or (end == "return" and policy == DROP)
        assert simulate(model, probe).verdict == ("DROP" if dropped else "ACCEPT")
