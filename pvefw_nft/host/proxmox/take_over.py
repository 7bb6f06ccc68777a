"""Change from Proxmox VE's firewall to pvefw, in an order that never opens the host.

pvefw's rules are loaded beside Proxmox VE's and read back; from then on both must accept a packet. Proxmox VE's
services are ended by SIGKILL, so that they do not remove rules. Their rules are removed only once pvefw's are known to
be loaded still, or again. The iptables backend cannot be loaded beside pve-firewall, which rewrites or removes chains
of these names. So pve-firewall is ended first; its rules stay until pvefw replaces them, each table in one transaction.
The services are masked permanently only after pvefw's own unit is enabled: whenever the host is switched off, the next
boot starts one firewall or the other. Each step examines the present state, so all steps may be repeated after a run
that was killed anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError, PvefwError

from .. import lock, service_user
from ..firewall import was_started
from ..records.pending import Beside, keep
from . import theirs, units
from .flag import flag_path, keep_flag
from .services import IPTABLES_SERVICE, LOGGER, has_systemd, loaded_tables, read_services

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..control import Control
    from ..records.pending import Pending
    from ..records.record import Desired

_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its description, and the function that takes it and returns remarks.

    ``loads``: our rules are loaded from here on.
    """

    text: str
    execute: Callable[[], tuple[str, ...]]
    loads: bool = False


@dataclass(frozen=True, slots=True)
class TakeOver:
    """The inputs of a take-over: the ruleset, pvefw's units by name, the seconds for a confirmation (None: none).

    ``confirmed`` waits for the confirmation of a change and tells whether it came.
    """

    control: Control
    desired: Desired
    unit_texts: dict[str, str]
    confirm_within: float | None
    confirmed: Callable[[Pending], bool]
    wait: float = lock.WAIT

    def steps(self) -> Iterator[Step]:
        """Yield the steps in order. The next one is worked out when the one before is done. Raises HostError."""
        if not has_systemd():
            raise HostError("systemd does not run this host", "stop Proxmox VE's services yourself, then `pvefw start`")
        backend = self.desired.backend
        confirming = "" if self.confirm_within is None else f", and wait {self.confirm_within:g} s for `pvefw confirm`"
        yield Step("record the state of Proxmox VE's services", self._note)
        if backend == "iptables":
            for service in (one for one in read_services(IPTABLES_SERVICE) if one.running):
                yield Step(
                    f"stop {service.name} without its clean-up, and mask it until the next boot: its chains, which "
                    "have the names of pvefw's, stay and go on filtering",
                    lambda: _end(IPTABLES_SERVICE),
                )
        text = f"load the {backend} ruleset beside the running one, and read it back{confirming}"
        yield Step(text, self._load_beside, loads=True)
        yield Step(f"make {flag_path()}, so that proxmox-firewall does nothing and guests get firewall bridges", _flag)
        for service in units.services_to_end():
            yield Step(
                f"stop {service.name} without its clean-up, and mask it until the next boot",
                lambda service=service: _end(service.name),  # type: ignore[misc]  # bound now
            )
        yield Step("repair pvefw's rules if these services changed some, and remove Proxmox VE's rules", self._repair)
        yield Step("prove that the loaded rules equal the compiled ones", self._prove)
        yield Step(f"write, enable and start {units.OWN_UNIT}", self._enable)
        yield Step("keep their services masked after a boot, too", _keep_ended)
        yield Step(f"keep {LOGGER} running: it writes the log that the GUI shows", _logger)

    def _load_beside(self) -> tuple[str, ...]:
        shared = self.desired.backend == "iptables" and theirs.shares_chains() and not was_started()
        # chains of the same names stay when the change is undone, for pve-firewall, which is then started again
        beside = Beside.LEAVE if shared else Beside.REMOVE
        outcome, pending = self.control.apply(
            self.desired, confirm_within=self.confirm_within, beside=beside, wait=self.wait
        )
        if pending is not None and not self.confirmed(pending):
            raise HostError("not confirmed: Proxmox VE's firewall goes on as before", None)
        return (f"{len(outcome.changes)} chains and sets changed", *outcome.notes, *outcome.problems)

    def _note(self) -> tuple[str, ...]:
        units.note_services(unit=not units.has_own_unit())
        return ()

    def _repair(self) -> tuple[str, ...]:
        with lock.hold(wait=self.wait):
            # pvefw's rules first, beside the rest of Proxmox VE's: its services may have removed some while they ran
            self.control.firewall.reconcile(self.desired, beside=True)
            told = [f"removed the table {name}" for name in theirs.remove_tables()]
            told += [f"removed the chains of {name}" for name in theirs.remove_other_variant()]
            outcome = self.control.firewall.reconcile(self.desired)
            keep()
        if outcome.switched_from is not None:
            told.append(f"removed the chains of {outcome.switched_from}")
        return (*told, *outcome.problems)

    def _prove(self) -> tuple[str, ...]:
        """Compare the loaded rules with the compiled ones; raise HostError if they keep differing."""
        for _ in range(_ATTEMPTS):
            found = self.control.firewall.status(self.desired)
            if found.running and not found.changes and not found.drifted and not loaded_tables():
                return ()
            self._repair()
        differing = [*(found.changes or ()), *(found.drifted or ()), *(name for _, name in loaded_tables())]
        raise HostError(
            f"something else changes the rules: {', '.join(map(str, differing[:5])) or 'the rules are not loaded'}",
            "end it, then run `pvefw take-over` again",
        )

    def _enable(self) -> tuple[str, ...]:
        if f"\nUser={service_user.NAME}\n" in self.unit_texts[units.OWN_UNIT]:
            service_user.make()
        units.enable_own_units(self.unit_texts)
        return ()


def _flag() -> tuple[str, ...]:
    problem = keep_flag()
    if problem is not None:
        raise HostError(problem, "make room in /run")
    return ()


def _end(name: str) -> tuple[str, ...]:
    for service in read_services(name):
        units.end_service(service)
    return ()


def _keep_ended() -> tuple[str, ...]:
    units.keep_ended()
    return ()


def _logger() -> tuple[str, ...]:
    try:
        return () if units.start_logger() else ("there is none on this host",)
    except PvefwError as error:
        return (f"warning: {error.message}",)
