"""System calls that the kernel refuses to one process, as where a limit is reached.

Limits themselves are the machine's (``fs.inotify.*``), or do not hold for root (``RLIMIT_NPROC``, setrlimit(2)): a
filter (seccomp(2)) gives the process the error that it would get.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
_NUMBERS = {
    "x86_64": {
        "clone": 56,
        "fork": 57,
        "vfork": 58,
        "clone3": 435,
        "inotify_init1": 294,
        "inotify_add_watch": 254,
    },
    "aarch64": {"clone": 220, "clone3": 435, "inotify_init1": 26, "inotify_add_watch": 27},
}
_PR_SET_SECCOMP, _MODE_FILTER, _PR_SET_NO_NEW_PRIVS = 22, 2, 38
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # linux/seccomp.h


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit that is reached: the calls that fail, and how."""

    calls: tuple[str, ...]
    error: int


NO_PROCESS = Limit(("clone", "fork", "vfork", "clone3"), errno.EAGAIN)
NO_INOTIFY = Limit(("inotify_init1",), errno.EMFILE)
NO_WATCH = Limit(("inotify_add_watch",), errno.ENOSPC)


def refusing(limit: Limit) -> Callable[[], None]:
    """Return a filter by which the kernel refuses these calls to the calling process and its children."""
    known = _NUMBERS[platform.machine()]
    numbers = [known[call] for call in limit.calls if call in known]

    def refuse() -> None:
        code = [(_LOAD_WORD, 0, 0, 0)]  # struct seccomp_data begins with the number of the call
        for left, number in zip(range(len(numbers), 0, -1), numbers, strict=True):
            code.append((_JUMP_IF_EQUAL, left, 0, number))
        code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | limit.error)]
        program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in code))
        filters = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(program)))
        libc = ctypes.CDLL(None, use_errno=True)
        for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _MODE_FILTER, filters)):
            if libc.prctl(*arguments) != 0:
                raise OSError(ctypes.get_errno(), "prctl")

    return refuse
