"""Commands on the nodes themselves, over ssh (asyncssh, extra ``fleet``).

A node needs sshd and pvefw, and nothing else listens there. A host key that known_hosts does not name is refused, and
no password is ever asked for or sent. A node's answer is untrusted: it is bounded, and printed without control
characters.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import HostError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

MAX_OUTPUT = 64 * 2**20
"""Most that a command may print, in bytes; a comparison of 1,000 guests prints a tenth of that."""


@dataclass(frozen=True, slots=True)
class Target:
    """A node: its name, the address to connect to, and the known_hosts lines that count for it.

    ``alias`` is the name of its key in these lines, if that is not the address (HostKeyAlias of ssh_config(5)).
    """

    name: str
    address: str
    known_hosts: bytes
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class Login:
    """How to log in, and the limits for connecting and for commands, in seconds."""

    user: str = "root"
    port: int = 22
    keys: tuple[str, ...] = ()
    connect_seconds: float = 15.0
    command_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command on a node ended; ``failure`` says why it did not, and ``code`` is then None."""

    code: int | None
    out: str = ""
    err: str = ""
    failure: str = ""
    seconds: float = 0.0


def need_asyncssh() -> Any:  # noqa: ANN401 - a module
    """Return asyncssh. Raises HostError if it is not installed."""
    try:
        import asyncssh
    except ImportError:
        raise HostError(
            "this needs the Python module asyncssh, which is not installed",
            "apt-get install python3-asyncssh; in a checkout: PVEFW_EXTRAS='host nft fleet' ./pvefw --help",
        ) from None
    return asyncssh


def read_known_hosts(files: Sequence[Path]) -> bytes:
    """Return the lines of those files that are there. Raises HostError for one that cannot be read."""
    lines = []
    for file in files:
        try:
            lines.append(file.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise HostError(
                f"{file}: cannot be read: {error.strerror}", "name another file with --known-hosts"
            ) from None
    return b"\n".join(lines)


class Node:
    """A connection to a node; commands run over it one after the other, or at once."""

    def __init__(self, connection: Any, login: Login) -> None:  # noqa: ANN401 - asyncssh's
        self._connection = connection
        self._login = login

    async def run(self, words: Sequence[str], seconds: float | None = None) -> Answer:
        """Run a command. The words reach it unchanged, with any characters."""
        start = time.monotonic()
        limit = seconds or self._login.command_seconds
        process = None
        try:
            async with asyncio.timeout(limit):
                process = await self._connection.create_process(shlex.join(words), encoding=None)
                process.stdin.write_eof()
                out, err = await asyncio.gather(_bounded(process.stdout), _bounded(process.stderr))
                await process.wait_closed()
                code = process.exit_status
        except TimeoutError:
            return Answer(None, failure=f"{words[0]} took longer than {limit:g} s")
        except Exception as error:
            return Answer(None, failure=reason_of(error))
        finally:
            if process is not None:
                process.close()
        if code is None:
            return Answer(None, out, err, f"{words[0]} was killed, or the connection broke")
        return Answer(code, out, err, seconds=time.monotonic() - start)

    async def start(self, words: Sequence[str]) -> Any:  # noqa: ANN401
        """Start a command and return asyncssh's process, whose output is text."""
        return await self._connection.create_process(shlex.join(words), encoding="utf-8", errors="replace")


async def _bounded(stream: Any) -> str:  # noqa: ANN401
    parts, size = [], 0
    while data := await stream.read(2**16):
        size += len(data)
        if size > MAX_OUTPUT:
            raise HostError(f"it printed more than {MAX_OUTPUT // 2**20} MiB")
        parts.append(data)
    return b"".join(parts).decode("utf-8", "replace")


@contextlib.asynccontextmanager
async def connected(target: Target, login: Login) -> AsyncIterator[Node]:
    """Connect to a node. Raises the errors that :func:`reason_of` puts into words."""
    asyncssh = need_asyncssh()
    keys = {"client_keys": list(login.keys)} if login.keys else {}
    connection = await asyncio.wait_for(
        asyncssh.connect(
            target.address,
            login.port,
            username=login.user,
            known_hosts=target.known_hosts,
            host_key_alias=target.alias,
            preferred_auth="publickey",
            connect_timeout=login.connect_seconds,
            login_timeout=login.connect_seconds,
            keepalive_interval=15,
            **keys,
        ),
        2 * login.connect_seconds,
    )
    try:
        yield Node(connection, login)
    finally:
        connection.abort()  # a polite end would wait for a node that does not answer


def reason_of(error: Exception) -> str:
    """Return in words why a node could not be asked."""
    asyncssh = need_asyncssh()
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return "its host key is not the one in known_hosts, or none is there"
    if isinstance(error, asyncssh.PermissionDenied):
        return "it refuses the login: none of this user's keys is authorized there"
    if isinstance(error, OSError):
        return f"no connection: {error.strerror or error}"
    if isinstance(error, HostError):
        return error.message
    return f"{type(error).__name__}: {error}"


async def each(
    targets: Sequence[Target], count: int, ask: Callable[[Target], Awaitable[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Return the result of ``ask`` for each target, ``count`` at a time, in the order of the targets."""
    room = asyncio.Semaphore(count)

    async def one(target: Target) -> dict[str, Any]:
        async with room:
            return await ask(target)

    return list(await asyncio.gather(*(one(target) for target in targets)))
