"""Lines in a row that declare or flush chains are read as if they were read one by one."""

from __future__ import annotations

import random

import pytest

from pvefw_nft.verify.readers.files import Text, read_ruleset
from pvefw_nft.verify.readers.shared import RulesetError
from pvefw_nft.verify.readers.xtables.rulesets import XtablesReader

TEXTS = 400
NAMES = ("a", "b", "tap1i0-IN", "INPUT", "FORWARD", "x:y", "-F", "#c", "[0:0]")
FORMS = (
    *(":{} - [0:0]",) * 6,
    *("-F {}",) * 6,
    *("-A {} -p tcp -j ACCEPT", "-A {} -j {}", "-I {} -j DROP") * 2,
    *(":{} ACCEPT [0:0]", ":{} DROP [0:0]", ":{} -", ":{} - [0:0] ", " :{} - [0:0]", ": {} - [0:0]", ":{}"),
    *(
        "-F",
        "-F {} ",
        "-F {} {}",
        " -F {}",
        "--flush {}",
        "-X {}",
        "-N {}",
        "-P {} DROP",
        "# {}",
        "",
        "COMMIT\n*filter",
    ),
)


def text_of(rng: random.Random) -> str:
    """Return restore text of random lines, most of which come in a row."""
    lines = []
    for _ in range(rng.randrange(1, 6)):
        form = rng.choice(FORMS)
        lines += [form.format(rng.choice(NAMES[:5]), rng.choice(NAMES)) for _ in range(rng.choice((1, 2, 4)))]
    if rng.random() < 0.7:  # else most texts would be refused
        lines[:0] = [f":{name} - [0:0]" for name in NAMES[:5]]
    ends = rng.choice(("\n", "\n", "\n", "\r\n"))
    return ends.join(["*filter", *lines, *(["COMMIT", ""] if rng.random() < 0.95 else [])])


def result_of(text: str, *, on_demand: bool = False, digests: bool = False) -> object:
    """Return the chains with their rules, or the error."""
    try:
        model = read_ruleset([Text("iptables", text)], on_demand=on_demand, digests=digests)
        return [
            (table.key, name, chain.policy, chain.hook, list(chain.rules))
            for table in model.tables
            for name, chain in table.chains.items()
        ]
    except RulesetError as error:
        return error.message


@pytest.mark.parametrize("options", [{}, {"on_demand": True}, {"digests": True}])
def test_same_as_line_by_line(options: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(str(options))
    texts = [text_of(rng) for _ in range(TEXTS)]
    found = [result_of(text, **options) for text in texts]
    monkeypatch.setattr(XtablesReader, "_prepare", lambda _self, _table, _text, place: place)
    for text, result in zip(texts, found, strict=True):
        assert result == result_of(text, **options), text
    refused = sum(isinstance(result, str) for result in found)
    assert TEXTS / 10 < refused < TEXTS * 9 / 10
