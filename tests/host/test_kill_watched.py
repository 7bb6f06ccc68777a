"""SIGKILL at random moments and at each step of updates and switches, under packets that never pause: at no moment does
a denied one pass, what is allowed goes on, and each start after a kill ends as it would without.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("pyroute2")
pytest.importorskip("nftables")

from .network import ALLOWED_WAYS, SECONDS, Network, Streams, check
from .test_kill import PAIRS, Killing, apply_killed_at, denied_ways, killed_after, timed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
