"""Lines for the restore tools: many at once are judged as one at a time."""

from __future__ import annotations

import random

import pytest

from pvefw_nft.errors import InternalError
from pvefw_nft.host.apply.restore_lines import check_rules

CHAIN = "tap100i0-IN"
_PARTS = (
    "-A tap100i0-IN",
    " -j ACCEPT",
    " -p tcp --dport 80",
    " -m comment",
    ' -m set --match-set "PVEFW-0-a-v4" src',
    " --modprobe /bin/sh",
    ' "--modprobe"',
    "\n",
    "\n-A tap100i0-IN -j ACCEPT",
    "\n-A other -j ACCEPT",
    "'",
    "\\",
    "\t-j DROP",
    "\u00e4",
    " -",
    " --modprobe",
    "x" * 9_990,
)


def accepted(lines: list[object]) -> bool:
    try:
        check_rules(CHAIN, lines)
    except InternalError:
        return False
    return True


def test_lines_are_accepted_if_each_is() -> None:
    chance = random.Random(3)
    found = {True: 0, False: 0}
    for _ in range(20_000):
        lines: list[object] = [
            "".join(
                ["-A tap100i0-IN" if chance.random() < 0.95 else "", *chance.choices(_PARTS[1:5] * 20 + _PARTS, k=2)]
            )
            for _ in range(chance.randrange(4))
        ]
        together = accepted(lines)
        assert together == all(accepted([line]) for line in lines), lines
        found[together] += 1
    assert min(found.values()) > 1000


@pytest.mark.parametrize("line", [None, 7, ["-A tap100i0-IN -j ACCEPT"], "", "-A tap100i0-IN", "x"])
def test_what_is_no_line_of_the_chain_is_refused(line: object) -> None:
    assert accepted(["-A tap100i0-IN -j ACCEPT"])
    assert not accepted(["-A tap100i0-IN -j ACCEPT", line])
    assert not accepted([line])


@pytest.mark.parametrize("option", ["--modprobe x", "-t nat", "--atomic-file x", '"--modprobe" x', "-M x"])
def test_option_that_no_rule_of_pvefw_has_is_refused(option: str) -> None:
    assert not accepted([f"-A {CHAIN} -j ACCEPT", f"-A {CHAIN} {option} -j ACCEPT"])
