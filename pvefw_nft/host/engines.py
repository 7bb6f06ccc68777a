"""The two backends' ways to apply a ruleset, behind one interface, so that commands and switching need not care."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Protocol

from pvefw_nft.errors import HostError, InternalError

from . import apply_iptables, apply_nft, xtables
from .nftables_state import Nftables, generation, read_kernel, wanted
from .record import Memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .changes import Change, Remembered
    from .record import Desired

_TOOL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DROPS = (" -j DROP", " -j REJECT", " -j PVEFW-reject", " -g PVEFW-reject")


class Planned(Protocol):
    """What an apply would feed to the tools or the library; its text is what ``--dry-run`` prints."""

    @property
    def changes(self) -> tuple[Change, ...]:
        """What it changes; nothing: the kernel is as wanted."""


class Engine(Protocol):
    """One backend on this host."""

    name: str

    def present(self) -> bool:
        """Tell whether anything of ours is in the kernel."""

    def plan(self, desired: Desired, memory: Memory | None, previous: Desired | None) -> Planned:
        """Return what would bring the kernel to the ruleset. Raises :class:`HostError`."""

    def apply(self, desired: Desired, memory: Memory | None, previous: Desired | None, *, anew: bool) -> None:
        """Bring the kernel to the ruleset and read it back; put back what was there if that fails.

        ``previous`` is what was applied last, ``memory`` how the kernel listed it. ``anew`` replaces also what
        is as wanted. Raises :class:`HostError`.
        """

    def remember(self, desired: Desired, memory: Memory | None) -> Memory:
        """Return what to remember of a ruleset that was just applied."""

    def remove(self) -> None:
        """Remove all that is ours and nothing else. Raises :class:`HostError`."""

    def drifted(self, memory: Memory | None) -> list[str]:
        """Return what was changed by hand since it was applied."""

    def dropped(self) -> dict[str, int]:
        """Return packets dropped or rejected, by chain."""


class IptablesEngine:
    """iptables, ip6tables, ipset and ebtables."""

    name = "iptables"

    def present(self) -> bool:
        """Tell whether chains, jumps or sets of ours are there; without the tools there cannot be any."""
        if any(shutil.which(tool, path=_TOOL_PATH) is None for tool in ("iptables-save", "ip6tables-save", "ipset")):
            return False
        return not xtables.read_state(ebtables=False).empty

    def plan(self, desired: Desired, memory: Memory | None, previous: Desired | None) -> apply_iptables.Plan:  # noqa: ARG002 - each engine gets the same
        """Return what each tool would be fed."""
        target = xtables.wanted(desired.artefact)
        return apply_iptables.plan(xtables.read_state(ebtables=bool(target.ebtables.chains)), target, _chains(memory))

    def apply(self, desired: Desired, memory: Memory | None, previous: Desired | None, *, anew: bool) -> None:  # noqa: ARG002
        """Feed each tool what changes."""
        target = xtables.wanted(desired.artefact)
        apply_iptables.apply(target, _chains(memory), anew=anew)

    def remember(self, desired: Desired, memory: Memory | None) -> Memory:  # noqa: ARG002
        """Remember how the tools list each chain."""
        target = xtables.wanted(desired.artefact)
        current = xtables.read_state(ebtables=bool(target.ebtables.chains))
        return Memory(desired.fingerprint, apply_iptables.memory_of(current, target), None)

    def remove(self) -> None:
        """Remove our chains, sets and the jumps to them."""
        apply_iptables.apply(xtables.State(), {}, removing=True)

    def drifted(self, memory: Memory | None) -> list[str]:
        """Compare each chain with how it was listed when it was applied."""
        return apply_iptables.drifted(xtables.read_state(ebtables=False), _chains(memory)) if memory else []

    def dropped(self) -> dict[str, int]:
        """Sum the counters of rules that drop or reject."""
        return xtables.count_packets(_DROPS)


class NftEngine:
    """nftables, through libnftables."""

    name = "nft"

    def present(self) -> bool:
        """Tell whether a table of ours is there; without the library there cannot be one."""
        try:
            nft = Nftables()
        except HostError:
            return False
        return bool(read_kernel(nft))

    def plan(self, desired: Desired, memory: Memory | None, previous: Desired | None) -> apply_nft.Plan:
        """Return the commands of the transaction."""
        nft = Nftables()
        return self._plan(nft, desired, memory, previous)

    def apply(self, desired: Desired, memory: Memory | None, previous: Desired | None, *, anew: bool) -> None:
        """Run the transaction; what was applied last is put back if what is read back is not as wanted."""
        nft = Nftables()
        target = wanted(desired.artefact)
        there = read_kernel(nft)
        planned = apply_nft.replacing(there, target) if anew else self._plan(nft, desired, memory, previous)
        try:
            apply_nft.carry_out(planned, target, nft)
        except apply_nft.NotAsLoadedError as error:
            known = previous is not None and previous.backend == self.name and bool(there)
            back = wanted(previous.artefact) if previous is not None and known else {}
            apply_nft.carry_out(apply_nft.replacing(read_kernel(nft), back), back, nft)
            raise HostError(f"{error.message}\nthe ruleset that ran before is in place", error.hint) from error

    def remember(self, desired: Desired, memory: Memory | None) -> Memory:
        """Remember how the kernel lists each chain and set, and the number of its ruleset."""
        nft = Nftables()
        number = generation()
        before = memory.chains if memory is not None else None
        return Memory(desired.fingerprint, apply_nft.memory_of(nft, wanted(desired.artefact), before), number)

    def remove(self) -> None:
        """Delete our tables."""
        nft = Nftables()
        apply_nft.carry_out(apply_nft.plan(read_kernel(nft), {}), {}, nft)

    def drifted(self, memory: Memory | None) -> list[str]:
        """Compare each chain and set with how it was listed, unless nobody changed any ruleset since."""
        if memory is None or (memory.generation is not None and memory.generation == generation()):
            return []
        nft = Nftables()
        return apply_nft.drifted(nft, read_kernel(nft), memory.chains)

    def dropped(self) -> dict[str, int]:
        """Sum the counters of rules that drop or reject."""
        nft = Nftables()
        return apply_nft.count_packets(nft, read_kernel(nft))

    def _plan(self, nft: Nftables, desired: Desired, memory: Memory | None, previous: Desired | None) -> apply_nft.Plan:
        known = previous is not None and previous.backend == self.name
        before = wanted(previous.artefact) if previous is not None and known else None
        return apply_nft.plan(read_kernel(nft), wanted(desired.artefact), before, self.drifted(memory))


def _chains(memory: Memory | None) -> Mapping[str, Remembered]:
    return memory.chains if memory is not None else {}


_ENGINES: Sequence[Engine] = (IptablesEngine(), NftEngine())


def engine(name: str) -> Engine:
    """Return the engine of a backend."""
    for candidate in _ENGINES:
        if candidate.name == name:
            return candidate
    raise InternalError(f"no engine for the backend {name}")


def others(name: str) -> list[Engine]:
    """Return the engines of all other backends."""
    return [candidate for candidate in _ENGINES if candidate.name != name]
