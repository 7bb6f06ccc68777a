"""Programs: a chain specialised for the known facts of a packet, as steps over the fields still open.

Programs are interned: equal ones are one object, from whichever ruleset they come. :func:`rank` orders the fields of
tests as the levels of diagrams.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias, final

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.intervals import IntervalSet

CAST = m.declare(m.Field("cast", 3, m.FieldKind.ENUM, ("unicast", "broadcast", "multicast")), level=410)
"""The kind of a frame's destination, this host or another one: ``PKTTYPE`` without the hook's part in it."""

INTERFACES = tuple(on for on in m.DECLARED if on.kind is m.FieldKind.INTERFACE)
_OF_A_CASE = (m.PROTOCOL, m.ETHER_TYPE)
"""The fields that a case fixes."""
SOMETIMES_ABSENT = frozenset(
    on
    for on, known in m.DECLARED.items()
    if known.optional or any(needed not in _OF_A_CASE for needed, _ in known.requires)
)
"""Fields that packets of one case may have or lack."""


class Case(NamedTuple):
    """One kind of frame: its network ``protocol`` (``PROTOCOL``), and whether a VLAN tag is before it.

    ``fragments``: rules may look into packets before fragments are put together; else packets are whole.
    """

    protocol: int
    tagged: bool
    fragments: bool = False

    @property
    def is_ip(self) -> bool:
        """Whether it is IPv4 or IPv6."""
        return self.protocol in (m.IPV4, m.IPV6)


# --- programs -----------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How a chain ends for a packet.

    ``verdict`` is ``accept``, ``drop``, ``reject KIND``, ``return`` or ``unknown TEXT``. ``assigned`` are the fields
    given a value on the way, with those values, by field name; ``trace`` what else was done, in order: ``queue …``,
    translations and, in a strict proof, log lines.
    """

    verdict: str
    assigned: tuple[tuple[str, int], ...] = ()
    trace: tuple[str, ...] = ()


TOGETHER = Outcome("put together")
"""How a later fragment ends where fragments are put together: the first one decides about it."""
ACCEPT, DROP, RETURN = Outcome("accept"), Outcome("drop"), Outcome("return")


class Set(NamedTuple):
    """These fields get these values."""

    pairs: tuple[tuple[m.Field, int], ...]


class Remap(NamedTuple):
    """A field gets the value that a table has for its old one."""

    field: m.Field
    values: tuple[int, ...]

    def groups(self) -> dict[int, m.Test]:
        """Return for each value the test for the old ones that become it."""
        olds: dict[int, list[int]] = {}
        for old, new in enumerate(self.values):
            olds.setdefault(new, []).append(old)
        return {
            new: m.Test(self.field, IntervalSet.from_ranges((old, old) for old in group)) for new, group in olds.items()
        }


class Trace(NamedTuple):
    """Something is done that no field shows; the proof compares the text."""

    text: str


class FlipBits(NamedTuple):
    """These bits change."""

    bits: tuple[m.Field, ...]


class Where(NamedTuple):
    """Where all of these hold, actions happen; the rest of the step is for all packets all the same."""

    tests: tuple[m.Test, ...]
    conditions: tuple[m.Condition, ...]
    actions: tuple[Set | FlipBits | Copy | Trace, ...]


class Copy(NamedTuple):
    """Each first bit gets the value of the second, or, with ``flip``, changes where the second is 1."""

    pairs: tuple[tuple[m.Field, m.Field], ...]
    flip: bool


class Restrict(NamedTuple):
    """The rest of the step is for packets where these hold."""

    tests: tuple[m.Test, ...]
    conditions: tuple[m.Condition, ...]


Action: TypeAlias = Set | Where | Remap | FlipBits | Copy | Trace | Restrict


class Call(NamedTuple):
    """On to a program; packets that it returns go to the next step (``back``), or return from here too."""

    program: Program
    back: bool


class Choice(NamedTuple):
    """The end of the one branch whose tests and conditions hold, all looked at now; else the next step."""

    branches: tuple[Step, ...]


class Step(NamedTuple):
    """Where all tests and conditions hold, the actions happen, and then ``end``; None: on to the next step.

    ``tests`` are of different fields, in the order of the levels.
    """

    tests: tuple[m.Test, ...]
    conditions: tuple[m.Condition, ...]
    actions: tuple[Action, ...]
    end: Outcome | Call | Choice | None


@final
class Program:
    """Steps in order; a packet that comes to the end returns. Interned: equal ones are one object."""

    __slots__ = ("__weakref__", "steps")
    _known: dict[tuple[Step, ...], Program] = {}  # noqa: RUF012  the registry of all programs

    steps: tuple[Step, ...]

    def __new__(cls, steps: tuple[Step, ...]) -> Program:
        """Return the one program of these steps."""
        known = cls._known.get(steps)
        if known is None:
            known = object.__new__(cls)
            known.steps = steps
            cls._known[steps] = known
        return known

    @property
    def always(self) -> Outcome | None:
        """How it ends for every packet, where it does nothing else."""
        first = self.steps[0] if self.steps else None
        if first is None or first.tests or first.conditions or first.actions:
            return None
        return first.end if isinstance(first.end, Outcome) else None


# --- order of levels ----------------------------------------------------------------------------------------

_LEVELS = {on: known.level for on, known in m.DECLARED.items() if known.level is not None}


def rank(on: m.Field) -> tuple[int, str]:
    """Return the place of a field among the levels; fields made on demand come between the rest and marks."""
    return _LEVELS.get(on, m.ON_DEMAND), on.name
