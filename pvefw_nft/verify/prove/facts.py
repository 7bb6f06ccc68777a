"""The facts known of a packet where a chain starts, and which effects of rules count for a proof."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pvefw_nft.verify import model as m
from pvefw_nft.verify.prove.program import INTERFACES, Case
from pvefw_nft.verify.simulate.packet import HOST_MAC
from pvefw_nft.verify.simulate.tracking import PLAIN, View

if TYPE_CHECKING:
    from pvefw_nft.verify.model.intervals import IntervalSet
    from pvefw_nft.verify.network.path import Stage

Known: TypeAlias = "dict[m.Field, int | None]"
"""Fields whose value is known; None: the packet lacks the field."""

ALL_STATES = m.CT_STATE.everything
_NO_INTERFACES: Known = {**dict.fromkeys(INTERFACES, m.NO_INTERFACE), m.IBR: None, m.OBR: None}


class Context(NamedTuple):
    """Facts known where a chain starts: single fields, the connection (None: unknown), the hook."""

    case: Case
    known: Known
    states: IntervalSet
    unicast: int
    view: View = PLAIN


class Later(NamedTuple):
    """Effects that count later: which ``sets`` are looked at, which ``fields`` tested, and whether ``helpers`` show."""

    sets: frozenset[str] = frozenset()
    fields: frozenset[m.Field] = frozenset()
    helpers: bool = False


class Counting:
    """Which effects count. ``tracked`` are the mark bits that matter.

    ``strict`` keeps logs, helpers and the like as notes. ``exempts``: rules exempt packets from connection tracking,
    so that what they did is followed (:data:`~pvefw_nft.verify.model.TRACKING`). ``later`` are effects that count for
    later rules and packets.
    """

    def __init__(self, tracked: frozenset[m.Field], *, strict: bool, exempts: bool, later: Later) -> None:
        self.tracked = tracked
        self.strict = strict
        self.exempts = exempts
        self.later = later


# --- the facts of a stage -----------------------------------------------------------------------------------------


def known_fields(stage: Stage, case: Case) -> Known:
    """Return the known facts about a packet of this case at this stage."""
    inside = stage.family is not m.Family.BRIDGE and stage.point in (m.Point.OUTPUT, m.Point.POSTROUTING)
    return {
        **_NO_INTERFACES,
        **dict(stage.fields),
        **_known_of_case(case, from_host=stage.from_host, inside=inside, bridged=stage.family is m.Family.BRIDGE),
    }


def ether_type(case: Case, *, from_host: bool) -> int:
    """Return the ether type of a frame of this case; the host's own packets have no tag yet."""
    return m.VLAN if case.tagged and not from_host else case.protocol


@cache
def _known_of_case(case: Case, *, from_host: bool, inside: bool, bridged: bool) -> Known:
    """Return the facts known at every place; ``inside``: a packet of the host has no Ethernet header yet."""
    known: Known = {m.PROTOCOL: case.protocol, m.ETHER_TYPE: ether_type(case, from_host=from_host)}
    if bridged:
        known[m.IS_BRIDGED] = None
    if not case.tagged or from_host:
        known[m.VLAN_ID] = None
    if from_host:
        known[m.ETHER_SRC] = HOST_MAC
        if inside:
            known[m.ETHER_SRC] = known[m.ETHER_DST] = None
    else:
        known[m.SKUID] = known[m.SKGID] = None
    if not case.is_ip:
        # A bridge's connection tracking leaves all but IP untracked (net/bridge/netfilter/nf_conntrack_bridge.c).
        known[m.CT_STATE] = m.CT_STATES.index("untracked")
    return known | dict.fromkeys(_absent_fields(case.protocol))


def _absent_fields(protocol: int) -> list[m.Field]:
    return [on for on in m.PRESENCE if protocol not in m.protocols_of(on)]
