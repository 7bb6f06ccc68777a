"""How the iptables backend spells each match, action and set; and the text and JSON around it."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.backends.iptables import IptablesBackend
from pvefw_nft.backends.iptables.sets import SetNames, set_name
from pvefw_nft.backends.signature import signature
from pvefw_nft.ir.nodes import AddressSet, Family, Layer, SetKey
from tests.support import CONTAINER, VM, check

if TYPE_CHECKING:
    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"
NAMES = "[ALIASES]\nlan 10.0.0.0/8\nhost 10.0.0.1/32\nlan6 2001:db8::/32\n[IPSET office]\n10.1.0.0/16\n!10.1.66.0/24\n"


def lines(make_root: MakeRoot, files: dict[str, str | bytes], tool: str, chain: str) -> list[str]:
    artefact = IptablesBackend().lower(check(make_root(files)).ruleset)
    document = json.loads("".join(artefact.json()))
    chains = document[tool] if tool in ("ipset", "ebtables") else document[tool]["filter"] | document[tool]["raw"]
    found = chains[chain]
    assert isinstance(found, list)
    return [line.removeprefix(f"-A {chain}") for line in found]


RULES = [
    ("IN ACCEPT", "iptables", "  -j ACCEPT"),
    ("IN DROP -p tcp", "iptables", " -p tcp -j DROP"),
    ("IN REJECT -p 6 -dport http", "iptables", " -p 6 --dport http -j PVEFW-reject"),
    ("IN ACCEPT -source host", "iptables", " -s 10.0.0.1 -j ACCEPT"),
    ("IN ACCEPT -source 10.0.0.1/32,10.0.0.2", "iptables", " -s 10.0.0.1/32,10.0.0.2 -j ACCEPT"),
    ("IN ACCEPT -dest 10.0.0.1-10.0.0.2", "iptables", " -m iprange --dst-range 10.0.0.1-10.0.0.2 -j ACCEPT"),
    ("IN ACCEPT -source lan6", "ip6tables", " -s 2001:db8::/32 -j ACCEPT"),
    ("IN ACCEPT -dest +office", "iptables", " -m set --match-set PVEFW-0-office-v4 dst -j ACCEPT"),
    ("IN ACCEPT -dest +office", "ip6tables", " -m set --match-set PVEFW-0-office-v6 dst -j ACCEPT"),
    ("IN DROP -p tcp -sport 1:2 -dport 3,4", "iptables", " -p tcp --sport 1:2 --match multiport --dports 3,4 -j DROP"),
    ("IN ACCEPT -p tcp -sport 1,2 -dport 3", "iptables", " -p tcp --dport 3 --match multiport --sports 1,2 -j ACCEPT"),
    (
        "IN ACCEPT -p udp -sport 1,2 -dport 3,4:5",
        "iptables",
        " -p udp --match multiport --dports 3,4:5 --match multiport --sports 1,2 -j ACCEPT",
    ),
    ("IN ACCEPT -p icmp -icmp-type any", "iptables", " -p icmp -m icmp --icmp-type any -j ACCEPT"),
    ("IN ACCEPT -p ipv6-icmp -dport 128", "ip6tables", " -p ipv6-icmp -m ipv6-icmp --icmpv6-type 128 -j ACCEPT"),
    ("IN ACCEPT -p TCP -dport 22", "iptables", " -p tcp --dport 22 -j ACCEPT"),
    ("IN ACCEPT -p IP-ENCAP", "iptables", " -p ipencap -j ACCEPT"),
    ("IN ACCEPT -p IPv6-ICMP -dport 128", "ip6tables", " -p ipv6-icmp -m ipv6-icmp --icmpv6-type 128 -j ACCEPT"),
    ("IN SSH(ACCEPT) -i net0", "iptables", " -p tcp --dport 22 -j ACCEPT"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "tool", "line"), RULES, ids=[f"{case[0]} {case[1]}" for case in RULES])
def test_rule(make_root: MakeRoot, rule: str, tool: str, line: str) -> None:
    files: dict[str, str | bytes] = {"cluster": ON + NAMES, "100.conf": VM, "100.fw": f"{ON}[RULES]\n{rule}\n"}
    user = lines(make_root, files, tool, "tap100i0-IN")[2 if tool == "iptables" else 6 : -2]
    assert user == [line]


def test_log_line_comes_first_and_has_its_own_limit(make_root: MakeRoot) -> None:
    cluster = ON + "log_ratelimit: rate=5/minute,burst=9\n"
    files: dict[str, str | bytes] = {"cluster": cluster, "100.conf": VM, "100.fw": ON + "[RULES]\nIN DROP -log err\n"}
    assert lines(make_root, files, "iptables", "tap100i0-IN")[2:4] == [
        '  -m limit --limit 5/minute --limit-burst 9 -j NFLOG --nflog-prefix ":100:3:tap100i0-IN: DROP: "',
        "  -j DROP",
    ]


@pytest.mark.parametrize(
    ("option", "target"),
    [
        ("", "-j NFQUEUE --queue-bypass"),
        ("ips_queues: 4\n", "-j NFQUEUE --queue-num 4 --queue-bypass"),
        ("ips_queues: 4:4\n", "-j NFQUEUE --queue-num 4 --queue-bypass"),
        ("ips_queues: 4:7\n", "-j NFQUEUE --queue-balance 4:7 --queue-bypass"),
    ],
)
def test_queues(make_root: MakeRoot, option: str, target: str) -> None:
    files: dict[str, str | bytes] = {"100.conf": VM, "100.fw": f"{ON}ips: 1\n{option}policy_in: ACCEPT\n"}
    assert lines(make_root, files, "iptables", "tap100i0-IN")[-1] == f"  {target}"
    assert lines(make_root, files, "iptables", "PVEFW-IPS") == [
        f" -m physdev --physdev-out tap100i0 --physdev-is-bridged {target}"
    ]


def test_layer_2(make_root: MakeRoot) -> None:
    files: dict[str, str | bytes] = {"200.ct": CONTAINER, "200.fw": ON + "ipfilter: 1\nlayer2_protocols: ARP\n"}
    assert lines(make_root, files, "ebtables", "veth200i0-OUT") == [
        " -s ! bc:24:11:0:0:2 -j DROP",
        " -p ARP -j veth200i0-OUT-ARP",
        " -j veth200i0-OUT-PROTO",
        " -j ACCEPT",
    ]
    assert lines(make_root, files, "ebtables", "veth200i0-OUT-ARP") == [
        " -p ARP --arp-ip-src 10.0.0.2 -j RETURN",
        " -j DROP",
    ]


def test_sets_are_sorted_as_text_and_sized_by_all_their_entries(make_root: MakeRoot) -> None:
    entries = (
        "".join(f"10.0.{i}.0/24\n" for i in range(60)) + "2001:DB8:0::/48\n!2001:db8:0:1::/64\n10.9.9.9/32\n!10.0.7.7\n"
    )
    files: dict[str, str | bytes] = {"cluster": f"{ON}[IPSET big]\n{entries}1.2.3.4\n"}
    v4 = lines(make_root, files, "ipset", "PVEFW-0-big-v4")
    assert v4[0].endswith("hashsize 128 maxelem 128 bucketsize 12")
    assert v4[1:3] == ["add PVEFW-0-big-v4 1.2.3.4", "add PVEFW-0-big-v4 10.0.0.0/24"]
    assert "add PVEFW-0-big-v4 10.0.7.7 nomatch" in v4
    assert lines(make_root, files, "ipset", "PVEFW-0-big-v6")[1:] == [
        "add PVEFW-0-big-v6 2001:db8:0:1::/64 nomatch",
        "add PVEFW-0-big-v6 2001:db8::/48",
    ]


def test_long_set_names_become_hashes() -> None:
    assert set_name(SetKey(100, "ipfilter-net0"), Family.V4) == "PVEFW-100-ipfilter-net0-v4"
    # The FNV-1a test vector "foobar" is 0xbf9cf968; a long name is hashed the same way, without the top bit.
    name = set_name(SetKey(1000, "ipfilter-net0"), Family.V4)
    assert name == "PVEFW-{:X}".format(_fnv1a("1000-ipfilter-net0-v4") & 0x7FFFFFFF)
    assert _fnv1a("foobar") == 0xBF9CF968


def _fnv1a(text: str) -> int:
    value = 2166136261
    for byte in text.encode():
        value = ((value ^ byte) * 16777619) % 2**32
    return value


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((100, "allowed-clients-3744e"), (100, "allowed-clients-43910")),
        ((100, "allowed-clients-4ebb0"), (101, "allowed-clients-4699b")),
        ((0, "allowed-clients-4cdf8"), (100, "allowed-clients-28a1f")),
    ],
    ids=["one guest", "two guests", "cluster and guest"],
)
def test_sets_with_one_hashed_name_get_names_of_their_own(
    make_root: MakeRoot, first: tuple[int, str], second: tuple[int, str]
) -> None:
    files: dict[str, str | bytes] = {"100.conf": VM, "101.conf": VM}
    headers: dict[int, str] = {0: "[OPTIONS]\nenable: 1\n", 100: ON, 101: ON}
    rules = dict.fromkeys((100, 101), "[RULES]\n")
    for (scope, name), network in ((first, "10.1.0.0/16"), (second, "10.2.0.0/16")):
        headers[scope] += f"[IPSET {name}]\n{network}\n"
        rules[scope or 100] += f"IN ACCEPT -source +{name}\n"
    files |= {"cluster": headers[0], "100.fw": headers[100] + rules[100], "101.fw": headers[101] + rules[101]}
    checked = check(make_root(files))
    backend = IptablesBackend()
    assert first[0] or checked.node.cluster.ipsets
    named = [(finding.code, finding.span.line) for finding in backend.limits(checked.ruleset)]
    assert [code for code, _ in named] == ["set-name-collision"] * 2
    artefact = backend.lower(checked.ruleset)
    sets = dict(artefact.sets())
    shared = f"PVEFW-{_fnv1a(f'{first[0]}-{first[1]}-v4') & 0x7FFFFFFF:X}"
    assert shared == f"PVEFW-{_fnv1a(f'{second[0]}-{second[1]}-v4') & 0x7FFFFFFF:X}"
    assert shared not in sets
    rules_of = dict(artefact.chains(Family.V4, Layer.FILTER))
    for (scope, _), network in ((first, "10.1.0.0/16"), (second, "10.2.0.0/16")):
        (name,) = [name for name, lines in sets.items() if any(line.endswith(f" {network}") for line in lines)]
        chain = [line for line, _ in rules_of[f"tap{scope or 100}i0-IN"]]
        assert any(f"--match-set {name} src" in line for line in chain)


def test_names_of_colliding_sets_never_collide_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvefw_nft.backends.iptables.sets.fnv1a31", lambda text: zlib.crc32(text.encode()) % 200)
    keys = [SetKey(0, "a-name-that-is-long-enough" + "x" * n) for n in range(40)]
    made = [AddressSet(key, (), 0) for key in keys]
    names = SetNames(made)
    given = [names.name(key, family) for key in keys for family in (Family.V4, Family.V6)]
    assert len(set(given)) == len(given)


def test_text(make_root: MakeRoot) -> None:
    text = "".join(IptablesBackend().lower(check(make_root({"100.conf": VM, "100.fw": ON})).ruleset).text())
    heads = [line for line in text.splitlines() if line.startswith("###")]
    assert heads == [
        "### ipset restore",
        "### iptables-restore -T filter -n",
        "### iptables-restore -T raw -n",
        "### ip6tables-restore -T filter -n",
        "### ip6tables-restore -T raw -n",
        "### ebtables-restore",
    ]
    chain = text[text.index("-F tap100i0-OUT\n") :].split("\n-F ")[0].splitlines()
    body = [line for line in chain if line.startswith("-A tap100i0-OUT") and "PVESIG" not in line]
    assert f'-A tap100i0-OUT -m comment --comment "PVESIG:{signature(body)}"' in chain


def test_signature_is_the_unpadded_base64_of_sha1() -> None:
    # FIPS 180-2, appendix A: SHA-1 of "abc" is a9993e364706816aba3e25717850c26c9cd0d89d.
    assert signature(["a", "bc"]) == "qZk+NkcGgWq6PiVxeFDCbJzQ2J0"


def test_forward_rules_are_warned_about(make_root: MakeRoot) -> None:
    cluster = ON + "policy_forward: DROP\n[RULES]\nFORWARD ACCEPT -p tcp\n"
    ruleset = check(make_root({"cluster": cluster, "v1.vnet": ON + "[RULES]\nFORWARD DROP\n"})).ruleset
    limits = list(IptablesBackend().limits(ruleset))
    assert [(limit.code, limit.span.file.rsplit("/", 1)[-1], limit.span.line) for limit in limits] == [
        ("not-carried-out", "cluster.fw", 5),
        ("not-carried-out", "cluster.fw", 3),
        ("not-carried-out", "v1.fw", 4),
    ]


def test_ports_of_udp_lite_are_spelled_as_iptables_takes_them(make_root: MakeRoot) -> None:
    files: dict[str, str | bytes] = {"100.conf": VM, "100.fw": ON + "[RULES]\nIN ACCEPT -p udplite -dport 5\n"}
    artefact = IptablesBackend().lower(check(make_root(files)).ruleset)
    loadable = "-A tap100i0-IN -p udplite --match multiport --dports 5 -j ACCEPT"
    assert loadable in "".join(artefact.text())
    assert loadable in "".join(artefact.loadable())
    assert "-A tap100i0-IN -p udplite --dport 5 -j ACCEPT" in "".join(artefact.json())
