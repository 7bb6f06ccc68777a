"""Kernel settings that a ruleset needs: set when it is applied, put back when it is removed.

What stood there before is remembered for this boot, once, so that repeated applies do not remember our own values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import HostError

from . import state, sysctl, tools

if TYPE_CHECKING:
    from collections.abc import Mapping

_BRIDGE = "net/bridge/bridge-nf-call-"
_CONNTRACK = "net/netfilter/nf_conntrack_"
_MODULES = Path("/sys/module")  # has a directory for each module that is loaded
_STEP = 8192  # the reference rounds nf_conntrack_max up to a multiple of this
_BUCKET_SHARE = 4  # entries for each bucket of the hash


@dataclass(frozen=True, slots=True)
class Conntrack:
    """The conntrack options of host.fw: entries, and timeouts in seconds."""

    maximum: int
    established: int
    syn_recv: int

    def settings(self) -> dict[str, str]:
        """Return the kernel settings by their path below /proc/sys, in the order to set them."""
        maximum = -(-self.maximum // _STEP) * _STEP
        return {
            f"{_CONNTRACK}buckets": str(maximum // _BUCKET_SHARE),
            f"{_CONNTRACK}max": str(maximum),
            f"{_CONNTRACK}tcp_timeout_established": str(self.established),
            f"{_CONNTRACK}tcp_timeout_syn_recv": str(self.syn_recv),
        }


def needed_first(backend: str) -> dict[str, str]:
    """Return the settings without which a ruleset does not filter: they are set before it is loaded."""
    if backend != "iptables":
        return {}
    return {f"{_BRIDGE}iptables": "1", f"{_BRIDGE}ip6tables": "1", "net/ipv4/tcp_syncookies": "1"}


def load_modules(backend: str) -> None:
    """Load the kernel modules that a backend's ruleset needs; what is built in or missing shows when it is used."""
    modules = {
        "iptables": ("br_netfilter",),
        # br_netfilter is left alone: it would send bridged packets through iptables' chains too
        "nft": ("nf_conntrack_bridge", "nft_meta_bridge", "nft_reject_bridge"),
    }[backend]
    for module in modules:
        if (_MODULES / module).is_dir():
            continue
        try:
            tools.run(["modprobe", "-q", module])
        except HostError:
            continue


def set_all(settings: Mapping[str, str], *, required: bool) -> list[str]:
    """Set kernel settings and remember what stood there; return what could not be set and why.

    With ``required`` the first failure raises :class:`HostError` instead.
    """
    path = state.run_directory() / "sysctls.json"
    remembered: dict[str, Any] = state.read(path) or {}
    pending = {key: value for key, value in settings.items() if sysctl.read(key) != value}
    fresh = dict(remembered)
    for key, value in pending.items():
        old = remembered.get(key, {}).get("before", sysctl.read(key))
        fresh[key] = {"before": old, "ours": value}
    if fresh != remembered:
        state.write(path, fresh)
    problems = []
    for key, value in pending.items():
        try:
            sysctl.write(key, value)
        except HostError as error:
            if required:
                raise
            problems.append(error.message)
    return problems


def put_back() -> list[str]:
    """Put back what :func:`set_all` changed, unless somebody changed it since; return what could not be put back."""
    path = state.run_directory() / "sysctls.json"
    problems = []
    for key, values in reversed((state.read(path) or {}).items()):
        if values["before"] is None or sysctl.read(key) != values["ours"]:
            continue
        try:
            sysctl.write(key, values["before"])
        except HostError as error:
            problems.append(error.message)
    state.remove(path)
    return problems
