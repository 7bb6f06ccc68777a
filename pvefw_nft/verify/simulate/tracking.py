"""Connection tracking as a stage of a packet's path: where and in which zone it looks a packet up, and the result.

A base chain before the lookup (priority -200 of prerouting and output) sees no connection: the state is *invalid*, the
connection's mark, status and direction are absent. ``notrack`` counts only there, and a zone or helper given there
makes the state *new* already. Fragments are put together at priority -400 (on a bridge: at the lookup). The first
lookup decides; it holds until the packet crosses to the next bridge, where it is looked up again.

**Zones.** A connection is known in the zone in which its packets were looked up. A packet is looked up as one of a
known connection where the way back leads through a lookup in the same zone; elsewhere it looks like one of an unknown
connection, whose state :func:`~pvefw_nft.verify.simulate.conntrack.first_state` gives.

Sources: nft_ct_get_eval and nft_ct_set_zone_eval (net/netfilter/nft_ct.c), nft_notrack_eval, xt_conntrack.c, xt_CT.c,
nf_conntrack_in (nf_conntrack_core.c), nf_ct_bridge_pre (net/bridge/netfilter/nf_conntrack_bridge.c), nf_ct_netns_get
(nf_conntrack_proto.c), skb_scrub_packet (net/core/skbuff.c), which forgets the connection, of Linux 6.1.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.simulate.conntrack import ICMP6_REQUESTS, ICMP_REQUESTS, tcp_opens, tcp_picked_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pvefw_nft.verify.network.path import Stage

LOOKUP = -200
"""The priority of connection tracking's lookup, in the hooks of IP and of bridges (NF_IP_PRI_CONNTRACK)."""
DEFRAGMENT = -400
"""Where the IP hooks put fragments together (NF_IP_PRI_CONNTRACK_DEFRAG)."""

INVALID, ESTABLISHED, RELATED, NEW, UNTRACKED = range(5)
CONNECTED = IntervalSet.of((ESTABLISHED, NEW))
"""The states of packets that have a connection (established, related, new are neighbours in ``CT_STATES``)."""
LATER = IntervalSet.of((ESTABLISHED, RELATED))
"""The states that only a known connection's packets have."""
CONNECTION_FIELDS = frozenset((*m.CT_MARK, *m.CT_STATUS.values(), m.CT_DIRECTION))
"""The fields that a packet without a connection lacks."""

Zone = tuple[int, int]
"""The zone of a connection's tuples: of its first direction, and of replies."""
DEFAULT_ZONE: Zone = (0, 0)


class View(NamedTuple):
    """The view that a base chain has of connection tracking.

    ``looked_up``: it comes after the lookup. ``known``: the lookup finds connections that packets belong to.
    ``fresh``: a connection that the packet begins is not confirmed yet, so that it can be given a helper.
    """

    looked_up: bool
    known: bool
    fresh: bool = True

    @property
    def is_plain(self) -> bool:
        """Whether rules see the true state."""
        return self.looked_up and self.known


PLAIN = View(looked_up=True, known=True)


class Tracked(NamedTuple):
    """A stage's part in connection tracking: base chains from priority ``since`` come after the lookup, those from
    ``whole`` after fragments were put together. ``known`` as in :class:`View`; ``zones`` are those packets may be
    looked up in, where this stage looks them up. ``fresh``: no connection was confirmed since.
    """

    since: float
    whole: float
    known: bool
    zones: frozenset[Zone] | None
    fresh: bool = True

    def view(self, priority: int) -> View:
        """Return the view of a base chain of this priority."""
        return View(priority >= self.since, self.known, self.fresh)


Track = tuple[Tracked, ...]
"""The effects of a path's stages, in order."""


class Tracking:
    """Connection tracking under one ruleset: which hooks do it depends on the rules that ask for it.

    A rule of a bridge table that asks for the connection has bridges look packets up, one of an IP table the host's
    hooks of that family (nf_ct_netns_get).
    """

    def __init__(self, model: m.RulesetModel) -> None:
        self.model = model
        families: set[m.Family] = set()
        self.has_zones = False
        for table in model.tables:
            chains = table.chains.values()
            family = table.key.family
            if family not in families and (any(map(_is_nat, chains)) or any(map(_tracks, m.telling_chains(table)))):
                families.add(family)
            self.has_zones = self.has_zones or any(chain.sets_zone() for chain in chains)
        self.bridge = m.Family.BRIDGE in families
        # bridge and inet tables ask for both IP versions (nf_ct_netns_get)
        everywhere = self.bridge or m.Family.INET in families
        self._protocols = {
            m.IPV4: everywhere or m.Family.IP in families,
            m.IPV6: everywhere or m.Family.IP6 in families,
        }
        self._zones: dict[tuple[object, ...], frozenset[Zone]] = {}
        self._set_zones: dict[tuple[int, str], bool] = {}
        self._lookups: dict[tuple[object, ...], frozenset[Zone]] = {}

    @property
    def facts(self) -> tuple[bool, ...]:
        """The facts of a whole ruleset that decide which hooks look packets up, and whether zones are followed."""
        return self.bridge, self.has_zones, self._protocols[m.IPV4], self._protocols[m.IPV6]

    def track(
        self, protocol: int, stages: Sequence[Stage], back: Sequence[Stage], runs: Callable[[Stage], bool]
    ) -> Track:
        """Return each stage's effect. ``back`` is the way back, ``runs`` tells the stages that packets run."""
        found: list[Tracked] = []
        since, whole, known, fresh = math.inf, math.inf, True, True
        zones = frozenset((DEFAULT_ZONE,))
        answers: frozenset[Zone] | None = None
        for stage in stages:
            # a frame that comes from a device has lost its connection (skb_scrub_packet in net/core/skbuff.c)
            if enters(stage):
                since, whole, known, fresh = math.inf, math.inf, True, True
                zones = frozenset((DEFAULT_ZONE,))
            at = self.looks_up(stage, protocol) if since == math.inf and runs(stage) else None
            if at is None:
                found.append(Tracked(since, whole, known, None, fresh))
                # these hooks confirm a connection (nf_confirm): behind them later lookups find it
                fresh = fresh and stage.point not in (m.Point.INPUT, m.Point.POSTROUTING)
                if since == math.inf and self.has_zones and runs(stage):
                    zones = self._assigned(stage, protocol, zones, math.inf)
                continue
            whole_here = at if stage.family is m.Family.BRIDGE else min(whole, DEFRAGMENT)
            if self.has_zones:
                zones = self._assigned(stage, protocol, zones, at)
                # the way back is the same for all stages
                if answers is None:
                    answers = self.zones(protocol, back, runs)
                known = _answered(zones, answers)
            found.append(Tracked(at, whole_here, known, zones))
            # the stages behind see the packet looked up from their first chain on
            since, whole = -math.inf, -math.inf
        return tuple(found)

    def zones(self, protocol: int, stages: Sequence[Stage], runs: Callable[[Stage], bool]) -> frozenset[Zone]:
        """Return the zones in which packets may be looked up somewhere on these stages."""
        key = (protocol, tuple(stages), tuple(map(runs, stages)))
        found = self._lookups.get(key)
        if found is None:
            tracked = self.track(protocol, stages, (), runs)
            found = self._lookups[key] = frozenset(z for one in tracked if one.zones is not None for z in one.zones)
        return found

    def looks_up(self, stage: Stage, protocol: int) -> int | None:
        """Return the priority at which packets not looked up yet are at this stage; None: they are not."""
        if stage.family is m.Family.BRIDGE:
            here = self.bridge and stage.point is m.Point.PREROUTING and (stage.last is None or stage.last > LOOKUP)
        else:
            here = self._protocols.get(protocol, False) and stage.point in (m.Point.PREROUTING, m.Point.OUTPUT)
        return LOOKUP if here and (stage.first is None or stage.first <= LOOKUP) else None

    # --- zones ---

    def _assigned(self, stage: Stage, protocol: int, zones: frozenset[Zone], before: float) -> frozenset[Zone]:
        """Return the zones that packets may have after this stage's base chains before a priority."""
        for table, chain in stage.chains(self.model, protocol):
            if chain.hook is None or chain.hook.priority >= before or not self._sets_zone(table, chain.name):
                continue
            key = (id(table), id(chain), stage.fields, protocol, zones)
            found = self._zones.get(key)
            if found is None:
                known = {m.IIF: 0, m.OIF: 0, m.PHYSIN: 0, m.PHYSOUT: 0, **dict(stage.fields), m.PROTOCOL: protocol}
                walk = _ZoneWalk(table, known)
                returned = walk.chain(chain.name, zones)
                found = walk.accepted | (returned if not isinstance(chain.policy, m.Drop) else frozenset())
                self._zones[key] = found
            zones = found
        return zones

    def _sets_zone(self, table: m.Table, name: str) -> bool:
        """As :func:`sets_zone`, remembered: a map that leads to each guest's chain takes long to follow."""
        key = (id(table), name)
        found = self._set_zones.get(key)
        if found is None:
            found = self._set_zones[key] = sets_zone(table, name)
        return found


def _answered(zones: Iterable[Zone], answers: frozenset[Zone]) -> bool:
    """Whether packets looked up in these zones may belong to connections that the way back knows, too.

    Both directions of a connection meet in the zone of its replies: there the first packet left what the answer looks
    for, and the answer is what makes later packets of the first direction established (nf_ct_key_equal).
    """
    replies = {zone[1] for zone in answers}
    return all(zone[1] in replies for zone in zones)


def enters(stage: Stage) -> bool:
    """Whether a packet comes to this stage fresh from a device, by which a connection found before is forgotten."""
    return stage.family is m.Family.BRIDGE and stage.point is m.Point.PREROUTING and stage.first is None


def _is_nat(chain: m.Chain) -> bool:
    return chain.hook is not None and chain.hook.kind == "nat" and bool(chain.rules)


@cache
def _asks(on: m.Field) -> bool:
    return on is m.CT_STATE or on in CONNECTION_FIELDS


def _tracks(chain: m.Chain) -> bool:
    """Whether some rule of a chain looks at connections or changes them."""
    for rule in chain.rules:
        for effect in rule.effects:
            if isinstance(effect, (m.SetZone, m.SetHelper)):
                return True
            if isinstance(effect, m.SetMark) and effect.target is m.MarkTarget.CONNECTION:
                return True
            if isinstance(effect, m.CopyMark):
                return True
            if isinstance(effect, m.Guard) and any(_asks(test.field) for test in m.tests_of(effect.condition)):
                return True
        if any(_asks(test.field) for condition in rule.conditions for test in m.tests_of(condition)):
            return True
        if isinstance(rule.verdict, m.VerdictMap) and any(
            _asks(test.field) for condition, _ in rule.verdict.entries for test in m.tests_of(condition)
        ):
            return True
    return False


def sets_zone(table: m.Table, name: str) -> bool:
    """Whether a chain, or one it leads to, gives packets a zone."""
    return leads_to_setter(table, name, zone_setters(table))


def zone_setters(table: m.Table) -> set[str]:
    """Return the names of the chains of a table whose own rules give packets a zone."""
    return {chain.name for chain in table.chains.values() if chain.sets_zone()}


def leads_to_setter(table: m.Table, name: str, setters: set[str]) -> bool:
    """Whether a chain is one of ``setters``, or leads to one."""
    if name in setters or not setters:
        return bool(setters)
    if table.key.tool == "nft" and all(table.chains[setter].hook is not None for setter in setters):
        return False  # no rule of nft leads to a base chain (nft_verdict_init in net/netfilter/nf_tables_api.c)
    seen, due = {name}, [name]
    while due:
        new = [target for target in m.targets_of(table.chains[due.pop()]) if target not in seen]
        if not setters.isdisjoint(new):
            return True
        seen.update(new)
        due += new
    return False


class _ZoneWalk:
    """Follows the zones that packets may have through a base chain, where only some of their fields are known."""

    def __init__(self, table: m.Table, known: Mapping[m.Field, int]) -> None:
        self.table = table
        self.known = known
        self.accepted: frozenset[Zone] = frozenset()

    def chain(self, name: str, here: frozenset[Zone]) -> frozenset[Zone]:
        """Return the zones that packets may have when a chain returns them."""
        returned: frozenset[Zone] = frozenset()
        for rule in self.table.chains[name].rules:
            if not here:
                break
            holds = _known(m.All(rule.conditions), self.known)
            if holds is False:
                continue
            hit, passing = here, (here if holds is None else frozenset())
            for effect in rule.effects:
                if isinstance(effect, m.SetZone):
                    hit = self._set(effect, hit)
                elif isinstance(effect, m.Guard):
                    guard = _known(effect.condition, self.known)
                    passing |= hit if guard is not True else frozenset()
                    hit = hit if guard is not False else frozenset()
            on, back = self._end(rule.verdict, hit)
            here, returned = passing | on, returned | back
        return returned | here

    def _set(self, effect: m.SetZone, here: frozenset[Zone]) -> frozenset[Zone]:
        """The first zone given counts: later ones find a template that is there already."""
        given: set[Zone] = set()
        for condition, zone in effect.choices(self.known):
            holds = _known(condition, self.known)
            if holds is not False:
                given.add((zone if effect.original else 0, zone if effect.reply else 0))
            # the first entry that holds counts
            if holds is True:
                break
        fresh = frozenset(given)
        return frozenset(zone for zone in here if zone != DEFAULT_ZONE) | (
            fresh if DEFAULT_ZONE in here else frozenset()
        )

    def _end(self, verdict: m.Verdict | None, hit: frozenset[Zone]) -> tuple[frozenset[Zone], frozenset[Zone]]:
        """Return the zones of packets that go on with the next rule, and of those that return."""
        none: frozenset[Zone] = frozenset()
        match verdict:
            case None:
                return hit, none
            case m.Accept() | m.Queue() | m.Nat():
                self.accepted |= hit
                return none, none
            case m.Drop() | m.Reject():
                return none, none
            case m.Return():
                return none, hit
            # it may end the chain or not: both are followed
            case m.UnknownVerdict():
                self.accepted |= hit
                return hit, none
            case m.Jump(name):
                return self.chain(name, hit), none
            case m.Goto(name):
                return none, self.chain(name, hit)
            case m.VerdictMap(entries):
                on, returned = hit, none
                for condition, entry in entries:
                    holds = _known(condition, self.known)
                    if holds is False:
                        continue
                    one, back = self._end(entry, hit)
                    on = one if holds is True else on | one
                    returned |= back
                    if holds is True:
                        break
                return on, returned


_recent: list[Tracking] = []


def tracking_of(model: m.RulesetModel) -> Tracking:
    """Return connection tracking under a ruleset; the last few rulesets asked for are remembered."""
    for one in _recent:
        if one.model is model:
            return one
    made = Tracking(model)
    _recent[:] = [made, *_recent[:3]]
    return made


def _known(condition: m.Condition, known: Mapping[m.Field, int]) -> bool | None:
    """Return whether a condition holds for these known fields; None if it depends on other fields."""
    match condition:
        case m.Test(field=on, values=values):
            return known[on] in values if on in known else None
        case m.Not(of):
            inner = _known(of, known)
            return None if inner is None else not inner
        case m.All(of):
            parts = [_known(part, known) for part in of]
            return False if False in parts else None if None in parts else True
        case m.Any(of):
            parts = [_known(part, known) for part in of]
            return True if True in parts else None if None in parts else False


# --- the view of rules -------------------------------------------------------------------------------------------


def untracked() -> m.Test:
    """Return the test that a packet was exempted from tracking before its lookup."""
    return m.equals(m.TRACKING, 1)


@cache
def seen(test: m.Test, view: View) -> m.Condition:
    """Return the meaning of a rule's test of state or connection for the packet, whose ``CT_STATE`` is the true one.

    The true state is the result of a lookup that knows every connection; :data:`~.model.TRACKING` is the effect of
    earlier rules on the packet's tracking.
    """
    if test.field is m.CT_STATE:
        return _seen_state(test.values, view)
    if not view.looked_up:
        return m.FALSE
    connected = m.All((test, m.Test(m.CT_STATE, CONNECTED)))
    if not view.known:
        fresh = m.All((m.Test(m.CT_STATE, LATER), opens())) if 0 in test.values else m.FALSE
        connected_new = m.All((test, m.equals(m.CT_STATE, NEW)))
        return m.All((m.Not(untracked()), m.Any((connected_new, fresh))))
    return m.All((m.Not(untracked()), connected))


def _seen_state(values: IntervalSet, view: View) -> m.Condition:
    exempt = untracked() if UNTRACKED in values else m.FALSE
    if not view.looked_up:
        parts: list[m.Condition] = [exempt]
        parts += [m.equals(m.TRACKING, 0)] if INVALID in values else []
        parts += [m.equals(m.TRACKING, 2)] if NEW in values else []
        return m.Any(tuple(parts))
    inner: m.Condition = m.Test(m.CT_STATE, values)
    if not view.known:
        first: list[m.Condition] = []
        first += [opens()] if NEW in values else []
        first += [m.Not(opens())] if INVALID in values else []
        kept = m.Test(m.CT_STATE, values - LATER)
        inner = m.Any((kept, m.All((m.Test(m.CT_STATE, LATER), m.Any(tuple(first))))))
    return m.Any((exempt, m.All((m.Not(untracked()), inner))))


@cache
def opens() -> m.Condition:
    """Return the condition that a tracked packet is new, not invalid, to a lookup that knows no connection of it."""
    flags = IntervalSet.from_ranges((n, n) for n in range(256) if tcp_opens(n) or tcp_picked_up(n))
    icmp = IntervalSet.from_ranges((kind << 8, kind << 8 | 0xFF) for kind in ICMP_REQUESTS)
    icmp6 = IntervalSet.from_ranges((kind << 8, kind << 8 | 0xFF) for kind in ICMP6_REQUESTS)
    return m.Any(
        (
            m.Test(m.TCP_FLAGS, flags),
            m.Test(m.ICMP, icmp),
            m.Test(m.ICMP6, icmp6),
            m.Not(m.Any(tuple(m.Test(on, on.everything) for on in (m.TCP_FLAGS, m.ICMP, m.ICMP6)))),
        )
    )


def seen_state(state: int, first: int, view: View, exempt: int) -> int:
    """Return the state that a rule sees: of a packet with this true state, and ``first`` to who knows no connection.

    ``exempt`` is the packet's :data:`~.model.TRACKING`.
    """
    if exempt == 1:
        return UNTRACKED
    if not view.looked_up:
        return NEW if exempt == 2 else INVALID
    return first if not view.known and state in LATER else state


def undecided_zones(tracked: Iterable[Tracked]) -> Iterator[frozenset[Zone]]:
    """Yield the zones of lookups that more than a packet's way decides about."""
    for one in tracked:
        if one.zones is not None and len(one.zones) > 1:
            yield one.zones
