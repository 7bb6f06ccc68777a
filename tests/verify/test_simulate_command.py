"""The command: options, exit codes, files of packets and output for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pvefw_nft.cli.simulate import simulate_command
from pvefw_nft.errors import UsageError

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT = str(REPOSITORY / "examples" / "homelab")


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(simulate_command, ["--root", ROOT, "--backend", "iptables", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_line_of_the_file_that_lets_a_packet_pass() -> None:
    result = invoke("--from", "192.168.10.50", "--to", "ct200:80")
    assert result.exit_code == 0
    assert result.output.startswith("ACCEPT: tcp 192.168.10.50:40000 → 192.168.10.53:80")
    assert "(200.fw:10 (HTTP))" in result.output.splitlines()[-2]


@pytest.mark.parametrize(
    ("expect", "code"), [("DROP", 0), ("ACCEPT", 1), ("REJECT", 1), ("drop", 0), ("REJECT(tcp-reset)", 1)]
)
def test_expected_verdicts(expect: str, code: int) -> None:
    assert invoke("--from", "outside", "--to", "ct200:80", "--expect", expect).exit_code == code


def test_expecting_a_kind_of_rejection() -> None:
    arguments = ("--from", "vm101", "--to", "outside:25")
    assert invoke(*arguments, "--expect", "REJECT").exit_code == 0
    assert invoke(*arguments, "--expect", "REJECT(tcp-reset)").exit_code == 0
    assert invoke(*arguments, "--expect", "REJECT(port-unreachable)").exit_code == 1


def test_json() -> None:
    data: Any = json.loads(invoke("--from", "vm101", "--to", "outside:25", "--format", "json").output)
    assert data["results"]["iptables"]["verdict"] == "REJECT"
    assert data["passed"] is True


PACKETS = """
[[packet]]
name = "dns to the container"
from = "192.168.10.77"
to = "ct200"
proto = "udp"
dport = 53
expect = "ACCEPT"

[[packet]]
from = "outside"
to = "ct200:80"
expect = "DROP"

[[packet]]
name = "mail leaves only through the nas"
from = "host"
to = "outside:25"
expect = "REJECT(tcp-reset)"
"""


def test_a_file_of_packets(tmp_path: Path) -> None:
    file = tmp_path / "packets.toml"
    file.write_text(PACKETS)
    result = invoke("--tests", str(file))
    assert (result.exit_code, result.output) == (0, "3 passed, 0 failed\n")


def test_a_file_of_packets_of_which_one_fails(tmp_path: Path) -> None:
    file = tmp_path / "packets.toml"
    file.write_text(PACKETS.replace('"DROP"', '"ACCEPT"'))
    result = invoke("--tests", str(file))
    assert result.exit_code == 1
    assert "FAILED: packet 2" in result.output
    assert "expected ACCEPT" in result.output
    assert result.output.endswith("2 passed, 1 failed\n")
    data = json.loads(invoke("--tests", str(file), "--format", "json").output)
    assert [packet["passed"] for packet in data["packets"]] == [True, False, True]
    assert data["failed"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no packets"),
        ("[[packet]]\nfrom = 'outside'\nto = 'host'\n", "needs from, to and expect"),
        ("[[packet]]\nfrom = 'a'\nto = 'host'\nexpect = 'ACCEPT'\ncolour = 5\n", "unknown key 'colour'"),
        ("[[packet]]\nfrom = 'outside'\nto = 'host'\nexpect = 'PERHAPS'\n", "no verdict"),
        ("[[packet", "cannot be read"),
    ],
)
def test_a_bad_file_of_packets_is_a_usage_error(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "packets.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        invoke("--tests", str(file))


def test_a_saved_ruleset_instead_of_the_configurations(tmp_path: Path) -> None:
    file = tmp_path / "rules.v4"
    file.write_text("*filter\n:INPUT DROP [0:0]\nCOMMIT\n")
    result = CliRunner().invoke(
        simulate_command, ["--root", ROOT, "--ruleset", f"save:{file}", "--from", "outside", "--to", "host:22"]
    )
    assert result.output.startswith("DROP")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--from", "outside"),
        ("--from", "outside", "--to", "vm999"),
        ("--from", "outside", "--to", "host", "--mark", "many"),
        ("--from", "outside", "--to", "host", "--ruleset", "nonsense:x"),
        ("--from", "outside", "--to", "host", "--expect", "MAYBE"),
    ],
)
def test_contradictory_options_are_a_usage_error(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        invoke(*arguments)


def test_ip_hooks_see_bridged_packets_only_where_iptables_needs_it() -> None:
    packet = ["--root", ROOT, "--from", "vm102", "--to", "ct200:53", "--format", "json"]
    seen = {}
    for extra in (("--backend", "iptables"), ("--backend", "nft"), ("--backend", "nft", "--bridge-call")):
        data = json.loads(CliRunner().invoke(simulate_command, [*packet, *extra]).output)
        (result,) = data["results"].values()
        seen[extra] = any(hop["family"] == "ip" for hop in result["hops"])
    assert list(seen.values()) == [True, False, True]


def test_both_backends_must_agree() -> None:
    result = CliRunner().invoke(
        simulate_command, ["--root", ROOT, "--backend", "both", "--from", "vm101", "--to", "outside:25"]
    )
    assert result.exit_code == 0
    assert result.output.count("REJECT (tcp-reset): tcp") == 2


def test_the_examples_of_the_documentation() -> None:
    text = (REPOSITORY / "docs" / "simulate.md").read_text("utf-8")
    command, _, shown = text.split("```console\n$ pvefw simulate ")[1].partition("```")[0].partition("\n")
    arguments = command.replace("examples/homelab", ROOT).split()
    assert CliRunner().invoke(simulate_command, arguments).output == shown


def test_the_file_of_packets_in_the_documentation_is_read(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "simulate.md").read_text("utf-8")
    file = tmp_path / "packets.toml"
    file.write_text(text.split("```toml\n")[1].partition("```")[0])
    result = invoke("--tests", str(file), "--root", str(REPOSITORY / "examples" / "minimal"))
    assert "passed" in result.output.splitlines()[-1]


def test_a_later_fragment_that_is_rejected_is_not_answered() -> None:
    for backend in ("iptables", "nft"):
        output = invoke("--from", "vm101", "--to", "outside", "-p", "tcp", "--fragment", "later").output
        assert output.startswith("REJECT"), backend
        assert "no answer is sent to vm101i0: a later fragment" in output


@pytest.mark.parametrize("backend", ["iptables", "nft"])
def test_an_established_packet_is_decided_by_the_rule_that_accepts_it(backend: str) -> None:
    arguments = ["--root", ROOT, "--backend", backend, "--from", "outside", "--to", "ct200:53", "-p", "udp"]
    decided = CliRunner().invoke(simulate_command, [*arguments, "--ctstate", "established"]).output.splitlines()[-2]
    assert "(conntrack)" in decided
    assert "established" in decided.lower()


def test_an_invalid_packet_is_decided_by_the_map_that_drops_it() -> None:
    arguments = ["--root", ROOT, "--backend", "nft", "--from", "outside", "--to", "ct200:53", "-p", "udp"]
    decided = CliRunner().invoke(simulate_command, [*arguments, "--ctstate", "invalid"]).output.splitlines()[-2]
    assert decided.startswith("  decided by: forward rule 2 (conntrack): map { ct state invalid: drop,")


@pytest.mark.parametrize("backend", ["iptables", "nft"])
@pytest.mark.parametrize(
    ("source", "state", "hit"),
    [
        ("10.0.0.77", "established", True),
        ("10.0.0.77", "related", True),
        ("10.0.0.100", "established", False),
        ("10.0.0.250", "established", False),
        ("fd00::77", "established", True),
        ("fd00::100", "established", False),
        ("fe80::be24:11ff:fe00:100", "established", False),
    ],
)
def test_simulate_names_packets_that_ipfilter_established_drops(
    backend: str, source: str, state: str, *, hit: bool
) -> None:
    root = str(REPOSITORY / "tests/cases/hostile")
    arguments = ["--root", root, "--local-network", "10.0.0.0/24", "--backend", backend, "--ctstate", state]
    packet = ["--from", "vm100", "--to", "outside", "-p", "tcp", "--dport", "80", "--source", source]
    output = CliRunner().invoke(simulate_command, [*arguments, *packet]).output
    assert output.startswith("ACCEPT")
    assert ("`ipfilter_established: 1` would drop it" in output) is hit


def test_a_file_of_packets_does_not_go_with_options_of_a_packet(tmp_path: Path) -> None:
    file = tmp_path / "packets.toml"
    file.write_text(PACKETS)
    with pytest.raises(UsageError, match="--tests does not go with"):
        invoke("--tests", str(file), "--dport", "22")


@pytest.mark.parametrize(
    "line", ['vlan = "5"', 'mark = "1"', "source = 5", "family = true", "fields = 3", "dport = [1]"]
)
def test_a_value_of_the_wrong_type_in_a_file_of_packets_is_an_error(tmp_path: Path, line: str) -> None:
    file = tmp_path / "packets.toml"
    file.write_text(f'[[packet]]\nfrom = "outside"\nto = "vm101"\nexpect = "DROP"\n{line}\n')
    with pytest.raises(UsageError, match=f"'{line.split()[0]}'|not an address"):
        invoke("--tests", str(file))


def test_a_verdict_that_an_unknown_match_decides_is_not_decided(tmp_path: Path) -> None:
    file = tmp_path / "rules.v4"
    file.write_text("# Generated by iptables-save\n*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m dice -j DROP\nCOMMIT\n")
    arguments = ["--root", ROOT, "--ruleset", f"save:{file}", "--assume-unknown", "both", "--from", "outside"]
    result = CliRunner().invoke(simulate_command, [*arguments, "--to", "host:22"])
    assert (result.exit_code, result.output.startswith("UNDECIDED")) == (5, True)
    result = CliRunner().invoke(simulate_command, [*arguments, "--to", "host:22", "--expect", "DROP"])
    assert result.exit_code == 5
