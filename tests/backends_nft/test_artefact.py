"""The artefact as a whole: a transaction that replaces two tables, digests, and the reports of limits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pvefw_nft.backends.nft import NftBackend
from pvefw_nft.backends.nft.syntax.objects import MAX_COMMENT, transaction
from tests.support import VM, check

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"


def commands(root: Path) -> list[dict[str, Any]]:
    return list(json.loads("".join(NftBackend().lower(check(root).ruleset).json()))["nftables"])


def rules_by_chain(root: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for command in commands(root):
        if rule := command.get("add", {}).get("rule"):
            found.setdefault((rule["family"], rule["chain"]), []).append(rule)
    return found


def digests(root: Path) -> dict[tuple[str, str], str]:
    return {chain: rules[0]["comment"].rpartition(" sig:")[2] for chain, rules in rules_by_chain(root).items()}


def test_each_table_is_replaced_as_a_whole(make_root: MakeRoot) -> None:
    verbs = [
        (verb, body["table"]["family"])
        for command in commands(make_root())
        for verb, body in command.items()
        if "table" in body
    ]
    assert verbs == [(verb, family) for family in ("bridge", "inet") for verb in ("add", "delete", "add")]


def test_objects_are_defined_before_their_use(make_root: MakeRoot) -> None:
    root = make_root({"100.conf": VM, "100.fw": ON + "[IPSET a1]\n10.0.0.1\n[RULES]\nIN DROP -source +a1\n"})
    known: set[tuple[str, str]] = set()
    for command in commands(root):
        ((kind, body),) = (command.get("add") or command["delete"]).items()
        named = set(_named(body.get("expr", [])) | _named(body.get("elem", [])))
        assert {(body["family"], name) for name in named} <= known
        known.add((body["family"], body["name"] if kind != "rule" else body["chain"]))


def _named(value: Any) -> set[str]:  # noqa: ANN401 - any JSON
    match value:
        case str():
            return {value[1:]} if value.startswith("@") else set()
        case {"target": name}:
            return {name}
        case dict():
            return {name for part in value.values() for name in _named(part)}
        case list():
            return {name for part in value for name in _named(part)}
        case _:
            return set()


def test_every_rule_says_where_it_comes_from(make_root: MakeRoot) -> None:
    root = make_root({"100.conf": VM, "100.fw": ON + "[RULES]\nIN SSH(ACCEPT)\n"})
    comments = [rule["comment"] for rules in rules_by_chain(root).values() for rule in rules]
    assert all(comments)
    assert "100.fw:4 (SSH)" in comments


def test_many_lines_fit_into_a_comment(make_root: MakeRoot) -> None:
    rules = "".join(f"IN ACCEPT -p tcp -dport {port}\n" for port in range(1000, 1400, 2))
    root = make_root({"100.conf": VM, "100.fw": ON + "dhcp: 0\nndp: 0\n[RULES]\n" + rules})
    comments = [rule["comment"] for rules in rules_by_chain(root).values() for rule in rules]
    assert max(map(len, comments)) <= MAX_COMMENT
    assert any(comment.startswith("100.fw:6,7,8") and comment.endswith("...") for comment in comments)


def test_one_digest_in_each_chain_at_its_first_rule(make_root: MakeRoot) -> None:
    for rules in rules_by_chain(make_root({"100.conf": VM, "100.fw": ON})).values():
        assert [" sig:" in rule["comment"] for rule in rules] == [True] + [False] * (len(rules) - 1)


def test_the_digests_of_changed_chains_change(make_root: MakeRoot) -> None:
    before = digests(make_root({"100.conf": VM, "100.fw": ON + "[RULES]\nIN DROP -p tcp -dport 25\n"}))
    after = digests(make_root({"100.conf": VM, "100.fw": ON + "[RULES]\nIN DROP -p tcp -dport 26\n"}))
    assert {chain for chain in before if before[chain] != after[chain]} == {("bridge", "tap100i0-IN")}


def test_no_tables_make_an_empty_transaction() -> None:
    assert json.loads("".join(transaction([]))) == {"nftables": []}


def test_a_rejection_in_a_vnet_is_reported_as_drop(make_root: MakeRoot) -> None:
    root = make_root(
        {
            "cluster": ON + "[group g1]\nFORWARD REJECT -p udp\nIN REJECT -p tcp\n",
            "vnet1.vnet": ON + "[RULES]\nFORWARD REJECT -p tcp -dport 25\nGROUP g1\nFORWARD DROP -p tcp -dport 26\n",
        }
    )
    found = list(NftBackend().limits(check(root).ruleset))
    places = {(finding.code, finding.span.file.rsplit("/", 1)[-1], finding.span.line) for finding in found}
    assert places == {("drops-instead", "vnet1.fw", 4), ("drops-instead", "cluster.fw", 4)}


def test_a_rejection_of_the_host_has_no_limits(make_root: MakeRoot) -> None:
    root = make_root({"cluster": ON + "policy_forward: DROP\n[RULES]\nFORWARD REJECT -p tcp\n"})
    assert list(NftBackend().limits(check(root).ruleset)) == []
