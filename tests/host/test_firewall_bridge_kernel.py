"""Plumbing on the kernel the tests run on, each test in a namespace of its own."""

# ruff: noqa: ANN401 (pyroute2 is untyped)
from __future__ import annotations

import socket
import struct
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.host import sysctl
from pvefw_nft.host.bridges.firewall_bridge import Nic
from pvefw_nft.host.bridges.plug import plug_nics, unplug_nics
from pvefw_nft.host.links import Links, VlanRange, open_route, read_links

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Namespace

pyroute2 = pytest.importorskip("pyroute2")

NIC = Nic("tap100i0", "vmbr0", 100, 0)
HOST = "10.0.0.1"
GUEST = "10.0.0.100"
ETH_P_ALL = 3


@pytest.fixture
def route(host: Namespace) -> Iterator[Any]:
    with open_route() as route:
        yield route


def add(route: Any, name: str, **fields: Any) -> int:
    try:
        route.link("add", ifname=name, **fields)
    except pyroute2.NetlinkError as err:
        pytest.skip(f"this kernel cannot make a link of kind {fields.get('kind')} {fields}: {err}")
    return index(route, name)


def index(route: Any, name: str) -> int:
    found: int = route.link_lookup(ifname=name)[0]
    return found


def up(route: Any, *names: str) -> None:
    for name in names:
        route.link("set", index=index(route, name), state="up")


def guest_nic(route: Any, other: Namespace, name: str = "tap100i0", master: str | None = "vmbr0") -> None:
    """Make a NIC whose other end, eth0, is in the other namespace."""
    add(route, name, kind="veth", peer={"ifname": "eth0", "net_ns_fd": other.descriptor})
    if master is not None:
        route.link("set", index=index(route, name), master=index(route, master))
    up(route, name)
    with other.entered(), open_route() as there:
        up(there, "lo", "eth0")


def links(route: Any) -> Links:
    return read_links(route)


def listening(namespace: Namespace, name: str) -> socket.socket:
    with namespace.entered():
        packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        packet.bind((name, ETH_P_ALL))
        packet.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA: tags the kernel took off the frame
        packet.settimeout(0.1)
    return packet


def received(packet: socket.socket, marker: bytes, seconds: float = 1.0) -> list[int | None]:
    """Return the VLAN tag (None: no tag) of each frame that holds the marker and came within this time."""
    tags: list[int | None] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and not tags:
        try:
            frame, control, _, _ = packet.recvmsg(2048, 64)
        except TimeoutError:
            continue
        if marker not in frame:
            continue
        tag = None
        for level, kind, data in control:
            # struct tpacket_auxdata: status, len, snaplen, mac, net, vlan_tci, vlan_tpid
            if level == 263 and kind == 8 and struct.unpack_from("=I", data)[0] & 0x10:
                tag = struct.unpack_from("=IIIHHHH", data)[5] & 0xFFF
        if tag is None and frame[12:14] == b"\x81\x00":
            tag = struct.unpack_from("!H", frame, 14)[0] & 0xFFF
        tags.append(tag)
    return tags


def frame(marker: bytes, vlan: int | None = None, destination: bytes = b"\xff" * 6) -> bytes:
    tag = struct.pack("!HH", 0x8100, vlan) if vlan is not None else b""
    return destination + b"\xbc\x24\x11\x00\x00\x01" + tag + b"\x88\xb5" + marker.ljust(60, b".")


def test_plug_and_unplug(route: Any, other: Namespace) -> None:
    add(route, "vmbr0", kind="bridge", br_forward_delay=0, br_ageing_time=12300)
    route.link("set", index=index(route, "vmbr0"), mtu=1400)
    up(route, "vmbr0")
    guest_nic(route, other)

    (result,) = plug_nics([NIC])
    assert result.error is None
    now = links(route)
    assert now.ports("fwbr100i0") == ["fwln100i0", "tap100i0"]
    assert now.ports("vmbr0") == ["fwpr100p0"]
    bridge = now.get("fwbr100i0")
    assert bridge is not None
    assert bridge.bridge is not None
    assert bridge.bridge.ageing_time == 12300
    assert bridge.bridge.forward_delay == 0
    for name in ("fwbr100i0", "fwln100i0", "fwpr100p0", "tap100i0"):
        link = now.get(name)
        assert link is not None
        assert (link.mtu, link.up) == (1400, True)
        assert sysctl.read(f"net/ipv6/conf/{name}/disable_ipv6") in {"1", None}
        assert sysctl.read(f"net/ipv4/conf/{name}/arp_ignore") == "8"
    assert plug_nics([NIC])[0].steps == ()

    (result,) = unplug_nics([NIC])
    assert result.error is None
    now = links(route)
    assert now.ports("vmbr0") == []
    assert now.get("fwbr100i0") is None
    assert now.get("fwln100i0") is None
    assert now.get("tap100i0") is not None


def test_traffic_passes(route: Any, host: Namespace, other: Namespace) -> None:
    add(route, "vmbr0", kind="bridge", br_forward_delay=0)
    up(route, "vmbr0")
    guest_nic(route, other)
    assert plug_nics([NIC])[0].error is None
    seen = listening(host, "vmbr0")
    sender = listening(other, "eth0")
    time.sleep(0.1)  # the bridge's ports begin to forward
    sender.send(frame(b"to the outside"))
    assert received(seen, b"to the outside") == [None]


def test_half_built_plumbing_is_completed(route: Any, other: Namespace) -> None:
    add(route, "vmbr0", kind="bridge", br_forward_delay=0)
    guest_nic(route, other)
    add(route, "fwbr100i0", kind="bridge")
    add(route, "fwln100i0", kind="veth", peer={"ifname": "fwpr100p0"})
    assert plug_nics([NIC])[0].error is None
    now = links(route)
    assert now.ports("fwbr100i0") == ["fwln100i0", "tap100i0"]
    assert now.ports("vmbr0") == ["fwpr100p0"]
    assert plug_nics([NIC])[0].steps == ()


def test_one_failure_does_not_stop_the_rest(route: Any, other: Namespace) -> None:
    add(route, "vmbr0", kind="bridge", br_forward_delay=0)
    guest_nic(route, other)
    missing = Nic("tap200i0", "vmbr0", 200, 0)
    first, second = plug_nics([missing, NIC])
    assert first.error is not None
    assert "there is no link tap200i0" in first.error.message
    assert second.error is None
    assert links(route).ports("fwbr100i0") == ["fwln100i0", "tap100i0"]


def test_dry_run_changes_nothing(route: Any, other: Namespace) -> None:
    add(route, "vmbr0", kind="bridge", br_forward_delay=0)
    guest_nic(route, other)
    (result,) = plug_nics([NIC], dry_run=True)
    assert len(result.steps) > 10
    assert links(route).get("fwbr100i0") is None


def test_guests_bridge_keeps_its_address(route: Any, host: Namespace, other: Namespace) -> None:
    add(route, "vmbr0", kind="bridge", br_forward_delay=0)
    add(route, "eno1", kind="veth", address="02:00:00:00:00:01", peer={"ifname": "eno1x"})
    route.link("set", index=index(route, "eno1"), master=index(route, "vmbr0"))
    up(route, "vmbr0", "eno1")
    guest_nic(route, other, master=None)

    def address() -> str:
        (message,) = route.get_links(index(route, "vmbr0"))
        found: str = message.get_attr("IFLA_ADDRESS")
        return found

    before = address()
    assert plug_nics([NIC])[0].error is None
    assert address() == before == "02:00:00:00:00:01"


class _Detour:
    """A guest that knows the MAC address of its firewall bridge and uses it to reach the host's IP stack."""

    def __init__(self, route: Any, host: Namespace, guest: Namespace) -> None:
        add(route, "vmbr0", kind="bridge", br_forward_delay=0)
        route.addr("add", index=index(route, "vmbr0"), address=HOST, prefixlen=24)
        up(route, "vmbr0", "lo")
        for scope in ("all", "default"):
            sysctl.write(f"net/ipv4/conf/{scope}/rp_filter", "0")
        guest_nic(route, guest)
        assert plug_nics([NIC])[0].error is None
        (message,) = route.get_links(index(route, "fwbr100i0"))
        self.mac = bytes.fromhex(message.get_attr("IFLA_ADDRESS").replace(":", ""))
        with host.entered():
            self.server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.server.bind((HOST, 5000))
            self.server.settimeout(0.5)
        self.guest = listening(guest, "eth0")

    def datagram_arrives(self) -> bool:
        udp = struct.pack("!HHHH", 4000, 5000, 8 + 6, 0) + b"detour"
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0)
        header += socket.inet_aton(GUEST) + socket.inet_aton(HOST)
        total = sum(struct.unpack("!10H", header))
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        header = header[:10] + struct.pack("!H", checksum) + header[12:]
        self.guest.send(self.mac + b"\xbc\x24\x11\x00\x00\x01" + b"\x08\x00" + header + udp)
        try:
            return self.server.recv(64) == b"detour"
        except TimeoutError:
            return False

    def arp_answers(self) -> set[bytes]:
        """Return the MAC addresses that answer for the host's address."""
        sender = b"\xbc\x24\x11\x00\x00\x01"
        request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + sender + socket.inet_aton(GUEST)
        request += b"\0" * 6 + socket.inet_aton(HOST)
        self.guest.send(b"\xff" * 6 + sender + b"\x08\x06" + request)
        answers = set()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            try:
                data = self.guest.recv(2048)
            except TimeoutError:
                continue
            if data[12:14] == b"\x08\x06" and data[20:22] == b"\x00\x02":
                answers.add(data[6:12])
        return answers


def test_way_around_the_filter_is_shut(route: Any, host: Namespace, other: Namespace) -> None:
    detour = _Detour(route, host, other)
    assert not detour.datagram_arrives()
    assert detour.mac not in detour.arp_answers()


def test_way_around_the_filter_stays_shut_with_loose_checking(route: Any, host: Namespace, other: Namespace) -> None:
    detour = _Detour(route, host, other)
    sysctl.write("net/ipv4/conf/fwbr100i0/rp_filter", "2")
    assert not detour.datagram_arrives()
    assert plug_nics([NIC])[0].steps == ()


def test_way_around_the_filter_would_be_open_without_the_settings(
    route: Any, host: Namespace, other: Namespace
) -> None:
    detour = _Detour(route, host, other)
    for key in ("rp_filter", "arp_ignore"):
        sysctl.write(f"net/ipv4/conf/fwbr100i0/{key}", "0")
    assert detour.datagram_arrives()
    assert detour.mac in detour.arp_answers()


def test_vlans_on_a_vlan_aware_bridge(route: Any, host: Namespace, other: Namespace) -> None:
    add(route, "vmbr0", kind="bridge", br_forward_delay=0, br_vlan_filtering=1)
    up(route, "vmbr0")
    add(route, "eno1", kind="veth", peer={"ifname": "outside"})
    route.link("set", index=index(route, "eno1"), master=index(route, "vmbr0"))
    everything = {"attrs": [("IFLA_BRIDGE_VLAN_INFO", {"vid": vid, "flags": 0}) for vid in (5, 7, 9)]}
    route.vlan_filter("add", index=index(route, "eno1"), af_spec=everything)
    up(route, "eno1", "outside")
    guest_nic(route, other)
    tagged = replace(NIC, tag=5, trunks=(VlanRange(7, 8),))
    assert plug_nics([tagged])[0].error is None
    assert plug_nics([tagged])[0].steps == ()

    outside = listening(host, "outside")
    guest = listening(other, "eth0")
    time.sleep(0.2)  # the bridge's ports begin to forward
    guest.send(frame(b"without a tag"))
    assert received(outside, b"without a tag") == [5]
    guest.send(frame(b"in a trunk", vlan=7))
    assert received(outside, b"in a trunk") == [7]
    guest.send(frame(b"in another VLAN", vlan=9))
    assert received(outside, b"in another VLAN", 0.5) == []
    outside.send(frame(b"from outside", vlan=5))
    assert received(guest, b"from outside") == [None]
    outside.send(frame(b"not for this guest", vlan=9))
    assert received(guest, b"not for this guest", 0.5) == []

    before = links(route).get("eno1")
    assert plug_nics([NIC])[0].error is None  # tag and trunks taken away
    port = links(route).get("fwpr100p0")
    assert port is not None
    assert port.vlans == (VlanRange(1, 1, pvid=True, untagged=True), VlanRange(2, 4094))
    unplug_nics([NIC])
    assert links(route).get("eno1") == before


def test_tag_on_a_plain_bridge(route: Any, host: Namespace, other: Namespace) -> None:
    add(route, "vmbr0", kind="bridge", br_forward_delay=0)
    up(route, "vmbr0")
    add(route, "bond0", kind="bond", bond_mode=1)
    add(route, "eno1", kind="veth", peer={"ifname": "outside"})
    route.link("set", index=index(route, "eno1"), master=index(route, "bond0"))
    route.link("set", index=index(route, "bond0"), master=index(route, "vmbr0"))
    up(route, "eno1", "outside", "bond0")
    guest_nic(route, other)
    before = links(route)
    tagged = replace(NIC, tag=5)
    assert plug_nics([tagged])[0].error is None
    assert plug_nics([tagged])[0].steps == ()
    assert links(route).ports("vmbr0v5") == ["bond0.5", "fwpr100p0"]

    outside = listening(host, "outside")
    guest = listening(other, "eth0")
    time.sleep(0.5)  # the bridge's ports begin to forward
    guest.send(frame(b"without a tag"))
    assert received(outside, b"without a tag") == [5]
    outside.send(frame(b"from outside", vlan=5))
    assert received(guest, b"from outside") == [None]

    assert unplug_nics([tagged])[0].error is None
    after = {link.name for link in links(route)}
    assert after == {link.name for link in before}
    assert links(route).ports("vmbr0") == ["bond0"]
