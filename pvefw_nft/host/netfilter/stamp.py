"""Proof that no rule in the kernel changed since the rules were read.

nf_tables counts the changes of a network namespace: a number in the kernel grows by one with each transaction,
by any program (nf_tables_commit in net/netfilter/nf_tables_api.c). Equal numbers mean equal rules, for nft and for
the variants of iptables and ebtables that keep their rules there. ipsets and the tables of legacy variants are not
counted: a digest of them is made whenever a stamp is taken.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import HostError

from .. import tools
from . import legacy_tables
from .nf_tables import generation

if TYPE_CHECKING:
    from collections.abc import Sequence

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MODULE = Path("/sys/module/nf_tables")
_NETNS_COOKIE = 71  # SO_NETNS_COOKIE, include/uapi/asm-generic/socket.h; since Linux 5.14
_NF_TABLES, _LEGACY_VARIANT = "nf_tables", "legacy"
_KEPT_IN_NF_TABLES = "xtables-nft-multi"
_LEGACY = ("xtables-legacy-multi", "ebtables-legacy")  # how the files of legacy variants begin, as Debian names them


@dataclass(frozen=True, slots=True)
class RulesetStamp:
    """The facts recorded when the rules were read.

    ``boot`` (with a number of the module) and ``namespace`` (a number that no other namespace of this boot gets) say
    whose count ``generation`` is; ``rest`` is a digest of the parts that are not counted.
    """

    boot: str
    namespace: int
    generation: int
    rest: str = ""

    def after(self, transactions: int) -> RulesetStamp:
        """Return the stamp that follows after this number of transactions, by any program."""
        return replace(self, generation=self.generation + transactions)

    def as_json(self) -> list[Any]:
        """Return the stamp as data for :meth:`of_json`."""
        return [self.boot, self.namespace, self.generation, self.rest]

    @classmethod
    def of_json(cls, value: Any) -> RulesetStamp | None:  # noqa: ANN401 - JSON
        """Return the stamp that was written; None: there was none. Raises TypeError for any other value."""
        if value is None:
            return None
        boot, namespace, generation, rest = value
        if not (isinstance(boot, str) and isinstance(rest, str) and {type(namespace), type(generation)} == {int}):
            raise TypeError("a stamp of other types")
        return cls(boot, namespace, generation, rest)


def take_stamp(rest: str = "") -> RulesetStamp | None:
    """Return the stamp of this moment, or None if the kernel does not tell."""
    number = generation()
    try:
        boot = f"{_BOOT.read_text('ascii').strip()} {_module_number()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
            namespace = int.from_bytes(asking.getsockopt(socket.SOL_SOCKET, _NETNS_COOKIE, 8), sys.byteorder)
    except OSError:
        return None
    return RulesetStamp(boot, namespace, number, rest) if number is not None and namespace else None


def _module_number() -> int:
    """Return a number that changes when nf_tables is loaded again, since it then counts from the start; 0: built in."""
    try:
        return _MODULE.stat().st_ino
    except FileNotFoundError:
        return 0


def take_stamp_for_tools(names: Sequence[str], uncounted: str) -> RulesetStamp | None:
    """Return the stamp for rules that these tools keep, and the listing of the parts that are not counted.

    None if one of them is missing, is of a variant that is not known, or keeps its rules where they cannot be read.
    """
    found = hashlib.sha256(uncounted.encode())
    try:
        variants = {name: _variant(name) for name in names}
        before = take_stamp()
        for tool in sorted({name.split("-", 1)[0] for name, variant in variants.items() if variant != _NF_TABLES}):
            found.update(f"{tool} {legacy_tables.digest(tool)}".encode())
    except (HostError, OSError):
        return None
    # rules that move from the one kind of tables to the other meanwhile are in both or in neither
    return replace(before, rest=found.hexdigest()) if before is not None and before == take_stamp() else None


def are_counted(names: Sequence[str]) -> bool:
    """Tell whether these tools keep all rules in nf_tables, so that each change of them counts."""
    try:
        return all(_variant(name) == _NF_TABLES for name in names)
    except HostError:
        return False


def is_legacy(tool: str) -> bool:
    """Tell whether a tool is of the legacy variant; one that is missing or of another kind is not."""
    try:
        return _variant(tool) == _LEGACY_VARIANT
    except HostError:
        return False


def _variant(tool: str) -> str:
    """Return ``nf_tables`` or ``legacy``. Raises HostError if the tool is missing or of another kind."""
    file = Path(os.path.realpath(tools.find(tool))).name
    if file == _KEPT_IN_NF_TABLES:
        return _NF_TABLES
    if file.startswith(_LEGACY):
        return _LEGACY_VARIANT
    raise HostError(f"{tool} is of a variant that is not known: {file}")
