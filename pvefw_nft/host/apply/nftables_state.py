"""nftables rules as data: the wanted ones, as compiled, and the kernel's, by the digests kept there.

The wanted ruleset is a list of libnftables JSON commands (libnftables-json(5)) that add the tables ``bridge pvefw``
and ``inet pvefw``. The kernel lists rules in another spelling than it was given, so each of our tables holds a
chain ``digests``, which nothing jumps to: one rule for each chain, set or object, whose comment is its name and
the digests of its definition and of its content.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeAlias

from pvefw_nft.errors import HostError, InternalError

from .. import bindings
from ..netfilter import nf_tables
from ..netfilter.nf_listing import Listing
from . import nft_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

TABLE = "pvefw"
FAMILIES = ("bridge", "inet")
DIGESTS = "digests"
"""The chain that holds the digests."""

Command: TypeAlias = dict[str, Any]
_MAX_COMMENT = 127  # NFTNL_UDATA_COMMENT_MAXLEN, libnftnl's udata.h, without the closing NUL
SETS = ("set", "map")
"""The kinds of objects that hold elements."""
_KINDS = ("table", "chain", "rule", "element", "ct helper", *SETS)
_MANY = 100
"""From so many commands on, a transaction is handed to libnftables as text."""
_PLACE = re.compile(r"^\S+?:(\d+):\d+-\d+: Error: ", re.MULTILINE)
"""How libnftables begins an error of a text: with the line, and the columns, of what it refused."""
_NAME = re.compile(r"[!-~]{1,127}")
_NOTE = re.compile(r"((?:chain|set|map|ct helper) [!-~]+) ([!-~]+)")
"""The comment of a rule in the chain of digests: the key of an object, and its digests."""
_RULE = re.compile(
    rf'\{{"add":\{{"rule":\{{"family":"({"|".join(FAMILIES)})","table":"{TABLE}","chain":"([A-Za-z0-9/_-]{{1,127}})",'
)
"""How a rule of a compiled artefact begins."""


@dataclass(frozen=True, slots=True)
class Commands:
    """The commands of a transaction, in parts that are made while they are read, at each time.

    All at once, those of a large node would take much memory.
    """

    parts: tuple[Callable[[], Iterable[Command]], ...]

    def __iter__(self) -> Iterator[Command]:
        return chain.from_iterable(part() for part in self.parts)


@dataclass(frozen=True, slots=True)
class TableObject:
    """A chain, set, map or other object of a table: its definition, and its content (rules or elements).

    ``definition`` is the body of the object's add command, without elements. ``count`` is the number of its rules or
    elements, which ``piece`` of the artefact contains. ``digests`` are the digests of the definition and of the
    content, joined by a dot; empty for an object that is only named, to delete it.
    """

    kind: str
    name: str
    definition: Mapping[str, Any]
    digests: str = ""
    count: int = 0
    piece: str = field(default="", compare=False, repr=False)

    @property
    def key(self) -> str:
        """Its kind and name, shortened to what a comment can hold."""
        return _key(self.kind, self.name)

    @property
    def content(self) -> tuple[Any, ...]:
        """The bodies of its rules, or its elements; read from the piece at each call."""
        owner = (self.definition["family"], self.kind, self.name)
        return tuple(_read_piece(self.piece).content[owner]) if self.count else ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """One of our tables as it should be: its objects by key, and the pieces of the artefact that it is in."""

    family: str
    objects: Mapping[str, TableObject] = field(default_factory=dict)
    pieces: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def commands(self) -> Iterator[Command]:
        """Yield the commands that make all of them."""
        for piece in self.pieces:
            for kind, body in _read_piece(piece).added:
                if body["family"] == self.family:
                    yield {"add": {kind: body}}


@dataclass(frozen=True, slots=True)
class Noted:
    """A object as noted in the kernel: its digests, and the handle of the rule that holds them."""

    digests: str
    handle: int


Kernel: TypeAlias = "dict[str, dict[str, Noted]]"
"""By family (only those whose table exists): the notes, by key."""


def digest(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return a digest of a JSON value that does not depend on the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return base64.b64encode(hashlib.sha256(text.encode()).digest()[:12]).decode()


_NO_CONTENT = digest([])


class Reader:
    """Read artefacts, given in pieces. Pieces of the last artefact are cached for the next one."""

    def __init__(self) -> None:
        """Start with nothing read."""
        self._known: dict[str, tuple[_Part, ...]] = {}

    def assume(self, pieces: Iterable[str], digests: Mapping[str, str]) -> None:
        """Take pieces of the artefact that is loaded for read, if none was read yet.

        ``digests`` are those of its objects, as of :class:`TableObject`, by ``FAMILY KIND NAME``. Pieces that are
        anything else than the rules of one chain are still read, and so is one whose chain has no digests.
        """
        if self._known:
            return
        for piece in pieces:
            part = _part_of_rules(piece, digests)
            if part is not None:
                self._known[piece] = (part,)

    def wanted(self, pieces: Iterable[str]) -> dict[str, Wanted]:
        """Read the pieces of ``pvefw compile --backend nft``: by family, each table as it should be.

        Commands that remove our own table first are left out, since the way from the present to the wanted state
        is decided here. Raises :class:`InternalError` for any other command, for tables that are not ours, and for
        rules or elements that are not all in one piece.
        """
        known: dict[str, tuple[_Part, ...]] = {}
        tables = {family: _Table(family) for family in FAMILIES}
        for piece in pieces:
            if piece in known:
                raise InternalError(f"an artefact with the same piece twice: {piece[:200]}")
            known[piece] = self._known.get(piece) or _parts(piece)
            for part in known[piece]:
                tables[part.family].take(piece, part)
        self._known = known
        # a firewall that is off has empty tables
        return {family: table.wanted() for family, table in tables.items() if table.pieces}


@dataclass(frozen=True, slots=True)
class _Part:
    """The part of an object in one piece of an artefact: its definition, if it is in that piece, and its content."""

    family: str
    kind: str
    name: str
    definition: Command | None
    definition_digest: str
    count: int
    content_digest: str


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of an artefact: its commands as kind and body, and the definitions and content of objects in it."""

    added: list[tuple[str, Command]]
    definitions: dict[tuple[str, str, str], Command]
    content: dict[tuple[str, str, str], list[Any]]


def _read_piece(piece: str) -> _Piece:
    """Read a piece. Its author may be hostile: raises InternalError for any object outside of our tables."""
    try:
        return _take_commands(json.loads(f"[{piece}]"))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InternalError(f"an artefact that cannot be read ({error!r}): {piece[:200]}") from error


def _take_commands(commands: list[Any]) -> _Piece:
    read = _Piece([], {}, {})
    for command in commands:
        verb, kind, body = _take_apart(command)
        if verb == "metainfo" or (verb in ("delete", "destroy", "flush") and kind == "table"):
            continue
        if verb not in ("add", "create"):
            raise InternalError(f"an artefact with the command {verb} {kind}")
        family = body.get("family")
        if family not in FAMILIES or body.get("name" if kind == "table" else "table") != TABLE:
            raise InternalError(f"an artefact with a {kind} outside of our tables: {json.dumps(body)[:200]}")
        if kind not in _KINDS:
            raise InternalError(f"an artefact with a {kind[:200]}")
        read.added.append((kind, body))
        if kind == "rule":
            read.content.setdefault((family, "chain", _name(body["chain"])), []).append(body)
        elif kind == "element":
            owners = [(family, kind, _name(body["name"])) for kind in SETS]
            owner = next((owner for owner in owners if owner in read.definitions), None)
            if owner is None:
                raise InternalError(f"an artefact with elements of an unknown set {body['name']}")
            read.content.setdefault(owner, []).extend(body["elem"])
        elif kind != "table":
            owner = (family, kind, _name(body["name"]))
            read.definitions[owner] = {key: value for key, value in body.items() if key != "elem"}
            read.content.setdefault(owner, []).extend(body.get("elem", ()))
    return read


def _name(value: Any) -> str:  # noqa: ANN401 - JSON
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise InternalError(f"an artefact with the name {str(value)[:200]!r}")
    return value


def _part_of_rules(piece: str, digests: Mapping[str, str]) -> _Part | None:
    """Return the one part of a piece of rules of one chain, a rule on a line; None if it may be anything else."""
    found = _RULE.match(piece)
    if found is None or piece.count(f"\n{found[0]}") != piece.count("\n"):
        return None
    family, name = found.groups()
    _, dot, content = digests.get(f"{family} {_key('chain', name)}", "").partition(".")
    return _Part(family, "chain", name, None, "", piece.count("\n") + 1, content) if dot else None


def _parts(piece: str) -> tuple[_Part, ...]:
    read = _read_piece(piece)
    return tuple(
        _Part(
            *owner,
            definition=read.definitions.get(owner),
            definition_digest=digest(read.definitions[owner]) if owner in read.definitions else "",
            count=len(content),
            content_digest=digest(content) if content else _NO_CONTENT,
        )
        for owner, content in read.content.items()
    )


class _Table:
    """One of our tables while an artefact is read: its objects as far as they are known."""

    def __init__(self, family: str) -> None:
        self.pieces: dict[str, None] = {}
        self._family = family
        self._defined: dict[tuple[str, str], _Part] = {}
        self._filled: dict[tuple[str, str], tuple[str, _Part]] = {}

    def take(self, piece: str, part: _Part) -> None:
        """Add the part of an object that a piece contains."""
        self.pieces[piece] = None
        owner = (part.kind, part.name)
        if part.definition is not None and self._defined.setdefault(owner, part) is not part:
            raise InternalError(f"an artefact with two definitions of {part.kind} {part.name}")
        if part.count and self._filled.setdefault(owner, (piece, part))[1] is not part:
            raise InternalError(f"an artefact with the content of {part.kind} {part.name} in two pieces")

    def wanted(self) -> Wanted:
        """Return the table, once all pieces were taken."""
        if ("chain", DIGESTS) in self._defined:
            raise InternalError(f"an artefact with a chain {DIGESTS} of its own")
        unknown = next((owner for owner in self._filled if owner not in self._defined), None)
        if unknown is not None:
            raise InternalError(f"an artefact with the content of an unknown {' '.join(unknown)}")
        objects = {}
        for (kind, name), part in self._defined.items():
            assert part.definition is not None
            piece, content = self._filled.get((kind, name), ("", part))
            digests = f"{part.definition_digest}.{content.content_digest}"
            objects[_key(kind, name)] = TableObject(kind, name, part.definition, digests, content.count, piece)
        return Wanted(self._family, objects, tuple(self.pieces))


def _key(kind: str, name: str) -> str:
    key = f"{kind} {name}"
    return key if len(key) <= _MAX_COMMENT - 40 else f"{kind} #{digest(key)}"


def _take_apart(command: Any) -> tuple[str, str, Command]:  # noqa: ANN401 - JSON
    if isinstance(command, dict) and len(command) == 1:
        ((verb, argument),) = command.items()
        if verb == "metainfo":
            return verb, "", {}
        if isinstance(argument, dict) and len(argument) == 1:
            ((kind, body),) = argument.items()
            if isinstance(body, dict):
                return verb, kind, body
    raise InternalError(f"an artefact with the command {json.dumps(command)[:200]}")


class Nftables:
    """libnftables. Each call is one transaction: all of it happens, or nothing."""

    def __init__(self, many: int = _MANY) -> None:
        """Load the library. ``many``: from so many commands on, they are handed to it as text.

        Raises :class:`HostError` if it or its bindings are not installed.
        """
        try:
            self._library = bindings.make_context()
        except (ImportError, OSError) as error:
            raise HostError(
                f"libnftables is not usable: {error}",
                "apt-get install libnftables1 python3-nftables",
            ) from error
        self._many = many
        self._library.set_json_output(True)
        self._library.set_handle_output(True)

    def run(self, commands: Iterable[Command]) -> list[Command]:
        """Run the commands as one transaction and return the listed objects.

        Many commands list nothing, and are read again where one is refused. Raises :class:`HostError`, and
        :class:`InternalError` for one of many commands that has no text; nothing has changed then.
        """
        reading = iter(commands)
        few = list(islice(reading, self._many))
        if len(few) == self._many:
            problem = _run_as_text(chain(few, reading))
            if not problem:
                return []
            if "syntax error" not in problem:
                raise _failure_of_text(problem, commands)
            # a name may be a word of nft's language, such as `helpers`; nothing has changed, and JSON has no words
            few = list(commands)
        status, output, problem = self._library.json_cmd({"nftables": few})
        if status != 0:
            raise _failure(problem or "no reason given", few)
        listed = output["nftables"] if isinstance(output, dict) else []
        return [entry for entry in listed if "metainfo" not in entry]


def _run_as_text(commands: Iterable[Command]) -> str:
    """Run commands that list nothing, and return the errors: half the memory and time that libnftables takes for JSON.

    Raises :class:`InternalError` for a command that has no text.
    """
    from pvefw_nft.backends.nft.syntax.text.commands import command_line  # deferred: it takes the whole backend

    return nft_text.run(map(command_line, commands))


def _failure_of_text(problem: str, commands: Iterable[Command]) -> HostError:
    """Return the error for lines of commands. libnftables shows each line that it refuses, and marks the place."""
    places = list(_PLACE.finditer(problem))
    if not places:
        return _failure(problem, ())
    reasons = "\n".join(problem[place.end() :].partition("\n")[0] for place in places)
    return _failure(reasons, (), next(islice(commands, int(places[0][1]) - 1, None), None))


def _failure(problem: str, commands: Sequence[Command], refused: Command | None = None) -> HostError:
    lines = [line.removeprefix("internal:0:0-0: Error: ") for line in problem.splitlines() if line.strip()]
    message = "libnftables refused the ruleset: " + "; ".join([*dict.fromkeys(lines)][:4])
    found = re.search(r"command array at index (\d+) failed", problem)
    if found is not None and int(found[1]) < len(commands):
        refused = commands[int(found[1])]
    if refused is not None:
        message += f"\n  in the command {json.dumps(refused)[:300]}"
    lowered = problem.lower()
    hint = None
    if "not permitted" in lowered:
        hint = "run this as root"
    elif any(reason in lowered for reason in ("not supported", "no such file", "protocol error")):
        hint = "the kernel may lack a feature of the rules: see `pvefw doctor` (nf_conntrack_bridge, nft_reject_bridge)"
    return HostError(message, hint)


def removing(family: str, table: str) -> list[Command]:
    """Return the commands that remove a table; it is no failure if it is not there."""
    # adding a table that exists does nothing, so deleting it cannot fail; nft 1.0.6 has no `destroy`
    return [{verb: {"table": {"family": family, "name": table}}} for verb in ("add", "delete")]


def our_tables() -> list[str]:
    """Return the families in which our table exists. Raises :class:`HostError` if the kernel does not tell."""
    there = nf_tables.tables(TABLE)
    return [family for family in FAMILIES if family in there]


def read_kernel() -> Kernel:
    """Return the notes in our tables. A table without notes was made or emptied by another program.

    A dormant table counts as emptied: it is replaced. So is one with a rule among its notes that is none.
    """
    off = nf_tables.dormant()
    return {family: {} if (family, TABLE) in off else _read_notes(family) for family in our_tables()}


def _read_notes(family: str) -> dict[str, Noted]:
    notes: dict[str, Noted] = {}
    for rule in nf_tables.rules(family, TABLE, DIGESTS):
        found = _NOTE.fullmatch(rule.comment)
        if found is None or found[1] in notes:
            return {}
        notes[found[1]] = Noted(found[2], rule.handle)
    return notes


@dataclass(frozen=True, slots=True)
class TableListing:
    """Objects of a table as the kernel lists them: a digest of each by key, and the number of rules by chain."""

    digests: Mapping[str, str]
    rule_counts: Mapping[str, int]


def listing(family: str, only: Iterable[TableObject] | None = None) -> TableListing:
    """Return how the kernel lists the objects of a table now; counters and handles do not count.

    ``only``: of these chains, sets and maps, since listing a large table takes seconds.
    """
    with nf_tables.Questions() as questions:
        found = Listing(questions, family, TABLE)
        if only is not None:
            asked = ((item.key, found.of(item.kind, item.name)) for item in only)
            digests = {key: made for key, made in asked if made is not None}
        else:
            digests = {_key(kind, name): made for (kind, name), made in found.of_all().items() if name != DIGESTS}
        return TableListing(digests, found.rule_counts)


def note_commands(family: str, objects: Iterable[TableObject]) -> Iterator[Command]:
    """Yield the commands that note objects in the chain of digests."""
    return (
        {
            "add": {
                "rule": {
                    "family": family,
                    "table": TABLE,
                    "chain": DIGESTS,
                    "expr": [{"continue": None}],
                    "comment": f"{item.key} {item.digests}",
                }
            }
        }
        for item in objects
    )
