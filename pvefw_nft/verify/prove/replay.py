"""The ``pvefw simulate`` commands that repeat an example."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.text import value_text
from pvefw_nft.verify.network.path import NicEnd, PortEnd, RoutedEnd
from pvefw_nft.verify.simulate.conntrack import first_state

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pvefw_nft.verify.network.path import End, Topology
    from pvefw_nft.verify.prove.report import Difference

_OPTIONS = {on: known.option for on, known in m.DECLARED.items() if known.option is not None}
_IMPLIED = (m.PROTOCOL, m.ETHER_TYPE, m.L4PROTO, m.CT_STATE, m.TCP_FLAGS, *m.MARK)
"""Fields whose options depend on more than their value: :func:`simulate_arguments` writes them itself."""
_USUAL = {
    on: default
    for on, default in m.DEFAULTS.items()
    if on not in _IMPLIED and all(version in m.protocols_of(on) for version in (m.IPV4, m.IPV6))
}
"""Values left out of commands: those that IP packets of both versions have by default. Other headers (ARP, a second
VLAN tag, IPv6 extensions) are written in full.
"""
_UNICAST, _LOCAL = (m.ADDRESS_TYPES.index(name) for name in ("unicast", "local"))


def simulate_arguments(one: Difference, side: int = 0) -> list[str]:
    """Return the options with which ``pvefw simulate`` repeats the counterexample on a side (0 or 1)."""
    packet = one.counterexample.packet
    is_ip = m.L4PROTO in packet
    source, destination = one.counterexample.zones[side]
    words = ["--from", source, "--to", destination]
    if is_ip:
        words += ["-p", _protocol(packet)]
        words += ["--family", "4" if packet[m.PROTOCOL] == m.IPV4 else "6"]
    else:
        words += ["--ether-type", value_text(m.PROTOCOL, packet[m.PROTOCOL])]
    mark = sum(packet.get(bit, 0) << place for place, bit in enumerate(m.MARK))
    words += ["--mark", f"{mark:#x}"] if mark else []
    state = m.CT_STATES[packet[m.CT_STATE]]
    given = is_ip and state != first_state(packet)
    words += ["--ctstate", state] if given else []
    if m.TCP_FLAGS in packet and packet[m.TCP_FLAGS] != (0x10 if given and state != "new" else 0x02):
        words += ["--tcp-flags", value_text(m.TCP_FLAGS, packet[m.TCP_FLAGS])]
    types = {m.SADDR_TYPE: source, m.DADDR_TYPE: destination}
    usual = _USUAL | {on: _LOCAL if zone == "host" else _UNICAST for on, zone in types.items()}
    for on, value in packet.items():
        if on in _IMPLIED or usual.get(on, 0 if on.kind is m.FieldKind.BIT else None) == value:
            continue
        text = value_text(on, value)
        words += [_OPTIONS[on], text] if on in _OPTIONS else ["--field", f"{on.name}={text}"]
    return words


def zone_text(topology: Topology, end: End) -> str:
    """Return the zone of an end: its name on that host, or, for one that only rules name, the assumed one."""
    match end:
        case NicEnd(nic) if nic not in topology.nics:
            return f"nic/{nic.bridge}/{nic.interface}"
        case PortEnd(bridge, port) if (link := topology.link(bridge)) is None or port not in link.ports:
            return f"port/{bridge}/{port}"
        case RoutedEnd(interface) if topology.link(interface) is None:
            return f"iface/{interface}"
    return str(end)


def _protocol(packet: Mapping[m.Field, int]) -> str:
    """Return the transport protocol; ICMP of the other IP version by its number, since the name means its own."""
    number = packet[m.L4PROTO]
    foreign = number == (58 if packet[m.PROTOCOL] == m.IPV4 else 1)
    return str(number) if foreign else value_text(m.L4PROTO, number)


def replay_commands(one: Difference, rulesets: Sequence[Sequence[str]]) -> list[str]:
    """Return the command lines that show each ruleset's verdict on the example, ready to paste.

    ``rulesets`` are the options that choose each side's ruleset, or those that choose both at once.
    """
    found = [["pvefw", "simulate", *chosen, *simulate_arguments(one, at)] for at, chosen in enumerate(rulesets)]
    return [*dict.fromkeys(map(shlex.join, found))]
