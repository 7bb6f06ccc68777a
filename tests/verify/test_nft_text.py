"""Rulesets in nft's own syntax: they have the same meaning as in JSON, and unknown parts are an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvefw_nft.verify.readers.files import Text, is_nft_text, read_ruleset
from pvefw_nft.verify.readers.nft.text import parse_nft_text
from pvefw_nft.verify.readers.shared import RulesetError

LISTINGS = Path(__file__).with_name("listings")


def one_rule(text: str) -> Any:  # noqa: ANN401 - JSON
    document = parse_nft_text(f"table inet t {{\n chain c {{\n  {text}\n }}\n}}\n", "x")
    commands: Any = document["nftables"]
    return commands[-1]["add"]["rule"]["expr"]


def test_a_listing_of_nft_means_the_same_as_text_and_as_json() -> None:
    texts = [(LISTINGS / f"nft-1.0.6.{suffix}").read_text("utf-8") for suffix in ("nft", "json")]
    from_text, from_json = (read_ruleset([Text("listing", text)]) for text in texts)
    assert sum(len(chain.rules) for table in from_json.tables for chain in table.chains.values()) > 40
    assert from_text == from_json


RULES = [
    ("tcp flags syn / fin,syn,rst,ack drop", "tcp flags & (fin | syn | rst | ack) == syn drop"),
    ("tcp flags != syn / fin,syn drop", "tcp flags & (fin | syn) != syn drop"),
    ("meta mark 0x80000000/1 accept", "meta mark & 0x80000000 == 0x80000000 accept"),
    ("counter packets 5 bytes 300 drop", "counter drop"),
    ("limit rate 1/second burst 5 packets accept", "limit rate 1/second accept"),
    ("reject with icmpx type port-unreachable", "reject with icmpx port-unreachable"),
    ("queue num 2-4 bypass", "queue flags bypass to 2-4"),
    ("tcp dport { 22,\n 23 } accept # why", "tcp dport { 22, 23 } accept"),
    ("tcp dport 22 \\\n accept", "tcp dport 22 accept"),
]


@pytest.mark.parametrize(("listed", "written"), RULES)
def test_two_spellings_of_one_rule(listed: str, written: str) -> None:
    assert one_rule(listed) == one_rule(written)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("iifname 7", 7),
        ('iifname "7-8"', "7-8"),
        ('iifname "eth*"', "eth*"),
        ("ip saddr 10.0.0.0/8", {"prefix": {"addr": "10.0.0.0", "len": 8}}),
        ("ip6 saddr fe80::1-fe80::9", {"range": ["fe80::1", "fe80::9"]}),
        ("ether saddr bc:24:11:00:00:01", "bc:24:11:00:00:01"),
        ("icmp type echo-request", "echo-request"),
        ("icmpv6 type 1-3", {"range": [1, 3]}),
        ("exthdr frag exists", True),
        ("exthdr frag missing", False),
        ("@nh,48,16 0x1fff", 0x1FFF),
    ],
)
def test_value(text: str, right: object) -> None:
    (found,) = one_rule(text)
    assert found["match"]["right"] == right


@pytest.mark.parametrize(
    ("text", "statement"),
    [
        ("masquerade", {"masquerade": None}),
        ("dnat to 172.17.0.2:80", {"dnat": {"addr": "172.17.0.2", "port": 80}}),
        ("dnat ip to 172.17.0.2", {"dnat": {"family": "ip", "addr": "172.17.0.2"}}),
        ("dnat ip6 to [fe80::1]:80-90", {"dnat": {"family": "ip6", "addr": "fe80::1", "port": {"range": [80, 90]}}}),
        ("snat to 10.0.0.1-10.0.0.9", {"snat": {"addr": {"range": ["10.0.0.1", "10.0.0.9"]}}}),
        ("dnat to ip daddr", {"dnat": {"addr": {"payload": {"protocol": "ip", "field": "daddr"}}}}),
        ("notrack", {"notrack": None}),
        ("ct zone set 1", {"mangle": {"key": {"ct": {"key": "zone"}}, "value": 1}}),
        (
            'ct zone set iifname map { "a" : 1 }',
            {
                "mangle": {
                    "key": {"ct": {"key": "zone"}},
                    "value": {"map": {"key": {"meta": {"key": "iifname"}}, "data": {"set": [["a", 1]]}}},
                }
            },
        ),
    ],
)
def test_statement(text: str, statement: object) -> None:
    assert one_rule(text) == [statement]


DAMAGE = [
    "",
    "{",
    "}",
    "\n",
    '"',
    ",",
    " . ",
    "/33",
    "0x",
    "010",
    "9" * 5000,
    "-",
    "@",
    "(",
    " & ",
    "vmap",
    "set",
    "\0",
    "²",
]
ERRORS = [
    ("table inet t {\n chain c {\n  tcp dport 22 acept\n }\n}\n", 3, "acept"),
    ("table inet t {\n chain c {\n  socket transparent 1 accept\n }\n}\n", 3, "socket"),
    ("table inet t {\n chain c {\n  ct original saddr 1.2.3.4 accept\n }\n}\n", 3, "original"),
    ("table inet t {\n chain c {\n  limit rate 10 kbytes/second accept\n }\n}\n", 3, "kbytes"),
    ("table inet t {\n flowtable f {\n }\n}\n", 2, "flowtable"),
    ("table inet t {\n set s {\n  wrong\n }\n}\n", 3, "wrong"),
    ("table inet t {\n chain c {\n  accept\n", 4, "end of the text"),
    ("table inet t {\n chain c {\n  type filter hook input device eth0 priority 0;\n }\n}\n", 3, "device"),
    ('table inet t {\n}\ninclude "x"\n', 3, "include"),
    ("table inet t {\n}\nadd rule inet t c accept\n", 3, "rule"),
    ('table inet t {\n chain c {\n  log prefix "a\n b"\n }\n}\n', 3, "cannot be read"),
]


@pytest.mark.parametrize(("text", "line", "word"), ERRORS, ids=[case[2] for case in ERRORS])
def test_unknown_text_is_an_error_with_its_line(text: str, line: int, word: str) -> None:
    with pytest.raises(RulesetError) as raised:
        read_ruleset([Text("rules.nft", text)])
    assert raised.value.message.startswith(f"rules.nft:{line}: ")
    assert word in raised.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#!/usr/sbin/nft -f\n\nflush ruleset\n", True),
        ("# iptables\n\ntable ip x {\n}\n", True),
        ("add table inet t\n", True),
        ("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n", False),
        ("# table inet t\n*filter\n", False),
        ("add tableau 10.0.0.1\n", False),
        ("", False),
    ],
)
def test_whether_a_text_is_nfts(text: str, expected: bool) -> None:
    assert is_nft_text(text) is expected


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_a_damaged_text_is_read_or_named_as_wrong(data: st.DataObject) -> None:
    text = (LISTINGS / "nft-1.0.6.nft").read_text("utf-8")
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(start + 30, len(text))))
        text = text[:start] + data.draw(st.sampled_from(DAMAGE) | st.text(max_size=5)) + text[end:]
    problem = problem_of(text)
    assert problem is None or problem.message.startswith("rules.nft")


def problem_of(text: str) -> RulesetError | None:
    try:
        read_ruleset([Text("rules.nft", text)])
    except RulesetError as error:
        return error
    return None
