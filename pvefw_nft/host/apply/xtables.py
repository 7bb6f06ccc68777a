"""The iptables, ipset and ebtables rules of a host as data: the wanted and the present ones.

A :class:`State` holds only pvefw's own parts: chains with its signature or named ``PVEFW-…``, sets named ``PVEFW-…``,
and the jumps from built-in chains into them. A chain with a name that pvefw's rulesets use counts, too, if it is on
record as loaded, or is empty and no rule leads to it: ``iptables -F`` leaves such chains. Everything else is foreign.
It is read only to see that it is foreign, and whether it uses one of pvefw's chains or sets.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

from pvefw_nft.backends.signature import signature as sign
from pvefw_nft.errors import HostError, InternalError

from .. import tools
from ..netfilter import legacy_tables, stamp
from .restore_lines import check_rules, check_set

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping

IP_TOOLS = ("iptables", "ip6tables")
IP_TABLES = ("filter", "raw")
HOOK_CHAINS = {
    "filter": {"INPUT": "PVEFW-INPUT", "OUTPUT": "PVEFW-OUTPUT", "FORWARD": "PVEFW-FORWARD"},
    "raw": {"PREROUTING": "PVEFW-PREROUTING"},
}
"""By table: the built-in chains, and our chain that each jumps to."""
EBTABLES_HOOKS = {"FORWARD": "PVEFW-FORWARD"}

_SIGNATURE = re.compile(r'-m comment --comment "?PVESIG:([A-Za-z0-9+/]*)"?')
_JUMP = re.compile(r"(?:^| )(?:-j|-g|--jump|--goto) (\S+)")
_EBTABLES_OURS = re.compile(r"PVEFW-\S+|(?:tap|veth)\d+i\d+-OUT(?:-ARP|-PROTO)?")
_ADDRESSES = re.compile(r" -[sd] (\S+)")
_IPTABLES_NAMES = re.compile(r"PVEFW-\S+|GROUP-\S+-(?:IN|OUT)|(?:tap|veth)\d+i\d+-(?:IN|OUT)")
_SET_OURS = "PVEFW-"
_WORD = re.compile(r"[!-~]{1,31}")
_SET_USE = re.compile(rf" --(?:match|add|del|map)-set ({_SET_OURS}\S+)")
SWAP_SUFFIX = "_swap"

OnRecord: TypeAlias = "Callable[[], Collection[str]]"
"""Returns the names of the chains that were loaded last, as far as that is on record."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain's rule lines (``-A CHAIN …``) without the signature's line, and the signature.

    Of a chain that is wanted, the lines are as compiled; of one that is there, as the tool lists them, which
    is another spelling. The signature is over the compiled lines in both cases, so it alone can be compared.
    """

    rules: tuple[str, ...]
    signature: str | None

    @property
    def listing(self) -> str:
        """A digest of the lines as they are."""
        return sign(list(self.rules))

    @property
    def size(self) -> int:
        """How many rules the lines are: iptables makes one of each pair of a source and a destination."""
        return sum(
            prod(found.count(",") + 1 for found in _ADDRESSES.findall(line)) if "," in line else 1
            for line in self.rules
        )


@dataclass(frozen=True, slots=True)
class Table:
    """Our chains of one table. ``hooked``: the built-in chains that jump to them.

    ``foreign`` are the names of foreign chains. ``users`` maps each of our chains that a foreign rule jumps to to that
    rule. ``repeated``: the built-in chains that jump to ours more than once, with the number of jumps and the position
    of the first one, counted from 1.
    """

    chains: Mapping[str, Chain] = field(default_factory=dict)
    hooked: frozenset[str] = frozenset()
    foreign: frozenset[str] = frozenset()
    users: Mapping[str, str] = field(default_factory=dict)
    repeated: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def referenced(self) -> frozenset[str]:
        """Our chains that foreign rules jump to. They cannot be deleted."""
        return frozenset(self.users)

    @property
    def removable(self) -> bool:
        """Whether a stop would remove something: anything but empty chains that foreign rules use."""
        return bool(self.hooked) or any(
            name not in self.users or bool(chain.rules) for name, chain in self.chains.items()
        )


@dataclass(frozen=True, slots=True)
class AddressSet:
    """An ipset: the words after ``create NAME``, and its entries (the words after ``add NAME``)."""

    create: str
    entries: tuple[str, ...]

    def same_as(self, other: AddressSet) -> bool:
        """Tell whether both are of one kind and hold the same entries; the hash's size is the kernel's."""
        if self.kind != other.kind or len(self.entries) != len(other.entries):
            return False
        mine, others = frozenset(self.entries), frozenset(other.entries)
        # almost always spelled alike; reading addresses is slow
        return mine == others or frozenset(map(_normal, mine)) == frozenset(map(_normal, others))

    @property
    def kind(self) -> tuple[str, ...]:
        """Type, family and maximal size."""
        words = self.create.split()
        options = dict(zip(words[1::2], words[2::2], strict=False))
        return words[0], options.get("family", "inet"), options.get("maxelem", "65536")


@dataclass(frozen=True, slots=True)
class State:
    """All rules and sets of pvefw. ``tables`` is keyed by tool and table.

    ``set_users`` maps each of our sets that cannot be destroyed to a foreign rule or set that uses it.
    """

    tables: Mapping[tuple[str, str], Table] = field(default_factory=dict)
    ebtables: Table = Table()
    sets: Mapping[str, AddressSet] = field(default_factory=dict)
    enabled: bool = True
    set_users: Mapping[str, str] = field(default_factory=dict)

    def table(self, tool: str, table: str) -> Table:
        """Return our part of a table; it may be empty."""
        return self.tables.get((tool, table), _EMPTY)

    @property
    def empty(self) -> bool:
        """Whether nothing of pvefw is loaded, apart from parts that foreign rules use and a stop must leave."""
        tables = [*self.tables.values(), self.ebtables]
        return self.sets.keys() <= self.set_users.keys() and not any(table.removable for table in tables)


_EMPTY = Table()


def _normal(entry: str) -> str:
    """Return an entry as ``ipset save`` spells it: ``10.1.2.3/8`` as ``10.0.0.0/8``."""
    address, _, options = entry.partition(" ")
    try:
        network = ipaddress.ip_network(address, strict=False)
    except ValueError:
        return entry
    spelled = str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)
    return f"{spelled} {options}" if options else spelled


# --- wanted rules -----------------------------------------------------------------------------------------


def wanted(artefact: Mapping[str, Any]) -> State:
    """Read the output of ``pvefw compile --backend iptables --format json``.

    Raises :class:`InternalError` if the artefact is not of that shape, or a line would do something else
    than add one rule to its chain or one entry to its set.
    """
    try:
        return _wanted(artefact)
    except (AttributeError, TypeError, ValueError) as error:
        raise InternalError(f"an artefact that cannot be read: {error!r}"[:300]) from error


def _wanted(artefact: Mapping[str, Any]) -> State:
    tables = {}
    for tool in IP_TOOLS:
        for name, chains in _mapping(artefact, tool).items():
            if name not in IP_TABLES:
                raise InternalError(f"an artefact with a table {tool} {name[:200]}")
            tables[tool, name] = _wanted_table(chains, HOOK_CHAINS[name], _IPTABLES_NAMES)
    return State(
        tables=tables,
        ebtables=_wanted_table(_mapping(artefact, "ebtables"), EBTABLES_HOOKS, _EBTABLES_OURS),
        sets={name: _wanted_set(name, tuple(lines)) for name, lines in _mapping(artefact, "ipset").items()},
        enabled=bool(artefact.get("enabled")),
    )


def _wanted_table(chains: Mapping[str, Any], hooks: Mapping[str, str], ours: re.Pattern[str]) -> Table:
    for name in chains:
        if _WORD.fullmatch(name) is None or ours.fullmatch(name) is None:
            raise InternalError(f"an artefact with the chain {name[:200]!r}")
    read = {name: _checked_chain(name, tuple(lines)) for name, lines in chains.items()}
    return Table(read, frozenset(hook for hook, chain in hooks.items() if chain in read))


def wanted_chain(name: str, lines: list[str]) -> Chain:
    """Read one chain of iptables, as :func:`wanted` does. Raises InternalError."""
    return _wanted_table({name: lines}, {}, _IPTABLES_NAMES).chains[name]


@lru_cache(maxsize=1 << 16)  # a service reads all chains at each change, and nearly all are unchanged
def _checked_chain(name: str, lines: tuple[str, ...]) -> Chain:
    check_rules(name, lines)
    return Chain(lines, sign(list(lines)))


@lru_cache(maxsize=1 << 14)
def _wanted_set(name: str, lines: tuple[str, ...]) -> AddressSet:
    if not lines or _WORD.fullmatch(name) is None or not name.startswith(_SET_OURS):
        raise InternalError(f"an artefact with a set {name[:200]!r} of {str(lines)[:200]}")
    check_set(name, lines)
    create, *entries = lines
    return AddressSet(_after(create, 2), tuple(_after(entry, 2) for entry in entries))


def _mapping(artefact: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = artefact.get(key)
    if not isinstance(value, dict):
        raise InternalError(f"an artefact whose {key!r} is {type(value).__name__}")
    return value


def _after(line: str, words: int) -> str:
    return line.split(" ", words)[words]


# --- present rules ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Saved:
    """The tools' listing: the output of each save command; of ipset only the lines about our sets.

    ``ebtables`` is None if ebtables does not work.
    """

    ip: Mapping[str, str]
    ebtables: str | None
    sets: str

    def state(self, on_record: OnRecord = tuple) -> State:
        """Read it. ``on_record`` returns the keys of chains that were loaded last, as ``iptables filter NAME``."""
        tables = {}
        users: dict[str, str] = {}
        sets = parse_sets(self.sets)
        for tool, text in self.ip.items():
            for name, lines in _split_tables(text).items():
                ours: Callable[[], Collection[str]] = partial(_names_on_record, on_record, f"{tool} {name} ")
                table = parse_table(lines, HOOK_CHAINS.get(name, {}), on_record=ours)
                if name in IP_TABLES:
                    tables[tool, name] = table
                else:
                    table = _EMPTY
                if sets:
                    users.update(_set_users(lines, table.chains, f"{tool} -t {name}"))
        users.update(_sets_of_sets(self.sets))
        kept = {name: user for name, user in users.items() if name in sets}
        return State(tables=tables, ebtables=parse_ebtables(self.ebtables or ""), sets=sets, set_users=kept)


def _names_on_record(on_record: OnRecord, where: str) -> list[str]:
    return [key.removeprefix(where) for key in on_record() if key.startswith(where)]


def _set_users(lines: Iterable[str], ours: Container[str], where: str) -> Iterator[tuple[str, str]]:
    """Yield pvefw's sets that foreign rules use, each with one of these rules."""
    for line in lines:
        if "-set PVEFW-" in line and line.startswith("-A ") and line.split(" ", 2)[1] not in ours:
            for found in _SET_USE.finditer(line):
                yield found[1], f"your rule: {where} {line}"


def _sets_of_sets(text: str) -> Iterator[tuple[str, str]]:
    """Yield our sets that are entries of another set."""
    for line in text.splitlines():
        verb, owner, entry = [*line.split(" ", 2), "", ""][:3]
        if verb == "add" and not owner.startswith(_SET_OURS):
            yield entry.split(" ")[0], f"your set {owner}"


SAVE_TOOLS = (*(f"{tool}-save" for tool in IP_TOOLS), "ebtables-save")
"""The tools that list all rules."""
RULE_TOOLS = (*IP_TOOLS, *(f"{tool}-restore" for tool in IP_TOOLS), "ebtables-restore")
"""The tools that list single chains, and those that change rules."""


def save(*, ebtables: bool = True) -> Saved:
    """Return the kernel's present rules, through the tools' own save commands.

    Raises :class:`HostError` if a tool is missing or fails. A missing ebtables is an error only if
    ``ebtables`` says that it is needed.
    """
    commands: list[tuple[str, ...]] = [(f"{tool}-save",) for tool in IP_TOOLS]
    bridge: str | None = None
    try:
        command, read = _bridge_listing()
        *texts, bridge = tools.run_all([*commands, command])
        bridge = read(bridge)
    except HostError:
        if ebtables:
            raise
        texts = tools.run_all(commands)
    return Saved(dict(zip(IP_TOOLS, texts, strict=True)), bridge, save_sets())


def missing_tools() -> dict[str, HostError]:
    """Return the tools that list rules or sets and are not installed, each with the error that says so."""
    found = {}
    for tool in (*SAVE_TOOLS, "ipset"):
        try:
            tools.find(tool)
        except HostError as error:
            found[tool] = error
    return found


def read_what_can_be_read(on_record: OnRecord = tuple) -> State:
    """Return our part of the rules that the installed tools list. Raises :class:`HostError` if one of them fails.

    As in :func:`save`, an ebtables that does not work lists nothing.
    """
    missing = missing_tools()

    def listed(*command: str) -> str:
        return "" if command[0] in missing else tools.run(command)

    bridge = None
    with contextlib.suppress(HostError):
        command, read = _bridge_listing()
        bridge = read(listed(*command))
    saved = Saved({tool: listed(f"{tool}-save") for tool in IP_TOOLS}, bridge, listed("ipset", "save"))
    return saved.state(on_record)


def read_state(*, ebtables: bool = True, on_record: OnRecord = tuple) -> State:
    """Return the rules and sets of pvefw that the kernel has now. Raises as :func:`save`."""
    return save(ebtables=ebtables).state(on_record)


def save_sets() -> str:
    """Return the lines of ``ipset save`` about our sets, and entries of foreign sets that name one of ours.

    Raises :class:`HostError`.
    """
    ours = (f"create {_SET_OURS}", f"add {_SET_OURS}")
    member = re.compile(rf"add \S+ {_SET_OURS}")
    lines = tools.run(["ipset", "save"]).splitlines(keepends=True)
    return "".join(line for line in lines if line.startswith(ours) or member.match(line))


_LIST_BRIDGE = ("ebtables", "-t", "filter", "-L")
_BRIDGE_CHAIN = re.compile(r"Bridge chain: (.*?), entries:.* policy: (.*)")


def _bridge_listing() -> tuple[tuple[str, ...], Callable[[str], str]]:
    """Return the command that lists ebtables' rules, and a function that gives its output the form of the save command.

    The save command of the legacy variant is a Perl script around ``ebtables -L`` that takes ten times as long.
    """
    if stamp.is_legacy("ebtables-save") and stamp.is_legacy("ebtables") and legacy_tables.has_bridge_table():
        return _LIST_BRIDGE, saved_form
    return ("ebtables-save",), str


def saved_form(listing: str) -> str:
    """Return the output of ``ebtables -L`` as ebtables-legacy-save prints that table (process_table in the script)."""
    chains: list[str] = []
    rules: list[str] = []
    chain = ""
    for line in listing.split("\n"):  # log prefixes may have other separators of lines
        if line.startswith("Bridge table: "):
            continue
        if found := _BRIDGE_CHAIN.match(line):
            chain, policy = found.groups()
            chains.append(f":{chain} {policy}\n")
        elif line:
            rules.append(f"-A {chain} {line.removesuffix(' ')}\n")
    return "".join(["*filter\n", *chains, *rules, "\n"])


def parse_ebtables(text: str) -> Table:
    """Read the output of ebtables-save; chains are recognised by their names there, since rules have no comments."""
    lines = _split_tables(text).get("filter", [])
    return parse_table(lines, EBTABLES_HOOKS, _EBTABLES_OURS)


def parse_table(
    lines: Iterable[str],
    hooks: Mapping[str, str],
    ours: re.Pattern[str] | None = None,
    on_record: OnRecord = tuple,
) -> Table:
    """Read one table of a save listing.

    ``ours`` names our chains without a signature. ``on_record`` returns the names of chains that were loaded
    last; it is called only where a chain has a name like ours and no signature.
    """
    names: list[str] = []
    rules: dict[str, list[str]] = defaultdict(list)
    signatures: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            names.append(line[1:].split(" ", 1)[0])
        elif line.startswith("-A "):
            chain = line.split(" ", 2)[1]
            found = _SIGNATURE.search(line) if "PVESIG:" in line else None
            if found is not None and _JUMP.search(line) is None:
                signatures[chain] = found[1]
            else:
                rules[chain].append(" ".join(line.split()) if ours is not None else line)
    mine = {
        name
        for name in names
        if name in signatures or name.startswith("PVEFW-") or (ours is not None and ours.fullmatch(name))
    }
    stripped = [name for name in names if name not in mine and hooks and _IPTABLES_NAMES.fullmatch(name)]
    if stripped:
        known = on_record()
        mine |= {name for name in stripped if name in known}
        targets = _targets(rules, mine, ())
        mine |= {name for name in stripped if not rules[name] and name not in targets}
    jumps = {hook: f"-A {hook} -j {chain}" for hook, chain in hooks.items()}
    jumping = {hook: [at for at, line in enumerate(rules[hook], 1) if line == jump] for hook, jump in jumps.items()}
    return Table(
        chains={name: Chain(tuple(rules[name]), signatures.get(name)) for name in sorted(mine)},
        hooked=frozenset(hook for hook, positions in jumping.items() if positions),
        foreign=frozenset(names) - mine,
        users={name: line for name, line in _targets(rules, mine, frozenset(jumps.values())).items() if name in mine},
        repeated={hook: (len(positions), positions[0]) for hook, positions in jumping.items() if len(positions) > 1},
    )


def _targets(rules: Mapping[str, list[str]], ours: Container[str], jumps: Container[str]) -> dict[str, str]:
    """Return the chains that rules outside of pvefw's chains lead to, each with one of them; ``jumps`` do not count."""
    found = {}
    for chain, lines in rules.items():
        for line in lines if chain not in ours else ():
            target = _JUMP.search(line)
            if target is not None and line not in jumps:
                found[target[1]] = line
    return found


def parse_sets(text: str) -> dict[str, AddressSet]:
    """Read our sets from the output of ``ipset save``."""
    creates: dict[str, str] = {}
    entries: dict[str, list[str]] = defaultdict(list)
    for line in text.splitlines():
        verb, name, rest = [*line.split(" ", 2), "", ""][:3]
        if not name.startswith(_SET_OURS):
            continue
        if verb == "create":
            creates[name] = rest
        elif verb == "add":
            entries[name].append(rest)
    return {name: AddressSet(create, tuple(entries[name])) for name, create in creates.items()}


def count_packets(targets: tuple[str, ...]) -> dict[str, int]:
    """Return the packet counts of our rules with these targets, by ``TOOL CHAIN``."""
    counts: dict[str, int] = defaultdict(int)
    ends = "|".join(map(re.escape, targets))
    # with thousands of rules, those that counted nothing must not be looked at one by one
    counted = re.compile(rf"^\[([1-9]\d*):\d+\] -A (\S+)(?=.*(?:{ends})(?: |$))", re.MULTILINE)
    for tool, text in zip(IP_TOOLS, tools.run_all([(f"{tool}-save", "-c") for tool in IP_TOOLS]), strict=True):
        for found in counted.finditer(text):
            if _IPTABLES_NAMES.fullmatch(found[2]):
                counts[f"{tool} {found[2]}"] += int(found[1])
    return dict(counts)


def _split_tables(text: str) -> dict[str, list[str]]:
    tables: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("*"):
            lines = tables.setdefault(line[1:].strip(), [])
        elif line and not line.startswith("#"):
            lines.append(line)
    return tables
