"""The two backends' ways to apply a ruleset, behind one interface, so that commands and switching need not care."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Protocol, TypeAlias

from pvefw_nft.errors import HostError, InternalError

from ..netfilter.nf_tables import NO_NFTABLES
from ..netfilter.stamp import take_stamp
from ..records import record
from ..records.changes import AppliedChain
from ..records.record import AppliedState
from . import apply_iptables, apply_nft, iptables_plan, iptables_recorded, names, twin, xtables
from .nftables_state import TABLE, Nftables, Reader, our_tables, read_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from ..netfilter.stamp import RulesetStamp
    from ..records.changes import Change
    from ..records.record import Desired
    from .nftables_state import Kernel, TableListing, Wanted

_DROPS = (" -j DROP", " -j REJECT", " -j PVEFW-reject", " -g PVEFW-reject")

_OTHERS_AT_WORK = ("No such file", "Device or resource busy", "File exists")
"""The kernel's words where a transaction names something that is gone, is used, or is there already."""


Remember: TypeAlias = "Callable[[str, AppliedState | None], AppliedState]"
"""Get the ruleset's identity and the state remembered before; return the state to remember now."""


class Planned(Protocol):
    """The input for the tools or the library; ``--dry-run`` prints its text."""

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes; none: the kernel holds the wanted ruleset."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Unwanted parts that have to stay, and why."""

    @property
    def stamp(self) -> RulesetStamp | None:
        """The stamp of the time in which the kernel was looked at for it; None: there is none."""


class Engine(Protocol):
    """One backend on this host.

    The state of the kernel is cached, and used again while a stamp proves that it is unchanged.
    """

    name: str

    def present(self) -> bool:
        """Tell whether the kernel holds rules of pvefw, as far as the installed tools can see."""

    def warm_up(self, desired: Desired) -> None:
        """Warm the caches for the next plan: read the kernel's rules and the running ruleset.

        Raises :class:`HostError`.
        """

    def unchanged(self, memory: AppliedState | None) -> bool:
        """Tell whether the kernel provably still holds the noted rules, and these are the wanted ones.

        In doubt: no.
        """

    def plan(
        self, desired: Desired, memory: AppliedState | None, previous: Desired | None, *, reload_all: bool = False
    ) -> Planned:
        """Return the plan that brings the kernel to the ruleset.

        ``previous`` is the ruleset applied last, ``memory`` its listing by the kernel. ``reload_all`` also replaces
        parts that are as wanted. Raises :class:`HostError`.
        """

    def apply(self, planned: Planned, previous: Desired | None) -> Remember:
        """Execute a plan that was just made and read back the result; restore the rules before it if that fails.

        Returns a function that lists the ruleset as the kernel has it now, which may take a while. Raises
        :class:`HostError`.
        """

    def remove(self) -> tuple[str, ...]:
        """Remove the rules, sets and tables of pvefw, and nothing else. Raises :class:`HostError`.

        Returns the parts that had to stay because other rules use them, with these rules, one line each.
        """

    def drifted(self, memory: AppliedState | None) -> list[str]:
        """Return the parts changed by hand since the apply."""

    def dropped(self) -> dict[str, int]:
        """Return packets dropped or rejected, by chain."""

    def has_missing_tools(self) -> bool:
        """Tell whether a tool is not installed: then some of our rules may be loaded and cannot be seen."""

    def missing(self, applied: Desired | None) -> list[HostError]:
        """Return the error of each tool that is not installed and without which not all can be seen and removed.

        ``applied`` is the ruleset that was applied last, if that is known.
        """

    def names(self) -> Mapping[str, str]:
        """Return digests of the host's names that a ruleset would be loaded under now, where it holds names."""


class IptablesEngine:
    """iptables, ip6tables, ipset and ebtables."""

    name = "iptables"

    def __init__(self) -> None:
        """Start without having seen anything."""
        self._seen: apply_iptables.Seen | None = None

    def present(self) -> bool:
        """Tell whether any of our chains, jumps or sets are loaded."""
        if xtables.missing_tools():
            return not xtables.read_what_can_be_read(_chains_on_record).empty
        return not self._look(ebtables=False).state.empty

    def warm_up(self, desired: Desired) -> None:  # noqa: ARG002 - each engine gets the same
        """Read all chains and sets."""
        self._look(ebtables=False)

    def unchanged(self, memory: AppliedState | None) -> bool:
        """Ask for the stamp that was taken when the ruleset had been read back."""
        if memory is None or memory.stamp is None or memory.names != names.digests():
            return False
        return memory.stamp == apply_iptables.take_stamp()

    def plan(
        self,
        desired: Desired,
        memory: AppliedState | None,
        previous: Desired | None,
        *,
        reload_all: bool = False,
    ) -> iptables_plan.Plan | iptables_recorded.RecordedPlan:
        """Return the input for each tool."""
        if self._seen is None and not reload_all and self.unchanged(memory):
            of_record = iptables_recorded.plan(desired, memory, previous)
            if of_record is not None:
                apply_iptables.refuse_dormant()
                return of_record
        target = _wanted(desired)
        seen = self._look(ebtables=bool(target.ebtables.chains))
        apply_iptables.refuse_dormant()
        # without a recorded listing drift cannot be detected: reload everything
        reload_all = reload_all or memory is None
        renamed = names.differing(memory.names, names.digests()) if memory is not None else []
        return apply_iptables.plan(
            seen.state, target, _chains(memory), reload_all=reload_all, renamed=renamed, stamp=seen.stamp
        )

    def apply(self, planned: Planned, previous: Desired | None) -> Remember:  # noqa: ARG002
        """Feed each tool its changes."""
        if isinstance(planned, iptables_recorded.RecordedPlan):
            remembered = iptables_recorded.apply(planned)
            if remembered is not None:
                return lambda identity, _: replace(remembered, identity=identity)
            planned = _with_all_rules(planned)
        assert isinstance(planned, iptables_plan.Plan)
        self._seen = None
        seen = self._seen = apply_iptables.apply(planned, _is_whole)
        whole = planned

        def remember(identity: str, before: AppliedState | None) -> AppliedState:
            chains = apply_iptables.memory_of(seen.state, whole, _chains(before))
            spoiled = apply_iptables.drifted(seen.state, chains)
            exact = not seen.notes and apply_iptables.is_exact(seen.state, whole.target)
            return AppliedState(identity, chains, None if spoiled else seen.stamp, exact=exact)

        return remember

    def remove(self) -> tuple[str, ...]:
        """Remove our chains, sets and the jumps to them."""
        there = self._look(ebtables=False).state
        self._seen = None
        return apply_iptables.apply(apply_iptables.plan(there, xtables.State(), removing=True)).notes

    def drifted(self, memory: AppliedState | None) -> list[str]:
        """Compare each chain with its listing after the apply, unless the stamp proves that nothing changed."""
        if memory is None or self.unchanged(memory):
            return []
        return apply_iptables.drifted(self._look(ebtables=False).state, memory.chains)

    def dropped(self) -> dict[str, int]:
        """Sum the counters of rules that drop or reject."""
        return xtables.count_packets(_DROPS)

    def has_missing_tools(self) -> bool:
        """Look for the tools that list."""
        return bool(xtables.missing_tools())

    def missing(self, applied: Desired | None) -> list[HostError]:
        """Look for the tools that list; ebtables is not missed where its chains were not asked for."""
        found = xtables.missing_tools()
        known = applied is not None and applied.backend == self.name
        if "ebtables-save" in found and applied is not None and known and not _wanted(applied).ebtables.chains:
            del found["ebtables-save"]
        return list(found.values())

    def names(self) -> Mapping[str, str]:
        """Rules hold names of services and protocols, whose numbers the tools look up."""
        return names.digests()

    def _look(self, *, ebtables: bool) -> apply_iptables.Seen:
        """Return the present rules, read again unless a stamp proves them unchanged."""
        if self._seen is None or not self._seen.still_holds():
            self._seen = apply_iptables.look(ebtables=ebtables, on_record=_chains_on_record)
        return self._seen


def _with_all_rules(planned: iptables_recorded.RecordedPlan) -> iptables_plan.Plan:
    """Return the plan for the same ruleset by a listing of all rules; some chains may be changed already.

    Raises HostError that says so.
    """
    target = _wanted(planned.desired)
    try:
        now = apply_iptables.look(ebtables=bool(target.ebtables.chains), on_record=_chains_on_record).state
        return apply_iptables.plan(planned.before(now), target, planned.memory.chains)
    except HostError as error:
        raise HostError(
            f"{error.message}\nthe rules that were loaded by then are in place",
            error.hint or apply_iptables.PARTLY_FILTERED,
        ) from error


def _chains_on_record() -> Collection[str]:
    """Return the chains that were loaded since boot and not removed, by the keys of their remembered state."""
    remembered = record.read_memory()
    if remembered is not None:
        return remembered.chains.keys()
    applied = record.load_if_sound(record.running_path()) if record.marker_path().exists() else None
    if applied is None or applied.backend != IptablesEngine.name:
        return ()
    return {
        iptables_plan.memory_key(f"{tool} {name}", chain)
        for (tool, name), table in _wanted(applied).tables.items()
        for chain in table.chains
    }


def _is_whole(state: xtables.State) -> bool:
    """Tell whether these rules of iptables are complete: those on record, or none if none were loaded."""
    if not record.marker_path().exists():
        return state.empty or _is_entered(state)
    applied = record.load_if_sound(record.running_path())
    if applied is None:
        return False
    if applied.backend != IptablesEngine.name:
        return state.empty
    return not apply_iptables.differences(state, iptables_plan.with_kept(state, _wanted(applied)))


def _is_entered(state: xtables.State) -> bool:
    """Tell whether rules that are not on record, as of Proxmox VE's own firewall, look complete."""
    for (_, name), table in state.tables.items():
        entered = {hook for hook, chain in xtables.HOOK_CHAINS[name].items() if chain in table.chains}
        if not entered <= table.hooked or any(chain.signature is None for chain in table.chains.values()):
            return False
    return True


def _wanted(desired: Desired) -> xtables.State:
    try:
        artefact = json.loads("".join(desired.pieces))
    except (ValueError, RecursionError) as error:
        raise InternalError(f"an artefact that is not JSON: {error}") from error
    return xtables.wanted(artefact)


def _replacing(target: Mapping[str, Wanted]) -> apply_nft.Plan:
    """Return the plan that replaces our tables, or removes them, in the state that they are in now."""
    return apply_nft.replacing(read_kernel(), target, twin.families(TABLE))


class NftEngine:
    """nftables, through libnftables."""

    name = "nft"

    def __init__(self, library: Callable[[], Nftables] = Nftables) -> None:
        """Start without having seen anything. ``library`` opens libnftables, and raises as :class:`.Nftables`."""
        self._library = library
        self._seen: tuple[RulesetStamp, Kernel] | None = None
        self._reader = Reader()

    def present(self) -> bool:
        """Tell whether one of our tables is loaded."""
        try:
            return bool(our_tables() or twin.families(TABLE))
        except HostError as error:
            if error.hint == NO_NFTABLES:
                return False  # without it there cannot be one
            raise

    def warm_up(self, desired: Desired) -> None:
        """Read the notes in pvefw's tables, and all pieces; the next ruleset will have most of them."""
        self._look()
        self._reader.wanted(desired.pieces)

    def unchanged(self, memory: AppliedState | None) -> bool:
        """Ask for the stamp that was taken when the ruleset had been read back."""
        return memory is not None and memory.stamp is not None and memory.stamp == take_stamp()

    def plan(
        self, desired: Desired, memory: AppliedState | None, previous: Desired | None, *, reload_all: bool = False
    ) -> apply_nft.Plan:
        """Return the transactions."""
        self._library()  # where it is missing, nothing is to be begun
        there, stamp = self._look()
        if previous is not None and memory is not None:
            self._reader.assume(previous.pieces, apply_nft.as_loaded(there, memory.chains))
        target = self._reader.wanted(desired.pieces)
        twins = twin.families(TABLE)
        # without a recorded listing drift cannot be detected: reload everything
        if reload_all or (memory is None and there):
            return apply_nft.replacing(there, target, twins)

        @cache
        def before() -> Mapping[str, Wanted]:
            return self._known(previous)

        drift = self._drift(memory, there)
        if drift.in_structure:
            return apply_nft.replacing(there, target, twins)
        planned = apply_nft.plan(there, target, before, drift.changed, twins=twins)
        return replace(planned, stamp=stamp if stamp == take_stamp() else None)

    def apply(self, planned: Planned, previous: Desired | None) -> Remember:
        """Run the transactions; restore the previous ruleset if the rules read back are not the wanted ones."""
        assert isinstance(planned, apply_nft.Plan)
        nft = self._library()
        self._seen = None
        stamp = planned.stamp
        listings: Mapping[str, TableListing] = {}
        try:
            if planned.transactions:
                stamp, kernel, listings = self._carried_out(planned, nft)
                if stamp is not None and stamp == take_stamp():
                    self._seen = (stamp, kernel)
        except apply_nft.NotAsLoadedError as error:
            self._put_back(planned, previous, nft, error)
            raise HostError(f"{error.message}\nthe ruleset that ran before is in place", error.hint) from error

        def remember(identity: str, before: AppliedState | None) -> AppliedState:
            chains = apply_nft.memory_of(planned.target, _chains(before) if before is not None else None, listings)
            now = take_stamp()
            if now is not None and now != stamp:
                # rules changed meanwhile, perhaps these: forget their listings, so the next apply loads them again
                old = _chains(before)
                chains = {k: v if old.get(k) == v else AppliedChain(v.signature, "") for k, v in chains.items()}
            return AppliedState(identity, chains, stamp if stamp == now else None)

        return remember

    @staticmethod
    def _carried_out(planned: apply_nft.Plan, nft: Nftables) -> apply_nft.ReadBack:
        """Run the transactions. If another program changed our tables meanwhile, replace them as a whole."""
        for further_tries in reversed(range(apply_iptables.TRIES)):
            try:
                return apply_nft.execute(planned, nft)
            except apply_nft.NotAsLoadedError:
                if not further_tries:
                    raise
            except HostError as error:
                if planned.whole or not any(reason in error.message for reason in _OTHERS_AT_WORK):
                    raise
            # the tables changed since they were read
            planned = _replacing(planned.target)
        raise AssertionError  # the last try returns or raises

    def _put_back(
        self, planned: apply_nft.Plan, previous: Desired | None, nft: Nftables, cause: apply_nft.NotAsLoadedError
    ) -> None:
        """Load the ruleset that ran before. Raises :class:`HostError` if it is unknown, or this fails too."""
        before = self._before(planned, previous)
        if before is None:
            raise HostError(
                f"{cause.message}\n{apply_iptables.NOT_RESTORED}", cause.hint or apply_iptables.PARTLY_FILTERED
            ) from cause
        try:
            apply_nft.execute(_replacing(before), nft)
        except HostError as error:
            raise HostError(
                f"{cause.message}\nand putting back the ruleset that ran before failed too: {error.message}",
                apply_iptables.PARTLY_FILTERED,
            ) from cause

    def _before(self, planned: apply_nft.Plan, previous: Desired | None) -> Mapping[str, Wanted] | None:
        """Return the ruleset that ran before a plan; None: it is not on record, or its tables were removed."""
        if planned.was_there:
            return self._known(previous) or None
        if not record.marker_path().exists():
            return {}
        applied = record.load_if_sound(record.running_path())
        was_there = applied is None or (applied.backend == self.name and applied.enabled)
        return None if was_there else {}

    def _known(self, previous: Desired | None) -> Mapping[str, Wanted]:
        known = previous is not None and previous.backend == self.name
        return self._reader.wanted(previous.pieces) if previous is not None and known else {}

    def remove(self) -> tuple[str, ...]:
        """Delete our tables, which rules of other tables cannot refer to."""
        nft = self._library()
        self._seen = None
        apply_nft.execute(_replacing({}), nft)
        return ()

    def drifted(self, memory: AppliedState | None) -> list[str]:
        """Compare each chain and set with its listing, unless no ruleset changed since."""
        return [] if memory is None or self.unchanged(memory) else self._drift(memory, self._look()[0]).names

    def _drift(self, memory: AppliedState | None, there: Kernel) -> apply_nft.Drift:
        if memory is None or self.unchanged(memory):
            return apply_nft.Drift()
        return apply_nft.drift(there, memory.chains)

    def dropped(self) -> dict[str, int]:
        """Sum the counters of rules that drop or reject."""
        return apply_nft.count_packets(our_tables())

    def has_missing_tools(self) -> bool:
        """Tell that the kernel itself is asked."""
        return False

    def missing(self, applied: Desired | None) -> list[HostError]:  # noqa: ARG002 - each engine gets the same
        """Look for the library."""
        try:
            self._library()
        except HostError as error:
            return [error]
        return []

    def names(self) -> Mapping[str, str]:
        """Rules hold numbers only."""
        return {}

    def _look(self) -> tuple[Kernel, RulesetStamp | None]:
        """Return the notes in our tables, read again unless a stamp proves them unchanged, and the stamp."""
        stamp = take_stamp()
        if self._seen is not None and self._seen[0] == stamp:
            return self._seen[1], stamp
        kernel = read_kernel()
        holds = stamp is not None and stamp == take_stamp()
        self._seen = (stamp, kernel) if stamp is not None and holds else None
        return kernel, stamp if holds else None


def _chains(memory: AppliedState | None) -> Mapping[str, AppliedChain]:
    return memory.chains if memory is not None else {}


def make_engines() -> tuple[Engine, ...]:
    """Make an engine for each backend of :data:`.BACKENDS`."""
    return (IptablesEngine(), NftEngine())
