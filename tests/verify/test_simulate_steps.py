"""A packet's state follows from the packets sent before it: in which zone, and as far as they came."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from pvefw_nft.cli.simulate import simulate_command
from pvefw_nft.errors import UsageError
from pvefw_nft.verify.simulate.connections import Connections
from pvefw_nft.verify.simulate.tracking import ESTABLISHED, NEW
from tests.support import NODE
from tests.verify.probes import packet

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"


def nic(number: int) -> str:
    return f"net0: virtio=BC:24:11:00:00:0{number},bridge=vmbr0,firewall=1\n"


FILES: dict[str, str | bytes] = {
    "100.conf": nic(1),
    "100.fw": ON,
    "101.conf": nic(2),
    "101.fw": ON + "[RULES]\nIN ACCEPT -p tcp -dport 22\n",
}


def run(root: Path, packets: str, backend: str) -> tuple[int, str]:
    file = root / "tests.toml"
    file.write_text(packets)
    options = ["--root", str(root), "--node", NODE, "--local-network", "10.0.0.0/24", "--backend", backend]
    done = CliRunner().invoke(simulate_command, [*options, "--tests", str(file)])
    if isinstance(done.exception, UsageError):
        raise done.exception
    return done.exit_code, done.output


OPEN = 'from = "vm100", to = "vm101:22", source = "10.0.0.100", dest = "10.0.0.101"'
ANSWER = (
    'from = "vm101", to = "vm100:40000", source = "10.0.0.101", dest = "10.0.0.100", sport = 22, tcp-flags = "syn,ack"'
)


@pytest.mark.parametrize("backend", ["iptables", "nft"])
def test_an_answer_is_established_after_its_request(backend: str, make_root: MakeRoot) -> None:
    packets = f"""
[[packet]]
name = "answered"
steps = [{{ {OPEN} }}]
{ANSWER.replace(", ", chr(10))}
expect = "ACCEPT"

[[packet]]
name = "answer to nothing"
{ANSWER.replace(", ", chr(10))}
expect = "DROP"
"""
    assert run(make_root(FILES), packets, backend) == (0, "2 passed, 0 failed\n")


def test_a_connection_is_known_up_to_the_last_hook_of_its_first_packet(make_root: MakeRoot) -> None:
    denied = OPEN.replace(":22", ":25")
    answer = ANSWER.replace("sport = 22", "sport = 25")
    packets = f"""
[[packet]]
name = "101 denies it, but the bridges before know it, and so iptables lets 101 answer"
steps = [{{ {denied} }}]
{answer.replace(", ", chr(10))}
expect = "ACCEPT"

[[packet]]
name = "another port is not known"
steps = [{{ {denied} }}]
{answer.replace(", ", chr(10)).replace("sport = 25", "sport = 26")}
expect = "DROP"
"""
    assert run(make_root(FILES), packets, "iptables") == (0, "2 passed, 0 failed\n")


@pytest.mark.parametrize(("backend", "verdict"), [("nft", "DROP"), ("iptables", "ACCEPT")])
def test_a_connection_is_answered_by_its_other_side_only(backend: str, verdict: str, make_root: MakeRoot) -> None:
    packets = f"""
[[packet]]
name = "what the outside sends in 101's name to port 22, and then itself from there"
steps = [{{ from = "outside", to = "vm101:22", source = "10.0.0.101", dest = "10.0.0.9", sport = 25 }}]
from = "outside"
to = "vm101:25"
source = "10.0.0.9"
dest = "10.0.0.101"
sport = 22
expect = "{verdict}"
"""
    assert run(make_root(FILES), packets, backend) == (0, "1 passed, 0 failed\n")


def test_connections_are_known_in_their_zones_only() -> None:
    first = packet(protocol="ip", l4proto="udp", ip_saddr="10.0.0.1", ip_daddr="10.0.0.2", sport=1000, dport=53)
    back = packet(protocol="ip", l4proto="udp", ip_saddr="10.0.0.2", ip_daddr="10.0.0.1", sport=53, dport=1000)
    known = Connections()
    assert known.look_up((1, 1), first).state == NEW
    known.confirm()
    assert known.copy().look_up((1, 1), first).state == NEW
    assert known.copy().look_up((2, 2), back).state == NEW
    assert known.look_up((1, 1), back).state == ESTABLISHED
    assert known.look_up((1, 1), first).state == ESTABLISHED
    assert known.look_up((2, 2), first).state == NEW


def test_a_packet_that_is_dropped_leaves_no_connection() -> None:
    first = packet(protocol="ip", l4proto="udp", ip_saddr="10.0.0.1", ip_daddr="10.0.0.2", sport=1000, dport=53)
    back = packet(protocol="ip", l4proto="udp", ip_saddr="10.0.0.2", ip_daddr="10.0.0.1", sport=53, dport=1000)
    known = Connections()
    known.look_up((0, 0), first)
    assert known.look_up((0, 0), back).state == NEW


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('from = "vm100"\nexpect = "DROP"', "packet 1: needs from, to and expect"),
        (f'{OPEN.replace(", ", chr(10))}\nexpect = "DROP"\nsteps = 3', "packet 1: needs from, to and expect"),
        (
            f'{OPEN.replace(", ", chr(10))}\nexpect = "DROP"\nsteps = [{{ from = "vm100" }}]',
            "packet 1: each of its steps needs from and to",
        ),
        (
            f'{OPEN.replace(", ", chr(10))}\nexpect = "DROP"\nsteps = [{{ {OPEN}, expect = "DROP" }}]',
            "packet 1: unknown key 'expect'",
        ),
    ],
)
def test_steps_that_are_no_sequence_are_refused(table: str, message: str, make_root: MakeRoot) -> None:
    with pytest.raises(UsageError, match=message):
        run(make_root(FILES), f"[[packet]]\n{table}\n", "nft")
