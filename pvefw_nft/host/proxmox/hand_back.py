"""Return from pvefw to Proxmox VE's firewall, in an order that never opens the host.

Proxmox VE's firewall is started while pvefw's rules stay loaded. They are removed once its rules are seen in the
kernel. Each step may be repeated.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError

from .. import lock, tools
from ..records import record, state
from ..watchdog import start_timer
from . import theirs, units
from .flag import flag_path, remove_flag
from .services import IPTABLES_SERVICE, NFT_SERVICE, has_systemd, read_services
from .take_over import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..control import Control
    from ..records.pending import Pending

LOAD_WITHIN = 120.0
"""Seconds that Proxmox VE's firewall may take to load its rules; its loops take 5 and 10 s."""


_GUARD = "pvefw-hand-back-guard"


@dataclass(frozen=True, slots=True)
class HandBack:
    """The firewall to return to: ``nftables`` is the option of host.fw, ``enabled`` the switch in cluster.fw.

    ``confirm_within``: seconds in which ``confirmed`` must report a confirmation of the change, while both firewalls
    are loaded; else ``take_over_again``, a command line, is run by a timer. None: pvefw's rules are removed unasked.
    """

    control: Control
    nftables: bool
    enabled: bool
    confirm_within: float | None = None
    confirmed: Callable[[Pending], bool] = lambda _: True
    take_over_again: tuple[str, ...] = ()
    wait: float = lock.WAIT

    def steps(self) -> Iterator[Step]:
        """Yield the steps in order. Raises HostError."""
        if not has_systemd():
            raise HostError("systemd does not run this host", "start Proxmox VE's services yourself, then `pvefw stop`")
        first, second = (NFT_SERVICE, IPTABLES_SERVICE) if self.nftables else (IPTABLES_SERVICE, NFT_SERVICE)
        there = [service.name for service in read_services(first, second) if service.exists]
        if first not in there:
            raise HostError(f"{first} is not installed, so nothing would filter this host", "keep pvefw, or install it")
        yield Step(f"stop {units.OWN_UNIT}; its rules stay", self._end_own)
        yield Step(f"remove {flag_path()}", _remove_flag)
        if self.confirm_within is not None:
            yield Step("start the timer that takes over again unless all is confirmed", self._start_timer)
        yield Step(f"unmask {first} and start it", lambda: _start(first))
        yield Step(f"wait until the rules of {first} are loaded beside pvefw's", lambda: self._wait(first))
        if self.confirm_within is not None:
            yield Step(f"wait {self.confirm_within:g} s for `pvefw confirm`", self._wait_for_confirmation)
        yield Step("remove the rules of pvefw", lambda: self._withdraw(first))
        if second in there:
            # only now: with `nftables: 1` pve-firewall removes chains whose names pvefw's iptables backend uses
            yield Step(f"unmask {second}, and start it where it ran before", lambda: _start_if_it_ran(second))
        yield Step("forget the take-over", _forget)

    def _end_own(self) -> tuple[str, ...]:
        state.write(units.handing_back_path(), {})
        units.end_own_unit()
        return ()

    def _wait(self, service: str) -> tuple[str, ...]:
        if not self.enabled:
            return ("the firewall is off in cluster.fw: there are no rules to wait for",)
        theirs.wait_until_loaded(service, LOAD_WITHIN)
        return ()

    def _start_timer(self) -> tuple[str, ...]:
        assert self.confirm_within is not None
        _stop_timer()
        seconds = self.confirm_within + (LOAD_WITHIN if self.enabled else 0)
        start_timer(self.take_over_again, _GUARD, seconds)
        return ()

    def _wait_for_confirmation(self) -> tuple[str, ...]:
        assert self.confirm_within is not None
        with lock.hold(wait=self.wait):
            change = self.control.await_with_rules(self.confirm_within)
        if not self.confirmed(change):
            # what the timer would do
            tools.run(["systemctl", "--quiet", "start", f"{_GUARD}.service"], timeout=LOAD_WITHIN)
            _stop_timer()
            raise HostError("not confirmed: pvefw has taken over again, and their services are ended", None)
        _stop_timer()
        return ()

    def _withdraw(self, service: str) -> tuple[str, ...]:
        with lock.hold(wait=self.wait):
            applied = record.load_if_sound(record.running_path())
            # pve-firewall goes on with chains of these names: they are its own by now
            shared = service == IPTABLES_SERVICE and self.enabled
            shared = shared and (applied is None or applied.backend == "iptables")
            self.control.firewall.withdraw(remove=not shared)
        return ("its chains have the names of pve-firewall's, which goes on with them",) if shared else ()


def _stop_timer() -> None:
    with contextlib.suppress(HostError):  # there is none
        tools.run(["systemctl", "--quiet", "stop", f"{_GUARD}.timer"])


def _remove_flag() -> tuple[str, ...]:
    remove_flag()
    return ()


def _start(name: str) -> tuple[str, ...]:
    units.restore_service(name)
    units.start_service(name)
    return ()


def _start_if_it_ran(name: str) -> tuple[str, ...]:
    units.restore_service(name)
    if not units.was_active(name):
        return ("it did not run before",)
    units.start_service(name)
    return ()


def _forget() -> tuple[str, ...]:
    units.forget()
    state.remove(units.handing_back_path())
    return ()
