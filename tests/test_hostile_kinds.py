"""More kinds of hostile files of a tenant: one for each kind of text that readers get wrong.

As in :mod:`tests.test_hostile_tenants`: others keep their rules, and the tenant's guest has the restrictions of its
good lines, or is closed.
"""

# ruff: noqa: RUF001 - the files under test contain these characters

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.config.files import FILES
from pvefw_nft.errors import UnusableFileError
from pvefw_nft.pipeline import BACKENDS, Source
from tests.test_hostile_tenants import HEAD, RESTRICTIONS, TENANT, assert_restricted, chains, lay_out, others

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support import MakeRoot

MAX_SECONDS = 20
"""Limit of processor time for the files of eleven guests, one of them hostile; an honest node takes 0.2 s."""


def rules(*lines: str) -> bytes:
    """Return a file whose last rules are these."""
    return (HEAD + RESTRICTIONS + "".join(f"{line}\n" for line in lines)).encode("utf-8", "surrogatepass")


def section(text: str) -> bytes:
    """Return a file with this between its options and its rules."""
    return (HEAD + text + RESTRICTIONS).encode("utf-8", "surrogatepass")


GOOD_LINES = HEAD + RESTRICTIONS
TEXTS: dict[str, bytes] = {
    "BOM in the middle": rules("\ufeffIN ACCEPT"),
    "BOM first": b"\xef\xbb\xbf" + GOOD_LINES.encode(),
    "two BOMs": b"\xef\xbb\xbf\xef\xbb\xbf" + GOOD_LINES.encode(),
    "CR only": GOOD_LINES.replace("\n", "\r").encode(),
    "CR CR LF": GOOD_LINES.replace("\n", "\r\r\n").encode(),
    "NEL, LS, PS as ends": GOOD_LINES.replace("\n", "\u2028").encode(),
    "form feeds": GOOD_LINES.replace("\n", "\x0c\n").encode(),
    "no end": GOOD_LINES.rstrip("\n").encode(),
    "NUL last": GOOD_LINES.encode() + b"\0",
    "Ctrl-Z": GOOD_LINES.encode() + b"\x1a",
    "one line of 10 MB": rules("IN ACCEPT -source " + "1" * 10_000_000),
    "10 MB of commas": rules("IN ACCEPT -source " + "," * 10_000_000),
    "10 MB comment": rules("IN ACCEPT # " + "x" * 10_000_000),
    "option of 1 MB": section("log_level_in: " + "i" * 1_000_000 + "\n"),
    "100,000 addresses in a rule": rules(
        "IN ACCEPT -source " + ",".join(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(100_000))
    ),
    "10,000 ports in a rule": rules("IN ACCEPT -p tcp -dport " + ",".join(map(str, range(1, 10_001)))),
    "10,000 options in a rule": rules("IN ACCEPT" + " -source 10.0.0.1" * 10_000),
    "duplicate options": section(
        "policy_in: ACCEPT\npolicy_in: DROP\nenable: 0\nenable: 1\npolicy_out: ACCEPT\npolicy_out: DROP\n"
    ),
    "groups in a guest": section("[group web]\nIN ACCEPT\nGROUP web\n[group web]\nGROUP web\n"),
    "a group of the cluster again": section("[group web]\nIN ACCEPT\n[RULES]\nGROUP web\nGROUP web -i net0\n"),
    "nested brackets": section(
        "[[RULES]]\nIN ACCEPT\n[RULES\nIN ACCEPT\nRULES]\n[ RULES ]\nIN ACCEPT -p tcp -dport 81\n"
    ),
    "names of 64": section("[ALIASES]\n" + "a" * 64 + " 10.0.0.1\n[IPSET " + "b" * 64 + "]\n" + "a" * 64 + "\n"),
    "names of 65": section("[ALIASES]\n" + "a" * 65 + " 10.0.0.1\n[IPSET " + "b" * 65 + "]\n10.0.0.1\n"),
    "2,000 sets": section("".join(f"[IPSET s{n}]\n10.0.0.{n & 255}\n" for n in range(2000))),
    "sets with special names": section(
        "".join(
            f"[IPSET {n}]\n10.0.0.1\n"
            for n in (
                "a-v4",
                "a-v6",
                "ipfilter-net0",
                "ipfilter-net99",
                "management",
                "blacklist",
                "a_swap",
                "PVEFW-0-x-v4",
                "0",
                "-",
                "_",
                "a b",
                "a.b",
                "a/b",
                "dc/a",
                "guest/a",
                "+a",
                "a]",
                "[a",
                "é",
                "ａ",
            )
        )
    ),
    "sets that use one another": section("[IPSET a]\n+b\n[IPSET b]\n+a\n+guest/b\n+dc/all\n"),
    "aliases that use one another": section("[ALIASES]\na b\nb a\nc c\nd guest/a\n"),
    "set entries that are odd": section(
        "[IPSET odd]\n"
        + "\n".join(
            (
                "!",
                "!!10.0.0.1",
                "! 10.0.0.1",
                "10.0.0.1 10.0.0.2",
                "0.0.0.0/0",
                "::/0",
                "!0.0.0.0/0",
                "10.0.0.1/33",
                "10.0.0.1/-1",
                "10.0.0.1/0x8",
                "::1%eth0",
                "::ffff:1.2.3.4",
                "1.2.3",
                "1.2.3.4.5",
                "0x7f.1",
                "2130706433",
                "10.0.0.1-10.0.0.0",
                "10.0.0.1-",
                "-10.0.0.1",
                "fe80::/10-fe80::1",
                "1.2.3.4/255.0.255.0",
                "1.2.3.4/08",
            )
        )
        + "\n"
    ),
    "ports that are odd": rules(
        *(
            f"IN ACCEPT -p tcp -dport {p}"
            for p in (
                "-1",
                "65536",
                "0",
                "1:0",
                "1:",
                "：80",
                ":80",
                "80:80:80",
                "1-2",
                "80,",
                "‎80",
                "８０",
                "٨٠",
                "²",
                "99999999999999999999",
                "1e3",
                "0x50",
                "http:https",
                "80 ",
                "NaN",
                "∞",
            )
        )
    ),
    "addresses that are odd": rules(
        *(
            f"IN ACCEPT -source {a}"
            for a in (
                "１.2.3.4",
                "1.2.3.4\u200b",
                "1.2.3.\u0664",
                "fe80::1%lo",
                "::",
                "0.0.0.0",
                "255.255.255.255/32",
                "1.2.3.4/32/32",
                "!1.2.3.4",
                "+",
                "+ ",
                "+é",
                "dc/",
                "guest/",
                "dc/../x",
                "1.2.3.4,",
                "::g",
                "1.2.3.4-::1",
                "1" * 64,
            )
        )
    ),
    "protocols that are odd": rules(
        *(
            f"IN ACCEPT -p {a}"
            for a in (
                "256",
                "-1",
                "0",
                "tcp,udp",
                "TCP",
                "ipv6-icmp",
                "hopopt",
                "٦",
                "6 ",
                "all",
                "ip",
                "ipv4",
                "tcp\u202e",
                "esp",
                "carp",
                "icmpv6",
            )
        )
    ),
    "ICMP types that are odd": rules(
        *(
            f"IN ACCEPT -p icmp -icmp-type {a}"
            for a in ("256", "-1", "any", "3/1", "3/256", "echo-request;", "٨", "0x8", "8/0/0")
        )
    ),
    "interfaces that are odd": rules(
        *(
            f"IN ACCEPT -i {a}"
            for a in (
                "net-1",
                "net32",
                "net99999999999999999999",
                "net٠",
                "net0,net1",
                "net",
                "lo",
                "tap100i0",
                "net0 -i net0",
                "../net0",
                "net0\u202e",
            )
        )
    ),
    "times and dates": rules(
        "IN ACCEPT -time 2024-01-01", "IN ACCEPT # 2024-99-99", "IN ACCEPT -log 2024", "2024-01-01T00:00:00Z"
    ),
    "macros that are odd": rules(
        *(f"IN {m}(ACCEPT)" for m in ("SSH(SSH", "ssh", "ＳＳＨ", "S" * 1000, "", "Ping(", "..", "*"))
    ),
    "lone surrogates": rules("IN ACCEPT # \ud800\udfff", "IN ACCEPT -source \udc80"),
    "invalid UTF-8": GOOD_LINES.encode() + b"IN ACCEPT # \xc3\x28\xa0\xa1\xe2\x28\xa1\xf0\x28\x8c\xbc\n",
    "overlong UTF-8": GOOD_LINES.encode() + b"IN ACCEPT -source \xc0\xaf\xe0\x80\xaf\n",
    "right to left": rules("\u202eTPECCA NI\u202c", "IN ACCEPT \u2067-source\u2069 10.0.0.1"),
    "combining marks": rules("I\u0301N ACCEPT", "IN A\u0300" + "\u0300" * 5000),
    "spaces of other kinds": rules(
        "IN\u00a0ACCEPT", "IN\u2003ACCEPT", "IN\u3000ACCEPT", "IN\x1fACCEPT", "IN\x0bACCEPT"
    ),
    "disabled rules": rules("|IN ACCEPT", "| IN ACCEPT", "||IN ACCEPT", "|", "|GROUP web"),
    "continued lines": rules("IN ACCEPT \\", "-source 10.0.0.1", "IN ACCEPT \\"),
    "quotes": rules('IN ACCEPT -source "10.0.0.1"', "IN ACCEPT -log '", 'IN ACCEPT # "; rm -rf /'),
    "options that are odd": section(
        "".join(
            f"{k}: {v}\n"
            for k in ("dhcp", "ndp", "radv", "macfilter", "ipfilter", "ips", "log_level_in")
            for v in ("2", "-1", "٢", "yes", "", "1 1", "²")
        )
    ),
    "layer 2": section(
        "layer2_protocols: " + ",".join(["ARP", "IPV4", "0x0806", "٣", "-1", "99999", "x" * 5000]) + "\n"
    ),
}


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            made.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


KINDS: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "folder": os.mkdir,
    "socket": _socket,
    "1 TiB of nothing": _huge,
    "link to a secret": lambda path: path.symlink_to("/etc/shadow"),
    "link to endless zeros": lambda path: path.symlink_to("/dev/zero"),
    "link to the terminal": lambda path: path.symlink_to("/dev/tty"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nowhere": lambda path: path.symlink_to("nowhere"),
    "link to a process": lambda path: path.symlink_to("/proc/self/environ"),
    "link to a folder": lambda path: path.symlink_to("."),
}


class Node:
    """A node with ten good guests and the tenant's. Other guests must keep the ruleset that they have beside a closed
    one."""

    def __init__(self, root: Path, backend: str) -> None:
        self._source, self._backend = Source(root, "n1", lambda: "10.0.0.0/24"), backend
        self.file = root / f"etc/pve/firewall/{TENANT}.fw"
        self.file.write_bytes(b"\0")
        self.expected = others(chains(self._source, backend))

    def ruleset(self) -> dict[str, Any]:
        """Compile, and compare the parts of all others. The names of nft's sets and maps follow from their content."""
        begun = time.process_time()
        found = chains(self._source, self._backend)
        assert time.process_time() - begun < MAX_SECONDS
        rest = others(found)
        assert {name: rest.get(name) for name in self.expected} == self.expected
        return found


@pytest.fixture(params=BACKENDS)
def node(request: pytest.FixtureRequest, make_root: MakeRoot) -> Node:
    return Node(lay_out(make_root), request.param)


def test_hostile_texts_harm_only_their_own_guest(node: Node) -> None:
    for name, content in TEXTS.items():
        node.file.write_bytes(content)
        try:
            ruleset = node.ruleset()
            if any(key.startswith("iptables ") for key in ruleset):
                assert_restricted(ruleset, content)
        except AssertionError as error:
            raise AssertionError(name) from error


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"link to a secret", "link to a process"}))
def test_other_than_regular_files_differ_from_a_failing_file_system(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path / "100.fw")
    with pytest.raises(UnusableFileError):  # closes one guest; another error would keep the node as it is
        FILES.text(tmp_path / "100.fw")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_fifo_device_or_link_closes_its_guest(node: Node, kind: str) -> None:
    node.file.unlink()
    KINDS[kind](node.file)
    ruleset = node.ruleset()
    for tool in ("iptables", "ip6tables"):
        for direction in ("IN", "OUT"):
            rules_of = ruleset.get(f"{tool} filter tap{TENANT}i0-{direction}")
            assert rules_of is None or (len(rules_of) == 1 and rules_of[0].endswith("-j DROP"))
    assert any(f"tap{TENANT}i0" in str(part) for part in ruleset.values())  # it is not without a firewall
