"""Digests of the tables of legacy iptables and ebtables: each change of a rule shows, and no counter does."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.host import tools
from pvefw_nft.host.netfilter import legacy_tables, stamp
from pvefw_nft.host.netfilter.legacy_tables import digest

from .conftest import need
from .test_other_hands import shell

if TYPE_CHECKING:
    from .conftest import Namespace

CHANGES = {
    "iptables": [
        "iptables-legacy -A FORWARD -s 192.0.2.1 -m limit --limit 3/s -j ACCEPT",
        "iptables-legacy -A FORWARD -s 192.0.2.2 -m limit --limit 3/s -j ACCEPT",
        "iptables-legacy -D FORWARD 1",
        "iptables-legacy -P FORWARD DROP",
        "iptables-legacy -N MINE",
        "iptables-legacy -t raw -A PREROUTING -j ACCEPT",
    ],
    "ip6tables": [
        "ip6tables-legacy -A INPUT -s 2001:db8::1 -j DROP",
        "ip6tables-legacy -A INPUT -s 2001:db8::2 -j DROP",
        "ip6tables-legacy -D INPUT 1",
    ],
    "ebtables": [
        "ebtables-legacy -A FORWARD -p IPv4 -j DROP",
        "ebtables-legacy -A FORWARD -p IPv6 -j DROP",
        "ebtables-legacy -N MINE",
        "ebtables-legacy -D FORWARD 1",
        "ebtables-legacy -P INPUT DROP",
    ],
}


@pytest.mark.parametrize("tool", CHANGES)
def test_each_change_shows(host: Namespace, tool: str) -> None:
    need(f"{tool}-legacy -L")
    seen = [digest(tool)]
    for change in CHANGES[tool]:
        shell(change)
        assert digest(tool) not in seen, change
        assert digest(tool) == digest(tool)
        seen.append(digest(tool))


def test_the_same_rules_again_have_the_same_digest(host: Namespace) -> None:
    need("iptables-legacy -L")
    rule = "FORWARD -s 192.0.2.1 -j ACCEPT"
    empty = digest("iptables")
    shell(f"iptables-legacy -A {rule}")
    assert digest("iptables") != empty
    shell(f"iptables-legacy -D {rule}")
    assert digest("iptables") == empty


def test_counters_do_not_show(host: Namespace) -> None:
    need("iptables-legacy -L; ip6tables-legacy -L; ip link set lo up")
    for tool in ("iptables", "ip6tables"):
        shell(f"{tool}-legacy -A INPUT -m limit --limit 3/s -j ACCEPT; {tool}-legacy -A OUTPUT -p udp -j ACCEPT")
    before = [digest(tool) for tool in ("iptables", "ip6tables")]
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as sending:
            sending.sendto(b"counted", (address, 9))
    assert "[0:0] -A OUTPUT -p udp" not in tools.run(["iptables-legacy-save", "-c"])
    assert [digest(tool) for tool in ("iptables", "ip6tables")] == before


def test_asking_loads_no_table(host: Namespace) -> None:
    need("true")
    assert digest("iptables") == digest("ip6tables")  # none is there
    names = Path("/proc/thread-self/net/ip_tables_names")
    assert not names.exists() or names.read_text() == ""


def test_stamp_of_legacy_tools_notices_their_rules(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    need("iptables-legacy -L; nft list tables")
    monkeypatch.setattr(tools, "find", lambda tool: f"/usr/sbin/{tool.replace('tables', 'tables-legacy')}")
    names = ["iptables", "iptables-save"]
    assert not stamp.are_counted(names)
    before = stamp.take_stamp_for_tools(names, "")
    assert before is not None
    shell("iptables-legacy -A FORWARD -j ACCEPT")
    after = stamp.take_stamp_for_tools(names, "")
    assert after is not None
    assert after.rest != before.rest
    monkeypatch.setattr(legacy_tables, "digest", lambda _: (_ for _ in ()).throw(PermissionError("not told")))
    assert stamp.take_stamp_for_tools(names, "") is None


def test_no_stamp_beside_a_tool_of_another_kind(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "find", lambda _: os.path.realpath("/bin/sh"))
    assert stamp.take_stamp_for_tools(["iptables-save"], "") is None
    assert not stamp.are_counted(["iptables-save"])
