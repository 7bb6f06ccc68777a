"""Limits for a guest's file: a larger file closes its guest, or is not analysed to its end."""

from __future__ import annotations

import difflib
import ipaddress
import random
import re
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.config import budget
from pvefw_nft.config.files import MAX_FILE_SIZE
from pvefw_nft.errors import Severity
from pvefw_nft.ir.nodes import Drop, Layer
from pvefw_nft.pipeline import Source
from pvefw_nft.pipeline.review import review_root
from tests.support import VM, check

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.pipeline import Checked
    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"
RULES = ON + "[RULES]\n"


def closed(checked: Checked) -> dict[str, tuple[str, int]]:
    """Return the guests' filtered NICs that nothing passes, with place and message."""
    chains = checked.ruleset.chains[Layer.FILTER]
    found = {
        (one.span.file.rpartition("/")[2], one.span.line): one
        for one in checked.diagnostics
        if one.code == "guest-closed"
    }
    nics = [nic for nic in checked.ruleset.nics if [rule.action for rule in chains[nic.in_chain].rules] == [Drop()]]
    assert {f"{nic.vmid}.fw" for nic in nics} == {file for file, _ in found}
    return {file: (one.message, line) for (file, line), one in found.items()}


def test_file_with_too_many_lines_closes_its_guest(make_root: MakeRoot) -> None:
    text = RULES + "\n" * budget.MAX_LINES
    found = closed(check(make_root({"100.conf": VM, "100.fw": text, "101.conf": VM, "101.fw": RULES})))
    assert {file: line for file, (_, line) in found.items()} == {"100.fw": budget.MAX_LINES + 1}


def test_small_files_are_read_even_if_other_files_use_up_the_budget(
    make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "MAX_LINES_OF_ALL", 3_000)
    long, small = RULES + "# a comment\n" * 1_990, RULES + "# a comment\n" * 900
    texts = {100: long, 101: long, 102: small, 103: small}
    files: dict[str, str | bytes] = {f"{vmid}.conf": VM for vmid in texts}
    found = closed(check(make_root({**files, **{f"{vmid}.fw": text for vmid, text in texts.items()}})))
    assert list(found) == ["101.fw"]


def test_rules_count_once_expanded_for_each_nic(make_root: MakeRoot) -> None:
    nics = "".join(f"net{n}: virtio=BC:24:11:00:01:{n:02X},bridge=vmbr0,firewall=1\n" for n in range(32))
    line = "IN DNS(ACCEPT)\n"  # two rules: udp and tcp
    fits, too_many = (RULES + line * (budget.MAX_RULES // 64 + more) for more in (0, 1))
    assert closed(check(make_root({"100.conf": nics, "100.fw": fits}))) == {}
    found = closed(check(make_root({"100.conf": nics, "100.fw": too_many, "101.conf": VM, "101.fw": RULES})))
    message, line_number = found["100.fw"]
    assert f"more than {budget.MAX_RULES:,} rules" in message
    assert line_number > 4


def test_too_many_entries_of_all_sets_together_close_the_guest(
    make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pvefw_nft.ir.guest.MAX_ENTRIES", 100)
    sets = "".join(f"[IPSET some{n}]\n" + "".join(f"10.{n}.0.{m}\n" for m in range(40)) for n in range(3))
    ((message, line),) = closed(check(make_root({"100.conf": VM, "100.fw": ON + sets}))).values()
    assert "more than 100 entries" in message
    assert line == 3 + 2 * 41


def test_guesses_at_misspelt_words_end(make_root: MakeRoot, spy: Callable[[object, str], list[Any]]) -> None:
    calls = spy(difflib, "get_close_matches")
    aliases = "".join(f"the-name-of-a-client-that-is-long-{n:x} 10.0.{n >> 8}.{n & 255}\n" for n in range(400))
    rules = "".join(f"IN ACCEPT -source the-name-of-a-client-that-is-lang-{n:x}\n" for n in range(900))
    text = f"{ON}[ALIASES]\n{aliases}[RULES]\n{rules}"
    few = "[ALIASES]\nclients 10.0.0.1\n" + "[RULES]\nIN ACCEPT -source clinets\n"
    files: dict[str, str | bytes] = {f"{vmid}.conf": VM for vmid in range(100, 112)}
    files |= {"100.fw": text, "101.fw": ON + few}
    checked = check(make_root(files))
    hints = {one.hint for one in checked.diagnostics if one.span.file.endswith("101.fw")}
    assert hints == {"did you mean `clients`?"}
    assert sum(len(names) for _, names, *_ in calls) <= budget.MAX_COMPARISONS + 10
    files |= {f"{vmid}.fw": text for vmid in range(100, 112)}
    calls.clear()
    check(make_root(files))
    assert sum(len(names) for _, names, *_ in calls) <= budget.MAX_COMPARISONS_OF_ALL


@pytest.mark.parametrize("first", ["errors", "warnings"])
def test_problems_beyond_the_first_are_not_shown_but_errors_count(make_root: MakeRoot, first: str) -> None:
    doubled = "".join(f"a{n} 10.0.0.1\n" * 2 for n in range(1_500))
    texts = {"errors": "[RULES]\n" + "IN\n" * 1_500, "warnings": f"[ALIASES]\n{doubled}"}
    order = sorted(texts, key=lambda kind: kind != first)
    checked = check(make_root({"100.conf": VM, "100.fw": ON + "".join(texts[kind] for kind in order)}))
    assert checked.has_errors
    many = [one for one in checked.diagnostics if one.code == "too-many-problems"]
    assert {one.severity for one in many} == {Severity.ERROR, Severity.WARNING}
    assert len(checked.diagnostics) == 2 * budget.MAX_PROBLEMS + 2


def test_group_named_again_and_again_closes_the_guest(make_root: MakeRoot) -> None:
    cluster = "[OPTIONS]\nenable: 1\n[group big]\n" + "IN ACCEPT -p tcp -dport 80\n" * 2_000
    found = closed(check(make_root({"cluster": cluster, "100.conf": VM, "100.fw": RULES + "GROUP big\n" * 49_000})))
    message, line = found["100.fw"]
    assert f"more than {budget.MAX_RULES:,} rules" in message
    assert line > 4


def test_check_of_a_group_named_again_and_again_takes_little_memory(make_root: MakeRoot) -> None:
    cluster = "[OPTIONS]\nenable: 1\n[group big]\n" + "IN ACCEPT -p tcp -dport 80\n" * 2_000
    root = make_root({"cluster": cluster, "100.conf": VM, "100.fw": RULES + "GROUP big\n" * 20_000})
    tracemalloc.start()
    try:
        review = review_root(Source(root, "n1", lambda: "10.0.0.0/24"), analysis=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [one.code for one in review.diagnostics if one.span.file.endswith("100.fw")] == ["guest-closed"]
    assert peak < 150 << 20  # 340 MiB where each line is expanded


def test_addresses_cut_off_are_reported_up_to_the_limit_of_problems(make_root: MakeRoot) -> None:
    accepts = "".join(f"IN ACCEPT -dest 11.{n >> 8}.{n & 255}.1\n" for n in range(2_000))
    entries = "".join(f"10.{n >> 8}.{n & 255}.1\n" for n in range(20_000))
    cluster = f"[OPTIONS]\nenable: 1\n[group big]\n{accepts}"
    files: dict[str, str | bytes] = {"cluster": cluster, "100.conf": VM}
    files["100.fw"] = f"{ON}[IPSET ipfilter-net0]\n{entries}[RULES]\n" + "GROUP big\n" * 20_000
    root = make_root(files)
    (root / "etc/pve/firewall/100.pvefw").write_text("[OPTIONS]\nipfilter_established: 1\n")
    review = review_root(Source(root, "n1", lambda: "10.0.0.0/24"), analysis=True)
    found = [one.code for one in review.diagnostics if one.span.file.endswith("100.fw")]
    assert found.count("answers-cut-off") == budget.MAX_PROBLEMS
    assert {"guest-closed", "too-many-problems"} <= set(found)


def test_file_that_is_too_large_closes_its_guest(make_root: MakeRoot) -> None:
    text = RULES + "IN ACCEPT # " + "x" * MAX_FILE_SIZE
    found = closed(check(make_root({"100.conf": VM, "100.fw": text, "101.conf": VM, "101.fw": RULES})))
    assert list(found) == ["100.fw"]


def test_misspelt_rules_beside_similar_aliases_cost_seconds(make_root: MakeRoot) -> None:
    aliases = "".join(f"the-name-of-a-client-that-is-long-{n:x} 10.0.{n >> 8}.{n & 255}\n" for n in range(400))
    rules = "".join(f"IN ACCEPT -source the-name-of-a-client-that-is-lang-{n:x}\n" for n in range(1_800))
    begun = time.process_time()
    checked = check(make_root({"100.conf": VM, "100.fw": f"{ON}[ALIASES]\n{aliases}[RULES]\n{rules}"}))
    assert time.process_time() - begun < 20  # 220 without a bound; the watchdog waits for 600
    assert checked.has_errors


def _address(number: int) -> str:
    return str(ipaddress.IPv4Address(number))


def test_rules_that_cannot_be_analysed_are_named(make_root: MakeRoot) -> None:
    numbers = random.Random(1)

    def span(most: int, spelled: Callable[[int], str], between: str) -> str:
        return between.join(spelled(one) for one in sorted(numbers.randrange(most) for _ in range(2)))

    rules = "".join(
        f"IN {numbers.choice(('ACCEPT', 'DROP'))} -source {span(1 << 32, _address, '-')} "
        f"-dest {span(1 << 32, _address, '-')} -p tcp "
        f"-dport {span(1 << 16, str, ':')} -sport {span(1 << 16, str, ':')}\n"
        for _ in range(1_500)
    )
    root = make_root({"100.conf": VM, "100.fw": RULES + rules})
    begun = time.process_time()
    review = review_root(Source(root, "n1", lambda: "10.0.0.0/24"), analysis=True)
    assert time.process_time() - begun < 40
    assert not review.checked.has_errors
    (reason,) = review.unfinished
    assert re.match(r"from \S+/100\.fw:\d+ on: a decision diagram exceeded 512 MiB", reason)
