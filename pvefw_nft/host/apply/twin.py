"""Replace whole nftables tables so that each packet meets all of the old or all of the new rules, or both.

A transaction of nf_tables is not one moment for a packet that is already in a base chain. Such a packet goes on in the
old rules, since ``nft_do_chain`` reads the generation once. But each look-up in a map reads the generation again
(``nft_set_elem_active``), and the elements of a deleted map are inactive in the new one (``nft_map_deactivate``): the
look-up finds nothing, and the packet gets the policy of the chain. A packet that holds the old list of hooks and enters
a deleted base chain in the new generation finds a chain without rules, and no other one. Of 100,000 replacements under
a flood of denied packets some 1,800 let one pass (:mod:`tests.host.test_atomic`).

So a copy of the new tables, their twins, is loaded first, then the tables are replaced, then the twins are removed:
a packet that slips through the tables still has to pass the twins. Between the steps no packet may be left that started
before the last one, see :func:`wait_for_packets`.
"""

from __future__ import annotations

import ctypes
import platform
import time
from typing import TYPE_CHECKING

from ..netfilter import nf_tables
from . import nftables_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .nftables_state import Command, Nftables

_SUFFIX = "-twin"
_MEMBARRIER_GLOBAL = 1  # MEMBARRIER_CMD_GLOBAL, include/uapi/linux/membarrier.h
_MEMBARRIER = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "loongarch64": 283}
"""The number of the system call, by machine (arch/x86/entry/syscalls/syscall_64.tbl, scripts/syscall.tbl)."""
_LONG_ENOUGH = 0.2  # seconds for a grace period of RCU where the kernel cannot be asked to wait for one


def name_of(table: str) -> str:
    """Return the name of a table's twin."""
    return f"{table}{_SUFFIX}"


def families(table: str) -> list[str]:
    """Return the families in which a table has a twin: a run that was killed left it. Raises HostError."""
    return sorted(nf_tables.tables(name_of(table)))


def loading(table: str, commands: Sequence[Command]) -> list[Command]:
    """Return the commands that load the twins, in place of those that a killed run left.

    ``commands`` make the table in one or more families; those that delete are left out.
    """
    made = list(adding(table, commands))
    return [*removing(table, {next(iter(command["add"].values()))["family"] for command in made}), *made]


def adding(table: str, commands: Iterable[Command]) -> Iterator[Command]:
    """Yield the commands that make the twins; ``commands`` make the table. Those that delete are left out."""
    return (_renamed(command["add"], table) for command in commands if "add" in command)


def _renamed(added: Command, table: str) -> Command:
    ((kind, body),) = added.items()
    key = "name" if kind == "table" else "table"
    return {"add": {kind: {**body, key: name_of(table)}}} if body[key] == table else {"add": added}


def removing(table: str, families: Iterable[str]) -> list[Command]:
    """Return the commands that remove the twins in these families; it is no failure if one is not there."""
    return [command for family in families for command in nftables_state.removing(family, name_of(table))]


def replace(nft: Nftables, table: str, commands: Sequence[Command]) -> None:
    """Replace a table; ``commands`` are the transaction that deletes it, if it is there, and makes it again.

    Raises HostError: the table is then as before, unless only the removal of the twin failed.
    """
    if nf_tables.tables(table):
        nft.run(loading(table, commands))
        wait_for_packets()
    try:
        nft.run(commands)
        wait_for_packets()
    finally:
        remove(nft, table)


def remove(nft: Nftables, table: str) -> None:
    """Remove the twins of a table, if there are any. Raises HostError."""
    left = families(table)
    if left:
        nft.run(removing(table, left))


def wait_for_packets() -> None:
    """Wait until no packet is left in the hooks that entered them before this call.

    Hooks run within a read-side critical section of RCU (``nf_hook``), and membarrier(2) waits for a grace period
    (``membarrier_global`` calls ``synchronize_rcu``); that takes some 30 ms.
    """
    number = _MEMBARRIER.get(platform.machine())
    if number is None or ctypes.CDLL(None, use_errno=True).syscall(number, _MEMBARRIER_GLOBAL, 0, 0) != 0:
        time.sleep(_LONG_ENOUGH)  # EINVAL with nohz_full, EPERM by a filter of system calls
