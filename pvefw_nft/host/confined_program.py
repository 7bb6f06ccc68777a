"""The program of :class:`.confined.Worker`, if a process can drop its capabilities only by running another program.

    python -m pvefw_nft.host.confined_program READING WRITING

Each argument is the number of a descriptor: the two ends of a channel. The first frame holds, pickled by the process
that started this one, what to do: it comes from the parent, which has more rights, never from a file.
"""

from __future__ import annotations

import pickle
import sys
from typing import TYPE_CHECKING, Protocol

from .confine import confine
from .confined import Channel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Job(Protocol):
    """The task: pickled by the parent, unpickled here."""

    def serve(self, channel: Channel, missing: Sequence[str], /) -> None:
        """Do it; ``missing`` is what this process could not give up."""


def main(reading: str, writing: str) -> None:
    """Do what the first frame says, without privileges."""
    channel = Channel(int(reading), int(writing))
    job: Job
    readable: Sequence[Path]
    memory: int
    job, readable, memory = pickle.loads(channel.receive())  # noqa: S301 - of the process that started this one
    job.serve(channel, confine(readable, memory))


if __name__ == "__main__":
    main(*sys.argv[1:])
