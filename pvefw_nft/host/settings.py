"""Kernel settings that a ruleset needs: set when it is applied, put back when it is removed.

The previous values are recorded once for this boot, so that repeated applies do not record pvefw's own values.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import HostError

from . import sysctl, tools
from .backend_info import BACKENDS, info
from .paths import paths
from .records import state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_BRIDGE = "net/bridge/bridge-nf-call-"
_OF_BR_NETFILTER = tuple(f"{_BRIDGE}{tool}" for tool in ("iptables", "ip6tables", "arptables"))
"""There once br_netfilter is loaded, and then 1 (brnf_sysctl_defaults in net/bridge/br_netfilter_hooks.c)."""
_CONNTRACK = "net/netfilter/nf_conntrack_"
_SYN_COOKIES = "net/ipv4/tcp_syncookies"
_STEP = 8192  # the reference rounds nf_conntrack_max up to a multiple of this
_MAX_SETTING = 2**31 - 1  # these settings are of type int
_PROBE_CHAIN = "PVEFW-PROBE"
_BUCKET_SHARE = 4  # entries for each bucket of the hash
_PROBE = f"*filter\n:{_PROBE_CHAIN} - [0:0]\n-A {_PROBE_CHAIN} -m physdev --physdev-in none\nCOMMIT\n"
_END_PROBE = f"*filter\n-F {_PROBE_CHAIN}\n-X {_PROBE_CHAIN}\nCOMMIT\n"


@dataclass(frozen=True, slots=True)
class Conntrack:
    """The conntrack options of host.fw: entries, and timeouts in seconds."""

    maximum: int
    established: int
    syn_recv: int

    def settings(self) -> dict[str, str]:
        """Return the kernel settings by their path below /proc/sys, in the order to set them.

        A number that the kernel would refuse becomes the nearest that it takes.
        """
        maximum = min(-(-max(self.maximum, 1) // _STEP), _MAX_SETTING // _STEP) * _STEP
        return {
            f"{_CONNTRACK}buckets": str(maximum // _BUCKET_SHARE),
            f"{_CONNTRACK}max": str(maximum),
            f"{_CONNTRACK}tcp_timeout_established": str(min(max(self.established, 1), _MAX_SETTING)),
            f"{_CONNTRACK}tcp_timeout_syn_recv": str(min(max(self.syn_recv, 1), _MAX_SETTING)),
        }


def needed_first(backend: str) -> dict[str, str]:
    """Return the settings without which a ruleset does not filter: they are set before it is loaded."""
    if not info(backend).needs_br_netfilter:
        return {}
    return {f"{_BRIDGE}iptables": "1", f"{_BRIDGE}ip6tables": "1", _SYN_COOKIES: "1"}


def load_modules(backend: str) -> None:
    """Load the kernel modules that a backend's ruleset needs; built-in or missing ones show when they are used."""
    for module in info(backend).modules:
        if (paths().modules / module).is_dir():
            continue
        if module == "br_netfilter":
            # Without it bridged packets pass all of these chains by, and once it is loaded none: as if 0 had been 1.
            _remember(dict.fromkeys(filter(_is_missing, _OF_BR_NETFILTER), "1"), lambda _: "0", required=True)
        with contextlib.suppress(HostError):
            _load(module)


def _load(module: str) -> None:
    """Load a module. Raises HostError.

    The service's user may not load any: the modules of nft come with its unit. The kernel itself loads br_netfilter for
    the first rule with a match ``physdev`` (physdev_mt_check in net/netfilter/xt_physdev.c), be it in a chain that
    nothing leads to.
    """
    if os.geteuid() == 0:
        tools.run(["modprobe", "-q", module])
    elif module == "br_netfilter" and _is_missing(_OF_BR_NETFILTER[0]):
        tools.run(["iptables-restore", "--noflush"], _PROBE)
        tools.run(["iptables-restore", "--noflush"], _END_PROBE)


def _is_missing(key: str) -> bool:
    return sysctl.read(key) is None


def set_all(settings: Mapping[str, str], *, required: bool) -> list[str]:
    """Set kernel settings and remember what stood there; return what could not be set and why.

    With ``required`` the first setting that the kernel refuses raises :class:`HostError` instead. Where the value
    before cannot be recorded, a required setting is set all the same, with a warning: nothing is filtered without it.
    """
    pending = {key: value for key, value in settings.items() if sysctl.read(key) != value}
    try:
        _remember(pending, sysctl.read, required=required)
    except HostError as error:
        return [error.message]  # what could not be put back is left as it is
    problems = []
    for key, value in pending.items():
        try:
            sysctl.write(key, value)
        except HostError as error:
            if required:
                raise
            problems.append(error.message)
    return problems


_unwritten: dict[Path, dict[str, dict[str, str | None]]] = {}
"""By the file of the record: entries that it lacks because it could not be written. The next write adds them."""


def _remember(settings: Mapping[str, str], standing: Callable[[str], str | None], *, required: bool = False) -> None:
    """Record the value of each setting that pvefw will change, unless one is on record.

    Where the record cannot be written, raise HostError; with ``required`` warn instead, and keep it in this process.
    """
    path = _path()
    recorded = _read_recorded()
    fresh = {**_unwritten.get(path, {}), **recorded}
    for key, value in settings.items():
        before = fresh[key]["before"] if key in fresh else standing(key)
        fresh[key] = {"before": before, "ours": value}
    try:
        if fresh != recorded:
            state.write(path, fresh)
        _unwritten.pop(path, None)
    except HostError as error:
        if not required:
            raise
        _unwritten[path] = {key: entry for key, entry in fresh.items() if key not in recorded}
        for key, entry in _unwritten[path].items():
            if entry["before"] is not None:
                state.warn(f"{error.message}: `pvefw stop` cannot restore {key.replace('/', '.')}={entry['before']}")


@dataclass(frozen=True, slots=True)
class PutBack:
    """The result of restoring settings: remarks (``notes``) and failures (``problems``)."""

    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def put_back(running: str | None = None) -> PutBack:
    """Restore the settings changed by pvefw, unless another program changed them since.

    ``running`` is the backend whose ruleset stays loaded: the settings that it needs are not restored.
    Raises :class:`HostError` if the changed settings are not known.
    """
    remembered = read_remembered()
    ours = [key for key in remembered if running is None or key in _not_needed_by(running)]
    if running is not None and not ours:
        return PutBack()
    done, problems = [], []
    for key in reversed(ours):
        before = remembered[key]["before"]
        if before is None or sysctl.read(key) != remembered[key]["ours"]:
            continue
        try:
            sysctl.write(key, before)
            done.append(key)
        except HostError as error:
            problems.append(error.message)
    kept = {key: value for key, value in remembered.items() if key not in ours}
    _unwritten.pop(_path(), None)
    if kept:
        state.write(_path(), kept)
    else:
        state.remove(_path())
    return PutBack(_bypass_notes([key for key in _OF_BR_NETFILTER if key in done]), tuple(problems))


def forget() -> None:
    """Forget the recorded settings: they keep their present values. Raises HostError."""
    _unwritten.pop(_path(), None)
    state.remove(_path())


def _not_needed_by(backend: str) -> frozenset[str]:
    if info(backend).needs_br_netfilter:
        return frozenset()
    return frozenset(_OF_BR_NETFILTER).union(*(needed_first(name) for name in BACKENDS))


def _bypass_notes(keys: Sequence[str]) -> tuple[str, ...]:
    """Return the effects on bridged packets of these settings, which were 1 and are 0."""
    if not keys:
        return ()
    chains = ", ".join(key.removeprefix(_BRIDGE) for key in keys)
    names = ", ".join(f"{key.replace('/', '.')}=0" for key in keys)
    return (f"as before pvefw was started, bridged packets pass no chains of {chains} ({names})",)


def read_remembered() -> dict[str, dict[str, str | None]]:
    """Return the changed settings, each with its value before (None: it did not exist) and pvefw's value."""
    return {**_unwritten.get(_path(), {}), **_read_recorded()}


def _read_recorded() -> dict[str, dict[str, str | None]]:
    def check(value: Any) -> dict[str, dict[str, str | None]]:  # noqa: ANN401 - JSON
        found = {}
        for key, entry in value.items():
            before, ours = entry["before"], state.typed(entry["ours"], str)
            if before is not None:
                state.typed(before, str)
            if not key.startswith((_BRIDGE, _CONNTRACK)) and key != _SYN_COOKIES:
                raise ValueError(f"{key[:60]!r} is no setting that was changed here")
            sysctl.path_of(key)  # raises ValueError
            found[key] = {"before": before, "ours": ours}
        return found

    return state.read_record(_path(), check) or {}


def _path() -> Path:
    return state.run_directory() / "sysctls.json"
