"""The address sets of software-defined networks: of each VNet, and of each guest that IPAM knows.

Proxmox VE makes them from two state files below ``etc/pve``: ``sdn/.running-config``, the SDN configuration that was
applied last, and ``sdn/pve-ipam-state.json`` (in older versions ``priv/ipam.db``), the addresses that its own IPAM
assigned. Rules refer to the sets as ``+sdn/NAME``, or as ``+NAME`` if neither guest nor cluster has such an ipset.

Example: VNet ``web`` with the one subnet 10.0.0.0/24, whose gateway is 10.0.0.1, gives the sets ``web-all``
(10.0.0.0/24), ``web-gateway`` (10.0.0.1), ``web-no-gateway`` (10.0.0.0/24 without 10.0.0.1) and ``web-dhcp`` (empty).
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pvefw_nft.config.grammar import Line
from pvefw_nft.config.model import Ipset, IpsetEntry
from pvefw_nft.config.values import BadValue, Prefix, Range, read_addresses, read_network
from pvefw_nft.errors import ConfigurationError, DeniedError, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from pvefw_nft.config.files import Files
    from pvefw_nft.config.findings import Findings

RUNNING_CONFIG = "sdn/.running-config"
"""The SDN configuration that was applied last, below ``etc/pve``."""

IPAM_STATES = ("sdn/pve-ipam-state.json", "priv/ipam.db")
"""Files of Proxmox's own IPAM, below ``etc/pve``: the first file that exists counts."""

STATE_FILES = (RUNNING_CONFIG, *IPAM_STATES)

_VNET = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_VMID = re.compile(r"[1-9][0-9]{0,8}")
_PROPERTY = re.compile(r"([a-z-]+)=([^,\s]+)")
_VNET_SET = re.compile(r".+-(?:all|gateway|no-gateway|dhcp)")
_MAX_DOUBTS = 100
"""Parts of a file that are reported one by one: the file is searched for each."""

_APPLY = "apply the SDN configuration again (Datacenter → SDN → Apply)"


@dataclass(frozen=True, slots=True)
class SdnSets:
    """The sets by name. ``missing`` says, for a set of VNets and for one of guests, why there may be none."""

    ipsets: Mapping[str, Ipset] = field(default_factory=dict)
    missing_vnets: str | None = None
    missing_guests: str | None = None

    def why_missing(self, name: str) -> str | None:
        """Say why there is no set of that name, if a state file is the reason."""
        if name.startswith("guest-ipam-"):
            return self.missing_guests
        return self.missing_vnets if _VNET_SET.fullmatch(name) else None


class _Unusable(ValueError):  # noqa: N818 - a finding about a state file, turned into a diagnostic
    """A part of a state file that lacks the form that Proxmox writes."""


def state_texts(files: Files, pve: Path) -> tuple[str | ConfigurationError | None, ...]:
    """Return the texts of the state files, in the order of :data:`STATE_FILES`.

    None means a file that does not exist, the exception one that cannot be read: rights are missing on
    ``priv`` for all but root.
    """
    return tuple(_text(files, pve / name) for name in STATE_FILES)


def _text(files: Files, path: Path) -> str | ConfigurationError | None:
    try:
        return files.text(path)
    except ConfigurationError as error:
        return error


def read_sdn(pve: Path, texts: tuple[str | ConfigurationError | None, ...], findings: Findings) -> SdnSets:
    """Return the sets. Mistakes of a state file are reported, and the rest of it is used."""
    running, *ipams = texts
    if running is None:
        # the service's user may not look into priv: without an SDN it holds no addresses
        ipams = [None if isinstance(text, DeniedError) else text for text in ipams]
    of_vnets, missing_vnets = _Reader(pve, RUNNING_CONFIG, findings).read(running, _vnet_sets)
    at = next((index for index, text in enumerate(ipams) if text is not None), 0)
    of_guests, missing_guests = _Reader(pve, IPAM_STATES[at], findings).read(ipams[at], _guest_sets)
    return SdnSets({**of_vnets, **of_guests}, missing_vnets, missing_guests)


class _Reader:
    """Read one state file; unusable parts go to ``findings``."""

    def __init__(self, pve: Path, name: str, findings: Findings) -> None:
        self.file = str(pve / name)
        self._name = f"etc/pve/{name}"
        self._findings = findings
        self._text = ""
        self._doubts = 0

    def read(
        self, text: str | ConfigurationError | None, make: Callable[[_Reader, dict[str, Any]], dict[str, Ipset]]
    ) -> tuple[dict[str, Ipset], str | None]:
        """Return the sets that ``make`` makes of a file's state, and why there are none if the file is unusable."""
        if text is None:
            return {}, f"{self._name} does not exist: {_APPLY}, or copy the file along"
        if isinstance(text, ConfigurationError):
            self._findings.warning("unreadable-sdn-state", Span(self.file, 0), text.message, text.hint)
            return {}, f"{self._name} cannot be read"
        self._text = text
        try:
            state = json.loads(text, object_pairs_hook=dict)
            if not isinstance(state, dict):
                raise _Unusable("the file holds no JSON object")
            return make(self, state), None
        except json.JSONDecodeError as error:
            line = Line(self.file, error.lineno, (text.split("\n")[error.lineno - 1 :] or [""])[0].rstrip("\r"))
            span = line.span(error.colno - 1, error.colno) if line.text else Span(self.file, error.lineno)
            self._findings.error("bad-sdn-state", span, f"no valid JSON: {error.msg}; no set is made of it", _APPLY)
        except (_Unusable, RecursionError, ValueError) as error:
            why = str(error) if isinstance(error, _Unusable) else "the file is no state of Proxmox's SDN"
            self._findings.error("bad-sdn-state", Span(self.file, 0), f"{why}; no set is made of it", _APPLY)
        return {}, f"{self._name} is not usable"

    def doubt(self, key: str, message: str) -> None:
        """Report a part that is left out; ``key`` is a key of the file, by which its line is found."""
        self._doubts += 1
        if self._doubts > _MAX_DOUBTS:
            if self._doubts == _MAX_DOUBTS + 1:
                self._findings.error("bad-sdn-state", Span(self.file, 0), "more of the file cannot be used", _APPLY)
            return
        at = self._text.find(json.dumps(key, ensure_ascii=False))
        number = self._text.count("\n", 0, at) + 1
        span = Span(self.file, 0) if at < 0 else Line(self.file, number, self._text.split("\n")[number - 1]).span()
        self._findings.error("bad-sdn-state", span, message, _APPLY)

    def made(self, name: str, entries: Iterable[tuple[Prefix, bool]]) -> Ipset:
        """Return a set; of entries for one network the first counts."""
        line = Line(self.file, 0, "")
        found: dict[tuple[int, int, int], IpsetEntry] = {}
        given = list(entries)
        for prefix, nomatch in given:
            found.setdefault((prefix.version, prefix.address, prefix.length), IpsetEntry(prefix, nomatch, line))
        return Ipset(name, tuple(found.values()), line, len(given) - len(found))


def _mapping(value: object, what: str) -> dict[str, Any]:
    """Return an object of the state; one that is absent is empty. Raises _Unusable for anything else."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _Unusable(f"`{what}` does not have the form that Proxmox writes")
    return value


def _ids(state: dict[str, Any], part: str) -> dict[str, Any]:
    return _mapping(_mapping(state.get(part), part).get("ids"), f"{part}.ids")


@dataclass(slots=True)
class _Vnet:
    """The settings of a VNet's subnets."""

    subnets: list[Prefix] = field(default_factory=list)
    gateways: list[Prefix] = field(default_factory=list)
    ranges: list[Prefix] = field(default_factory=list)


def _vnet_sets(reader: _Reader, state: dict[str, Any]) -> dict[str, Ipset]:
    if not isinstance(state.get("version", 0), int):
        raise _Unusable("the file has a version that is not known")
    vnets = {name: _Vnet() for name in _ids(state, "vnets")}
    for key, value in _ids(state, "subnets").items():
        _read_subnet(reader, key, value, vnets)
    made: dict[str, Ipset] = {}
    for name, vnet in vnets.items():
        if not _VNET.fullmatch(name):
            reader.doubt(name, f"`{name[:60]}` cannot be the name of a VNet; it is left out")
            continue
        subnets = [(subnet, False) for subnet in vnet.subnets]
        gateways = [(gateway, False) for gateway in vnet.gateways]
        holes = [(gateway, True) for gateway in vnet.gateways]
        sets = {"all": subnets, "gateway": gateways, "no-gateway": [*holes, *subnets]}
        sets["dhcp"] = [(network, False) for network in vnet.ranges]
        made |= {f"{name}-{kind}": reader.made(f"{name}-{kind}", entries) for kind, entries in sets.items()}
    return made


def _read_subnet(reader: _Reader, key: str, value: object, vnets: dict[str, _Vnet]) -> None:
    """Note one subnet at its VNet; ``key`` is ``ZONE-ADDRESS-LENGTH``."""
    try:
        settings = _mapping(value, key)
        vnet = vnets.get(str(settings.get("vnet")))
        if vnet is None:
            raise _Unusable(f"subnet `{key[:60]}` belongs to no VNet of this file; it is left out")
        _, address, length = f"--{key}".rsplit("-", 2)
        subnet, _ = read_network(f"{address}/{length}")
        if subnet.length == 0:
            raise _Unusable(f"subnet `{key[:60]}` is a whole address space, which no ipset holds; it is left out")
        vnet.subnets.append(subnet)
        gateway = settings.get("gateway")
        if gateway:
            vnet.gateways.append(_host(str(gateway)))
        ranges = settings.get("dhcp-range") or []
        for text in ranges if isinstance(ranges, list) else [ranges]:
            vnet.ranges += _range(text)
    except BadValue as bad:
        reader.doubt(key, f"subnet `{key[:60]}`: {bad.message}; its wrong part is left out")
    except _Unusable as unusable:
        reader.doubt(key, str(unusable))


def _host(text: str) -> Prefix:
    """Read one address. Raises BadValue."""
    prefix, _ = read_network(text.partition("/")[0])
    return prefix


def _range(written: object) -> list[Prefix]:
    """Read a range of addresses that DHCP gives away, as the networks that make it up. Raises BadValue.

    It is written as ``start-address=A,end-address=B``.
    """
    text = str(written)
    ends = dict(_PROPERTY.findall(text)) if isinstance(written, str) else written
    if not isinstance(ends, dict) or not {"start-address", "end-address"} <= ends.keys():
        raise BadValue(f"`{text[:60]}` is not a DHCP range", start=0, end=len(text), code="bad-address")
    span = read_addresses(f"{ends['start-address']}-{ends['end-address']}")
    if not isinstance(span, Range) or span.last - span.first + 1 == 1 << (32 if span.version == 4 else 128):
        raise BadValue(f"`{text[:60]}` is not a DHCP range", start=0, end=len(text), code="bad-address")
    address = ipaddress.IPv4Address if span.version == 4 else ipaddress.IPv6Address
    return [
        Prefix(span.version, int(network.network_address), network.prefixlen, str(network))
        for network in ipaddress.summarize_address_range(address(span.first), address(span.last))
    ]


def _guest_sets(reader: _Reader, state: dict[str, Any]) -> dict[str, Ipset]:
    addresses: dict[int, list[Prefix]] = {}
    if state and "zones" not in state:
        raise _Unusable("the file has no `zones`: it is of a version that is not known")
    for zone, zone_value in _mapping(state.get("zones"), "zones").items():
        for subnet, subnet_value in _mapping(_mapping(zone_value, zone).get("subnets"), f"{zone}.subnets").items():
            for address, value in _mapping(_mapping(subnet_value, subnet).get("ips"), f"{subnet}.ips").items():
                owner = _mapping(value, address).get("vmid")
                if owner is None:
                    continue
                try:
                    host = _host(address)
                except BadValue as bad:
                    reader.doubt(address, f"{bad.message}; it is left out")
                    continue
                if _VMID.fullmatch(str(owner)):
                    addresses.setdefault(int(owner), []).append(host)
                else:
                    reader.doubt(address, f"`{str(owner)[:40]}` is not a VMID; the address is left out")
    names = {f"guest-ipam-{vmid}": hosts for vmid, hosts in addresses.items()}
    return {name: reader.made(name, ((host, False) for host in hosts)) for name, hosts in names.items()}
