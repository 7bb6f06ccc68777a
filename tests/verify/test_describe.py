"""How values, sets and conditions are written for people."""

from __future__ import annotations

import pytest

from pvefw_nft.verify.model import (
    CT_STATE,
    DPORT,
    DROP,
    ETHER_SRC,
    ICMP,
    ICMP6,
    IIF,
    IS_BRIDGED,
    L4PROTO,
    MARK,
    SADDR4,
    SADDR6,
    TCP_FLAGS,
    Any,
    Field,
    Not,
    Reject,
    Rule,
    equals,
    interface_set,
    mark_condition,
    rate_test,
    within,
)
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.model.text import condition_text, parse_value, rule_text, set_text, value_text, verdict_text


@pytest.mark.parametrize(
    ("on", "values", "text"),
    [
        (DPORT, IntervalSet.of((22, 22)), "22"),
        (DPORT, IntervalSet.of((22, 22), (80, 90)), "{ 22, 80-90 }"),
        (DPORT, IntervalSet.of((22, 22)).complement(1 << 16), "not 22"),
        (DPORT, DPORT.everything, "any"),
        (DPORT, IntervalSet(), "nothing"),
        (SADDR4, IntervalSet.of((0x0A000000, 0x0AFFFFFF)), "10.0.0.0/8"),
        (SADDR4, IntervalSet.of((0x0A000001, 0x0A000003)), "10.0.0.1-10.0.0.3"),
        (SADDR6, IntervalSet.of((0xFE80 << 112, (0xFEC0 << 112) - 1)), "fe80::/10"),
        (ETHER_SRC, IntervalSet.single(0xBC2411000001), "bc:24:11:00:00:01"),
        (IIF, interface_set("fwln+"), "fwln*"),
        (L4PROTO, IntervalSet.of((6, 6), (17, 17)), "{ tcp, udp }"),
        (ICMP, IntervalSet.of((0x0800, 0x08FF)), "echo-request"),
        (ICMP, IntervalSet.single(0x0304), "fragmentation-needed"),
        (ICMP, IntervalSet.single(0x0807), "echo-request/7"),
        (ICMP6, IntervalSet.of((135 << 8, 136 << 8 | 0xFF)), "135-136"),
        (TCP_FLAGS, IntervalSet.masked(0x17, 2, 8), "syn/fin,syn,rst,ack"),
        (TCP_FLAGS, IntervalSet.masked(0x17, 2, 8).complement(256), "not syn/fin,syn,rst,ack"),
        (CT_STATE, IntervalSet.of((1, 2)), "{ established, related }"),
        (IS_BRIDGED, IntervalSet.single(0), "0"),
        (IS_BRIDGED, IntervalSet.single(1), "1"),
    ],
)
def test_sets(on: Field, values: IntervalSet, text: str) -> None:
    assert set_text(on, values) == text


def test_long_sets_are_cut() -> None:
    assert set_text(DPORT, IntervalSet.of(*((n, n) for n in range(0, 40, 2)))).endswith("… (20 in all) }")


def test_conditions() -> None:
    assert condition_text(mark_condition(MARK, 0x80000000, 0x80000000)) == "mark 0x80000000/0x80000000"
    assert condition_text(Not(mark_condition(MARK, 0xFFFFFFFF, 5))) == "not (mark 0x5)"
    assert condition_text(Any((equals(DPORT, 1), equals(DPORT, 2)))) == "(dport 1 or dport 2)"


def test_rates() -> None:
    assert condition_text(rate_test("1/second burst 5", over=False)) == "within rate 1/second burst 5"
    assert condition_text(rate_test("1/second burst 5", over=True)) == "over rate 1/second burst 5"


def test_rules_from_json_are_written_in_words_of_the_model() -> None:
    rule = Rule((equals(L4PROTO, 6), within(DPORT, (22, 22))), (), DROP)
    assert rule_text(rule) == "l4proto tcp, dport 22, drop"
    assert verdict_text(Reject("host-unreachable", "addr-unreachable")) == "reject (host-unreachable, addr-unreachable)"


@pytest.mark.parametrize("on", [DPORT, SADDR4, SADDR6, ETHER_SRC, L4PROTO, ICMP, CT_STATE, TCP_FLAGS, IS_BRIDGED])
def test_a_value_written_is_read_again(on: Field) -> None:
    for value in {0, 1, on.size - 1, on.size // 2}:
        if on is not ICMP and on is not TCP_FLAGS:
            assert parse_value(on, value_text(on, value)) == value
    with pytest.raises(ValueError, match=r"nonsense"):
        parse_value(on, "nonsense")


def test_flags_are_read_again() -> None:
    assert all(parse_value(TCP_FLAGS, value_text(TCP_FLAGS, value)) == value for value in range(256))
