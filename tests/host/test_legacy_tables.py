"""Digests of the tables of legacy iptables and ebtables: each change of a rule shows, and no counter does."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.host import tools
from pvefw_nft.host.apply import xtables
from pvefw_nft.host.netfilter import legacy_tables, stamp
from pvefw_nft.host.netfilter.legacy_tables import digest
from pvefw_nft.host.tools import use_runner

from .conftest import need
from .runners import Found
from .test_drift import legacy_ebtables
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
    names = ["iptables", "iptables-save"]
    with use_runner(Found(lambda tool: f"/usr/sbin/{tool.replace('tables', 'tables-legacy')}")):
        assert not stamp.are_counted(names)
        before = stamp.take_stamp_for_tools(names, "")
        assert before is not None
        shell("iptables-legacy -A FORWARD -j ACCEPT")
        after = stamp.take_stamp_for_tools(names, "")
        assert after is not None
        assert after.rest != before.rest
        monkeypatch.setattr(legacy_tables, "digest", lambda _: (_ for _ in ()).throw(PermissionError("not told")))
        assert stamp.take_stamp_for_tools(names, "") is None


def test_no_stamp_beside_a_tool_of_another_kind(host: Namespace) -> None:
    with use_runner(Found(lambda _: os.path.realpath("/bin/sh"))):
        assert stamp.take_stamp_for_tools(["iptables-save"], "") is None
        assert not stamp.are_counted(["iptables-save"])


def test_rules_of_ebtables_are_listed_as_its_save_command_does(host: Namespace, tmp_path: Path) -> None:
    need("ebtables-legacy -L")
    with legacy_ebtables(tmp_path / "alternatives"):
        for change in [
            *CHANGES["ebtables"],
            "ebtables -N 'PVEFW-FORWARD' -P RETURN",
            "ebtables -A FORWARD -j PVEFW-FORWARD",
            "ebtables -A PVEFW-FORWARD -p IPv4 --ip-src 192.0.2.1 -s ! bc:24:11:0:0:1 -j mark --mark-set 0x1",
            "ebtables -A PVEFW-FORWARD -p ARP -i tap100i0 --arp-ip-src 192.0.2.1 --log --log-prefix 'a b' -j DROP",
        ]:
            shell(change)
            assert stamp.is_legacy("ebtables-save")
            saved = tools.run(["ebtables-save"]).splitlines()
            lines = saved[1 + saved.index("*filter") :]
            assert (xtables.save().ebtables or "").splitlines()[1:] == lines[: lines.index("") + 1]


def test_saved_form_of_a_listing() -> None:
    listing = (
        "Bridge table: filter\n\nBridge chain: INPUT, entries: 0, policy: DROP\n\n"
        "Bridge chain: FORWARD, entries: 2, policy: ACCEPT\n-p IPv4 -j DROP \n-j MINE\n\n"
        "Bridge chain: MINE, entries: 0, policy: RETURN\n"
    )
    assert xtables.saved_form(listing) == (
        "*filter\n:INPUT DROP\n:FORWARD ACCEPT\n:MINE RETURN\n-A FORWARD -p IPv4 -j DROP\n-A FORWARD -j MINE\n\n"
    )
