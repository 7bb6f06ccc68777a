"""The services of a rule: the protocol, ports and ICMP type of the rule or its macro.

They depend only on the words of the rule, not on its place. So equal words are read once.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from pvefw_nft.config import macros, netdb
from pvefw_nft.config.model import Icmp, Service
from pvefw_nft.config.values import PORT_PROTOCOLS, BadValue, Family, common, nearest, read_ports, read_protocol

if TYPE_CHECKING:
    from pvefw_nft.config.values import PortRange, Protocol


class FieldProblem(Exception):  # noqa: N818 - a finding about a field, turned into a diagnostic
    """A mistake in one field of a rule, independent of its place."""

    def __init__(
        self, field: str, code: str, message: str, hint: str | None = None, bad: BadValue | None = None
    ) -> None:
        super().__init__(message)
        self.field = field
        self.code = code
        self.message = message
        self.hint = hint
        self.bad = bad


def _of(name: str, bad: BadValue) -> FieldProblem:
    return FieldProblem(name, bad.code, bad.message, bad.hint, bad)


_ICMP = {"icmp": 4, "icmpv6": 6, "ipv6-icmp": 6}
_ICMP_FAMILY = {4: Family.V4, 6: Family.V6}


@netdb.rests_on_names
@lru_cache(maxsize=16384)
def plain(proto: str | None, dport: str | None, sport: str | None, icmp_type: str | None) -> tuple[Service, ...]:
    """Return the service of a rule without a macro."""
    if proto is None:
        for name, value in (("dport", dport), ("sport", sport)):
            if value is not None:
                raise FieldProblem(name, "port-without-protocol", "a port needs a protocol", "add -p tcp or -p udp")
        if icmp_type is not None:
            raise FieldProblem(
                "icmp-type", "bad-icmp-type", "an ICMP type needs a protocol", "add -p icmp or -p icmpv6"
            )
        return (Service(Family.BOTH),)
    try:
        protocol = read_protocol(proto)
    except BadValue as bad:
        raise _of("proto", bad) from None
    version = _ICMP.get(protocol.spelling)
    if version is not None:
        return (Service(_ICMP_FAMILY[version], protocol, icmp=_icmp(version, dport, sport, icmp_type)),)
    if icmp_type is not None:
        raise FieldProblem(
            "icmp-type",
            "bad-icmp-type",
            f"protocol `{proto}` has no ICMP types",
            "an ICMP type goes with -p icmp or -p icmpv6",
        )
    ports = {"sport": sport, "dport": dport}
    if protocol.number not in PORT_PROTOCOLS:
        for name, value in ports.items():
            if value is not None:
                raise FieldProblem(
                    name,
                    "port-without-protocol",
                    f"protocol `{proto}` has no ports",
                    "ports go with " + ", ".join(PORT_PROTOCOLS.values()),
                )
        return (Service(Family.BOTH, protocol),)
    return (Service(Family.BOTH, protocol, _ports("sport", sport, protocol), _ports("dport", dport, protocol)),)


def _ports(name: str, text: str | None, protocol: Protocol) -> tuple[PortRange, ...]:
    if text is None:
        return ()
    try:
        return read_ports(text, protocol.number)
    except BadValue as bad:
        raise _of(name, bad) from None


def _icmp(version: int, dport: str | None, sport: str | None, icmp_type: str | None) -> Icmp | None:
    """Return the ICMP type of a rule: a name, or in older files a name or number in the place of the port."""
    if sport is not None:
        raise FieldProblem("sport", "port-without-protocol", "ICMP has no source ports")
    if icmp_type is not None and dport is not None:
        raise FieldProblem("dport", "bad-icmp-type", "the rule has an ICMP type already", "remove -dport")
    text = dport if icmp_type is None else icmp_type
    if text is None:
        return None
    name = "dport" if icmp_type is None else "icmp-type"
    if dport is not None and text.isascii() and text.isdigit():
        if len(text) > 3 or int(text) > 255 or (text[0] == "0" and text != "0"):
            raise FieldProblem(
                name,
                "bad-icmp-type",
                f"`{text[:40]}` is not an ICMP type",
                "types go from 0 to 255, without leading zeros",
            )
        return Icmp(version, int(text), None, text)
    known = netdb.icmp_type(version, text)
    if known is None:
        raise FieldProblem(
            name,
            "bad-icmp-type",
            f"unknown type `{text[:60]}` of {'ICMP' if version == 4 else 'ICMPv6'}",
            _icmp_hint(version, text),
        )
    return Icmp(version, *known, text)


def _icmp_hint(version: int, text: str) -> str | None:
    """Say how an ICMP type is written that is none; Proxmox's nft firewall takes numbers and names of nft too."""
    if text.lower() == "any":
        return "leave out -icmp-type: without it, every type matches"
    numbers = _ICMP_NUMBERS.fullmatch(text)
    if numbers is not None:
        wanted = int(numbers[1]), None if numbers[2] is None else int(numbers[2])
        name = next((name for name in netdb.icmp_type_names(version) if netdb.icmp_type(version, name) == wanted), None)
        if name is None and wanted[1] is None and wanted[0] < 256:
            return f"-icmp-type takes names only; `-dport {wanted[0]}` takes the number"
        return f"-icmp-type takes names only: write {name}" if name else "-icmp-type takes names only"
    nft = netdb.nft_icmp_name(version, text)
    if nft is not None:
        return f"this is nft's name: write {nft}"
    if netdb.icmp_type(10 - version, text) is not None:
        return f"it is a type of {'ICMPv6' if version == 4 else 'ICMP'}"
    return nearest(text, netdb.icmp_type_names(version))


_ICMP_NUMBERS = re.compile(r"([0-9]{1,3})(?:/([0-9]{1,3}))?")


@netdb.rests_on_names
@lru_cache(maxsize=4096)
def expanded(
    name: str,
    families: Family,
    proto: str | None,
    dport: str | None,
    sport: str | None,
    icmp_type: str | None,
) -> tuple[Service, ...]:
    """Return the services of a macro, with its open fields taken from the rule.

    Before: ``DNS(ACCEPT)``. After: udp to port 53, tcp to port 53, each for both families.
    """
    macro = macros.get(name)
    if macro is None:
        raise KeyError(name)
    if families == Family.BOTH and macro.rules_v4 == macro.rules_v6:
        return tuple(_merged(macro, rule, Family.BOTH, proto, dport, sport, icmp_type) for rule in macro.rules_v4)
    services: list[Service] = []
    wanted = common(families, _ICMP_FAMILY[_ICMP[proto]]) if proto in _ICMP else families
    if wanted is None:
        raise FieldProblem("proto", "mixed-families", f"`{proto}` and the addresses are of different families")
    for family, rules in ((Family.V4, macro.rules_v4), (Family.V6, macro.rules_v6)):
        if family & wanted:
            services += [_merged(macro, rule, family, proto, dport, sport, icmp_type) for rule in rules]
    return tuple(services)


def _merged(
    macro: macros.Macro,
    rule: macros.MacroRule,
    family: Family,
    proto: str | None,
    dport: str | None,
    sport: str | None,
    icmp_type: str | None,
) -> Service:
    if icmp_type is not None and (rule.proto not in _ICMP or (rule.dport or icmp_type) != icmp_type):
        said = "sets another one" if rule.proto in _ICMP else "matches other protocols"
        raise FieldProblem(
            "icmp-type",
            "macro-conflict",
            f"the rule sets ICMP type {icmp_type[:40]}, but macro {macro.name} {said}",
            "remove -icmp-type, or write a rule without the macro",
        )
    settings = {"proto": (rule.proto, proto), "dport": (rule.dport, dport), "sport": (rule.sport, sport)}
    for field_name, (fixed, given) in settings.items():
        if fixed is not None and given is not None and fixed != given:
            what = {"proto": "protocol", "dport": "destination port", "sport": "source port"}[field_name]
            raise FieldProblem(
                field_name,
                "macro-conflict",
                f"macro {macro.name} sets {what} {fixed}, the rule says {given[:40]}",
                "write a rule without the macro",
            )
    dport, icmp_type = (rule.dport or dport), (None if rule.dport else icmp_type)
    (service,) = plain(rule.proto, dport, rule.sport or sport, icmp_type)
    families = common(service.families, family)
    if families is None:
        raise FieldProblem(
            "action", "mixed-families", f"macro {macro.name} has no rules for the family of these addresses"
        )
    return Service(families, service.protocol, service.sport, service.dport, service.icmp)
