"""Read the bridges, uplinks and addresses of a host from /etc/network/interfaces (interfaces(5), Debian's ifupdown2).

Only facts that the way of a packet depends on are read: the names, ``bridge-ports`` (or ``bridge_ports``), the VLAN of
an interface (by its name, ``vmbr0.5``, or by ``vlan-raw-device`` and ``vlan-id``), and addresses.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pvefw_nft.verify.model import names
from pvefw_nft.verify.network.path import Link, Network


@dataclass(slots=True)
class _Stanza:
    """The settings of one interface, from its stanzas."""

    is_bridge: bool = False
    vlan_aware: bool = False
    raw_device: str = ""
    vlan_id: str = ""
    ports: list[str] = field(default_factory=list)
    networks: list[Network] = field(default_factory=list)


def read_interfaces(text: str) -> tuple[Link, ...]:
    """Return the host's interfaces that have addresses or are bridges, in the order of the file.

    Words that are no address are skipped: the file belongs to other tools, which complain about it.
    """
    stanzas: dict[str, _Stanza] = {}
    current: _Stanza | None = None
    address = ""
    for line in text.replace("\\\n", " ").splitlines():
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        option = words[0].replace("_", "-")
        if option == "iface" and len(words) > 1:
            current = stanzas.setdefault(words[1], _Stanza())
            address = ""
        elif option in ("auto", "source", "source-directory", "mapping") or option.startswith("allow-"):
            current = None
        elif current is None or len(words) < 2:
            continue
        elif option == "bridge-ports":
            current.is_bridge = True
            current.ports += [port for port in words[1:] if port != "none"]
        elif option == "bridge-vlan-aware":
            current.vlan_aware = words[1].lower() in ("yes", "on", "1", "true")
        elif option == "vlan-raw-device":
            current.raw_device = words[1]
        elif option == "vlan-id":
            current.vlan_id = words[1]
        elif option == "address":
            address = words[1]
            _add(current, address)
        elif option == "netmask" and "/" not in address:
            _add(current, f"{address}/{words[1]}")
    return tuple(
        Link(
            name,
            stanza.is_bridge,
            tuple(stanza.ports),
            tuple(stanza.networks),
            _vlan(name, stanza),
            stanza.vlan_aware,
        )
        for name, stanza in stanzas.items()
        if stanza.is_bridge or (stanza.networks and name != "lo")
    )


def _vlan(name: str, stanza: _Stanza) -> tuple[str, int] | None:
    """Return the interface and the tag of the frames that a VLAN interface takes."""
    if stanza.is_bridge:
        return None
    device, _, number = name.rpartition(".")
    if stanza.raw_device:
        device, number = stanza.raw_device, stanza.vlan_id or name.lower().removeprefix("vlan")
    return (device, int(number)) if device and number.isdecimal() else None


def _add(stanza: _Stanza, text: str) -> None:
    if "/" not in text:
        return
    version = 6 if ":" in text else 4
    try:
        first, last = names.network_range(text, version)
        address = names.address_number(text.partition("/")[0], version)
    except ValueError:
        return
    bits = 32 if version == 4 else 128
    stanza.networks.append(Network(version, address, bits - (last - first).bit_length()))
