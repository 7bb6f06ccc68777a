"""Read the kernel's nf_tables over netlink: its generation, tables and rules.

libnftables can read them, too. But for each answer it reads all chains, sets and maps of all tables, iptables-nft's
included, which takes seconds for the rules of thousands of guests. Constants come from
include/uapi/linux/netfilter/nf_tables.h, nfnetlink.h and netlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pvefw_nft.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_NFTABLES = "the kernel may lack nf_tables"
"""The hint of the error where the kernel does not answer."""

_NETLINK_NETFILTER = 12
SUBSYSTEM = 10 << 8
_GET_TABLE, _GET_CHAIN, _GET_RULE, _GET_GENERATION = (SUBSYSTEM | number for number in (1, 4, 7, 16))
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE, _NEW_GENERATION = _GET_TABLE - 1, _GET_CHAIN - 1, _GET_RULE - 1, _GET_GENERATION - 1
REQUEST, DUMP = 0x1, 0x300
_INTERRUPTED = 0x10  # of a dump: rules changed meanwhile, so that some may be missing
_ERROR, _DONE = 2, 3
_FAMILIES = {"inet": 1, "bridge": 7}
_IP_FAMILIES = {"ip": 2, "ip6": 10}
_TRIES = 20
_LACKING = (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL)

_TABLE_NAME, _TABLE_FLAGS, _GENERATION_ID = 1, 2, 1
_DORMANT = 0x1
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 3, 4, 7
EXPRESSION_NAME, EXPRESSION_DATA = 1, 2
_COUNTER_PACKETS = 2
_IMMEDIATE_DATA, _DATA_VERDICT, _VERDICT_CODE = 2, 2, 1
_NF_DROP = 0
_HEADER = struct.Struct("=IHHI").unpack_from  # struct nlmsghdr: its length, type, flags and number
_ATTRIBUTE = struct.Struct("=HH").unpack_from  # struct nlattr: its length and kind
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT, libnftnl's udata.h


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: its chain, its handle and its comment."""

    chain: str
    handle: int
    comment: str


def tables(name: str) -> set[str]:
    """Return the families, ``inet`` and ``bridge``, that have a table of that name.

    Raises :class:`HostError` if the kernel does not answer, like the other functions here.
    """
    return {family for family, table in _tables() if table == name and family in _FAMILIES}


def dormant() -> set[tuple[str, str]]:
    """Return family and name of the tables whose chains are switched off by the flag ``dormant`` (nft(8))."""
    return {key for key, flags in _tables().items() if flags & _DORMANT}


def _tables() -> dict[tuple[str, str], int]:
    """Return the flags of all tables, by family (as a number where it has no name here) and name."""
    names = {number: family for family, number in (_FAMILIES | _IP_FAMILIES).items()}
    return {
        (names.get(body[0], str(body[0])), text(attribute(body, _TABLE_NAME, 4))): int.from_bytes(
            attribute(body, _TABLE_FLAGS, 4), "big"
        )
        for kind, body in ask(_GET_TABLE, REQUEST | DUMP)
        if kind == _NEW_TABLE
    }


def rules(family: str, table: str, chain: str | None = None) -> list[Rule]:
    """Return the rules of a table, or of one chain, in order; none if there is no such table or chain."""
    found = []
    # a table of thousands of guests has as many notes: names are compared as the kernel sends them
    table_sent, chain_sent = table.encode() + b"\0", None if chain is None else chain.encode() + b"\0"
    with Questions() as questions:
        for body in _rules(questions, family, table, chain):
            parts = dict(attributes(body, 4))
            # the kernel has filtered by these already; one that cannot lists all rules of the family
            if parts[_RULE_TABLE] == table_sent and chain_sent in (None, parts[_RULE_CHAIN]):
                name = text(parts[_RULE_CHAIN]) if chain is None else chain
                handle = int.from_bytes(parts[_RULE_HANDLE], "big")
                found.append(Rule(name, handle, _comment(parts.get(_RULE_USERDATA, b""))))
    return found


def refused(family: str, table: str) -> dict[str, int]:
    """Return, by chain, the packets counted by rules that drop or reject them; chains without any are left out."""
    found: dict[str, int] = {}
    with Questions() as questions:
        # chain by chain: the time of a dump of all rules grows with the square of their number
        for name in _chains(questions, family, table):
            packets = 0
            for body in _rules(questions, family, table, name):
                if b"counter\0" not in body:  # most rules: taking them apart would take long
                    continue
                parts = dict(attributes(body, 4))
                if (text(parts[_RULE_TABLE]), text(parts[_RULE_CHAIN])) == (table, name):
                    packets += _refused(parts.get(_RULE_EXPRESSIONS, b""))
            if packets:
                found[name] = packets
    return found


def _chains(questions: Questions, family: str, table: str) -> list[str]:
    answers = questions.ask(_GET_CHAIN, REQUEST | DUMP, family, pack(_CHAIN_TABLE, table))
    chains = (dict(attributes(body, 4)) for kind, body in answers if kind == _NEW_CHAIN)
    # older kernels ignore the filter and dump all chains
    return [text(parts[_CHAIN_NAME]) for parts in chains if text(parts[_CHAIN_TABLE]) == table]


def _rules(questions: Questions, family: str, table: str, chain: str | None) -> Iterator[bytes]:
    wanted = pack(_RULE_TABLE, table) + (b"" if chain is None else pack(_RULE_CHAIN, chain))
    answers = questions.ask(_GET_RULE, REQUEST | DUMP, family, wanted)
    return (body for kind, body in answers if kind == _NEW_RULE)


def _refused(expressions: bytes) -> int:
    """Return how many packets a rule has counted, if it drops or rejects them; else 0."""
    packets, refuses = 0, False
    for _, expression in attributes(expressions, 0):
        name, data = attribute(expression, EXPRESSION_NAME), attribute(expression, EXPRESSION_DATA)
        match text(name):
            case "counter":
                packets = int.from_bytes(attribute(data, _COUNTER_PACKETS), "big")
            case "reject":
                refuses = True
            case "immediate":
                code = attribute(attribute(attribute(data, _IMMEDIATE_DATA), _DATA_VERDICT), _VERDICT_CODE)
                refuses = refuses or (bool(code) and int.from_bytes(code, "big") == _NF_DROP)
    return packets if refuses else 0


def generation() -> int | None:
    """Return the number of the kernel's ruleset, which grows with each change by anybody (None: unknown)."""
    try:
        for kind, body in ask(_GET_GENERATION, REQUEST):
            if kind == _NEW_GENERATION:
                return int.from_bytes(attribute(body, _GENERATION_ID, 4), "big")
    except HostError:
        return None
    return None


def ask(kind: int, flags: int, family: str | None = None, about: bytes = b"") -> list[tuple[int, bytes]]:
    """Ask nf_tables one question, as :meth:`Questions.ask` does."""
    with Questions() as questions:
        return questions.ask(kind, flags, family, about)


class Questions:
    """A socket for questions to nf_tables of the namespace in which it is opened: opening and closing takes longest."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._socket: socket.socket | None = None
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(self, kind: int, flags: int, family: str | None = None, about: bytes = b"") -> list[tuple[int, bytes]]:
        """Send a request and return the answers: the type of each, and the payload after its netlink header.

        ``about``: attributes. There are no answers about objects that do not exist. Raises :class:`HostError`.
        """
        try:
            for _ in range(_TRIES):
                answers = self._answers(kind, flags, 0 if family is None else _FAMILIES[family], about)
                if answers is not None:
                    return answers
        except OSError as error:
            self._close()  # the rest of this answer would be taken for the next one
            if about and error.errno == errno.ENOENT:
                return []
            hint = "run this as root" if error.errno == errno.EPERM else None
            hint = NO_NFTABLES if error.errno in _LACKING else hint
            raise HostError(f"nf_tables does not answer: {error.strerror or error}", hint) from error
        raise HostError("the rules of nf_tables change all the time", "see which program changes them: nft monitor")

    def _answers(self, kind: int, flags: int, family: int, about: bytes) -> list[tuple[int, bytes]] | None:
        """Return the answers to one question; None: rules changed while they were listed. Raises OSError."""
        answers: list[tuple[int, bytes]] = []
        asking = self._socket
        if asking is None:
            asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
            asking.settimeout(60)
            self._socket = asking
        self._number += 1
        # struct nlmsghdr, struct nfgenmsg
        asking.send(struct.pack("=IHHIIBBH", 20 + len(about), kind, flags, self._number, 0, family, 0, 0) + about)
        whole = True
        while True:
            for answer, its_flags, number, body in _messages(asking.recv(1 << 18)):
                if number != self._number:
                    raise OSError(errno.EBADMSG, "an answer to another question")
                whole = whole and not its_flags & _INTERRUPTED
                if answer == _ERROR and (code := -struct.unpack_from("=i", body)[0]):
                    raise OSError(code, os.strerror(code))
                if answer in (_ERROR, _DONE):
                    return answers if whole else None
                answers.append((answer, body))
            if not flags & DUMP:
                return answers


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    position = 0
    while position + 16 <= len(data):
        length, kind, flags, number = _HEADER(data, position)
        if length < 16:
            return
        yield kind, flags, number, data[position + 16 : position + length]
        position += (length + 3) & ~3


def attributes(data: bytes, position: int) -> Iterator[tuple[int, bytes]]:
    """Yield the attributes (struct nlattr) from there on: their kind and value."""
    end = len(data) - 4
    while position <= end:
        length, kind = _ATTRIBUTE(data, position)
        if length < 4:
            return
        yield kind & 0x3FFF, data[position + 4 : position + length]
        position += (length + 3) & ~3


def attribute(data: bytes, wanted: int, position: int = 0) -> bytes:
    """Return the value of an attribute, empty if it is missing."""
    return next((value for kind, value in attributes(data, position) if kind == wanted), b"")


def text(value: bytes) -> str:
    """Return a string that the kernel ended with a NUL."""
    return value.rstrip(b"\0").decode(errors="replace")


def pack(kind: int, name: str) -> bytes:
    """Return an attribute (struct nlattr) that holds a string."""
    value = name.encode() + b"\0"
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _comment(userdata: bytes) -> str:
    """Return the comment in a rule's user data: elements of a kind, a length and a value (libnftnl's udata.c)."""
    position = 0
    while position + 2 <= len(userdata):
        kind, length = userdata[position], userdata[position + 1]
        if kind == _COMMENT:
            return text(userdata[position + 2 : position + 2 + length])
        position += 2 + length
    return ""
