"""The program in the guest that executes the host's requests, one after the other.

Requests and answers are pickled tuples, framed by :class:`multiprocessing.connection.Connection`; both ends
run the same code on the same files and trust one another.

    ("run", argv, cwd)                    → ("output", bytes)… ("exit", status)
    ("call", "module:name", args)         → ("value", result) or ("error", traceback)
    ("stop",)                             → the agent ends

A called function runs in the agent's own process, so that the state of a module (namespaces, sockets) stays from one
call to the next.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any


def main() -> None:
    """Serve requests from the device or descriptor named on the command line until told to stop."""
    where = sys.argv[1]
    descriptor = int(where) if where.isdigit() else os.open(where, os.O_RDWR)
    with Connection(descriptor) as host:
        host.send(("ready",))
        while True:
            try:
                request = host.recv()
            except EOFError:
                return
            match request:
                case ("run", argv, cwd):
                    _run(host, argv, cwd)
                case ("call", target, args):
                    host.send(_call(target, args))
                case ("stop",):
                    return
                case _:
                    host.send(("error", f"unknown request {request!r}"))


def _run(host: Connection[Any, Any], argv: list[str], cwd: str) -> None:
    """Run a command; its output, standard error included, goes to the host as it comes."""
    try:
        process = subprocess.Popen(
            argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        host.send(("output", f"{argv[0]}: {error.strerror}\n".encode()))
        host.send(("exit", 127))
        return
    assert process.stdout is not None
    while chunk := os.read(process.stdout.fileno(), 65536):
        host.send(("output", chunk))
    status = process.wait()
    host.send(("exit", status if status >= 0 else 128 - status))


def _call(target: str, args: tuple[Any, ...]) -> tuple[str, Any]:
    module, _, name = target.partition(":")
    try:
        return ("value", getattr(importlib.import_module(module), name)(*args))
    except Exception:
        return ("error", traceback.format_exc())


if __name__ == "__main__":
    main()
