"""nft's own syntax: how each part of the language is spelled, and that nothing gets into it unescaped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.backends.nft.syntax import expressions as e
from pvefw_nft.backends.nft.syntax import statements as s
from pvefw_nft.backends.nft.syntax.objects import Chain, DynamicSet, Helper, Hook, Rule, Set, Table, VerdictMap
from pvefw_nft.errors import InternalError
from pvefw_nft.pipeline import Source, compile_root
from pvefw_nft.verify.readers.files import Text, read_ruleset
from tests.support import NODE, VM

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pvefw_nft.backends.nft.syntax.statements import Statement
    from tests.support import MakeRoot

REPOSITORY = Path(__file__).resolve().parents[2]
ON = "[OPTIONS]\nenable: 1\n"


def table(
    *statements: Statement, comment: str = "", chain: str = "c", hook: Hook | None = None, objects: Sequence[Any] = ()
) -> str:
    """Return the text of a table with one chain of one rule; ``objects`` are sets, maps and helpers of it."""
    made = Chain(chain, (Rule(statements, comment),) if statements else (), hook)
    sets = tuple(one for one in objects if isinstance(one, Set | DynamicSet))
    helpers = tuple(one for one in objects if isinstance(one, Helper))
    maps = tuple(one for one in objects if isinstance(one, VerdictMap))
    return "".join(Table("inet", "t", sets, helpers, (made,), maps, [made.block("inet", "t")]).text())


def rule(*statements: Statement) -> str:
    """Return the text of a rule without its comment."""
    (line,) = (line for line in table(*statements).splitlines() if ' comment "' in line)
    return line.strip().partition(' comment "')[0]


PORT, SOURCE = e.payload("tcp", "dport"), e.payload("ip", "saddr")
STATEMENTS: list[tuple[Statement, str]] = [
    (s.match(PORT, 22), "tcp dport 22"),
    (s.match(PORT, 22, "!="), "tcp dport != 22"),
    (s.match(PORT, e.interval(80, 90)), "tcp dport 80-90"),
    (s.match(PORT, e.anonymous_set([22, e.interval(80, 90)])), "tcp dport { 22, 80-90 }"),
    (s.match(SOURCE, e.prefix("10.0.0.0", 8)), "ip saddr 10.0.0.0/8"),
    (s.match(SOURCE, e.interval("10.0.0.1", "10.0.0.9")), "ip saddr 10.0.0.1-10.0.0.9"),
    (s.match(SOURCE, "@office-v4"), "ip saddr @office-v4"),
    (s.match(e.payload("arp", "saddr ip"), "10.0.0.1"), "arp saddr ip 10.0.0.1"),
    (s.match(e.payload("ether", "saddr"), "bc:24:11:00:00:01", "!="), "ether saddr != bc:24:11:00:00:01"),
    (s.match(e.meta("iifname"), "tap100i0"), 'iifname "tap100i0"'),
    (s.match(e.meta("ibrname"), "fwbr*"), 'meta ibrname "fwbr*"'),
    (s.match(e.meta("protocol"), e.anonymous_set(["ip", "ip6"]), "!="), "meta protocol != { ip, ip6 }"),
    (s.match(e.meta("l4proto"), 6), "meta l4proto tcp"),
    (s.match(e.meta("l4proto"), 47), "meta l4proto 47"),
    (s.match(e.meta("pkttype"), "broadcast"), "meta pkttype broadcast"),
    (s.match(e.bits(e.meta("mark"), 1 << 31), 1 << 31), "meta mark & 0x80000000 == 0x80000000"),
    (s.match(e.ct("state"), ["invalid", "new"], "in"), "ct state invalid,new"),
    (s.match(e.bits(e.payload("tcp", "flags"), 0x17), 2), "tcp flags & (fin | syn | rst | ack) == syn"),
    (s.match(e.bits(e.payload("tcp", "flags"), 0x3), 0, "!="), "tcp flags & (fin | syn) != 0x0"),
    (s.match(e.payload("icmp", "type"), 8), "icmp type echo-request"),
    (s.match(e.payload("icmpv6", "type"), e.interval(133, 136)), "icmpv6 type 133-136"),
    (s.match(e.fib_type("daddr"), "multicast"), "fib daddr type multicast"),
    (
        s.match(
            e.concatenation([e.meta("protocol"), e.meta("l4proto"), e.meta("iifname")]),
            e.anonymous_set([e.joined(["ip", 1, "a"]), e.joined(["ip6", 58, "b"])]),
        ),
        'meta protocol . meta l4proto . iifname { ip . icmp . "a", ip6 . icmpv6 . "b" }',
    ),
    (s.vmap(e.meta("iifname"), "@guests"), "iifname vmap @guests"),
    (s.vmap(PORT, [(22, s.ACCEPT), (23, s.jump("x"))]), "tcp dport vmap { 22 : accept, 23 : jump x }"),
    (s.goto("link/tap100i0-OUT"), "goto link/tap100i0-OUT"),
    (s.RETURN, "return"),
    (s.reject("tcp reset"), "reject with tcp reset"),
    (s.reject("icmpx", "port-unreachable"), "reject with icmpx type port-unreachable"),
    (s.limit(1, "second", 5), "limit rate 1/second"),
    (s.limit(10, "minute", 50), "limit rate 10/minute burst 50 packets"),
    (s.log(":100:6:x: DROP: ", 0), 'log prefix ":100:6:x: DROP: " group 0'),
    (s.queue(2, 4, bypass=True), "queue flags bypass to 2-4"),
    (s.queue(0, None, bypass=False), "queue to 0"),
    (s.mangle(e.ct("mark"), 100), "ct mark set 0x00000064"),
    (s.mangle(e.meta("mark"), e.bits(e.meta("mark"), 0x7FFFFFFF)), "meta mark set meta mark & 0x7fffffff"),
    (s.mangle(e.meta("mark"), e.with_bits(e.meta("mark"), 1 << 31)), "meta mark set meta mark | 0x80000000"),
    (s.ct_helper("ftp"), 'ct helper set "ftp"'),
    (
        s.update("sources", e.bits(e.payload("ip6", "saddr"), "ffff:ffff:ffff:ffff::"), s.limit(200, "second", 1000)),
        "update @sources { ip6 saddr & ffff:ffff:ffff:ffff:: limit rate 200/second burst 1000 packets }",
    ),
]


@pytest.mark.parametrize(("statement", "text"), STATEMENTS, ids=[text for _, text in STATEMENTS])
def test_statement(statement: Statement, text: str) -> None:
    assert rule(statement) == text


def test_a_table_as_a_whole() -> None:
    objects = (
        Set("office", "ipv4_addr", ("10.0.0.1", e.prefix("10.1.0.0", 16), e.interval("10.2.0.1", "10.2.0.9"))),
        Set("none", "ipv6_addr", ()),
        DynamicSet("sources", "ipv4_addr", 65, 1000),
        Helper("ftp", "ftp", "tcp"),
        VerdictMap("guests", (("tap100i0", "x"), ("tap101i0", "y"))),
    )
    text = table(s.match(PORT, 22), s.ACCEPT, comment="100.fw:4 (SSH)", hook=Hook("input", -150), objects=objects)
    assert text.replace(text.partition("(SSH)")[2].partition('"')[0], "") == (
        "add table inet t\n"
        "delete table inet t\n"
        "\n"
        "table inet t {\n"
        "\tct helper ftp {\n"
        '\t\ttype "ftp" protocol tcp\n'
        "\t}\n"
        "\n"
        "\tset office {\n"
        "\t\ttype ipv4_addr\n"
        "\t\tflags interval\n"
        "\t\telements = { 10.0.0.1, 10.1.0.0/16,\n"
        "\t\t\t     10.2.0.1-10.2.0.9 }\n"
        "\t}\n"
        "\n"
        "\tset none {\n"
        "\t\ttype ipv6_addr\n"
        "\t\tflags interval\n"
        "\t}\n"
        "\n"
        "\tset sources {\n"
        "\t\ttype ipv4_addr\n"
        "\t\tsize 1000\n"
        "\t\tflags dynamic,timeout\n"
        "\t\ttimeout 1m5s\n"
        "\t}\n"
        "\n"
        "\tmap guests {\n"
        "\t\ttype ifname : verdict\n"
        '\t\telements = { "tap100i0" : jump x,\n'
        '\t\t\t     "tap101i0" : jump y }\n'
        "\t}\n"
        "\n"
        "\tchain c {\n"
        "\t\ttype filter hook input priority -150; policy accept;\n"
        '\t\ttcp dport 22 accept comment "100.fw:4 (SSH)"\n'
        "\t}\n"
        "}\n"
    )


EVIL = [
    '"',
    'a" accept comment "b',
    "a\nb",
    "a\\\n",
    "\x1b[31m",
    "é",
    "$x",
    "a b",
    "{",
    "}",
    ";",
    "#",
    "",
    "@x",
    "-x",
    "1x",
]
NAMES: list[tuple[str, Callable[[str], str]]] = [
    ("chain", lambda text: table(chain=text)),
    ("jump", lambda text: rule(s.jump(text))),
    ("set", lambda text: table(objects=(Set(text, "ipv4_addr", ()),))),
    ("reference", lambda text: rule(s.match(SOURCE, f"@{text}"))),
    ("map", lambda text: table(objects=(VerdictMap(text, ()),))),
    ("address", lambda text: rule(s.match(SOURCE, e.prefix(text, 8)))),
]


@pytest.mark.parametrize("text", EVIL)
@pytest.mark.parametrize(("place", "spell"), NAMES, ids=[name for name, _ in NAMES])
def test_invalid_names_do_not_get_into_the_text(place: str, spell: Callable[[str], str], text: str) -> None:
    if (place == "address" and text == "1x") or (place == "address" and text == "-x"):
        return  # a word, if none that nft takes for an address
    with pytest.raises(InternalError, match="nft cannot read"):
        spell(text)


QUOTED: list[tuple[str, Callable[[str], str]]] = [
    ("comment", lambda text: table(s.ACCEPT, comment=text)),
    ("log prefix", lambda text: rule(s.log(text, 0))),
    ("interface", lambda text: rule(s.match(e.meta("iifname"), text))),
    ("helper", lambda text: rule(s.ct_helper(text))),
    ("element", lambda text: table(objects=(Set("x", "ifname", (text,)),))),
]


@pytest.mark.parametrize("text", ['"', 'a" accept comment "b', "a\nb", "\x1b[31m", "é", "$x", "\t"])
@pytest.mark.parametrize(("place", "spell"), QUOTED, ids=[name for name, _ in QUOTED])
def test_characters_that_end_a_quoted_text_do_not_get_into_it(
    place: str, spell: Callable[[str], str], text: str
) -> None:
    with pytest.raises(InternalError, match="between quotes"):
        spell(text)


@pytest.mark.parametrize("statement", [{"xt": None}, {"match": {"op": "<", "left": PORT, "right": 5}}])
def test_a_statement_without_a_spelling_is_an_error(statement: Statement) -> None:
    with pytest.raises(InternalError, match="no place for"):
        rule(statement)


WITHOUT_LIBNFTABLES = """
import sys
sys.modules["nftables"] = None
sys.argv = ["pvefw", *sys.argv[1:]]
from pvefw_nft.cli import main
main()
"""


def test_neither_libnftables_nor_privilege_is_needed(make_root: MakeRoot) -> None:
    root = make_root({"100.conf": VM, "100.fw": ON + "[RULES]\nIN SSH(ACCEPT)\n"})
    command = [sys.executable, "-c", WITHOUT_LIBNFTABLES, "compile", "--backend", "nft", "--format", "text"]
    command += ["--root", str(root), "--node", NODE, "--local-network", "10.0.0.0/24"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env={"PATH": ""})
    assert (done.returncode, done.stderr) == (0, "")
    assert '\t\ttcp dport 22 accept comment "100.fw:4 (SSH)"\n' in done.stdout


ROOTS = [*(REPOSITORY / "examples").iterdir(), *(REPOSITORY / "tests" / "kernel" / "evasion").glob("*/")]


@pytest.mark.parametrize("root", sorted(path for path in ROOTS if (path / "etc").is_dir()), ids=lambda root: root.name)
def test_the_text_of_each_example_is_read_back_as_its_json(root: Path) -> None:
    nodes = sorted(path.name for path in (root / "etc/pve/nodes").glob("*"))
    artefact = compile_root(Source(root, nodes[0] if nodes else NODE, lambda: "192.168.1.0/24"), "nft").artefact
    texts = ("".join(artefact.text()), "".join(artefact.json()))
    from_text, from_json = (read_ruleset([Text(root.name, text)]) for text in texts)
    assert from_text == from_json


def test_text_and_json_say_the_same_names(make_root: MakeRoot) -> None:
    root = make_root({"100.conf": VM, "100.fw": ON + "[RULES]\nIN SSH(ACCEPT) -log info\n"})
    artefact = compile_root(Source(root, NODE, lambda: None), "nft").artefact
    text = "".join(artefact.text())
    for command in json.loads("".join(artefact.json()))["nftables"]:
        ((_, made),) = command.items()
        ((kind, body),) = made.items()
        assert (body["chain"] if kind == "rule" else body["name"]) in text
        assert body.get("comment", "") in text
