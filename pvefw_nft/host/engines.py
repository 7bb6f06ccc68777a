"""The two backends' ways to apply a ruleset, behind one interface, so that commands and switching need not care."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Protocol, TypeAlias

from pvefw_nft.errors import HostError, InternalError

from . import apply_iptables, apply_nft, xtables
from .nftables_state import NO_NFTABLES, Nftables, generation, our_tables, read_kernel, wanted
from .record import Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .changes import Change, Remembered
    from .record import Desired

_TOOL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DROPS = (" -j DROP", " -j REJECT", " -j PVEFW-reject", " -g PVEFW-reject")

Remember: TypeAlias = "Callable[[str, Memory | None], Memory]"
"""Gets the ruleset's fingerprint and what was remembered before; returns what to remember now."""


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

    def plan(self, desired: Desired, memory: Memory | None, previous: Desired | None, *, anew: bool = False) -> Planned:
        """Return what would bring the kernel to the ruleset.

        ``previous`` is what was applied last, ``memory`` how the kernel listed it. ``anew`` replaces also what is as
        wanted. Raises :class:`HostError`.
        """

    def apply(self, planned: Planned, previous: Desired | None) -> Remember:
        """Carry out a plan that was just made and read back the result; put back what was there if that fails.

        Returns what tells how the kernel lists the ruleset now, which may take a while. Raises :class:`HostError`.
        """

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

    def plan(
        self,
        desired: Desired,
        memory: Memory | None,
        previous: Desired | None,  # noqa: ARG002 - each engine gets the same
        *,
        anew: bool = False,
    ) -> apply_iptables.Plan:
        """Return what each tool would be fed."""
        target = xtables.wanted(desired.artefact)
        return apply_iptables.plan(apply_iptables.read_for(target), target, _chains(memory), anew=anew)

    def apply(self, planned: Planned, previous: Desired | None) -> Remember:  # noqa: ARG002
        """Feed each tool what changes."""
        assert isinstance(planned, apply_iptables.Plan)
        there = apply_iptables.apply(planned)

        def remember(fingerprint: str, _: Memory | None) -> Memory:
            return Memory(fingerprint, apply_iptables.memory_of(there, planned.after), None)

        return remember

    def remove(self) -> None:
        """Remove our chains, sets and the jumps to them."""
        there = xtables.read_state(ebtables=False)
        apply_iptables.apply(apply_iptables.plan(there, xtables.State(), removing=True))

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
        """Tell whether a table of ours is there."""
        try:
            return bool(our_tables())
        except HostError as error:
            if error.hint == NO_NFTABLES:
                return False  # without it there cannot be one
            raise

    def plan(
        self, desired: Desired, memory: Memory | None, previous: Desired | None, *, anew: bool = False
    ) -> apply_nft.Plan:
        """Return the commands of the transaction."""
        nft = Nftables()
        target = wanted(desired.artefact)
        there = read_kernel(nft)
        if anew:
            return apply_nft.replacing(there, target)
        known = previous is not None and previous.backend == self.name
        before = wanted(previous.artefact) if previous is not None and known else None
        return apply_nft.plan(there, target, before, self.drifted(memory))

    def apply(self, planned: Planned, previous: Desired | None) -> Remember:
        """Run the transaction; what was applied last is put back if what is read back is not as wanted."""
        assert isinstance(planned, apply_nft.Plan)
        nft = Nftables()
        try:
            apply_nft.carry_out(planned, nft)
        except apply_nft.NotAsLoadedError as error:
            known = previous is not None and previous.backend == self.name and planned.was_there
            back = wanted(previous.artefact) if previous is not None and known else {}
            apply_nft.carry_out(apply_nft.replacing(read_kernel(nft), back), nft)
            raise HostError(f"{error.message}\nthe ruleset that ran before is in place", error.hint) from error

        def remember(fingerprint: str, before: Memory | None) -> Memory:
            number = generation()
            chains = apply_nft.memory_of(nft, planned.target, _chains(before) if before is not None else None)
            return Memory(fingerprint, chains, number)

        return remember

    def remove(self) -> None:
        """Delete our tables."""
        nft = Nftables()
        apply_nft.carry_out(apply_nft.plan(read_kernel(nft), {}), nft)

    def drifted(self, memory: Memory | None) -> list[str]:
        """Compare each chain and set with how it was listed, unless nobody changed any ruleset since."""
        if memory is None or (memory.generation is not None and memory.generation == generation()):
            return []
        nft = Nftables()
        return apply_nft.drifted(nft, read_kernel(nft), memory.chains)

    def dropped(self) -> dict[str, int]:
        """Sum the counters of rules that drop or reject."""
        nft = Nftables()
        return apply_nft.count_packets(nft, our_tables())


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
