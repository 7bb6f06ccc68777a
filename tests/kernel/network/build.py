"""Making a planned network of namespaces, veth pairs and bridges, and taking it down again.

The endpoints are silent: their interfaces have no addresses, answer nothing and send nothing of their own. So the wires
carry only the packets of probes and the host's reactions. The host knows them by permanent neighbour and forwarding
entries.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from .namespace import inside
from .plan import ROUTER, ROUTER_V4, ROUTER_V6, WAN_MAC, WAN_PORT, WAN_V4, WAN_V6

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .plan import Bridge, Endpoint, Plan

HOST_NAMESPACE = "pvlab-host"
ENDPOINT_INTERFACE = "eth0"

_SIOCSIFFLAGS = 0x8914
_IFF_UP_NOARP = 0x1 | 0x80

HOST_SETTINGS = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    # Probes come with any source address; reverse path filtering is not under test.
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/accept_local": "1",
    "ipv4/conf/all/accept_redirects": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/all/accept_redirects": "0",
    # A batch sends hundreds of packets at once, and every rejection must come back.
    "ipv4/icmp_ratelimit": "0",
    "ipv4/icmp_ratemask": "0",
    "ipv6/icmp/ratelimit": "0",
}

_made: list[str] = []
"""The namespaces made here and not yet taken down."""


def build(plan: Plan) -> None:
    """Make the network; one made before is taken down first.

    Raises:
        subprocess.CalledProcessError: ``ip`` or ``bridge`` refuses a line (its complaint is on stderr).
    """
    tear_down()
    namespaces = [HOST_NAMESPACE, *dict.fromkeys(endpoint.namespace for endpoint in plan.endpoints)]
    _ip(f"netns add {name}" for name in namespaces)
    _made.extend(namespaces)
    with inside(HOST_NAMESPACE):
        _write_settings(HOST_SETTINGS)
        _ip(_host_links(plan))
        for endpoint in plan.endpoints:
            if endpoint.filtered:
                _shut_firewall_bridge(endpoint)
        _ip(_host_addresses(plan))
        _batch("bridge", _forwarding_entries(plan))
    for name in namespaces[1:]:
        with inside(name):
            _write_settings({"ipv6/conf/all/disable_ipv6": "1"})
            _raise_interface(ENDPOINT_INTERFACE)


def tear_down() -> None:
    """Take the network down; without one, do nothing."""
    if _made:
        _ip(f"netns del {name}" for name in _made)
        _made.clear()


def _ip(lines: Iterable[str]) -> None:
    _batch("ip", lines)


def _batch(tool: str, lines: Iterable[str]) -> None:
    subprocess.run([tool, "-batch", "-"], input="".join(f"{line}\n" for line in lines), text=True, check=True)


def _write_settings(settings: dict[str, str]) -> None:
    for name, value in settings.items():
        (Path("/proc/sys/net") / name).write_text(value)


def _raise_interface(name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", name.encode(), _IFF_UP_NOARP))


def _host_links(plan: Plan) -> Iterator[str]:
    """Yield the lines that make bridges, wires and the firewall bridges, all up."""
    yield "link set lo up"
    for bridge in plan.bridges:
        yield f"link add {bridge.name} address {bridge.mac} type bridge forward_delay 0 mcast_snooping 0"
    wires: set[str] = set()
    for endpoint in plan.endpoints:
        if endpoint.port in wires:
            continue
        wires.add(endpoint.port)
        own = f" address {WAN_MAC}" if endpoint.name == ROUTER else ""
        far = f"peer name {ENDPOINT_INTERFACE} netns {endpoint.namespace} address {endpoint.mac}"
        yield f"link add {endpoint.port}{own} type veth {far}"
        yield f"link set {endpoint.port} up"
        if endpoint.filtered:
            yield from _firewall_bridge(endpoint)
        elif endpoint.bridge is not None and endpoint.tag is None:
            yield f"link set {endpoint.port} master {endpoint.bridge}"
    for bridge in plan.bridges:
        if bridge.tag is not None:
            below = bridge.uplink.partition(".")[0]
            yield f"link add link {below} name {bridge.uplink} type vlan id {bridge.tag}"
            yield f"link set {bridge.uplink} up"
            yield f"link set {bridge.uplink} master {bridge.name}"
        yield f"link set {bridge.name} up"


def _firewall_bridge(endpoint: Endpoint) -> Iterator[str]:
    fwbr, fwln, fwpr = endpoint.firewall_names
    yield f"link add {fwbr} type bridge forward_delay 0 mcast_snooping 0"
    yield f"link add {fwln} type veth peer name {fwpr}"
    for port, master in ((endpoint.port, fwbr), (fwln, fwbr), (fwpr, endpoint.bridge)):
        yield f"link set {port} master {master}"
    for link in (fwbr, fwln, fwpr):
        yield f"link set {link} up"


def _shut_firewall_bridge(endpoint: Endpoint) -> None:
    """Keep the host's IP stack off a firewall bridge and its ports, as pvefw_nft/host/bridges/firewall_bridge.py does.

    A bridge hands frames to some groups (01:80:c2:00:00:0e) to the stack as coming from the port, past all hooks.
    """
    for link in (*endpoint.firewall_names, endpoint.port):
        settings = {"ipv6/conf/{}/disable_ipv6": "1", "ipv4/conf/{}/arp_ignore": "8", "ipv4/conf/{}/rp_filter": "1"}
        _write_settings({name.format(link): value for name, value in settings.items()})


def _host_addresses(plan: Plan) -> Iterator[str]:
    """Yield the lines for the host's addresses, routes and permanent neighbours."""
    first = plan.bridges[0].name
    for interface in plan.host:
        yield f"address add {interface} dev {first}" + (" nodad" if interface.version == 6 else "")
    yield f"address add {WAN_V4} dev {WAN_PORT}"
    yield f"address add {WAN_V6} dev {WAN_PORT} nodad"
    yield f"route add default via {ROUTER_V4.ip}"
    yield f"route add default via {ROUTER_V6.ip}"
    yield f"route add 224.0.0.0/4 dev {first}"
    for endpoint in plan.endpoints:
        device = endpoint.bridge or WAN_PORT
        for address in (endpoint.v4, endpoint.v6):
            yield f"neigh replace {address} lladdr {endpoint.mac} dev {device} nud permanent"
            if endpoint.bridge is not None:
                source = plan.host_address(address.version)
                yield f"route replace {address} dev {device} src {source}"


def _forwarding_entries(plan: Plan) -> Iterator[str]:
    """Yield the lines that tell each bridge where each MAC address is.

    The entries are sticky: a probe that carries another endpoint's MAC address does not move it.
    """
    uplinks = {bridge.name: bridge.uplink for bridge in plan.bridges}
    for bridge in plan.bridges:
        for endpoint in plan.endpoints:
            if endpoint.bridge != bridge.name:
                continue
            port = endpoint.firewall_names[2] if endpoint.filtered else endpoint.port
            if endpoint.name.startswith("outside"):
                port = uplinks[bridge.name]
            yield f"fdb replace {endpoint.mac} dev {port} master static sticky"
    for endpoint in plan.endpoints:
        if endpoint.filtered:
            yield f"fdb replace {endpoint.mac} dev {endpoint.port} master static sticky"
            for mac in _beyond(plan, endpoint):
                yield f"fdb replace {mac} dev {endpoint.firewall_names[1]} master static sticky"


def _beyond(plan: Plan, endpoint: Endpoint) -> Iterator[str]:
    """Yield the MAC addresses that a filtered NIC's firewall bridge reaches through the guest's bridge."""
    own: Bridge = plan.bridge(str(endpoint.bridge))
    yield own.mac
    for other in plan.endpoints:
        if other.bridge == endpoint.bridge and other.mac != endpoint.mac:
            yield other.mac
