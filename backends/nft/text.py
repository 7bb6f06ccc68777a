"""The tables in nft's own syntax, for people to read; libnftables writes it.

libnftables 1.0.6 prints what a kernel tells it, not what it was given. So the ruleset is loaded into a network
namespace that only one thread of this process is in, where no packets are, and listed from there; the namespace
ends with the thread.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nftables import Nftables

_CLONE_NEWNET = 0x40000000
"""A network namespace of one's own (linux/sched.h)."""


def render(document: str, tables: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield the text of tables, given as family and name, after a transaction in JSON has made them.

    Raises HostError where libnftables is missing, where the process may not make a network namespace, or where the
    kernel does not take the transaction.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        yield from thread.submit(_listing, document, tables).result()


def _listing(document: str, tables: Sequence[tuple[str, str]]) -> list[str]:
    _leave_network()
    nft = _libnftables()
    nft.set_json_output(True)
    status, _, problem = nft.cmd(document)
    if status != 0:
        first = next((line for line in problem.splitlines() if line.strip()), "no reason given")
        raise HostError(
            f"this kernel does not take the ruleset: {first}",
            "print it where it is to run, or with `--format json`; bridges need the modules nf_conntrack_bridge, "
            "nft_meta_bridge and nft_reject_bridge",
        )
    nft.set_json_output(False)
    nft.set_stateless_output(True)
    return [_list_table(nft, family, name) for family, name in tables]


def _list_table(nft: Nftables, family: str, name: str) -> str:
    status, text, problem = nft.cmd(f"list table {family} {name}")
    if status != 0:
        raise HostError(f"libnftables cannot list table {family} {name}: {problem.strip()}")
    return str(text)


def _leave_network() -> None:
    """Move this thread into a network namespace of its own (unshare(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise HostError(
            f"nft's syntax is written by the kernel's own listing, for which a network namespace is needed: "
            f"{os.strerror(ctypes.get_errno())}",
            "run this as root, or by `unshare -rn`, or print JSON with `--format json`",
        )


def _libnftables() -> Nftables:
    try:
        from nftables import Nftables
    except ImportError:
        raise HostError(
            "nft's syntax is written by libnftables, whose Python module is missing",
            "install pvefw with its extra `nft`, or Debian's package python3-nftables; or use `--format json`",
        ) from None
    try:
        return Nftables()
    except OSError as error:
        raise HostError(
            f"libnftables cannot be loaded: {error}", "install Debian's package libnftables1, or use `--format json`"
        ) from None
