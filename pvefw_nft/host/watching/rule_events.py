"""Notice changes of rules: the kernel announces each transaction of nf_tables, and names its maker.

Constants come from include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h, linux/filter.h and asm/socket.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from .. import tools
from ..netfilter.nf_tables import SUBSYSTEM, attribute, text

_NETLINK_NETFILTER = 12
_GROUP = 1 << (7 - 1)  # NFNLGRP_NFTABLES
_NEW_GENERATION = SUBSYSTEM | 15
_PROCESS, _PROCESS_NAME = 2, 3
_SO_ATTACH_FILTER = 26
_LOAD_HALF_WORD, _JUMP_IF_EQUAL, _RETURN = 0x28, 0x15, 0x06  # BPF_LD|BPF_H|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET
_TYPE_AT = 4  # of struct nlmsghdr


@dataclass(frozen=True, slots=True)
class Transaction:
    """A change of rules by a process: its id, and its name as the kernel knows it (at most 15 characters)."""

    process: int
    name: str


class RuleEvents:
    """A socket on which the kernel tells of transactions in this network namespace.

    Only the message that ends each transaction is let through, so that loading a large ruleset does not fill the queue.
    """

    def __init__(self) -> None:
        """Listen. Raises OSError if the kernel has no nf_tables, or no descriptor is left."""
        self.socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        try:
            _let_through_only(self.socket, _NEW_GENERATION)
            self.socket.bind((0, _GROUP))
        except OSError:
            self.socket.close()
            raise

    def drain(self) -> list[Transaction]:
        """Take all messages off the socket. Return other programs' transactions in order; lost messages count too."""
        found: list[Transaction] = []
        while True:
            try:
                message = self.socket.recv(4096)
            except BlockingIOError:
                return [transaction for transaction in found if not _is_ours(transaction.process)]
            except OSError:  # ENOBUFS: more came than the queue held
                found.append(Transaction(0, "unknown"))
            else:
                found.append(_read(message))

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def _read(message: bytes) -> Transaction:
    # struct nlmsghdr and struct nfgenmsg come first
    process = int.from_bytes(attribute(message, _PROCESS, 20), "big")
    return Transaction(process, text(attribute(message, _PROCESS_NAME, 20)) or "unknown")


def _is_ours(process: int) -> bool:
    """Tell whether a transaction was made by this process or a tool that it ran."""
    return process == os.getpid() or tools.was_started(process)


def _let_through_only(listening: socket.socket, kind: int) -> None:
    """Attach a socket filter (classic BPF) that drops all messages of other kinds."""
    # BPF loads numbers in network byte order, netlink writes them in the machine's
    wanted = int.from_bytes(kind.to_bytes(2, sys.byteorder), "big")
    code = [
        (_LOAD_HALF_WORD, 0, 0, _TYPE_AT),
        (_JUMP_IF_EQUAL, 0, 1, wanted),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_RETURN, 0, 0, 0),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in code))
    listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(code), ctypes.addressof(program)))


def name_of_maker(transaction: Transaction) -> str:
    """Return the name of the process that made a transaction, and of its parent where both still run."""
    try:
        status = Path(f"/proc/{transaction.process}/status").read_text()
        parent = next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:"))
        above = Path(f"/proc/{parent}/comm").read_text().strip()
    except (OSError, StopIteration, IndexError):
        return f"`{transaction.name}` (process {transaction.process})"
    return f"`{transaction.name}` (process {transaction.process}, started by `{above}`)"
