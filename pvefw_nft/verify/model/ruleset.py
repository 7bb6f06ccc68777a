"""Rules, chains, hooks and tables: the structure of a ruleset."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.verify.model.conditions import Test, tests_of
from pvefw_nft.verify.model.effects import Alter, Effect, Guard, Log, SetZone
from pvefw_nft.verify.model.fields import ARP, IPV4, IPV6, Field, counter_field, rate_of
from pvefw_nft.verify.model.verdicts import RETURN, Accept, Drop, Goto, Jump, Return, Verdict, VerdictMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pvefw_nft.verify.model.conditions import Condition
    from pvefw_nft.verify.model.intervals import IntervalSet


class Rule(NamedTuple):
    """Where all ``conditions`` hold, ``effects`` happen and ``verdict`` decides.

    ``text`` is the rule as read (or, from JSON, empty), ``origin`` the place in the configuration it comes
    from (``100.fw:12``, where known), ``line`` its line in the file read (0: unknown). Rules are numbered
    from 1 in a chain.
    """

    conditions: tuple[Condition, ...]
    effects: tuple[Effect, ...]
    verdict: Verdict | None
    text: str = ""
    origin: str = ""
    line: int = 0


def own_counter(on: Field, rule: Rule) -> Field:
    """Return the field of a rate for one rule: each rule has a counter of its own, unless it names one.

    Rules that only log are taken to log together. A rate for each source, say, has a counter of its own if packets
    within it are accepted. If packets beyond it are dropped, a second rule with the same rate has nothing left to drop.
    """
    rate = rate_of(on)
    only_logs = rule.verdict is None and all(isinstance(effect, (Log, Guard, Alter)) for effect in rule.effects)
    if rate is None or only_logs:
        return on
    if not isinstance(rule.verdict, Accept) and " per " in rate.name.partition(" burst ")[2]:
        return rate
    return counter_field(on, f"rule {id(rule):x}") if rate is on else on


class Family(Enum):
    """The protocol family of a table (nft(8), ADDRESS FAMILIES)."""

    IP = "ip"
    IP6 = "ip6"
    INET = "inet"
    BRIDGE = "bridge"
    ARP = "arp"
    NETDEV = "netdev"

    def sees(self, protocol: int) -> bool:
        """Return whether chains of this family see packets of this network protocol."""
        match self:
            case Family.IP:
                return protocol == IPV4
            case Family.IP6:
                return protocol == IPV6
            case Family.INET:
                return protocol in (IPV4, IPV6)
            case Family.ARP:
                return protocol == ARP
            case Family.BRIDGE | Family.NETDEV:
                return True


class Point(IntEnum):
    """Where in the stack a base chain is hooked in."""

    INGRESS = 0
    PREROUTING = 1
    INPUT = 2
    FORWARD = 3
    OUTPUT = 4
    POSTROUTING = 5
    EGRESS = 6
    BROUTING = 7


@dataclass(frozen=True, slots=True)
class Hook:
    """The hook of a base chain. Lower priorities come first. ``kind`` is filter, nat or route."""

    family: Family
    point: Point
    priority: int
    kind: str = "filter"
    devices: tuple[str, ...] = ()


class Summary(NamedTuple):
    """A chain's part in what a ruleset says as a whole.

    ``items`` are digests: of each test, with its part of the rule (of an address or port, which guests differ in, only
    the field), and of each effect without its numbers. ``targets`` are the chains that its rules lead to, each once, by
    their first appearance. ``asks_interface``: some rule tests an interface.
    """

    items: frozenset[str]
    targets: tuple[str, ...]
    asks_interface: bool


@dataclass(slots=True)
class Chain:
    """Rules in order; ``policy`` is what happens to a packet that falls off the end."""

    name: str
    rules: list[Rule]
    policy: Accept | Drop | Return = RETURN
    hook: Hook | None = None
    summary: Summary | None = field(default=None, init=False, repr=False, compare=False)
    _tests: tuple[Test, ...] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def tests(self) -> tuple[Test, ...]:
        """The tests of the chain's rules, guards and verdict maps, each once: for a chain that does not change."""
        found = self._tests
        if found is None:
            made: dict[Test, None] = {}
            for condition in conditions_of(self):
                if isinstance(condition, Test):
                    made[condition] = None
                else:
                    made |= dict.fromkeys(tests_of(condition))
            found = self._tests = tuple(made)
        return found

    def sets_zone(self) -> bool:
        """Whether a rule gives packets a connection tracking zone."""
        return any(isinstance(effect, SetZone) for rule in self.rules for effect in rule.effects)


class UnreadChain(Chain):
    """A chain whose rules are read when they are first asked for: a packet meets few chains of a large ruleset.

    ``read`` returns its rules, and raises what reading a ruleset raises. ``may_set_zone``: whether its text has the
    words of a rule that gives packets a zone. ``digest`` is one of all that its rules are read from, where it was asked
    for: two chains with equal digests have the same conditions, effects and verdicts.
    """

    __slots__ = ("_known", "_may_set_zone", "_read", "digest")

    def __init__(self, chain: Chain, read: Callable[[], list[Rule]], *, may_set_zone: bool) -> None:
        """Take name, policy and hook from ``chain``."""
        self.name, self.policy, self.hook = chain.name, chain.policy, chain.hook
        self._tests = None
        self.summary = None
        self.digest: str | None = None
        self._read: Callable[[], list[Rule]] | None = read
        self._may_set_zone = may_set_zone
        self._known: list[Rule] | None = None

    @property
    def rules(self) -> list[Rule]:  # type: ignore[override] # a field of the base class, which is read here on demand
        """The rules in order. Raises RulesetError where one cannot be read."""
        if self._known is None:
            assert self._read is not None
            self._known = self._read()
            self._read = None  # it holds the text
        return self._known

    @property
    def is_read(self) -> bool:
        """Whether the rules have been read."""
        return self._known is not None

    def sets_zone(self) -> bool:
        """Whether a rule gives packets a connection tracking zone."""
        return self._may_set_zone and Chain.sets_zone(self)


@dataclass(frozen=True, slots=True)
class TableKey:
    """Names a table: ``tool`` is ``iptables``, ``ip6tables``, ``ebtables`` or ``nft``."""

    tool: str
    family: Family
    name: str

    def __str__(self) -> str:
        return f"{self.tool} {self.name}" if self.tool != "nft" else f"nft {self.family.value} {self.name}"


@dataclass(slots=True)
class Table:
    """Chains by name. ``sets`` keeps the named sets the rules refer to, to name them in reports; ``lookups`` the names
    of those that rules look packets up in, as :class:`UpdateSet` has them.
    """

    key: TableKey
    chains: dict[str, Chain] = field(default_factory=dict)
    sets: dict[str, IntervalSet] = field(default_factory=dict)
    lookups: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class RulesetModel:
    """All tables read. ``assumptions`` says, a line each, what unknown matches were taken for."""

    tables: tuple[Table, ...] = ()
    assumptions: tuple[str, ...] = ()
    _hooked: list[tuple[Hook, Table, Chain]] = field(default_factory=list, init=False, compare=False, repr=False)

    def base_chains(self, point: Point, *families: Family) -> list[tuple[Table, Chain]]:
        """Return the base chains at a point of these families, in the order packets meet them."""
        if not self._hooked:
            # few chains of many have a hook, and each packet asks for them at each hook
            hooked = [(c.hook, table, c) for table in self.tables for c in table.chains.values() if c.hook is not None]
            self._hooked.extend(sorted(hooked, key=lambda row: row[0].priority))
        return [(t, c) for hook, t, c in self._hooked if hook.point == point and hook.family in families]

    def merged(self, other: RulesetModel) -> RulesetModel:
        """Return the ruleset with the tables of both (both are loaded; a packet passes both)."""
        return RulesetModel(self.tables + other.tables, self.assumptions + other.assumptions)


def conditions_of(chain: Chain) -> Iterator[Condition]:
    """Yield every condition in a chain: of rules, of guards and of verdict maps."""
    for rule in chain.rules:
        yield from rule.conditions
        for effect in rule.effects:
            if isinstance(effect, Guard):
                yield effect.condition
        if isinstance(rule.verdict, VerdictMap):
            for condition, _ in rule.verdict.entries:
                yield condition


def targets_of(chain: Chain) -> Iterable[str]:
    """Return the chains that a chain's rules may go to, each once, by their first appearance."""
    if chain.summary is not None:
        return chain.summary.targets
    return dict.fromkeys(target for rule in chain.rules for target in targets(rule.verdict))


def targets(verdict: Verdict | None) -> Iterable[str]:
    """Yield the chains a verdict may go to."""
    if isinstance(verdict, (Jump, Goto)):
        yield verdict.chain
    elif isinstance(verdict, VerdictMap):
        for _, entry in verdict.entries:
            yield from targets(entry)
