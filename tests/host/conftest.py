"""A network namespace of its own for each test that needs one, on the kernel the tests run on."""

from __future__ import annotations

import ctypes
import os
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.errors import HostError
from pvefw_nft.host import sysctl, tools
from pvefw_nft.host.paths import paths, use_paths
from pvefw_nft.host.records import state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_CLONE_NEWNET = 0x40000000
_HERE = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace; ``with namespace.entered():`` runs this thread in it."""

    def __init__(self, descriptor: int | None = None) -> None:
        """Make a new one, or take the one that a descriptor refers to."""
        if descriptor is not None:
            self.descriptor = descriptor
            return
        with _returning():
            if _libc.unshare(_CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
            self.descriptor = os.open(_HERE, os.O_RDONLY)

    @classmethod
    def here(cls) -> Namespace:
        """Return the one this thread is in."""
        return cls(os.open(_HERE, os.O_RDONLY))

    @contextmanager
    def entered(self) -> Iterator[None]:
        with _returning():
            _enter(self.descriptor)
            yield

    def close(self) -> None:
        os.close(self.descriptor)


@pytest.fixture(scope="session", autouse=True)
def nft_without_connections() -> None:
    """With ``PVEFW_TEST_CUT_DOWN``, replace in nft's rules what this kernel lacks (``benchmarks/cut_down.py``)."""
    from .network import CUT_DOWN, has_bridge_conntrack  # deferred: it imports this module

    if CUT_DOWN and not has_bridge_conntrack():
        from benchmarks.cut_down import cut_down  # deferred: it takes libnftables

        cut_down()


def need(script: str) -> None:
    """Run a script in this thread's namespace, and have br_netfilter there; skip the test where that cannot be."""
    try:
        subprocess.run(["sh", "-ec", script], check=True, capture_output=True, text=True)
        if sysctl.read("net/bridge/bridge-nf-call-iptables") is None:
            tools.run(["modprobe", "br_netfilter"])
    except (HostError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the tools are not usable here: {getattr(error, 'stderr', error)}")


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def _returning() -> Iterator[None]:
    before = os.open(_HERE, os.O_RDONLY)
    try:
        yield
    finally:
        _enter(before)
        os.close(before)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """Run the test in a namespace of its own: it is the host there."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a network namespace")
    try:
        namespace = Namespace()
    except OSError as err:
        pytest.skip(f"cannot make a network namespace: {err}")
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("PVEFW_RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setenv("PVEFW_STATE_DIRECTORY", str(tmp_path / "state"))
    state.take_warnings()  # of another test: the next command would print them
    with namespace.entered():
        yield namespace
    namespace.close()


@pytest.fixture
def other(host: Namespace) -> Iterator[Namespace]:
    """A second namespace, for a guest or for the outside."""
    namespace = Namespace()
    yield namespace
    namespace.close()


@pytest.fixture
def as_nobody() -> Callable[[Callable[[], object]], str]:
    """Run something in a process without privileges, and return the message of the HostError it raises."""

    def run(action: Callable[[], object]) -> str:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            message = ""
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                action()
            except HostError as error:
                message = error.message
            except BaseException as error:
                message = f"unexpected: {error!r}"
            os.write(writing, message.encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as said:
            message = said.read()
        os.waitpid(child, 0)
        return message

    return run


@pytest.fixture
def real(host: Namespace) -> Namespace:
    """A host with rules of its own, on which both backends' tools work."""
    need(
        "iptables -A INPUT -s 192.0.2.1 -j DROP; ip6tables -A INPUT -s 2001:db8::1 -j DROP;"
        "iptables -t raw -A PREROUTING -s 192.0.2.1 -j DROP; ip6tables -t raw -A PREROUTING -s 2001:db8::1 -j DROP;"
        "ipset create mine hash:ip; ebtables -N mine; ebtables -A FORWARD -p ARP -j mine;"
        "nft add table inet mine; nft add table bridge probe; nft delete table bridge probe"
    )
    return host


@pytest.fixture
def no_systemd(tmp_path: Path) -> Iterator[None]:
    """Have the guard be a process, also where the tests run under systemd."""
    with use_paths(replace(paths(), runtime_units=tmp_path / "no-systemd")):
        yield
