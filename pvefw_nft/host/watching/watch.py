"""Notice changes of the configuration or the host's links: inotify, netlink, signals, and polling."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING, Protocol, TypeVar

from pvefw_nft.errors import PvefwError

from .rule_events import RuleEvents, Transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_T = TypeVar("_T")

# Seconds between polls of rules whose changes the kernel does not announce: a look takes milliseconds, so that these
# changes are noticed within two of the five seconds in which they are to be mended.
LOOK_AT_RULES = 2.0

# include/uapi/linux/inotify.h
_IN_MODIFY, _IN_ATTRIB, _IN_CLOSE_WRITE = 0x2, 0x4, 0x8
_IN_MOVED, _IN_CREATE, _IN_DELETE, _IN_DELETE_SELF, _IN_MOVE_SELF = 0xC0, 0x100, 0x200, 0x400, 0x800
_EVENTS = _IN_MODIFY | _IN_CLOSE_WRITE | _IN_MOVED | _IN_CREATE | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF
# include/uapi/linux/rtnetlink.h: links, IPv4 and IPv6 addresses
_GROUPS = 0x1 | 0x10 | 0x100
_NETLINK_ROUTE = 0
_STATE_FILES = (".running-config", "pve-ipam-state.json", "ipam.db", "hosts")  # other inputs of a compile


class Inotify:
    """Watches folders that may come and go. Folders beyond the kernel's limit are not watched: see ``problems``.

    pyroute2's class of this name (0.9) does not tell that a limit was reached, waits in its reads, and leaves its
    descriptor open in the programs that a service starts.
    """

    def __init__(self) -> None:
        """Open the inotify descriptor, where the kernel has one left."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.problems: set[str] = set()
        """Why changes of files may be noticed only by looking at them."""
        self.descriptor: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            self._note("inotify is not usable", "max_user_instances")

    def watch(self, folders: Sequence[Path]) -> None:
        """Watch these folders; those watched already stay so, those that do not exist are left out."""
        for folder in folders if self.descriptor >= 0 else ():
            number = self._libc.inotify_add_watch(self.descriptor, os.fsencode(folder), _EVENTS)
            if number < 0 and ctypes.get_errno() in (errno.ENOSPC, errno.ENOMEM):
                self._note("the kernel does not watch more folders", "max_user_watches")

    def _note(self, what: str, setting: str) -> None:
        reason = os.strerror(ctypes.get_errno())
        self.problems.add(f"{what} ({reason}): changes are noticed at the next look (raise fs.inotify.{setting})")

    def drain(self) -> bool:
        """Take all events off the queue; tell whether there were any."""
        seen = False
        try:
            while self.descriptor >= 0 and os.read(self.descriptor, 65536):
                seen = True
        except BlockingIOError:
            pass
        return seen

    def close(self) -> None:
        """Close the descriptor."""
        if self.descriptor >= 0:
            os.close(self.descriptor)


def link_events() -> socket.socket:
    """Return a socket on which the kernel tells of changes to links and addresses."""
    events = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, _NETLINK_ROUTE
    )
    events.bind((0, _GROUPS))
    return events


def drain(events: socket.socket) -> bool:
    """Take all messages off a socket; tell whether there were any. Lost ones count too."""
    seen = False
    while True:
        try:
            events.recv(65536)
        except BlockingIOError:
            return seen
        except OSError:  # ENOBUFS: more came than the queue held
            pass
        seen = True


def snapshot(folders: Sequence[Path]) -> dict[str, tuple[int, int, int]]:
    """Return size, inode and time of change of each file in these folders, to see what no event told."""
    found = {}
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.endswith((".fw", ".pvefw", ".conf")) or entry.name in _STATE_FILES:
                        info = entry.stat()
                        found[entry.path] = (info.st_size, info.st_ino, info.st_mtime_ns)
        except OSError:
            continue
    return found


def folders_of(root: Path, node: str) -> list[Path]:
    """Return the folders that a node's configuration lies in, and the ones above, in which they may appear."""
    pve = root / "etc" / "pve"
    here = pve / "nodes" / node
    return [
        root / "etc",
        pve,
        pve / "firewall",
        pve / "local",
        pve / "qemu-server",
        pve / "lxc",
        pve / "sdn",
        pve / "sdn" / "firewall",
        pve / "priv",
        here,
        here / "qemu-server",
        here / "lxc",
    ]


def folders_above(root: Path) -> list[Path]:
    """Return the folders in which folders of a configuration may appear."""
    return [root / "etc", root / "etc" / "pve"]


def notify(message: str) -> None:
    """Tell the service manager (sd_notify(3)); without one nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.sendto(message.encode(), address)
    except OSError:
        return


class Look(Protocol):
    """Run a function that touches the file system, and return its result."""

    def __call__(self, function: Callable[[], _T], /) -> _T:
        """Raises :class:`PvefwError` if the file system does not answer."""


def _look(function: Callable[[], _T], /) -> _T:
    return function()


class _RuleWatch:
    """Look at the rules after other programs' transactions, when a look asks for another one, and every 2 s."""

    def __init__(self, look: Callable[[Sequence[Transaction]], float | None], warn: Callable[[str], None]) -> None:
        self._look = look
        self._events: RuleEvents | None = None
        self._made: list[Transaction] = []
        self._asked: float | None = None
        self._again = time.monotonic() + LOOK_AT_RULES
        try:
            self._events = RuleEvents()
        except OSError as error:
            warn(f"the kernel does not tell of changes of rules: {error.strerror}")

    @property
    def descriptor(self) -> int:
        """The descriptor that becomes readable with other programs' transactions; -1: there is none."""
        return -1 if self._events is None else self._events.socket.fileno()

    @property
    def due(self) -> float:
        """When to look next, if no transaction comes before."""
        return self._again if self._asked is None else min(self._asked, self._again)

    def look(self) -> None:
        """Look if a look is due, or if other programs made transactions since the last one."""
        if self._events is not None:
            self._made += self._events.drain()
        now = time.monotonic()
        if now < self.due and (not self._made or self._asked is not None):
            return
        made, self._made = self._made, []
        wanted = self._look(made)
        if wanted is not None:
            self._made = made[-1:]  # who it was is told when it is looked at
        now = time.monotonic()
        self._asked = None if wanted is None else now + wanted
        self._again = now + LOOK_AT_RULES

    def close(self) -> None:
        """Stop listening."""
        if self._events is not None:
            self._events.close()


class Watcher:
    """Calls ``refresh`` when something changed, until it is told to end."""

    def __init__(
        self,
        folders: Callable[[], Sequence[Path]],
        refresh: Callable[[str], float | None],
        *,
        look_at_rules: Callable[[Sequence[Transaction]], float | None] = lambda _: None,
        look: Look = _look,
        warn: Callable[[str], None] = lambda _: None,
        poll: float = 10.0,
        full: float = 60.0,
        quiet: float = 0.05,
        longest: float = 0.3,
    ) -> None:
        """Watch ``folders``; ``refresh`` gets the reason. All times are in seconds.

        Files are examined every ``poll``. ``refresh`` is called every ``full`` in any case, and after the number of
        seconds that it returned. After an event it is called when no other event came for ``quiet``, at the latest
        after ``longest``.

        ``look_at_rules`` gets other programs' transactions of nf_tables as soon as the kernel announces them. It is
        also called every 2 s without any, for rules and sets whose changes the kernel does not announce. It returns
        the seconds after which to call it again (None: no sooner).

        ``look`` runs functions that touch the file system. It may raise :class:`PvefwError` if that does not answer.
        ``warn`` prints a warning about changes that cannot be watched.
        """
        self._folders = folders
        self._refresh = refresh
        self._look_at_rules = look_at_rules
        self._look = look
        self._warn = warn
        self._poll = poll
        self._full = full
        self._quiet = quiet
        self._longest = longest
        self._ended = False
        self._hung_up = False
        self._wake_reading, self._wake_writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Call ``refresh`` once, then ``started``, then watch until SIGTERM or SIGINT; SIGHUP refreshes at once.

        The first ``refresh`` comes before anything that may fail: the rules matter most.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._signals())
            inotify = Inotify()
            stack.callback(inotify.close)
            links = stack.enter_context(link_events())
            selector = stack.enter_context(selectors.DefaultSelector())
            rules = _RuleWatch(self._look_at_rules, self._warn)
            stack.callback(rules.close)
            for source in (inotify.descriptor, links.fileno(), self._wake_reading, rules.descriptor):
                if source >= 0:
                    selector.register(source, selectors.EVENT_READ)
            seen = self._seen(inotify)
            due = self._due(self._refresh("started"))
            started()
            self._tell_problems(inotify)
            while not self._ended:
                selector.select(max(0.0, min(self._poll, due - time.monotonic(), rules.due - time.monotonic())))
                reason = self._gather(inotify, links)
                now = self._seen(inotify)
                self._tell_problems(inotify)
                if reason is None and now != seen:
                    reason = "files changed"
                if reason is None and time.monotonic() >= due:
                    reason = "time to look"
                notify("WATCHDOG=1")
                if self._ended or reason is None:
                    rules.look()
                    continue
                seen = now
                due = self._due(self._refresh(reason))
        notify("STOPPING=1")

    def _due(self, wanted: float | None) -> float:
        return time.monotonic() + (self._full if wanted is None else min(wanted, self._full))

    def _seen(self, inotify: Inotify) -> dict[str, tuple[int, int, int]] | None:
        """Watch the folders and return their entries; None if the file system does not answer."""

        def look() -> dict[str, tuple[int, int, int]]:
            folders = self._folders()
            inotify.watch(folders)
            return snapshot(folders)

        try:
            return self._look(look)
        except (PvefwError, OSError):  # the latter where a limit of the process is reached
            return None  # the refresh reports the error

    def _tell_problems(self, inotify: Inotify) -> None:
        for problem in sorted(inotify.problems):
            self._warn(problem)

    def _gather(self, inotify: Inotify, links: socket.socket) -> str | None:
        """Return why to refresh, once no more events come; None if there is no reason."""
        reason = None
        latest = time.monotonic() + self._longest
        while True:
            files, changed = inotify.drain(), drain(links)
            self._drain_wake()
            if self._hung_up:
                self._hung_up = False
                return "SIGHUP"
            if files or changed:
                reason = "files changed" if files or reason == "files changed" else "links changed"
            if self._ended or not (files or changed) or time.monotonic() >= latest:
                return reason
            time.sleep(self._quiet)

    def _drain_wake(self) -> None:
        try:
            while os.read(self._wake_reading, 64):
                pass
        except BlockingIOError:
            return

    def _signals(self) -> _Handlers:
        return _Handlers({signal.SIGTERM: self._end, signal.SIGINT: self._end, signal.SIGHUP: self._hang_up})

    def _end(self) -> None:
        self._ended = True
        self._wake()

    def _hang_up(self) -> None:
        self._hung_up = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: there is enough in it to wake up
            os.write(self._wake_writing, b"!")


def _calling(handler: Callable[[], None]) -> Callable[[int, object], None]:
    return lambda _number, _frame: handler()


class _Handlers:
    """Signal handlers for the length of a block."""

    def __init__(self, handlers: dict[signal.Signals, Callable[[], None]]) -> None:
        self._handlers = handlers
        self._before: list[tuple[signal.Signals, object]] = []

    def __enter__(self) -> None:
        for number, handler in self._handlers.items():
            self._before.append((number, signal.signal(number, _calling(handler))))

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() returned
