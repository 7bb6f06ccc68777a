"""Writes a comparison's report: as text for people, and as data for JSON."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.text import packet_text, set_text, value_text
from pvefw_nft.verify.prove.program import CAST
from pvefw_nft.verify.prove.replay import replay_commands, simulate_arguments
from pvefw_nft.verify.prove.report import ANYWHERE, Answer
from pvefw_nft.verify.prove.summary import Change, change_of, filters, groups_of, lines_of, zones_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pvefw_nft.verify.model.intervals import IntervalSet
    from pvefw_nft.verify.prove.place import Place
    from pvefw_nft.verify.prove.report import Difference, Report
    from pvefw_nft.verify.prove.summary import Group

_ADDRESSES = {m.SADDR4: "from", m.SADDR6: "from", m.DADDR4: "to", m.DADDR6: "to"}
_WORDS = {m.SPORT: "source port", m.DPORT: "port", m.ETHER_SRC: "sender's MAC", m.CT_STATE: "state", CAST: "sent as"}


class SetNames:
    """Names of sets that rules refer to, to write instead of their members."""

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
        """Return the network protocols that one represents."""
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
    """Return the kind of packets, and remove it from the fields."""
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


LIMIT = 10
"""How many groups are shown without ``verbose``."""


def report_text(report: Report, *, verbose: bool = False, rulesets: Sequence[Sequence[str]] = ()) -> str:
    """Return a report for people: the answer first and last, the worst differences between.

    ``rulesets`` are the options that have ``pvefw simulate`` look at each side. ``verbose`` lists every class of
    packets and all expected differences.
    """
    names = SetNames(report)
    answer = answer_text(report)
    lines = [answer]
    if report.answer is Answer.EQUAL and not any(map(filters, report.models)):
        return f"{answer}\n"
    groups = groups_of(report)
    if groups:
        lines += _summary(report, groups)
    lines += _hosts(report, verbose=verbose)
    if groups:
        lines += _group_lines(groups, names, rulesets, verbose=verbose)
    if report.omitted:
        lines += ["", f"More packets differ than are listed: {_count(report.omitted, 'list')} of them cut short."]
    lines += _expected(report, names, verbose=verbose)
    for title, texts in (
        ("Not compared:", (*report.undecided, *report.assumptions)),
        (f"Known differences {_between(report)}, not counted:", report.left_out),
        ("Assumptions (explained in docs/compare.md):", report.rests_on if verbose or not groups else ()),
    ):
        if texts:
            lines += ["", title, *(f"  {text}" for text in texts)]
    if len(lines) > LIMIT:
        lines += ["", f"Result: {answer}"]
    return "\n".join(lines) + "\n"


def answer_text(report: Report) -> str:
    """Return the answer in one sentence, with all that limits it."""
    both = f"{report.before} and {report.after}"
    match report.answer:
        case Answer.DIFFERENT:
            counts = Counter(change_of(one) for one in report.unexpected)
            parts = [f"{counts[change]} {change.value}" for change in Change if counts[change]]
            unfinished = " Not everything could be compared." if report.undecided or report.assumptions else ""
            kinds = f" Kinds of packets: {', '.join(parts)}." if parts else ""
            hosts = (
                f" The hosts differ in {_count(len(report.host_differences), 'place')}."
                if report.host_differences
                else ""
            )
            return f"{both} differ.{kinds}{hosts}{unfinished}"
        case Answer.UNDECIDED:
            return f"Not decided: no difference between {both} was found, but not everything could be compared."
        case Answer.EQUAL:
            return f"{both} {_equal(report)}."


def _equal(report: Report) -> str:
    if not any(map(filters, report.models)):
        return "are both off: neither has any rule, and nothing is filtered"
    reasons = []
    if report.left_out:
        reasons.append(f"{_count(len(report.left_out), 'known difference')} {_between(report)}")
    if expected := len(report.differences):
        reasons.append(f"{_count(expected, 'expected difference')}")
    untagged = "untagged " if report.untagged_only else ""
    if reasons:
        return f"treat {untagged}packets alike, but for {' and '.join(reasons)}"
    return f"treat every {untagged}packet alike"


def _between(report: Report) -> str:
    """Return the sides of the known differences: ``between iptables and nft``."""
    tools = ["nft" if all(table.key.tool == "nft" for table in model.tables) else "iptables" for model in report.models]
    return "in connection tracking zones" if tools[0] == tools[1] else f"between {tools[0]} and {tools[1]}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _summary(report: Report, groups: list[Group]) -> Iterator[str]:
    """Say who is concerned, and which lines are the causes, each with its number of classes."""
    classes = report.unexpected
    causes = len({group.missing or group.cause.key for group in groups})
    yield f"  {_count(len(classes), 'kind')} of packets, {_count(causes, 'cause')}; {report.before} → {report.after}"
    for title, counts in (("concerned", zones_of(classes)), ("lines", lines_of(groups))):
        if counts:
            listed = ", ".join(f"{name} ({number})" for name, number in counts.most_common(LIMIT))
            more = f" and {len(counts) - LIMIT} more" if len(counts) > LIMIT else ""
            yield f"  {title}: {listed}{more}"


def _hosts(report: Report, *, verbose: bool) -> Iterator[str]:
    """List the differences between the hosts."""
    shown = report.host_differences if verbose else report.host_differences[:LIMIT]
    if shown:
        yield ""
        yield "The hosts differ:"
        yield from (f"  {text}" for text in shown)
    if len(shown) < len(report.host_differences):
        yield f"  {len(report.host_differences) - len(shown)} more: -v lists them"


def _group_lines(
    groups: list[Group], names: SetNames, rulesets: Sequence[Sequence[str]], *, verbose: bool
) -> Iterator[str]:
    shown = groups if verbose else groups[:LIMIT]
    for number, group in enumerate(shown, 1):
        yield ""
        yield from _one_group(number, group, names, rulesets, verbose=verbose)
    if len(shown) < len(groups):
        rest = Counter(group.change for group in groups[LIMIT:])
        listed = ", ".join(f"{rest[change]} {change.value}" for change in Change if rest[change])
        yield ""
        yield f"{len(groups) - LIMIT} more groups ({listed}): -v lists them."


def _one_group(
    number: int, group: Group, names: SetNames, rulesets: Sequence[Sequence[str]], *, verbose: bool
) -> Iterator[str]:
    """Describe a group by its most ordinary class, or by its missing packets."""
    head = f"[{number}] {group.change.value}"
    if group.missing and not verbose:
        yield f"{head}, {_count(len(group.classes), 'kind')} of packets: {group.missing}"
        return
    first, *others = group.classes
    yield f"{head}: {class_text(first, names)}"
    if group.missing:
        yield f"    cause:   {group.missing}"
    elif group.cause.table:
        yield f"    cause:   table {group.cause.table} is on one side only"
    yield from _details(first, rulesets)
    if verbose:
        for one in others:
            yield f"    also:    {class_text(one, names)}"
            yield f"             example: {packet_text(one.counterexample.packet)}"
    elif others:
        yield f"    {_count(len(others), 'more kind')} of packets with this cause: see -v"


def _details(one: Difference, rulesets: Sequence[Sequence[str]]) -> Iterator[str]:
    cause = one.cause
    same_text = cause.before is not None and cause.after is not None and cause.before.text == cause.after.text
    note = " (the same text, but a set in it differs)" if same_text else ""
    yield f"    example: {packet_text(one.counterexample.packet)}"
    sides = (("before:", one.rules_before, cause.before), ("after:", one.rules_after, cause.after))
    for word, places, changed in sides:
        if changed is not None and changed not in places:
            yield f"    {word:<8} changed rule: {place_text(changed)}{note}"
            word = ""
        for place in places:
            yield f"    {word:<8} {place_text(place)}"
            word = ""
        if not places:
            yield f"    {word:<8} no rule decides"
    word = "replay:"
    for command in replay_commands(one, rulesets or ((),)):
        yield f"    {word:<8} {command}"
        word = ""


def _expected(report: Report, names: SetNames, *, verbose: bool) -> Iterator[str]:
    """List the differences that the user's file expects."""
    known = [one for one in report.differences if one.known is not None]
    if not known:
        return
    yield ""
    yield f"Expected differences (--known): {len(known)}"
    for one in known if verbose else known[:LIMIT]:
        yield f"  {class_text(one, names)} ({one.known})"
    if not verbose and len(known) > LIMIT:
        yield f"  {len(known) - LIMIT} more: -v lists them"


def report_data(report: Report, rulesets: Sequence[Sequence[str]] = ()) -> dict[str, object]:
    """Return a report as plain data for JSON; ``rulesets`` as for :func:`report_text`."""
    names = SetNames(report)
    groups = groups_of(report)
    changes = Counter(change_of(one) for one in report.unexpected)
    return {
        "equal": report.equal,
        "answer": report.answer.value,
        "before": report.before,
        "after": report.after,
        "strict": report.strict,
        "text": answer_text(report),
        "summary": {
            "classes": len(report.unexpected),
            **{change.name.lower(): changes[change] for change in Change},
            "zones": dict(zones_of(report.unexpected)),
            "lines": dict(lines_of(groups)),
        },
        "groups": [_group_data(group, report) for group in groups],
        "differences": [_difference_data(one, names, rulesets) for one in report.differences],
        "omitted": report.omitted,
        "assumptions": list(report.assumptions),
        "left_out": list(report.left_out),
        "undecided": list(report.undecided),
        "rests_on": list(report.rests_on),
        "proof": {
            "ways": report.counts.ways,
            "frames": report.counts.cases,
            "pairs": report.counts.pairs,
            "diagrams": report.counts.diagrams,
            "kept": report.counts.kept,
        },
    }


def _group_data(group: Group, report: Report) -> dict[str, object]:
    """Return a group; ``differences`` are the places of its classes in the report's list, counted from 0."""
    cause = group.cause
    own = {id(one) for one in group.classes}
    return {
        "change": group.change.name.lower(),
        "missing": group.missing or None,
        "table": cause.table or None,
        "lines": list(cause.lines) if not group.missing else [],
        "before": cause.before._asdict() if cause.before else None,
        "after": cause.after._asdict() if cause.after else None,
        "differences": [at for at, one in enumerate(report.differences) if id(one) in own],
    }


def _difference_data(one: Difference, names: SetNames, rulesets: Sequence[Sequence[str]]) -> dict[str, object]:
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
        "change": change_of(one).name.lower(),
        "known": one.known,
        "rules_before": [place._asdict() for place in one.rules_before],
        "rules_after": [place._asdict() for place in one.rules_after],
        "packet": {
            "from": str(one.counterexample.before.source),
            "to": str(one.counterexample.before.destination),
            "text": packet_text(one.counterexample.packet),
            "simulate": simulate_arguments(one),
            "commands": replay_commands(one, rulesets) if rulesets else [],
            "fields": {
                on.name: value_text(on, value)
                for on, value in one.counterexample.packet.items()
                if value or on.kind is not m.FieldKind.BIT
            },
        },
    }


def _set_data(on: m.Field, values: IntervalSet) -> list[str]:
    return [
        value_text(on, first) if first == last else f"{value_text(on, first)}-{value_text(on, last)}"
        for first, last in values
    ]
