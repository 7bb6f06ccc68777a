"""A comparison with iptables leaves out the rules that make nft stricter, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pvefw_nft.pipeline import Source, compile_root
from pvefw_nft.pipeline.topology import topology
from pvefw_nft.verify.prove.compare import compare
from pvefw_nft.verify.prove.hardening import OWN_SIDE, STRICTER
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.readers.files import Text, read_ruleset
from tests.support import NODE, VM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pvefw_nft.verify.prove.report import Report
    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"
FILES: dict[str, str | bytes] = {
    "cluster": ON + "[IPSET management]\n10.0.0.0/8\n2001:db8::/32\n",
    "100.conf": VM,
    "100.fw": ON
    + "ipfilter: 1\n[IPSET ipfilter-net0]\n10.0.0.1\n2001:db8::/64\n[RULES]\nIN ACCEPT -source +management\n",
}

TAGGED = '"op":"==","left":{"meta":{"key":"protocol"}},"right":"@values-'
"""The test of frames with a second tag, up to the name of the set that holds the types of tags."""


def compiled(root: Path, backend: str, *, as_reference: bool = False) -> str:
    artefact = compile_root(Source(root, NODE, lambda: None, as_reference=as_reference), backend).artefact
    return "".join(artefact.text() if backend == "iptables" else artefact.json())


def compared(root: Path, nft: str) -> Report:
    where = topology(Source(root, NODE, lambda: None))
    texts = (Text("iptables", compiled(root, "iptables")), Text("nft", nft))
    before, after = (Side(text.name, read_ruleset([text]), where) for text in texts)
    return compare(before, after)


def stateless_rules(text: str, change: Callable[[str], str]) -> str:
    """Return a transaction with each rule of the stateless chains changed; an empty one is left out.

    Rules of the chains of limits are left out, too.
    """
    return changed_rules(changed_rules(text, "limit", lambda _: ""), "stateless", change)


def changed_rules(text: str, chains: str, change: Callable[[str], str]) -> str:
    """Return a transaction with each rule changed of the chains whose names begin so; an empty one is left out."""
    lines = []
    for line in text.splitlines():
        if '"rule"' in line and f'"chain":"{chains}' in line:
            made = change(line)
            lines += [made] if made else []
        else:
            lines.append(line)
    return "\n".join(lines)


def test_the_stricter_rules_are_named(make_root: MakeRoot) -> None:
    root = make_root(FILES)
    report = compared(root, compiled(root, "nft"))
    assert not report.differences
    assert STRICTER in report.left_out


def test_as_reference_leaves_nothing_of_them(make_root: MakeRoot) -> None:
    root = make_root(FILES)
    text = compiled(root, "nft", as_reference=True)
    report = compared(root, text)
    assert "stateless" not in text
    assert not report.differences
    assert STRICTER not in report.left_out


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("bc:24:11:00:00:01", "bc:24:11:00:00:02"),
        ('"field":"saddr"}},"right":"bc:', '"field":"daddr"}},"right":"bc:'),
        ('"range":["0x20010db8000000000000000000000000"', '"range":["0x20010db8000000000000000100000000"'),
        ("PVEFW-100-ipfilter-net0-v4", "PVEFW-0-management-v4"),
        ('"right":68}', '"right":69}'),
        (TAGGED, TAGGED.replace("==", "!=")),
        ('{"drop":null}', '{"accept":null}'),
        ('"op":"!="', '"op":"=="'),
    ],
)
def test_a_rule_that_is_not_just_so_is_compared(before: str, after: str, make_root: MakeRoot) -> None:
    root = make_root(FILES)
    text = compiled(root, "nft")
    changed = stateless_rules(text, lambda line: line.replace(before, after))
    assert changed != stateless_rules(text, lambda line: line)
    assert STRICTER not in compared(root, changed).left_out


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"range":["0x20010db8000000000000000000000000"', '"range":["0x20010db8000000000000000100000000"'),
        ('"right":136}', '"right":135}'),
    ],
)
def test_an_advertisement_that_is_not_just_so_is_compared(before: str, after: str, make_root: MakeRoot) -> None:
    root = make_root(FILES)
    text = changed_rules(compiled(root, "nft"), "stateless", lambda _: "")
    changed = changed_rules(text, "limit", lambda line: line.replace(before, after))
    assert changed != text
    assert STRICTER in compared(root, text).left_out
    assert STRICTER not in compared(root, changed).left_out


def test_stricter_rules_are_left_out_even_if_one_is_missing(make_root: MakeRoot) -> None:
    root = make_root(FILES)
    report = compared(root, stateless_rules(compiled(root, "nft"), lambda line: "" if "saddr ether" in line else line))
    assert not report.differences
    assert STRICTER in report.left_out


def test_other_drops_beside_stricter_rules_are_a_difference(make_root: MakeRoot) -> None:
    root = make_root(FILES)
    changed = stateless_rules(compiled(root, "nft"), lambda line: line.replace(TAGGED, TAGGED.replace("==", "!=")))
    assert compared(root, changed).differences


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"right":"reply"', '"right":"original"'),
        ('{"drop":null}', '{"reject":null}'),
        ('"key":"label"', '"key":"mark"'),
    ],
)
def test_a_rule_about_answers_that_is_not_just_so_is_compared(before: str, after: str, make_root: MakeRoot) -> None:
    root = make_root(FILES)
    text = compiled(root, "nft")
    changed = changed_rules(text, "answer", lambda line: line.replace(before, after))
    assert changed != text
    assert OWN_SIDE in compared(root, text).left_out
    assert OWN_SIDE not in compared(root, changed).left_out
