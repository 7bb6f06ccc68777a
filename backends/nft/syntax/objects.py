"""Objects of a table, and the commands of a transaction that makes them."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as _quote
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from pvefw_nft.backends.nft.syntax.statements import jump
from pvefw_nft.backends.nft.syntax.text.tables import table_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pvefw_nft.backends.nft.syntax.expressions import Value
    from pvefw_nft.backends.nft.syntax.statements import Statement, Verdict

MAX_COMMENT = 128
"""Longest comment of a rule, in bytes (NFTNL_UDATA_COMMENT_MAXLEN in libnftnl/udata.h)."""

MAX_PREFIX = 127
"""Longest log prefix, in bytes (NF_LOG_PREFIXLEN in linux/netfilter/nf_log.h, less the terminating NUL)."""

Family: TypeAlias = Literal["bridge", "inet"]

SetType: TypeAlias = Literal["ipv4_addr", "ipv6_addr", "ifname"]
KeyType: TypeAlias = (
    SetType | Literal["ether_type", "inet_proto", "inet_service", "icmp_type", "icmpv6_type", "ct_state"]
)

BETWEEN = ",\n"
"""The separator between the commands of a transaction."""

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode  # statements are trees


@dataclass(frozen=True, slots=True)
class Rule:
    """Statements from left to right; the comment has at most :data:`MAX_COMMENT` bytes.

    ``sets`` are the constant sets and maps that the statements look into. ``text`` are the statements in JSON: many
    chains share rules, which are written once.
    """

    statements: tuple[Statement, ...]
    comment: str
    sets: tuple[ConstantSet, ...] = ()
    text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Write the statements."""
        object.__setattr__(self, "text", _encode(self.statements))


@dataclass(frozen=True, slots=True)
class Hook:
    """The place where the kernel hands packets to a base chain. Packets that it does not decide pass.

    A chain of type ``nat`` sees the first packet of a connection only (nft(8)).
    """

    point: Literal["prerouting", "input", "forward", "output", "postrouting"]
    priority: int
    type: Literal["filter", "nat"] = "filter"


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; one with a hook is a base chain."""

    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None

    def declaration(self, family: Family, table: str) -> str:
        """Return the command that adds the chain without its rules."""
        body: dict[str, object] = {"family": family, "table": table, "name": self.name}
        if self.hook is not None:
            hook = self.hook
            body |= {"type": hook.type, "hook": hook.point, "prio": hook.priority, "policy": "accept"}
        return _encode({"add": {"chain": body}})

    def block(self, family: Family, table: str) -> Block:
        """Return the commands that add the rules, no text if there are none.

        The comment of the first rule ends with a digest of the chain, 16 characters of base64: a listing tells by it
        whether a chain is this one.
        """
        if not self.rules:
            return Block("")
        head = f'{{"add":{{"rule":{{"family":"{family}","table":"{table}","chain":{_encode(self.name)},"expr":'
        texts = [rule.text for rule in self.rules]
        comments = [rule.comment for rule in self.rules]
        hashed = hashlib.blake2b("\n".join((*texts, *comments)).encode(), digest_size=12)
        signed = f" sig:{base64.b64encode(hashed.digest()).decode()}"
        comments[0] = comments[0][: MAX_COMMENT - len(signed)] + signed
        commands = BETWEEN.join(
            [f'{head}{text},"comment":{_quote(comment)}}}}}}}' for text, comment in zip(texts, comments, strict=True)]
        )
        return Block(commands, tuple(dict.fromkeys([made for rule in self.rules for made in rule.sets])))


class Block(NamedTuple):
    """The commands that add the rules of a chain, and the constant sets and maps that these look into."""

    text: str
    sets: tuple[ConstantSet, ...] = ()


@dataclass(frozen=True, slots=True)
class ConstantSet:
    """A named set or verdict map that never changes: its name follows from its elements.

    ``verdicts``: the elements are pairs of a key and a verdict. Without ``intervals``, the size is given, so that the
    kernel uses the same kind of set as for one without a name.
    """

    name: str
    types: tuple[KeyType, ...]
    elements: tuple[Value | tuple[Value, Verdict], ...] = field(compare=False)
    verdicts: bool
    intervals: bool

    def command(self, family: Family, table: str) -> str:
        """Return the command that adds and fills the set."""
        kind = self.types[0] if len(self.types) == 1 else self.types
        body: dict[str, object] = {"family": family, "table": table, "name": self.name, "type": kind}
        if self.verdicts:
            body["map"] = "verdict"
        if self.intervals:
            body["flags"] = ["interval"]
        else:
            body["size"] = len(self.elements)
        return _encode({"add": {"map" if self.verdicts else "set": {**body, "elem": self.elements}}})


@dataclass(frozen=True, slots=True)
class Set:
    """A named set of intervals of addresses, or of interface names."""

    name: str
    type: SetType
    elements: tuple[Value, ...]

    def command(self, family: Family, table: str) -> str:
        """Return the command that adds and fills the set."""
        body: dict[str, object] = {"family": family, "table": table, "name": self.name, "type": self.type}
        if self.type != "ifname":
            body["flags"] = ["interval"]
        if self.elements:  # nft 1.0.6 refuses an empty list
            body["elem"] = self.elements
        return _encode({"add": {"set": body}})


@dataclass(frozen=True, slots=True)
class DynamicSet:
    """A set that rules fill with :class:`~.statements.SetUpdate`; ``timeout`` in seconds, ``size`` in elements.

    nft 1.0.6 does not read the flag ``dynamic``; it sets it if a rule updates the set.
    """

    name: str
    type: SetType
    timeout: int
    size: int

    def command(self, family: Family, table: str) -> str:
        """Return the command that adds the set."""
        body = {"family": family, "table": table, "name": self.name, "type": self.type}
        return _encode({"add": {"set": {**body, "flags": ["timeout"], "timeout": self.timeout, "size": self.size}}})


@dataclass(frozen=True, slots=True)
class VerdictMap:
    """A named map from interface names to the chains that their packets jump to."""

    name: str
    jumps: tuple[tuple[str, str], ...]

    def command(self, family: Family, table: str) -> str:
        """Return the command that adds and fills the map."""
        body: dict[str, object] = {"family": family, "table": table, "name": self.name}
        body |= {"type": "ifname", "map": "verdict"}
        if self.jumps:
            body["elem"] = [(interface, jump(chain)) for interface, chain in self.jumps]
        return _encode({"add": {"map": body}})


@dataclass(frozen=True, slots=True)
class Helper:
    """A helper object: a conntrack helper of the kernel (``type``) for one transport protocol."""

    name: str
    type: str
    protocol: Literal["tcp", "udp"]

    def command(self, family: Family, table: str) -> str:
        """Return the command that adds the helper."""
        body = {"family": family, "table": table, "name": self.name, "type": self.type, "protocol": self.protocol}
        return _encode({"add": {"ct helper": body}})


@dataclass(frozen=True, slots=True)
class Table:
    """A table and all that is in it.

    ``declared`` holds its chains without rules. ``blocks`` gives for each of them, in the same order, what
    :meth:`Chain.block` returns; it may be read more than once, and each is made while it is read, since the rules of a
    large node do not fit well into memory together. The constant sets of a block come right before it, unless an
    earlier one has them.
    """

    family: Family
    name: str
    sets: tuple[Set | DynamicSet, ...]
    helpers: tuple[Helper, ...]
    declared: tuple[Chain, ...]
    maps: tuple[VerdictMap, ...]
    blocks: Iterable[Block]

    def commands(self) -> Iterator[str]:
        """Yield the commands that replace the table as a whole, whether there was one or not, in blocks.

        A block is one command or several, with :data:`BETWEEN` between them; the rules of a chain are in one. Chains
        come before the maps and rules that lead to them, sets before the rules that look into them.
        """
        table = {"table": {"family": self.family, "name": self.name}}
        yield BETWEEN.join([_encode({"add": table}), _encode({"delete": table}), _encode({"add": table})])
        for made in (*self.sets, *self.helpers):
            yield made.command(self.family, self.name)
        if self.declared:
            yield BETWEEN.join([chain.declaration(self.family, self.name) for chain in self.declared])
        for made_map in self.maps:
            yield made_map.command(self.family, self.name)
        known: set[str] = set()
        for block in self.blocks:
            yield from self._new_sets(block, known)
            if block.text:
                yield block.text

    def _new_sets(self, block: Block, known: set[str]) -> Iterator[str]:
        """Yield the commands for the constant sets of a block that are not known yet."""
        for made in block.sets:
            if made.name not in known:
                known.add(made.name)
                yield made.command(self.family, self.name)

    def text(self) -> Iterator[str]:
        """Yield the same in nft's own syntax, in pieces; see :mod:`.text`."""
        known: set[str] = set()
        blocks = list(self.blocks)  # a listing has sets first
        shared = [command for block in blocks for command in self._new_sets(block, known)]
        made = (*self.helpers, *self.sets, *self.maps)
        objects = (*(made_object.command(self.family, self.name) for made_object in made), *shared)
        declared = (chain.declaration(self.family, self.name) for chain in self.declared)
        texts = (block.text for block in blocks)
        yield from table_text(self.family, self.name, objects, zip(declared, texts, strict=True))


def transaction(blocks: Iterable[str]) -> Iterator[str]:
    """Yield, in pieces, the JSON document of a transaction of some blocks of commands: one command on a line."""
    separator = '{"nftables":[\n'
    for block in blocks:
        yield f"{separator}{block}"
        separator = BETWEEN
    yield "\n]}\n" if separator == BETWEEN else '{"nftables":[]}\n'
