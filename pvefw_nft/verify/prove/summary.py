"""The summary of a comparison: classes of packets grouped by change and by cause."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from pvefw_nft.verify import model as m
from pvefw_nft.verify.prove.report import ANYWHERE

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from pvefw_nft.verify.prove.cause import Cause
    from pvefw_nft.verify.prove.report import Difference, Report


class Change(Enum):
    """The kinds of change for packets, the worst first."""

    ACCEPTED = "newly accepted"
    STOPPED = "newly dropped or rejected"
    OTHER = "treated otherwise"


def change_of(one: Difference) -> Change:
    """Return the change for a class of packets."""
    accepted = [verdict.split()[0] == "accept" for verdict in (one.before, one.after)]
    if accepted == [False, True]:
        return Change.ACCEPTED
    return Change.STOPPED if accepted == [True, False] else Change.OTHER


@dataclass(slots=True)
class Group:
    """Classes of packets with one change and one cause, the most ordinary ones first.

    ``missing`` says, instead of a cause, that one side has no rules at all for them.
    """

    change: Change
    cause: Cause
    missing: str = ""
    classes: list[Difference] = field(default_factory=list)

    @property
    def zones(self) -> tuple[str, ...]:
        """Who is concerned: guests and other ends that the classes are from or to."""
        return tuple(zones_of(self.classes))


def groups_of(report: Report) -> list[Group]:
    """Return the unexpected differences in groups: the worst change first, then the largest group."""
    found: dict[Hashable, Group] = {}
    for one in report.unexpected:
        change, missing = change_of(one), missing_rules(report, one)
        key = (change, missing or one.cause.key)
        found.setdefault(key, Group(change, one.cause, missing)).classes.append(one)
    for group in found.values():
        group.classes.sort(key=_oddness)
    order = list(Change)
    return sorted(found.values(), key=lambda group: (order.index(group.change), -len(group.classes)))


def _oddness(one: Difference) -> tuple[bool, bool, bool, int]:
    """The lower, the more ordinary: first packets of connections, untagged, IPv4, described by few fields."""
    return not one.usual, one.tagged, m.IPV4 not in one.protocols, len(one.fields)


def zones_of(classes: Iterable[Difference]) -> Counter[str]:
    """Count the classes that are from or to each guest, or other end; a class of anywhere names no end.

    Ends with the same number stay in the order of the classes, and of one class in that of their names.
    """
    return Counter(
        zone for one in classes for zone in sorted({*one.sources, *one.destinations} - {ANYWHERE, "outside"})
    )


def lines_of(groups: Iterable[Group]) -> Counter[str]:
    """Count the classes that each line of the configuration, or rule, is a cause of."""
    known = (group for group in groups if not group.missing)
    return Counter(line for group in known for one in group.classes for line in one.cause.lines)


# --- rulesets without rules ---------------------------------------------------------------------------------

_FAMILIES = {"IPv4": (m.Family.IP, m.IPV4), "IPv6": (m.Family.IP6, m.IPV6)}


def filters(model: m.RulesetModel, *families: m.Family) -> bool:
    """Return whether a ruleset does anything at a hook of these families (none: of any)."""
    return any(
        chain.rules or isinstance(chain.policy, m.Drop)
        for table in model.tables
        for chain in table.chains.values()
        if chain.hook is not None and (not families or chain.hook.family in families)
    )


def missing_rules(report: Report, one: Difference) -> str:
    """Return which rules one side has none of and the other has, where all packets of a class are of that kind."""
    for name, model, other in (
        (report.before, report.models[0], report.models[1]),
        (report.after, report.models[1], report.models[0]),
    ):
        if not filters(model) and filters(other):
            return f"{name} has no rules at all: is that firewall off?"
        for version, (family, protocol) in _FAMILIES.items():
            seen = (family, m.Family.INET)
            link = any(table.key.tool == "nft" and table.key.family is m.Family.BRIDGE for table in model.tables)
            if set(one.protocols) == {protocol} and not link and not filters(model, *seen) and filters(other, *seen):
                tool = "ip6tables-save" if version == "IPv6" else "iptables-save"
                return f"{name} has no rules for {version}: is the output of {tool} missing?"
    return ""
