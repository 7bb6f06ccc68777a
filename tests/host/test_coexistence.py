"""Foreign rules in the same tables stay the same to the byte through start, updates, a switch and stop."""

from __future__ import annotations

import contextlib
import re
import subprocess
from functools import partial
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("nftables")

from pvefw_nft.cli import main
from pvefw_nft.errors import HostError
from pvefw_nft.host import sysctl, tools
from pvefw_nft.host.proxmox import theirs
from pvefw_nft.host.records import record, state
from pvefw_nft.host.settings import needed_first

from . import rulesets
from .conftest import need
from .here import control
from .network import (
    ADDRESSES,
    DENIED_WAYS,
    Denied,
    Network,
    compiled,
    configure,
    rounds,
    ruleset,
    takes_compiled_nft,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pvefw_nft.host.records.record import Desired

    from .conftest import Namespace

UPDATES = 20
USERS = """
ipset create mine hash:ip; ipset add mine 192.0.2.1; ipset create PVEFX-0 hash:net; ipset add PVEFX-0 192.0.2.0/24
for tool in iptables ip6tables; do
    $tool -N MINE
    $tool -A MINE -p tcp --dport 25 -m comment --comment "PVESIG:mine" -j DROP
    $tool -N GROUP-office-IN
    $tool -A GROUP-office-IN -j RETURN
    $tool -A INPUT -p udp -j MINE
    $tool -A INPUT -i lo -j ACCEPT
    $tool -A FORWARD -m physdev --physdev-is-bridged -p udp --sport 9 -j MINE
    $tool -P FORWARD DROP
    $tool -t raw -A PREROUTING -p tcp --dport 7 -j DROP
    $tool -t nat -A POSTROUTING -o wan0 -j MASQUERADE
    $tool -t mangle -A PREROUTING -p tcp -j MARK --set-mark 0x7
done
iptables -I INPUT -m set --match-set mine src -j DROP
ebtables -N mine
ebtables -A mine -p ARP --arp-ip-dst 192.0.2.1 -j DROP
ebtables -A FORWARD -p ARP -j mine
ebtables -A INPUT -s 02:00:00:00:00:01 -j DROP
ebtables -t nat -A PREROUTING -d 02:00:00:00:00:01 -j ACCEPT
nft -f - <<END
add table inet mine
add set inet mine s { type ipv4_addr; flags interval; elements = { 192.0.2.0/24, 198.51.100.7 }; }
add map inet mine m { type ifname : verdict; elements = { "tap100i0" : accept }; }
add chain inet mine c { type filter hook input priority 0; policy accept; }
add rule inet mine c ip saddr @s counter drop comment "tap100i0 in"
add table bridge mine
add chain bridge mine c { type filter hook prerouting priority -150; policy accept; }
add rule bridge mine c iifname vmap { "x" : drop }
add table ip pvefw
add chain ip pvefw c
add rule ip pvefw c counter
END
"""
_OURS = re.compile(r"\bPVEFW-|\b(tap100i0|GROUP-some)-(IN|OUT)")


@pytest.fixture
def users(host: Namespace) -> Namespace:
    """A host with rules of its own in all tables, on which both backends' tools work."""
    need(USERS)
    for key in needed_first("iptables"):
        sysctl.write(key, "0")
    return host


def saved() -> dict[str, list[str]]:
    """Return the output of the save commands without the time of day."""
    commands = [[f"{tool}-save"] for tool in ("iptables", "ip6tables", "ebtables")] + [["ipset", "save"]]
    # with handles, which show whether a rule was replaced
    commands += [
        ["nft", "-a", "list", "table", *table] for table in (("inet", "mine"), ("bridge", "mine"), ("ip", "pvefw"))
    ]
    return {" ".join(command): output(command) for command in commands} | {"tables": output(["nft", "list", "tables"])}


def output(command: list[str]) -> list[str]:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if not re.match("# (Generated|Completed) ", line)]


def foreign(found: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the foreign rules."""
    tables = ("table bridge pvefw", "table inet pvefw")
    return {
        command: [line for line in lines if _OURS.search(line) is None and line not in tables]
        for command, lines in found.items()
    }


def numbered(folder: Path, backend: str, number: int) -> Desired:
    """Return one ruleset of many; chains and sets come and go from each to the next."""
    if backend == "iptables" or takes_compiled_nft():
        return compiled(folder, backend, number, other=bool(number % 2))
    guests = tuple(range(100, 101 + number % 3))
    return ruleset("nft", rulesets.nft(guests, (f"10.{number}.0.0/16",), ports=(number + 1,)))


@pytest.mark.parametrize(("backend", "other"), [("iptables", "nft"), ("nft", "iptables")])
def test_foreign_rules_stay_unchanged(users: Namespace, tmp_path: Path, backend: str, other: str) -> None:
    before = saved()
    assert foreign(before) == before
    control.apply(numbered(tmp_path / "c", backend, 0))
    assert foreign(saved()) == before
    for number in rounds(UPDATES):
        outcome, _ = control.apply(numbered(tmp_path / "c", backend, number), only_if_running=True)
        assert outcome.changes
        if number % 4 == 0:
            assert foreign(saved()) == before
            assert saved() != before
    outcome, _ = control.apply(numbered(tmp_path / "c", other, 0))
    assert outcome.switched_from == backend
    assert foreign(saved()) == before
    outcome = control.stop()
    assert outcome.running
    assert outcome.problems == ()
    assert saved() == before
    check_that_nothing_is_left()


def check_that_nothing_is_left() -> None:
    assert {key: sysctl.read(key) for key in needed_first("iptables")} == dict.fromkeys(needed_first("iptables"), "0")
    assert not record.marker_path().exists()
    assert list(state.run_directory().iterdir()) == []


def pvefw(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must succeed, and return its output. Starting Python takes seconds in the lab's guest."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err
    return printed.out


def test_commands_leave_foreign_rules_unchanged(
    users: Namespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not takes_compiled_nft():
        pytest.skip("this kernel does not take compiled nft rulesets")
    source = ["--root", str(tmp_path / "c"), "--node", "n", "--local-network", "192.0.2.0/24", "--backend"]
    configure(tmp_path / "c")
    before = saved()
    assert foreign(before) == before
    run = partial(pvefw, capsys)
    for backend in ("iptables", "nft"):
        run("start", *source, backend)
        for number in rounds(UPDATES, least=2):  # with other chains, and without
            configure(tmp_path / "c", number, other=bool(number % 2))
            assert run("update", *source, backend) != "nothing changed\n"
            assert foreign(saved()) == before
    assert "the rules of the nft backend were removed" in run("start", *source, "iptables")
    assert foreign(saved()) == before
    assert run("status", *source, "iptables").startswith("running (iptables)")
    assert "stopped" in run("stop")
    assert saved() == before
    check_that_nothing_is_left()


# --- a foreign policy -------------------------------------------------------------------------------------


@pytest.fixture
def dropping(host: Namespace) -> Iterator[Network]:
    """A network whose host drops forwarded packets, like Docker, and whose bridges do not pass iptables."""
    with contextlib.suppress(HostError):
        tools.run(["modprobe", "-r", "br_netfilter"])
    if sysctl.read("net/bridge/bridge-nf-call-iptables") is not None:
        pytest.skip("br_netfilter is built into this kernel, or in use")
    made = Network()
    for tool in ("iptables", "ip6tables"):
        tools.run([tool, "-P", "FORWARD", "DROP"])
    yield made
    made.close()


def test_bridged_packets_meet_a_foreign_policy_only_until_stop(dropping: Network, tmp_path: Path) -> None:
    with contextlib.closing(Denied(dropping)) as denied:
        all_ways = sorted(f"{here} to {address}" for here, there in DENIED_WAYS for address in ADDRESSES[there])
        assert denied.pass_now() == all_ways
        control.apply(compiled(tmp_path, "iptables"))
        assert denied.pass_now() == []
        assert len(control.stop().notes) == 1
        assert denied.pass_now() == all_ways


def test_chains_of_the_other_variant_go_and_those_in_use_stay(host: Namespace, tmp_path: Path) -> None:
    """Of ebtables too, whose ``ebtables-legacy-save`` lists whichever variant ``ebtables`` leads to."""
    need("iptables-legacy -L; ebtables-legacy -L; ebtables-nft -L; grep -q ^ebtable_filter /proc/modules")
    control.apply(numbered(tmp_path, "iptables", 1))
    held = output(["ebtables-nft-save"])
    assert any("PVEFW-FORWARD" in line for line in held)
    tools.run(["iptables-legacy-restore", "-n"], "*filter\n:PVEFW-INPUT - [0:0]\n-A INPUT -j PVEFW-INPUT\nCOMMIT\n")
    bridged = "*filter\n:PVEFW-FORWARD ACCEPT\n-A PVEFW-FORWARD -j DROP\n-A FORWARD -j PVEFW-FORWARD\n"
    tools.run(["ebtables-legacy-restore", "--noflush"], bridged)
    assert theirs.remove_other_variant() == ["iptables-legacy", "ebtables-legacy"]
    assert "PVEFW" not in tools.run(["iptables-legacy-save"]) + tools.run(["ebtables-legacy", "-L"])
    assert output(["ebtables-nft-save"]) == held
    assert theirs.remove_other_variant() == []
