"""Take from a process the rights that a compiler does not need: capabilities, network, writing, other programs, endless
memory.

Steps that the kernel lacks are skipped and named. All of it holds for the calling thread and those that it starts, and
cannot be undone. The order matters: seccomp comes last, since it forbids the calls that the steps before it make.

capabilities(7), prctl(2), unshare(2), setrlimit(2), landlock(7) and seccomp(2) are called through the C library, and
seccomp's filter is made by libseccomp, which systemd brings along on every Debian and which knows the numbers of system
calls on each architecture. The packages for these on PyPI are a release of 2021 (pyseccomp) and pre-releases
(landlock), and each would run as root.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)

# include/uapi/linux/prctl.h, capability.h, sched.h, landlock.h; include/seccomp.h of libseccomp
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_NEWNET, _CLONE_NEWIPC, _CLONE_THREAD = 0x40000000, 0x08000000, 0x00010000
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on all architectures
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights about files a version of Landlock knows; later ones as many as the last."""
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000
_EQ, _MASKED_EQ = 4, 7
_O_TMPFILE: Final = 0o20000000
_NO_WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND | _O_TMPFILE
_PROT_WRITE, _PROT_EXEC = 2, 4

_CALLS = (
    # open files, and memory
    "read readv pread64 write writev close lseek fstat fstat64 newfstatat fstatat64 stat stat64 lstat lstat64 statx "
    "statfs fstatfs readlink readlinkat getdents64 getcwd access faccessat faccessat2 munmap mremap brk madvise "
    # threads and time; no process is started, and no signal sent
    "futex futex_time64 set_robust_list rseq gettid getpid getppid sched_yield sched_getaffinity exit exit_group "
    "rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall nanosleep clock_nanosleep clock_gettime "
    "clock_getres gettimeofday time poll ppoll select pselect6 getrandom uname sysinfo getuid geteuid getgid getegid "
    "getrusage membarrier"
)
_FCNTL_COMMANDS = (1, 2, 3, 1030)  # F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC


def confine(readable: Iterable[Path], memory: int) -> tuple[str, ...]:
    """Give up all rights but reading below ``readable``, computing, and the open descriptors.

    ``memory`` is the number of bytes that the process may have beyond its present size. Returns the missing
    confinements, in words. The calling process must have one thread only.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)  # SIGKILL, when its parent ends
    network = _in_namespaces_of_its_own()
    library = _seccomp()  # before files can no longer be opened
    steps: list[tuple[str, Callable[[], None]]] = [
        ("limits", lambda: _limit(memory)),
        ("capabilities", _drop_capabilities),
        ("no new privileges", _allow_no_new_privileges),
        ("Landlock", lambda: _restrict_files(readable)),
        ("seccomp", lambda: _filter_calls(library)),
    ]
    missing = []
    for name, step in steps:
        try:
            step()
        except (OSError, AttributeError) as error:
            missing.append(f"{name} ({error.strerror if isinstance(error, OSError) else error})")
    if not network and any(name.startswith("seccomp") for name in missing):
        missing.append("network")
    return tuple(missing)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _allow_no_new_privileges() -> None:
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _in_namespaces_of_its_own() -> bool:
    """Leave the host's network; False if that is not allowed, as in a unit with RestrictNamespaces."""
    return bool(_LIBC.unshare(_CLONE_NEWNET | _CLONE_NEWIPC) == 0)


def _limit(memory: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        now = int(file.read().split()[0]) * resource.getpagesize()
    # the time of the processor is limited from outside: a service compiles again and again
    limits = ((resource.RLIMIT_AS, now + memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0))
    for kind, value in (*limits, (resource.RLIMIT_NOFILE, 64)):
        _, hard = resource.getrlimit(kind)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (most, most))


def permitted_capabilities(status: str = "/proc/self/status") -> int:
    """Return the capabilities that this process may use, as a mask (proc(5), CapPrm)."""
    with open(status, encoding="ascii", errors="replace") as file:  # noqa: PTH123
        found = re.search(r"^CapPrm:\s*([0-9a-f]+)$", file.read(), re.MULTILINE)
    return int(found[1], 16) if found is not None else 0


def needs_another_program() -> bool:
    """Tell whether only execve(2) drops capabilities: true in a unit with ``User=``, which forbids capset(2)."""
    return os.geteuid() != 0 and permitted_capabilities() != 0


def forgo_capabilities() -> None:
    """Leave the next program of a process that is not root's without capabilities (capabilities(7), ambient)."""
    _check(_LIBC.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    _allow_no_new_privileges()


def _drop_capabilities() -> None:
    if not permitted_capabilities():
        return
    capability = 0
    while _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:  # EPERM without CAP_SETPCAP, EINVAL at the end
        capability += 1
    _LIBC.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0))
    _check(_LIBC.capset(header, ctypes.create_string_buffer(24)))  # effective, permitted, inheritable: none


def _restrict_files(readable: Iterable[Path]) -> None:
    abi = _check(_LIBC.syscall(_LANDLOCK_CREATE, None, 0, 1))
    handled = (1 << _FS_RIGHTS.get(abi, max(_FS_RIGHTS.values()))) - 1
    attributes = struct.pack("=QQ", handled, 3) if abi >= 4 else struct.pack("=Q", handled)  # 3: TCP bind and connect
    ruleset = _check(
        _LIBC.syscall(_LANDLOCK_CREATE, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes), 0)
    )
    try:
        for path in readable:
            try:
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue  # it is not there
            rule = struct.pack("=Qi", _READ_FILE | (_READ_DIR if path.is_dir() else 0), place)
            result = _LIBC.syscall(_LANDLOCK_ADD, ruleset, 1, ctypes.create_string_buffer(rule, len(rule)), 0)
            os.close(place)
            _check(result)
        _check(_LIBC.syscall(_LANDLOCK_RESTRICT, ruleset, 0))
    finally:
        os.close(ruleset)


class _Comparison(ctypes.Structure):
    """``struct scmp_arg_cmp``: a comparison of an argument of a call."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def _seccomp() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        return None


def _filter_calls(library: ctypes.CDLL | None) -> None:
    if library is None:
        raise OSError(errno.ENOENT, "libseccomp2 is not installed")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ERRNO | errno.EPERM)))
    if not context:
        raise OSError(errno.ENOMEM, "libseccomp does not work")

    def rule(action: int, name: str, comparisons: Sequence[_Comparison] = ()) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:
            return  # this architecture, or this version of the library, does not know it
        array = (_Comparison * max(1, len(comparisons)))(*comparisons)
        status = library.seccomp_rule_add_array(
            context, ctypes.c_uint32(action), ctypes.c_int(number), ctypes.c_uint(len(comparisons)), array
        )
        if status < 0:
            raise OSError(-status, f"seccomp: {name}: {os.strerror(-status)}")

    try:
        for name in _CALLS.split():
            rule(_ALLOW, name)
        for name, argument in (("open", 1), ("openat", 2)):
            rule(_ALLOW, name, [_Comparison(argument, _MASKED_EQ, _NO_WRITING, 0)])
        for name in ("mmap", "mmap2"):  # a library may be loaded later; memory that can be written is never run
            rule(_ALLOW, name, [_Comparison(2, _MASKED_EQ, _PROT_EXEC, 0)])
            rule(_ALLOW, name, [_Comparison(2, _MASKED_EQ, _PROT_WRITE | _PROT_EXEC, _PROT_EXEC)])
        rule(_ALLOW, "mprotect", [_Comparison(2, _MASKED_EQ, _PROT_EXEC, 0)])
        rule(_ALLOW, "clone", [_Comparison(0, _MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD)])
        rule(_ERRNO | errno.ENOSYS, "clone3")  # its flags lie in memory: the C library takes clone then
        rule(_ALLOW, "prlimit64", [_Comparison(2, _EQ, 0, 0)])  # to ask
        for name in ("fcntl", "fcntl64"):
            for command in _FCNTL_COMMANDS:
                rule(_ALLOW, name, [_Comparison(1, _EQ, command, 0)])
        status = library.seccomp_load(context)
        if status < 0:
            raise OSError(-status, os.strerror(-status))
    finally:
        library.seccomp_release(context)
