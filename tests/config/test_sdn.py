"""The sets of software-defined networks: their members, their users, and bad state files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.cache import Cache
from pvefw_nft.errors import Severity
from pvefw_nft.ir.nodes import InSet, Layer, SetKey, Side
from pvefw_nft.pipeline import Observations, Source, check_root, compile_root
from tests.support import NODE, VM, check

if TYPE_CHECKING:
    from pathlib import Path

    from pvefw_nft.errors import Diagnostic
    from pvefw_nft.pipeline import Checked
    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"
RUNNING = "etc/pve/sdn/.running-config"
IPAM = "etc/pve/sdn/pve-ipam-state.json"
OLD_IPAM = "etc/pve/priv/ipam.db"

STATE: dict[str, Any] = {
    "version": 3,
    "zones": {"ids": {"za": {"type": "simple"}}},
    "vnets": {"ids": {"web": {"zone": "za"}, "bare": {"zone": "za"}}},
    "subnets": {
        "ids": {
            "za-10.1.0.0-24": {
                "vnet": "web",
                "gateway": "10.1.0.1",
                "dhcp-range": ["start-address=10.1.0.10,end-address=10.1.0.13"],
            },
            "za-fd00:1::-64": {"vnet": "web", "gateway": "fd00:1::1"},
        }
    },
}
ADDRESSES: dict[str, Any] = {
    "zones": {
        "za": {
            "subnets": {
                "10.1.0.0/24": {
                    "ips": {
                        "10.1.0.1": {"gateway": 1},
                        "10.1.0.10": {"vmid": "100", "mac": "BC:24:11:00:00:01", "hostname": "g"},
                        "10.1.0.11": {"mac": "BC:24:11:00:00:09"},
                        "10.1.0.12": {"vmid": 101},
                    }
                },
                "fd00:1::/64": {"ips": {"fd00:1::10": {"vmid": "100"}}},
            }
        }
    }
}


def write(root: Path, path: str, state: object) -> Path:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(state if isinstance(state, str) else json.dumps(state, indent=1))
    return root


def sets(checked: Checked) -> dict[str, list[str]]:
    """Return the entries of the cluster's sets, a hole with its exclamation mark."""
    return {
        made.key.name: [("!" if entry.nomatch else "") + entry.prefix.canonical for entry in made.entries]
        for made in checked.ruleset.sets
        if made.key.scope == 0 and made.key.name != "management"
    }


def codes(checked: Checked) -> list[str]:
    return [problem.code for problem in checked.diagnostics]


def test_the_sets_of_vnets_and_guests(make_root: MakeRoot) -> None:
    checked = check(write(write(make_root(), RUNNING, STATE), IPAM, ADDRESSES))
    assert checked.diagnostics == ()
    assert sets(checked) == {
        "web-all": ["10.1.0.0/24", "fd00:1::/64"],
        "web-gateway": ["10.1.0.1", "fd00:1::1"],
        "web-no-gateway": ["!10.1.0.1", "!fd00:1::1", "10.1.0.0/24", "fd00:1::/64"],
        "web-dhcp": ["10.1.0.10/31", "10.1.0.12/31"],
        "bare-all": [],
        "bare-gateway": [],
        "bare-no-gateway": [],
        "bare-dhcp": [],
        "guest-ipam-100": ["10.1.0.10", "fd00:1::10"],
        "guest-ipam-101": ["10.1.0.12"],
    }


@pytest.mark.parametrize("part", ["version", "zones", "vnets", "subnets"])
def test_each_part_of_the_state_may_be_absent(make_root: MakeRoot, part: str) -> None:
    state = {key: value for key, value in STATE.items() if key != part}
    checked = check(write(make_root(), RUNNING, state))
    assert set(codes(checked)) == ({"bad-sdn-state"} if part == "vnets" else set())
    assert ("web-all" in sets(checked)) is (part != "vnets")


def test_the_older_ipam_file_is_read_if_the_newer_one_is_missing(make_root: MakeRoot) -> None:
    root = write(make_root(), OLD_IPAM, ADDRESSES)
    assert "guest-ipam-101" in sets(check(root))
    write(root, IPAM, {"zones": {}})
    assert sets(check(root)) == {}


def used(checked: Checked, layer: Layer, chain: str) -> list[SetKey]:
    return [
        match.key
        for rule in checked.ruleset.chains[layer][chain].rules
        for match in rule.matches
        if isinstance(match, InSet) and match.side is Side.SOURCE and rule.origin.line
    ]


def test_host_guest_and_vnet_rules_use_the_sets(make_root: MakeRoot) -> None:
    files: dict[str, str | bytes] = {
        "cluster": ON + "[RULES]\nIN ACCEPT -source +sdn/web-all\nIN ACCEPT -source +web-gateway\n",
        "100.conf": VM,
        "100.fw": ON + "[RULES]\nIN ACCEPT -source +sdn/guest-ipam-101\n",
        "web.vnet": "[OPTIONS]\nenable: 1\n[RULES]\nFORWARD ACCEPT -source +sdn/web-all -dest +sdn/web-gateway\n",
    }
    checked = check(write(write(make_root(files), RUNNING, STATE), IPAM, ADDRESSES))
    assert checked.diagnostics == ()
    assert used(checked, Layer.FILTER, "PVEFW-HOST-IN")[:2] == [SetKey(0, "web-all"), SetKey(0, "web-gateway")]
    assert used(checked, Layer.FILTER, "tap100i0-IN") == [SetKey(0, "guest-ipam-101")]
    vnet = next(name for name in checked.ruleset.chains[Layer.FORWARD] if "web" in name)
    assert used(checked, Layer.FORWARD, vnet) == [SetKey(0, "web-all")]


def test_a_scoped_name_of_cluster_or_guest_finds_no_set_of_the_sdn(make_root: MakeRoot) -> None:
    rules = "[RULES]\nIN ACCEPT -source +dc/web-all\nIN ACCEPT -source +guest/web-all\n"
    checked = check(write(make_root({"100.conf": VM, "100.fw": ON + rules}), RUNNING, STATE))
    assert codes(checked) == ["unknown-ipset", "unknown-ipset"]
    assert all("write `+sdn/web-all`" in str(problem.hint) for problem in checked.diagnostics)


def test_an_ipset_of_the_same_name_gives_way_and_is_warned_about(make_root: MakeRoot) -> None:
    files: dict[str, str | bytes] = {"cluster": ON + "[IPSET web-all]\n192.0.2.1\n"}
    checked = check(write(make_root(files), RUNNING, STATE))
    assert [(problem.code, problem.severity, problem.span.line) for problem in checked.diagnostics] == [
        ("hidden-ipset", Severity.WARNING, 3)
    ]
    assert sets(checked)["web-all"] == ["10.1.0.0/24", "fd00:1::/64"]


def test_a_rule_with_an_empty_set_is_warned_about(make_root: MakeRoot) -> None:
    rules = "[RULES]\nIN ACCEPT -source +sdn/bare-all\n|IN ACCEPT -source +sdn/bare-dhcp\n"
    checked = check(write(make_root({"cluster": ON + rules}), RUNNING, STATE))
    assert [(problem.code, problem.severity, problem.span.line) for problem in checked.diagnostics] == [
        ("empty-set", Severity.WARNING, 4)
    ]


BROKEN = [
    ('{"vnets": {"ids": ', 1, "no valid JSON"),
    ("", 1, "no valid JSON"),
    ("[1, 2]", 0, "no JSON object"),
    ('{"version": "two", "vnets": {"ids": {"web": {}}}}', 0, "version"),
    ('{"vnets": {"ids": []}}', 0, "vnets.ids"),
    ('{"vnets": 7}', 0, "`vnets`"),
    ("[" * 100000, 0, "no state"),
    ("9" * 10000, 0, "no state"),
]


@pytest.mark.parametrize(("text", "line", "message"), BROKEN, ids=[case[0][:20] for case in BROKEN])
def test_a_state_that_cannot_be_used_is_an_error_and_so_is_each_rule_that_needs_it(
    make_root: MakeRoot, text: str, line: int, message: str
) -> None:
    files: dict[str, str | bytes] = {"cluster": ON + "[RULES]\nIN DROP -source +sdn/web-all\nIN SSH(ACCEPT)\n"}
    state, rule = sorted(check(write(make_root(files), RUNNING, text)).diagnostics, key=lambda found: found.code)
    assert (state.code, state.severity, state.span.line) == ("bad-sdn-state", Severity.ERROR, line)
    assert message in state.message
    assert (rule.code, rule.severity) == ("unknown-ipset", Severity.ERROR)
    assert ".running-config is not usable" in str(rule.hint)


def changed(path: str, **settings: object) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(json.dumps(STATE))
    state["subnets"]["ids"][path] = {"vnet": "web", **settings}
    return state


PARTS = [
    (changed("za-10.9.0.0-99"), "prefix length 99"),
    (changed("za-10.9.0-24"), "not an IPv4 or IPv6 address"),
    (changed("nothing"), "not an IPv4 or IPv6 address"),
    (changed("za-0.0.0.0-0"), "whole address space"),
    (changed("za-10.9.0.0-24", gateway="nobody"), "`nobody`"),
    (changed("za-10.9.0.0-24", **{"dhcp-range": ["from here to there"]}), "DHCP range"),
    (changed("za-10.9.0.0-24", **{"dhcp-range": ["start-address=10.9.0.9,end-address=10.9.0.1"]}), "before it begins"),
    (changed("za-10.9.0.0-24", vnet="nowhere"), "no VNet"),
    (changed("za-10.9.0.0-24") | {"vnets": {"ids": {"web": {}, "a b": {}}}}, "cannot be the name of a VNet"),
]


@pytest.mark.parametrize(("state", "message"), PARTS, ids=[case[1] for case in PARTS])
def test_a_part_that_cannot_be_used_is_an_error_with_its_line_and_the_rest_is_used(
    make_root: MakeRoot, state: object, message: str
) -> None:
    root = write(make_root(), RUNNING, state)
    checked = check(root)
    (problem,) = checked.diagnostics
    assert (problem.code, problem.severity) == ("bad-sdn-state", Severity.ERROR)
    assert message in problem.message
    assert problem.span.text in (root / RUNNING).read_text().split("\n")
    assert "10.1.0.0/24" in sets(checked)["web-all"]


@pytest.mark.parametrize(
    ("ips", "message"),
    [({"nobody": {"vmid": 1}}, "`nobody`"), ({"10.1.0.2": {"vmid": "x"}}, "not a VMID"), ({"10.1.0.2": 7}, "10.1.0.2")],
)
def test_an_address_of_ipam_that_cannot_be_used(make_root: MakeRoot, ips: object, message: str) -> None:
    state = {"zones": {"za": {"subnets": {"10.1.0.0/24": {"ips": ips}}}}}
    (problem,) = check(write(make_root(), IPAM, state)).diagnostics
    assert problem.code == "bad-sdn-state"
    assert message in problem.message


def test_an_ipam_of_an_unknown_version_is_not_taken_for_an_empty_one(make_root: MakeRoot) -> None:
    files: dict[str, str | bytes] = {"cluster": ON + "[RULES]\nIN DROP -source +sdn/guest-ipam-100\n"}
    checked = check(write(make_root(files), IPAM, {"v2": {}}))
    assert sorted(codes(checked)) == ["bad-sdn-state", "unknown-ipset"]


def test_a_state_with_a_nul_byte_stops_no_other_rule(make_root: MakeRoot) -> None:
    files: dict[str, str | bytes] = {"cluster": ON + "[RULES]\nIN DROP -source +sdn/web-all\nIN SSH(ACCEPT)\n"}
    checked = check(write(make_root(files), RUNNING, '{"vnets"\0'))
    assert sorted(codes(checked)) == ["unknown-ipset", "unreadable-sdn-state"]


@pytest.mark.parametrize("backend", ["iptables", "nft"])
def test_a_change_of_the_state_is_followed(make_root: MakeRoot, backend: str) -> None:
    files: dict[str, str | bytes] = {
        "100.conf": VM,
        "100.fw": ON + "[RULES]\nIN ACCEPT -source +sdn/web-all -p tcp -dport 80\n",
    }
    root = make_root(files)
    source, cache = Source(root, NODE, lambda: None), Cache()
    states = [(None, None), ("{", None), ('{"\0', None), (STATE, "10.1.0.0"), (changed("z-10.2.0.0-24"), "10.2.0.0")]
    for state, entry in states:
        if state is not None:
            write(root, RUNNING, state)
        seen = Observations()
        compiled = compile_root(seen.observed(source), backend, cache)
        seen.finish()
        form = compiled.artefact.text if backend == "iptables" else compiled.artefact.json
        text = "".join(form())
        assert (entry is not None) == ("web-all" in text)
        assert entry is None or entry in text
        write(root, RUNNING, changed("z-10.3.0.0-24"))
        assert not seen.still_hold(source)


def problem_lines(found: tuple[Diagnostic, ...]) -> list[int]:
    return [problem.span.line for problem in found]


def test_check_root_reads_the_state_once_for_all_guests(make_root: MakeRoot) -> None:
    files: dict[str, str | bytes] = {f"{vmid}.conf": VM for vmid in (100, 101)}
    root = write(make_root(files), RUNNING, "{")
    assert problem_lines(check_root(Source(root, NODE, lambda: None)).diagnostics) == [1]


def test_a_file_of_bad_parts_is_not_searched_for_each(make_root: MakeRoot) -> None:
    subnets = {f"za-10.0.0.{number}-99": {"vnet": "web"} for number in range(5_000)}
    root = write(make_root(), RUNNING, STATE | {"subnets": {"ids": subnets}})
    assert len(check(root).diagnostics) == 101
