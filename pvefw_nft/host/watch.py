"""What tells that the configuration or the host's links changed: inotify, netlink, signals, and looking again."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

# include/uapi/linux/inotify.h
_IN_MODIFY, _IN_ATTRIB, _IN_CLOSE_WRITE = 0x2, 0x4, 0x8
_IN_MOVED, _IN_CREATE, _IN_DELETE, _IN_DELETE_SELF, _IN_MOVE_SELF = 0xC0, 0x100, 0x200, 0x400, 0x800
_EVENTS = _IN_MODIFY | _IN_CLOSE_WRITE | _IN_MOVED | _IN_CREATE | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF
# include/uapi/linux/rtnetlink.h: links, IPv4 and IPv6 addresses
_GROUPS = 0x1 | 0x10 | 0x100
_NETLINK_ROUTE = 0
_STATE_FILES = (".running-config", "pve-ipam-state.json", "ipam.db", "hosts")  # what else a compile reads


class Inotify:
    """Watches folders that may come and go. Where the kernel has no inotify, nothing is ever seen."""

    def __init__(self) -> None:
        """Open the inotify descriptor. Raises :class:`HostError` where the kernel has no more of them."""
        self._libc = ctypes.CDLL(ctypes.util.find_library("c") or None, use_errno=True)
        self.descriptor: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            reason = os.strerror(ctypes.get_errno())
            raise HostError(f"inotify is not usable: {reason}", "raise fs.inotify.max_user_instances")

    def watch(self, folders: Sequence[Path]) -> None:
        """Watch these folders; those watched already stay so, those that do not exist are left out."""
        for folder in folders:
            self._libc.inotify_add_watch(self.descriptor, os.fsencode(folder), _EVENTS)

    def drain(self) -> bool:
        """Take all events off the queue; tell whether there were any."""
        seen = False
        try:
            while os.read(self.descriptor, 65536):
                seen = True
        except BlockingIOError:
            pass
        return seen

    def close(self) -> None:
        """Close the descriptor."""
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


class Watcher:
    """Calls ``refresh`` when something changed, until it is told to end."""

    def __init__(
        self,
        folders: Callable[[], Sequence[Path]],
        refresh: Callable[[str], None],
        *,
        poll: float = 10.0,
        full: float = 60.0,
        quiet: float = 0.05,
        longest: float = 0.3,
    ) -> None:
        """Watch ``folders``; ``refresh`` gets the reason. All times are in seconds.

        Files are looked at every ``poll``, and ``refresh`` is called every ``full`` whatever happened. After an
        event it is called when nothing more came for ``quiet``, at the latest after ``longest``.
        """
        self._folders = folders
        self._refresh = refresh
        self._poll = poll
        self._full = full
        self._quiet = quiet
        self._longest = longest
        self._ended = False
        self._hung_up = False
        self._wake_reading, self._wake_writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Call ``refresh`` once, then ``started``, then watch until SIGTERM or SIGINT; SIGHUP refreshes at once."""
        inotify = Inotify()
        links = link_events()
        selector = selectors.DefaultSelector()
        selector.register(inotify.descriptor, selectors.EVENT_READ)
        selector.register(links, selectors.EVENT_READ)
        selector.register(self._wake_reading, selectors.EVENT_READ)
        with self._signals():
            inotify.watch(self._folders())
            seen = snapshot(self._folders())
            self._refresh("started")
            started()
            refreshed = time.monotonic()
            while not self._ended:
                selector.select(self._poll)
                reason = self._gather(inotify, links)
                inotify.watch(self._folders())
                now = snapshot(self._folders())
                if reason is None and now != seen:
                    reason = "files changed"
                if reason is None and time.monotonic() - refreshed >= self._full:
                    reason = "time to look"
                notify("WATCHDOG=1")
                if self._ended or reason is None:
                    continue
                seen = now
                self._refresh(reason)
                refreshed = time.monotonic()
        notify("STOPPING=1")
        selector.close()
        links.close()
        inotify.close()

    def _gather(self, inotify: Inotify, links: socket.socket) -> str | None:
        """Return why to refresh, once no more events come; None where there is no reason."""
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
        os.write(self._wake_writing, b"!")

    def _hang_up(self) -> None:
        self._hung_up = True
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
