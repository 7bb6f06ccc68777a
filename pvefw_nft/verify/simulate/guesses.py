"""Find out whether a verdict depends on a made-up address, and which addresses would change it.

Rules tell addresses apart only by the sets that they look up. So the packet is sent once for each class of addresses
that the rules on its way distinguish, classes that only such another packet meets included: where all of these
packets have the same verdict, any address has it.

Example: VM 101 has no address in its files, and 192.0.2.102 is tried. A rule accepts what comes from 10.0.0.0/8. Of
the two classes, inside and outside of 10.0.0.0/8, one is accepted and one dropped: the verdict is a guess.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, product
from typing import TYPE_CHECKING

from pvefw_nft.verify.model import ARP_SPA, ARP_TPA, DADDR4, DADDR6, SADDR4, SADDR6
from pvefw_nft.verify.model.atoms import Atoms
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.model.text import set_text, value_text
from pvefw_nft.verify.simulate.packet import Guess
from pvefw_nft.verify.simulate.walk import simulate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.verify.model import Field, RulesetModel
    from pvefw_nft.verify.simulate.packet import Probe
    from pvefw_nft.verify.simulate.walk import LookedUp, Outcome

MAX_PACKETS = 64
"""Limit of packets to try; beyond it the result is partial."""

_NO_HOSTS4 = IntervalSet.of((0, 0x00FFFFFF), (0x7F000000, 0x7FFFFFFF), (0xE0000000, 0xFFFFFFFF))
_NO_HOSTS6 = IntervalSet.of((0, 1), (0xFF << 120, (1 << 128) - 1))
_HOSTS: Mapping[Field, IntervalSet] = {
    **{on: on.everything - _NO_HOSTS4 for on in (SADDR4, DADDR4, ARP_SPA, ARP_TPA)},
    **{on: on.everything - _NO_HOSTS6 for on in (SADDR6, DADDR6)},
}
"""Addresses that one host may have: no groups, no loopback, not 0.0.0.0/8 (RFC 6890)."""


def simulate_guessing(model: RulesetModel, probe: Probe) -> Outcome:
    """As :func:`~pvefw_nft.verify.simulate.walk.simulate`, and test how the verdict depends on made-up addresses."""
    looked_up: LookedUp = {one.field: {} for one in probe.made_up}
    outcome = simulate(model, probe, looked_up)
    if probe.made_up:
        outcome.guesses = _Guessing(model, probe, outcome.text, looked_up).guesses()
    return outcome


class _Guessing:
    """Tries addresses for the made-up ones of a packet. A *combination* is a value for each of them, in order."""

    def __init__(self, model: RulesetModel, probe: Probe, verdict: str, looked_up: LookedUp) -> None:
        self.model = model
        self.probe = probe
        self.looked_up = looked_up
        self.fields = [one.field for one in probe.made_up]
        self.start = tuple(probe.fields[on] for on in self.fields)
        self.verdicts = {self.start: verdict}

    def guesses(self) -> tuple[Guess, ...]:
        """Try other addresses until the rules test nothing new; return the result for each made-up one."""
        complete = self._explore()
        found = [self._alone(place) for place in range(len(self.fields))]
        if not any(found) and (together := self._together()) is not None:
            found = together
        return tuple(
            Guess(made_up, self.start[place], found[place], complete)
            for place, made_up in enumerate(self.probe.made_up)
        )

    def _explore(self) -> bool:
        """Try one combination of each class, those nearest to the first one first; returns whether that was all."""
        while missing := self._missing():
            for values in missing:
                if len(self.verdicts) >= MAX_PACKETS:
                    return False
                fields = {**self.probe.fields, **dict(zip(self.fields, values, strict=True))}
                self.verdicts[values] = simulate(self.model, replace(self.probe, fields=fields), self.looked_up).text
        return True

    def _missing(self) -> list[tuple[int, ...]]:
        samples = [self._samples(place) for place in range(len(self.fields))]
        near = [(*self.start[:at], value, *self.start[at + 1 :]) for at, one in enumerate(samples) for value in one]
        combined = islice(product(*samples), MAX_PACKETS**2)
        untried = [values for values in dict.fromkeys((*near, *combined)) if values not in self.verdicts]
        return sorted(untried, key=lambda values: sum(a != b for a, b in zip(values, self.start, strict=True)))

    def _samples(self, place: int) -> list[int]:
        """Return one address of each class that the rules tell apart, one that was tried where there is one."""
        tried = dict.fromkeys(values[place] for values in self.verdicts)
        found = []
        for values in self._classes(place):
            known = next((value for value in tried if value in values), None)
            found.append(values.smallest() if known is None else known)
        return found

    def _classes(self, place: int) -> list[IntervalSet]:
        on = self.fields[place]
        atoms = Atoms(on.size, tuple(self.looked_up[on]), absent=False)
        classes = [atoms.values(1 << atom) & _HOSTS[on] for atom in range(atoms.width)]
        return [values for values in classes if values]

    def _alone(self, place: int) -> dict[str, IntervalSet]:
        """Return, by verdict, the addresses that change the verdict if only this one address changes."""
        found: dict[str, IntervalSet] = {}
        for values in self._classes(place):
            for tried, verdict in self.verdicts.items():
                same = (*tried[:place], self.start[place], *tried[place + 1 :]) == self.start
                if same and tried[place] in values and verdict != self.verdicts[self.start]:
                    found[verdict] = found.get(verdict, IntervalSet()) | values
        return found

    def _together(self) -> list[dict[str, IntervalSet]] | None:
        """Return the first combination with another verdict, as single addresses; None if there is none."""
        for tried, verdict in self.verdicts.items():
            if verdict != self.verdicts[self.start]:
                return [{verdict: IntervalSet.single(value)} for value in tried]
        return None


def guess_text(guess: Guess) -> str:
    """Say in a few short sentences whether the verdict depends on a made-up address."""
    made_up, address = guess.made_up, value_text(guess.made_up.field, guess.address)
    source = made_up.option == "--source"
    if made_up.stands_for_many:
        subject = f"{address} stands for every {'sender' if source else 'address'} behind {made_up.end}."
    elif guess.otherwise:
        subject = f"the verdict depends on a made-up address: {address} for {made_up.end}, whose address no file names."
    else:
        subject = f"{address} is made up: no file names the address of {made_up.end}."
    if not guess.otherwise:
        return f"{subject} The verdict does not depend on it." if guess.complete else f"{subject} Not all were tried."
    word = "From" if source else "To"
    shown = {verdict: set_text(made_up.field, values, 3) for verdict, values in guess.otherwise.items()}
    others = " ".join(f"{word} {addresses} it is {verdict}." for verdict, addresses in shown.items())
    return f"{subject} {others} Give the real address with {made_up.option}."
