"""Writes a comparison's report: as text for people, and as data for JSON."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pvefw_nft.verify import model as m
from pvefw_nft.verify.describe import packet_text, set_text, value_text
from pvefw_nft.verify.prove.program import CAST
from pvefw_nft.verify.prove.report import ANYWHERE, Answer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pvefw_nft.verify.intervals import IntervalSet
    from pvefw_nft.verify.prove.report import Difference, Place, Report

_ADDRESSES = {m.SADDR4: "from", m.SADDR6: "from", m.DADDR4: "to", m.DADDR6: "to"}
_WORDS = {m.SPORT: "source port", m.DPORT: "port", m.ETHER_SRC: "sender's MAC", m.CT_STATE: "state", CAST: "sent as"}


class SetNames:
    """Names of sets that rules refer to, to write instead of what is in them."""

    def __init__(self, report: Report) -> None:
        self._names: dict[IntervalSet, str] = {}
        self._protocols = report.protocols
        for model in report.models:
            for table in model.tables:
                for name, values in table.sets.items():
                    if len(values) > 1:
                        self._names.setdefault(values, name)

    def text(self, on: m.Field, values: IntervalSet) -> str:
        """Return the values of a field in words."""
        if name := self._names.get(values):
            return f"set {name}"
        if name := self._names.get(values.complement(on.size)):
            return f"not set {name}"
        return set_text(on, values)

    def protocol(self, protocol: int) -> str:
        """Return the network protocols that one stands for."""
        values = self._protocols[protocol]
        return "other ethertypes" if values.count() > 0x8000 else set_text(m.PROTOCOL, values)


def class_text(one: Difference, names: SetNames) -> str:
    """Return a difference in one line: ``tcp from 10.0.0.0/24 to vm100 port 22: ACCEPT → DROP``."""
    fields = dict(one.fields)
    kind = _kind(one, fields, names)
    source, destination = _zones(one.sources), _zones(one.destinations)
    where = {"from": [source], "to": [destination]}
    for on in list(fields):
        if on in _ADDRESSES:
            where[_ADDRESSES[on]].append(names.text(on, fields.pop(on)))
    ends = []
    for word, (zone, *addresses) in where.items():
        if addresses:
            ends.append(f"{word} {' '.join(addresses)}" + ("" if zone == ANYWHERE else f" ({zone})"))
        else:
            ends.append(f"{word} {zone}")
    rest = [f"{_WORDS.get(on, on.name)} {names.text(on, values)}" for on, values in _by_weight(fields)]
    return f"{' '.join([kind, *ends, *rest])}: {_verdict(one.before)} → {_verdict(one.after)}"


def _by_weight(fields: Mapping[m.Field, IntervalSet]) -> list[tuple[m.Field, IntervalSet]]:
    order = (m.DPORT, m.SPORT)
    return sorted(fields.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))


def _kind(one: Difference, fields: dict[m.Field, IntervalSet], names: SetNames) -> str:
    """Return what kind of packets they are, and take that from the fields."""
    words = ["VLAN-tagged"] if one.tagged else []
    versions = set(one.protocols) & {m.IPV4, m.IPV6}
    others = [protocol for protocol in one.protocols if protocol not in versions]
    network = [{m.IPV4: "IPv4", m.IPV6: "IPv6"}[version] for version in sorted(versions)]
    network += [names.protocol(protocol) for protocol in others]
    said = False
    for on in (m.ICMP, m.ICMP6):
        if on in fields:
            words.append(f"{on.name} {set_text(on, fields.pop(on))}")
            fields.pop(m.L4PROTO, None)
            said = True
    if m.L4PROTO in fields:
        words.append(set_text(m.L4PROTO, fields.pop(m.L4PROTO)))
    elif m.TCP_FLAGS in fields:
        words.append("tcp")
    elif not said:
        words.append("anything")
    addressed = any(on in fields for on in _ADDRESSES)
    if (len(network) == 1 and not addressed and not said) or others:
        words.append(f"({', '.join(network)})")
    return " ".join(words)


def _zones(zones: tuple[str, ...], limit: int = 6) -> str:
    if len(zones) > limit:
        return f"{', '.join(zones[:limit])} and {len(zones) - limit} more"
    return ", ".join(zones)


def _verdict(text: str) -> str:
    word, _, rest = text.partition(" ")
    return f"{word.upper()} {rest}".rstrip()


def place_text(place: Place) -> str:
    """Return a rule in one line: its place in the configuration, or in the ruleset, and the rule."""
    number = f" rule {place.number}" if place.number else " policy"
    line = f" (line {place.line})" if place.line else ""
    where = f"{place.origin}, " if place.origin else ""
    return f"{where}{place.table} {place.chain}{number}{line}: {place.text}"


_OPTIONS = {
    m.SADDR4: "--source", m.SADDR6: "--source", m.DADDR4: "--dest", m.DADDR6: "--dest", m.SPORT: "--sport",
    m.DPORT: "--dport", m.ICMP: "--icmp-type", m.ICMP6: "--icmp-type", m.TCP_FLAGS: "--tcp-flags",
    m.CT_STATE: "--ctstate", m.ETHER_SRC: "--mac", m.ETHER_DST: "--dest-mac", m.VLAN_ID: "--vlan",
    m.FRAGMENT: "--fragment", m.ARP_SPA: "--arp-sender",
}  # fmt: skip
_IMPLIED = (m.PROTOCOL, m.ETHER_TYPE, m.L4PROTO, *m.MARK)
_USUAL = {
    m.PKTTYPE: 0, m.FRAGMENT: 0, m.CT_DIRECTION: 0, m.TTL: 64, m.LENGTH: 60, m.DSCP: 0, m.TCP_FLAGS: 0x02,
    m.CT_STATE: m.CT_STATES.index("new"), m.SADDR_TYPE: m.ADDRESS_TYPES.index("unicast"),
    m.DADDR_TYPE: m.ADDRESS_TYPES.index("unicast"),
}  # fmt: skip


def simulate_arguments(one: Difference) -> list[str]:
    """Return the options with which ``pvefw simulate`` shows what becomes of the witness."""
    packet = one.witness.packet
    is_ip = m.L4PROTO in packet
    words = ["--from", str(one.witness.before.source), "--to", str(one.witness.before.destination)]
    if is_ip:
        words += ["-p", value_text(m.L4PROTO, packet[m.L4PROTO])]
        words += ["--family", "4" if packet[m.PROTOCOL] == m.IPV4 else "6"]
    else:
        words += ["--ether-type", value_text(m.PROTOCOL, packet[m.PROTOCOL])]
    mark = sum(packet.get(bit, 0) << place for place, bit in enumerate(m.MARK))
    words += ["--mark", f"{mark:#x}"] if mark else []
    for on, value in packet.items():
        if on in _IMPLIED or _USUAL.get(on, 0 if on.kind is m.FieldKind.BIT else None) == value:
            continue
        if on is m.CT_STATE and not is_ip:
            continue
        text = value_text(on, value)
        words += [_OPTIONS[on], text] if on in _OPTIONS else ["--field", f"{on.name}={text}"]
    return words


def report_text(report: Report, *, verbose: bool = False) -> str:
    """Return a report for people; ``verbose`` lists the rules of every difference and all known ones."""
    names = SetNames(report)
    lines: list[str] = []
    unexpected = report.unexpected
    match report.answer:
        case Answer.EQUAL:
            counts = report.counts
            lines.append(f"{report.before} and {report.after} treat every packet alike.")
            lines.append(
                f"Proved for {counts.cases} kinds of frames on {counts.ways} ways through the host"
                f" ({counts.diagrams} differing pairs of chains by decision diagrams)."
            )
        case Answer.DIFFERENT:
            lines.append(f"{report.before} and {report.after} differ: {report.before} → {report.after}")
        case Answer.UNDECIDED:
            lines.append(f"Not decided: no difference between {report.before} and {report.after} was found, but")
            lines.append("not everything could be compared.")
    lines += _section("The hosts differ:", report.plumbing)
    for one in unexpected:
        lines += ["", class_text(one, names), *_details(one)]
    if report.omitted:
        lines += ["", f"… and more ({report.omitted} lists of differences were cut short)"]
    known = [one for one in report.differences if one.known is not None]
    if known:
        lines += ["", f"Known differences: {len(known)}"]
        for one in known if verbose else known[:10]:
            lines.append(f"  {class_text(one, names)} ({one.known})")
        if not verbose and len(known) > 10:
            lines.append(f"  … {len(known) - 10} more")
    lines += _section("Not compared:", report.undecided)
    lines += _section("Not compared, since these tools cannot treat them alike:", report.left_out)
    lines += _section("This rests on:", report.assumptions)
    return "\n".join(lines) + "\n"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    """Return lines below a title; nothing where there are none."""
    return ["", title, *(f"  {line}" for line in lines)] if lines else []


def _details(one: Difference) -> list[str]:
    lines = [f"    example: {packet_text(one.witness.packet)}"]
    for word, places in (("before", one.rules_before), ("after", one.rules_after)):
        if not places:
            lines.append(f"    {word}: no rule decides")
        for place in places:
            lines.append(f"    {word}: {place_text(place)}")
            word = " " * len(word)
    return [*lines, f"    replay: pvefw simulate {shlex.join(simulate_arguments(one))}"]


def report_data(report: Report) -> dict[str, object]:
    """Return a report as plain data for JSON."""
    names = SetNames(report)
    return {
        "equal": report.equal,
        "answer": report.answer.value,
        "before": report.before,
        "after": report.after,
        "strict": report.strict,
        "differences": [_difference_data(one, names) for one in report.differences],
        "plumbing": list(report.plumbing),
        "omitted": report.omitted,
        "assumptions": list(report.assumptions),
        "left_out": list(report.left_out),
        "undecided": list(report.undecided),
        "proof": {
            "ways": report.counts.ways,
            "frames": report.counts.cases,
            "pairs": report.counts.pairs,
            "diagrams": report.counts.diagrams,
        },
    }


def _difference_data(one: Difference, names: SetNames) -> dict[str, object]:
    return {
        "text": class_text(one, names),
        "from": list(one.sources),
        "to": list(one.destinations),
        "protocols": [value_text(m.PROTOCOL, protocol) for protocol in one.protocols],
        "tagged": one.tagged,
        "first_packets": one.usual,
        "fields": {on.name: _set_data(on, values) for on, values in one.fields},
        "before": one.before,
        "after": one.after,
        "known": one.known,
        "rules_before": [place._asdict() for place in one.rules_before],
        "rules_after": [place._asdict() for place in one.rules_after],
        "packet": {
            "from": str(one.witness.before.source),
            "to": str(one.witness.before.destination),
            "text": packet_text(one.witness.packet),
            "simulate": simulate_arguments(one),
            "fields": {
                on.name: value_text(on, value)
                for on, value in one.witness.packet.items()
                if value or on.kind is not m.FieldKind.BIT
            },
        },
    }


def _set_data(on: m.Field, values: IntervalSet) -> list[str]:
    return [
        value_text(on, first) if first == last else f"{value_text(on, first)}-{value_text(on, last)}"
        for first, last in values
    ]
