"""Who else filters here: told by the names of tables and chains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.host.apply.nftables_state import Command, Nftables
from pvefw_nft.host.other_filters import other_filters
from pvefw_nft.host.tools import use_runner

from .runners import Answering

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


SAVED = """*filter
:INPUT ACCEPT [0:0]
:PVEFW-INPUT - [0:0]
:DOCKER - [0:0]
:f2b-sshd - [0:0]
-A INPUT -j PVEFW-INPUT
-A INPUT -p tcp --dport 22 -j f2b-sshd
{more}COMMIT
"""
CHAINS = [
    ("inet", "firewalld", "filter_INPUT"),
    ("inet", "pvefw", "input"),
    ("ip", "filter", "INPUT"),
    ("ip", "mine", "x"),
]


class _Listing(Nftables):
    """A library that lists these chains."""

    def __init__(self) -> None:
        pass

    def run(self, _: Iterable[Command]) -> list[Command]:
        return [{"chain": {"family": family, "table": table, "name": name}} for family, table, name in CHAINS]


def listed(more: str = "") -> list[str]:
    def saved(command: Sequence[str], _: str | None) -> str:
        return SAVED.format(more=more) if command == ["iptables-save"] else ""

    with use_runner(Answering(saved)):
        return other_filters(_Listing)


def test_programs_are_known_by_their_chains() -> None:
    assert listed() == [
        "Docker (ip filter)",
        "another program (ip mine)",
        "fail2ban (ip filter)",
        "firewalld (inet firewalld)",
    ]


def test_rules_without_a_chain_are_reported() -> None:
    more = "-A INPUT -s 192.0.2.7/32 -j DROP\n"
    assert "rules without a chain of their own (ip filter INPUT)" in listed(more)
