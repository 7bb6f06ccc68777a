"""Refuses descriptions of packets that cannot be: a port of an ICMP packet, flags of a UDP one.

Where the options of a packet contradict each other, any answer would be about another packet than the one meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.verify.model import (
    ARP,
    IBR,
    IIF,
    IPV4,
    IPV6,
    IS_BRIDGED,
    L4PROTO,
    OBR,
    OIF,
    PHYSIN,
    PHYSOUT,
    PORT_PROTOCOLS,
    PROTOCOL,
    field_named,
    has_field,
    names,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.verify.model import Field
    from pvefw_nft.verify.simulate.spec import PacketSpec

_ICMP = (1, 58)
_BY_THE_WAY = (IIF, OIF, PHYSIN, PHYSOUT, IBR, OBR, IS_BRIDGED)


def check_spec(spec: PacketSpec, port: str | None) -> None:
    """Raise ValueError if the parts of a description contradict each other. ``port`` is the destination's port."""
    if port is not None and spec.dport is not None and str(spec.dport) != port:
        raise ValueError(f"--to names port {port}, --dport {spec.dport}: leave one out")
    if not 0 <= spec.mark < 1 << 32:
        raise ValueError(f"a mark has 32 bits, {spec.mark:#x} has more")
    ports = spec.sport is not None or spec.dport is not None or port is not None
    header = [
        name
        for name, given in (("a port", ports), ("--icmp-type", spec.icmp_type), ("--tcp-flags", spec.tcp_flags))
        if given
    ]
    if spec.fragment == "later" and header:
        raise ValueError(f"a later fragment has no {_header(header[0])}: leave out {header[0]}, or --fragment later")
    if spec.ether_type is not None or spec.protocol == "arp" or spec.arp_sender is not None:
        _check_frame(spec, header)
    elif "--icmp-type" in header and len(header) > 1:
        other = next(name for name in header if name != "--icmp-type")
        raise ValueError(f"ICMP has no {_header(other)}: leave out --icmp-type or {other}")
    elif spec.protocol is not None:
        for option in header:
            _check_transport(spec, option)


def _header(option: str) -> str:
    return {"a port": "ports", "--icmp-type": "ICMP type", "--tcp-flags": "TCP flags"}[option]


def _check_frame(spec: PacketSpec, header: list[str]) -> None:
    """Check a frame that is named by its ether type, or ARP."""
    kind = ARP if spec.ether_type is None else names.ether_type(spec.ether_type)
    if kind in (IPV4, IPV6):
        if spec.family is not None and spec.family != (4 if kind == IPV4 else 6):
            raise ValueError(f"--ether-type {spec.ether_type} and --family {spec.family} contradict each other")
        if spec.arp_sender is not None:
            raise ValueError("--arp-sender is for ARP, not for IP")
        return
    word = "ARP" if kind == ARP else f"ether type {kind:#06x}"
    if spec.arp_sender is not None and kind != ARP:
        raise ValueError(f"--arp-sender is for ARP, not for {word}")
    if spec.protocol not in (None, "arp"):
        raise ValueError(f"{word} is no IP, so there is no protocol {spec.protocol} in it")
    fragment = ["--fragment"] if spec.fragment not in (None, "whole") else []
    if wrong := [*header, *fragment]:
        raise ValueError(f"{word} is no IP: leave out {wrong[0]}")
    if spec.family == 6:
        raise ValueError(f"{word} and --family 6 contradict each other")


def _check_transport(spec: PacketSpec, option: str) -> None:
    """Check that a transport protocol has what an option names."""
    number = names.protocol_number(spec.protocol or "")
    allowed = {"a port": PORT_PROTOCOLS, "--icmp-type": _ICMP, "--tcp-flags": (6,)}[option]
    if number not in allowed:
        raise ValueError(f"protocol {spec.protocol} has no {_header(option)}")


def check_override(on: Field, packet: Mapping[Field, int]) -> None:
    """Raise ValueError if a packet's field cannot be set by name: another option says it, or it has none such."""
    if on in (PROTOCOL, L4PROTO):
        raise ValueError(f"'{on}' is not set with --field: use --proto, --family or --ether-type")
    if on in _BY_THE_WAY:
        raise ValueError(f"'{on}' is not set with --field: it follows from --from, --to and the hook")
    if not has_field(packet, on):
        raise ValueError(f"this packet has no '{on}'")


def known_field(name: str) -> Field:
    """Return the field of this name. Raises ValueError if there is none."""
    try:
        return field_named(name)
    except ValueError as error:
        raise ValueError(f"{error}; --format json shows the names of a packet's fields") from None
