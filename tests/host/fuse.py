"""A file system made for tests, that fails, hangs and goes away when it is told to.

``python -m tests.host.fuse PATH BEHIND CONTROL`` mounts it until its standard input ends.

It speaks the kernel's FUSE protocol itself (include/uapi/linux/fuse.h), since what is wanted is what libraries keep
from happening: no answer, wrong errors, a daemon that dies. It shows a folder of this machine, read-only, and serves
from a process of its own, which sees faults through a file that :class:`Faulty` writes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# operations
LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ, RELEASE, INIT = 1, 2, 3, 5, 14, 15, 18, 26
OPENDIR, READDIR, RELEASEDIR, ACCESS, INTERRUPT, DESTROY, BATCH_FORGET = 27, 28, 29, 34, 36, 38, 42
FLUSH, STATFS, GETXATTR = 25, 17, 22
NAMES = {
    "stat": (LOOKUP, GETATTR, ACCESS),
    "open": (OPEN, OPENDIR),
    "read": (READ,),
    "readdir": (READDIR,),
    "readlink": (READLINK,),
}
"""The groups of operations that can fail, by the names of the calls that cause them."""
HANG = "hang"
_NO_ANSWER = (FORGET, BATCH_FORGET, INTERRUPT)
_HEADER = struct.Struct("=IIQQIIII")
_MOST = 1 << 17
_libc = ctypes.CDLL(None, use_errno=True)


_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 1 << 18


@contextlib.contextmanager
def own_mounts() -> Iterator[None]:
    """Give this process a mount namespace of its own while the block runs, so that no other process sees its mounts."""
    here = Path.cwd()
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(_CLONE_NEWNS) != 0:
            pytest.skip(f"cannot make a mount namespace: {os.strerror(ctypes.get_errno())}")
        _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        yield
    finally:
        _libc.setns(before, _CLONE_NEWNS)
        os.close(before)
        os.chdir(here)


class Faulty:
    """The folder ``behind``, mounted at ``path``. ``break_`` says what fails from now on."""

    def __init__(self, path: Path, behind: Path, control: Path) -> None:
        self.path = path
        self._behind = behind
        self._control = control
        self.mend()
        self.server = 0
        self.mount()

    def mount(self) -> None:
        """Mount it. Skips the test where this machine has no FUSE."""
        with contextlib.suppress(OSError):
            subprocess.run(["modprobe", "-q", "fuse"], check=False)  # makes the device
        try:
            device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            pytest.skip(f"no FUSE here: {error}")
        self.path.mkdir(exist_ok=True)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if _libc.mount(b"faulty", os.fsencode(self.path), b"fuse.faulty", 0, options) != 0:
            os.close(device)
            pytest.skip(f"cannot mount a FUSE file system: {os.strerror(ctypes.get_errno())}")
        self.server = os.fork()
        if self.server == 0:
            try:
                _Server(device, self._behind, self._control).serve()
            finally:
                os._exit(0)
        os.close(device)

    @classmethod
    def controlled_by(cls, control: Path) -> Faulty:
        """Return an object that breaks and mends a file system mounted by another process."""
        faulty = cls.__new__(cls)
        faulty._control = control
        faulty.server = 0
        return faulty

    def break_(self, operation: str, fault: str | int, names: tuple[str, ...] = ()) -> None:
        """Have an operation of :data:`NAMES` (``all``: each) fail with an error number, or hang.

        With ``names`` only for files with one of these names.
        """
        operations = [*NAMES] if operation == "all" else [operation]
        self._write({"faults": dict.fromkeys(operations, fault), "names": names})

    def mend(self) -> None:
        """Have everything work again; what hangs is answered."""
        self._write({"faults": {}, "names": ()})

    def _write(self, value: Any) -> None:  # noqa: ANN401
        temporary = self._control.with_suffix(".new")
        temporary.write_text(json.dumps(value))
        temporary.replace(self._control)

    def kill(self) -> None:
        """Kill the daemon: each call then fails with ENOTCONN."""
        if self.server:
            os.kill(self.server, signal.SIGKILL)
            os.waitpid(self.server, 0)
            self.server = 0

    def unmount(self) -> None:
        """Take the file system away, and leave an empty folder."""
        _libc.umount2(os.fsencode(self.path), 2)  # MNT_DETACH

    def close(self) -> None:
        self.kill()
        self.unmount()


class _Server:
    """Answers the kernel's requests. Nodes are numbered as they are looked up; 1 is the root."""

    def __init__(self, device: int, behind: Path, control: Path) -> None:
        self._device = device
        self._control = control
        self._paths = {1: behind}
        self._numbers = {behind: 1}
        self._waiting: list[tuple[int, int, int, bytes]] = []

    def serve(self) -> None:
        os.set_blocking(self._device, False)
        while True:
            try:
                request = os.read(self._device, _MOST + 4096)
            except BlockingIOError:
                self._answer_what_waited()
                time.sleep(0.002)  # its requests come by a device that is polled
                continue
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                continue
            _, operation, unique, node, *_ = _HEADER.unpack_from(request)
            body = request[_HEADER.size :]
            if operation not in _NO_ANSWER:
                self._take(operation, unique, node, body)

    def _take(self, operation: int, unique: int, node: int, body: bytes) -> None:
        fault = self._fault(operation, node, body)
        if fault == HANG:
            self._waiting.append((operation, unique, node, body))
        elif fault is not None:
            self._send(unique, b"", fault)
        else:
            try:
                self._send(unique, self._answer(operation, node, body))
            except OSError as error:
                self._send(unique, b"", error.errno or errno.EIO)

    def _answer_what_waited(self) -> None:
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            self._take(*request)

    def _fault(self, operation: int, node: int, body: bytes) -> Any:  # noqa: ANN401
        if operation in (INIT, DESTROY, RELEASE, RELEASEDIR, FLUSH):
            return None
        wanted = json.loads(self._control.read_text())
        path = self._paths.get(node)
        name = _text(body) if operation == LOOKUP else (path.name if path is not None else "")
        if wanted["names"] and name not in wanted["names"]:
            return None
        return next((fault for key, fault in wanted["faults"].items() if operation in NAMES[key]), None)

    def _send(self, unique: int, answer: bytes, error: int = 0) -> None:
        with contextlib.suppress(OSError):  # the caller was killed
            os.write(self._device, struct.pack("=IiQ", 16 + len(answer), -error, unique) + answer)

    def _answer(self, operation: int, node: int, body: bytes) -> bytes:
        if operation == INIT:
            major, minor = struct.unpack_from("=II", body)
            # readahead, flags, background and congestion, largest write, grain of times, pages, alignment, flags
            settings = (0, 0, 12, 10, _MOST, 1, 32, 0, 0)
            return struct.pack("=IIIIHHIIHHI7I", major, min(minor, 31), *settings, *[0] * 7)
        path = self._paths[node]
        if operation == LOOKUP:
            found = path / _text(body)
            attributes = self._attributes(found)
            number = self._numbers.setdefault(found, len(self._numbers) + 1)
            self._paths[number] = found
            return struct.pack("=QQQQII", number, 0, 0, 0, 0, 0) + attributes
        if operation == GETATTR:
            return struct.pack("=QII", 0, 0, 0) + self._attributes(path)
        if operation == READLINK:
            return os.fsencode(path.readlink())
        if operation in (OPEN, OPENDIR):
            path.stat()
            return struct.pack("=QII", 0, 1, 0)  # FOPEN_DIRECT_IO: no cache keeps what should fail
        if operation == READ:
            _, offset, size = struct.unpack_from("=QQI", body)
            return path.read_bytes()[offset : offset + size]
        if operation == READDIR:
            _, offset, size = struct.unpack_from("=QQI", body)
            return self._listed(path, offset)[:size]
        if operation in (ACCESS, RELEASE, RELEASEDIR, FLUSH):
            return b""
        if operation == STATFS:
            return bytes(80)
        raise OSError(errno.ENOSYS, "not made")

    @staticmethod
    def _attributes(path: Path) -> bytes:
        found = path.lstat()
        times = [int(found.st_atime), int(found.st_mtime), int(found.st_ctime)]
        parts = [found.st_atime_ns % 10**9, found.st_mtime_ns % 10**9, found.st_ctime_ns % 10**9]
        head = struct.pack("=QQQ3Q3I", found.st_ino, found.st_size, 0, *times, *parts)
        return head + struct.pack("=IIIIIII", found.st_mode, found.st_nlink, 0, 0, 0, 4096, 0)

    @staticmethod
    def _listed(path: Path, offset: int) -> bytes:
        found = b""
        for number, entry in enumerate(sorted(path.iterdir()), 1):
            if number > offset:
                name = os.fsencode(entry.name)
                kind = stat.S_IFMT(entry.lstat().st_mode) >> 12
                record = struct.pack("=QQII", entry.lstat().st_ino, number, len(name), kind) + name
                found += record.ljust(-(-len(record) // 8) * 8, b"\0")
        return found


def _text(body: bytes) -> str:
    return os.fsdecode(body.split(b"\0", 1)[0])


if __name__ == "__main__":
    mounted = Faulty(*map(Path, sys.argv[1:]))
    print("mounted", flush=True)
    sys.stdin.read()
    mounted.close()
