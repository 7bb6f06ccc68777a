"""SIGKILL at random moments and at each step of updates, switches, first starts, stops, rollbacks and confirmations,
under packets that never pause: while rules are wanted no denied packet passes, allowed ones go on, and the command made
again after a kill ends as it would without.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("pyroute2")
pytest.importorskip("nftables")


from .here import control, unguarded
from .listing import everything
from .network import ALLOWED_WAYS, SECONDS, Network, Streams, check, start
from .test_kill import (
    FIRST,
    PAIRS,
    Killing,
    apply_killed_at,
    denied_ways,
    ended,
    killed_after,
    killed_at,
    process_killed_after,
    started_process,
    timed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pvefw_nft.host.records.record import Desired

    from .conftest import Namespace

KILLS = int(os.environ.get("PVEFW_TEST_WATCHED_KILLS", "12"))
"""Kills for each pair of rulesets."""
_LEAST = 4  # kills that are made although the time is over


@pytest.fixture
def network(host: Namespace) -> Iterator[Network]:
    made = Network()
    yield made
    made.close()


@pytest.mark.parametrize("pair", PAIRS)
def test_killed_under_traffic(network: Network, tmp_path: Path, pair: str) -> None:
    killing = Killing(network, PAIRS[pair](tmp_path), None)
    # small rulesets drop the guest's answers
    allowed = [way for way in ALLOWED_WAYS if way[1] != "guest" or "small" not in pair]
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    killed = runs = steps = 0
    begun = time.monotonic()
    with Streams(network, denied=denied_ways(pair), allowed=allowed) as streams:
        undisturbed: list[float] = []
        for _ in range(2):
            killing.go(partial(timed, undisturbed))
        step = itertools.count()
        while killed < KILLS and (killed < _LEAST or time.monotonic() - begun < SECONDS):
            runs += 1
            if runs % 2:
                # there and back: both ways are killed at each step
                number = next(step)
                kills = [killing.go(partial(apply_killed_at, number)) for _ in range(2)]
                killed += sum(kills)
                steps = max(steps, number)
                if not any(kills):
                    step = itertools.count()
            else:
                for usual in undisturbed:
                    killed += killing.go(partial(killed_after, chance.uniform(0, 1.2 * usual)))
            assert not streams.leaked, (pair, seed, runs, streams.leaked)
    print(
        f"{pair}, seed {seed}: {killed} kills, {steps} steps, {streams.sent} denied datagrams, {streams.connected} new "
        f"connections, {streams.echoed} words over old ones, {sum(streams.leaked.values())} leaked"
    )
    check(streams)


# --- first start, stop, rollback and confirmation ------------------------------------------------------------


@dataclass(frozen=True)
class Act:
    """A command that is killed and then made again: what runs before and after it, as an index of the two rulesets or
    None (no rules).
    """

    before: int | None
    act: Callable[[Desired], object]
    after: int | None

    @property
    def opens(self) -> bool:
        """Whether denied packets may pass until it has been made again."""
        return None in (self.before, self.after)


ACTS = {
    "first start": Act(None, control.apply, 0),
    "stop": Act(0, lambda _: control.stop(), None),
    # the change before it waits for its confirmation
    "rollback": Act(1, lambda _: control.roll_back(), 0),
    "confirm": Act(1, lambda _: control.confirm(), 1),
}


class Host:
    """Brings the host to where an act begins, kills the act, makes it again and looks at the end."""

    def __init__(self, act: Act, pair: tuple[Desired, Desired], streams: Streams) -> None:
        self._act, self._pair, self._streams = act, pair, streams
        self.times: list[float] = []
        for number in (0, 1, 0, 1):  # from the second on, all chains are there that the kernel's chains jump to
            start(pair[number])
        streams.expect(may_pass=False)
        self._end: dict[str, Any] | None = None
        for _ in range(2):
            self.killed(self._timed)
            self._end = everything()

    def _timed(self, action: Callable[[], object]) -> bool:
        begun = time.monotonic()
        killed = ended(started_process(action))
        self.times.append(time.monotonic() - begun)
        return killed

    def killed(self, kill: Callable[[Callable[[], object]], bool]) -> bool:
        """Have the act killed, then made again. Tells whether it was killed."""
        self._begin()
        action = partial(self._act.act, self._pair[0])
        self._streams.expect(may_pass=self._act.opens)
        killed = kill(action)
        if killed:
            action()
        self._streams.expect(may_pass=self._act.after is None)
        assert self._end is None or everything() == self._end
        return killed

    def _begin(self) -> None:
        if self._act.before is None:
            self._streams.expect(may_pass=True)
            control.stop()
            return
        control.apply(self._pair[0])
        self._streams.expect(may_pass=False)
        if self._act.before == 1:
            unguarded().apply(self._pair[1], confirm_within=600)


@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("backend", FIRST)
def test_other_commands_killed_under_traffic(network: Network, tmp_path: Path, backend: str, name: str) -> None:
    """The guard of a change that waits is not started: nothing else undoes it meanwhile."""
    pair = PAIRS[backend](tmp_path)
    start(pair[0])  # before the packets: the kernel may lack what it needs
    act = ACTS[name]
    denied = denied_ways(backend)
    allowed = [way for way in ALLOWED_WAYS if way[1] != "guest" or "small" not in backend]
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    kills = steps = 0
    begun = time.monotonic()
    with Streams(network, denied=denied, allowed=allowed) as streams:
        host = Host(act, pair, streams)
        step = itertools.count()
        for run in itertools.count():
            if kills >= max(KILLS // 2, _LEAST) or (kills >= _LEAST and time.monotonic() - begun >= SECONDS):
                break
            if run % 2:
                kills += host.killed(partial(process_killed_after, chance.uniform(0, 1.2 * max(host.times))))
            else:
                number = next(step)
                killed = host.killed(partial(killed_at, number))
                kills, steps = kills + killed, max(steps, number)
                if not killed:
                    step = itertools.count()
            assert not streams.leaked, (backend, name, seed, run, streams.leaked)
    print(
        f"{name} with {backend}, seed {seed}: {kills} kills, {steps} steps, {streams.sent} denied datagrams, "
        f"{streams.let_through} let through while no rules were wanted, {streams.connected} new connections, "
        f"{streams.echoed} words over old ones, {sum(streams.leaked.values())} leaked"
    )
    check(streams)
    assert (streams.let_through > 0) == act.opens  # the packets would be seen
