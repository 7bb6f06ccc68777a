"""Answers to the host count only in connections that it opened itself, not in those that it routes."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from pvefw_nft.cli import cli
from tests.kernel.ip import checksum, pseudo_header
from tests.kernel.packets import mac_bytes
from tests.support import NODE

from .conftest import Namespace, need

if TYPE_CHECKING:
    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"
HOST, NEIGHBOUR = "fd00::2", "fd00::103"
DENIED = 113
NETWORK = f"""
ip link set lo up
ip link add vmbr0 type bridge
ip link add port0 type veth peer name eth0
ip link set port0 master vmbr0
ip link set vmbr0 up
ip link set port0 up
ip link set eth0 up
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
ip address add {HOST}/64 dev vmbr0 nodad
"""


def datagram(macs: bytes, source: tuple[str, int], destination: tuple[str, int], data: bytes) -> bytes:
    """Return a frame with a UDP datagram; ``macs`` are the addresses of receiver and sender."""
    ends = IPv6Address(source[0]), IPv6Address(destination[0])
    length = 8 + len(data)
    header = struct.pack("!HHH", source[1], destination[1], length)
    total = checksum(pseudo_header(*ends, 17, length) + header + bytes(2) + data)
    ip = struct.pack("!IHBB", 6 << 28, length, 17, 64) + ends[0].packed + ends[1].packed
    return macs + b"\x86\xdd" + ip + header + struct.pack("!H", total) + data


def heard(listener: socket.socket) -> bytes | None:
    try:
        return listener.recv(100)
    except TimeoutError:
        return None


def listening(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.bind((HOST, port))
    made.settimeout(1)
    return made


def mac_of(name: str) -> str:
    shown = subprocess.run(["ip", "-j", "link", "show", name], check=True, capture_output=True, text=True)
    return str(json.loads(shown.stdout)[0]["address"])


def test_an_answer_in_a_connection_that_the_host_routed(make_root: MakeRoot) -> None:
    """A neighbour has the host route a packet in its own name back to him; what he then sends looks like an answer."""
    root = make_root({"cluster": ON, "host": ON})
    arguments = ["compile", "--backend", "nft", "--format", "text", "--root", str(root), "--node", NODE]
    text = CliRunner().invoke(cli, [*arguments, "--local-network", "10.0.0.0/24"], catch_exceptions=False).stdout
    rules = text[text.index("add table inet pvefw") :]
    with Namespace().entered():
        need(NETWORK)
        if subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=False).returncode:
            pytest.skip("this kernel has not all that the rules need")
        macs = mac_bytes(mac_of("vmbr0")) + mac_bytes(mac_of("eth0"))
        subprocess.run(
            ["ip", "neighbour", "replace", NEIGHBOUR, "lladdr", mac_of("eth0"), "dev", "vmbr0", "nud", "permanent"],
            check=True,
        )
        with (
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link,
            listening(DENIED) as denied,
            listening(5555) as asking,
        ):
            link.bind(("eth0", 0))
            link.send(datagram(macs, (NEIGHBOUR, 40501), (HOST, DENIED), b"a question"))
            assert heard(denied) is None
            link.send(datagram(macs, (HOST, DENIED), (NEIGHBOUR, 40502), b"in its name"))
            link.send(datagram(macs, (NEIGHBOUR, 40502), (HOST, DENIED), b"an answer"))
            assert heard(denied) is None
            asking.sendto(b"a question", (NEIGHBOUR, 7))
            link.send(datagram(macs, (NEIGHBOUR, 7), (HOST, 5555), b"a true answer"))
            assert heard(asking) == b"a true answer"
