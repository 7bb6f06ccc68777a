"""The fields of a rule: each is read in all its spellings, has a code for bad values, and is in hints and manual."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest

from pvefw_nft.config import hints, resolve
from pvefw_nft.config.codes.rules import CODES
from pvefw_nft.config.findings import Findings
from pvefw_nft.config.model import ClusterConfig, Rule
from pvefw_nft.config.rule_fields import COLUMNS, GROUP_COLUMNS, OPTION_FIELDS, OPTION_WORDS, RULE_FIELDS
from pvefw_nft.config.rules import Names
from pvefw_nft.errors import Diagnostic, Span
from scripts import manpages

NAMES = tuple(field.name for field in RULE_FIELDS)


class Sample(NamedTuple):
    """Values of a field: a good one, and a bad one with its code. ``beside`` has the options that the field needs."""

    good: str
    bad: str
    code: str
    beside: str = ""


SAMPLES = {
    "iface": Sample("net0", "eth0", "bad-interface"),
    "source": Sample("192.0.2.1", "192.0.2.256", "bad-address"),
    "dest": Sample("192.0.2.1", "192.0.2.256", "bad-address"),
    "proto": Sample("udp", "tpc", "bad-protocol"),
    "dport": Sample("22", "70000", "bad-port", "-p tcp"),
    "sport": Sample("22", "70000", "bad-port", "-p tcp"),
    "icmp-type": Sample("echo-request", "echo", "bad-icmp-type", "-p icmp"),
    "log": Sample("info", "loud", "bad-log-level"),
}
FORMS = [(name, option) for option, name in OPTION_FIELDS.items()]


def read(line: str) -> tuple[Rule | None, list[Diagnostic]]:
    """Read a rule of a guest; returns the rule, if it is usable, and the diagnostics."""
    findings = Findings()
    config = resolve.read_guest("100.fw", f"[RULES]\n{line}\n", findings, ClusterConfig(), Names(0), 100)
    (rule,) = config.rules or (None,)
    assert rule is None or isinstance(rule, Rule)
    return rule, findings.diagnostics


def meaning(line: str) -> object:
    """Return what a sound rule says, without how it was written."""
    rule, diagnostics = read(line)
    assert rule is not None, diagnostics
    assert diagnostics == []
    return tuple(getattr(rule, field.name) for field in dataclasses.fields(rule) if field.name != "written")


def test_each_field_has_a_sample() -> None:
    assert tuple(SAMPLES) == NAMES


@pytest.mark.parametrize(("name", "option"), FORMS)
def test_each_spelling_is_read(name: str, option: str) -> None:
    sample = SAMPLES[name]
    with_field = meaning(f"IN ACCEPT {sample.beside} {option} {sample.good}")
    assert with_field != meaning(f"IN ACCEPT {sample.beside}")
    assert with_field == meaning(f"IN ACCEPT {sample.beside} {RULE_FIELDS[NAMES.index(name)].options[0]} {sample.good}")


@pytest.mark.parametrize(("name", "option"), FORMS)
def test_a_bad_value_is_reported_at_its_place(name: str, option: str) -> None:
    sample = SAMPLES[name]
    line = f"IN ACCEPT {sample.beside} {option} {sample.bad}"
    rule, (problem,) = read(line)
    assert (rule, problem.code) == (None, sample.code)
    assert problem.span.column > line.index(sample.bad)
    assert problem.span.end_column <= line.index(sample.bad) + len(sample.bad) + 1


@pytest.mark.parametrize("name", COLUMNS)
def test_each_column_is_read_as_its_option(name: str) -> None:
    sample = SAMPLES[name]
    beside = "proto" if sample.beside else ""
    columns = " ".join({name: sample.good, beside: "tcp"}.get(column, "-") for column in COLUMNS)
    option = RULE_FIELDS[NAMES.index(name)].options[0]
    assert meaning(f"IN ACCEPT {columns}") == meaning(f"IN ACCEPT {sample.beside} {option} {sample.good}")


def test_columns_are_the_first_fields_and_groups_have_no_interface() -> None:
    assert NAMES[: len(COLUMNS)] == COLUMNS
    assert ("iface", *GROUP_COLUMNS) == COLUMNS


def test_no_spelling_stands_for_two_fields() -> None:
    assert len(OPTION_WORDS) == sum(len(field.options) for field in RULE_FIELDS)


def test_the_hint_and_the_code_list_each_option_in_order() -> None:
    _, (problem,) = read("IN ACCEPT -zzz 1")
    assert problem.code == "unknown-rule-option"
    assert problem.hint == "a rule's options are -i, -source, -dest, -p, -dport, -sport, -icmp-type and -log"
    assert [word for word in problem.hint.replace(",", "").split() if word in OPTION_WORDS] == [
        field.options[0] for field in RULE_FIELDS
    ]
    (code,) = (code for code in CODES if code.id == "unknown-rule-option")
    assert problem.hint.removeprefix("a ") in code.why


def test_the_manual_has_each_option_and_column() -> None:
    page = (manpages.DOCS / "reference" / "fw-files.md").read_text("utf-8")
    man = dict(manpages.pages())["pvefw.fw.5"]
    for field in RULE_FIELDS:
        option = field.options[0]
        assert f"[{option} {field.placeholder}]" in page
        assert any(f"`{option}`" in line and field.takes in line for line in page.splitlines()), option
        assert f"\\fB{manpages.escaped(option)}\\fR" in man
        assert field.column is None or field.column in page.partition("positional form")[2]


@pytest.mark.parametrize("word", OPTION_WORDS)
def test_hints_for_other_languages_reject_no_option(word: str) -> None:
    assert hints.hint_for("unknown-rule-option", Span("100.fw", 1, 1, len(word) + 1, word), "rules") is None


def test_rules_of_iptables_are_translated_to_options() -> None:
    assert set(hints._OPTIONS.values()) <= set(OPTION_WORDS)
