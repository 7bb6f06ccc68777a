"""The task of the compiler's process: read the files, compile, and ask for facts that only the host knows.

It is started by :mod:`pvefw_nft.app.compiler`, and runs without privileges (:mod:`pvefw_nft.host.confine`).
"""

from __future__ import annotations

import contextlib
import gc
import pickle
import time
from dataclasses import astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvefw_nft.app.compile_messages import (
    decode,
    encode,
    error_as_json,
    error_of_json,
    judgement_as_json,
    nics_as_json,
    observations_of_json,
    result_as_json,
)
from pvefw_nft.app.desired import no_garbage
from pvefw_nft.app.judgement import Judgement
from pvefw_nft.app.nics import read_filtered_nics
from pvefw_nft.app.peers import cluster_peers
from pvefw_nft.app.steady_source import SteadySource
from pvefw_nft.app.unfiltered import unfiltered_guests
from pvefw_nft.cache import Cache
from pvefw_nft.config import netdb
from pvefw_nft.config.files import OtherFiles
from pvefw_nft.pipeline import BACKENDS
from pvefw_nft.pipeline.preload import load_stages

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pvefw_nft.app.desired import Before, Result
    from pvefw_nft.app.judgement import Connections
    from pvefw_nft.config.files import Files
    from pvefw_nft.host.confined import Channel
    from pvefw_nft.host.records.record import Desired
    from pvefw_nft.pipeline import Source
    from pvefw_nft.pipeline.notes import LastCompile

_PAUSE = 0.5
"""Seconds after an answer in which a command closes the channel, and a service seldom asks again."""

HOST_FILES = ("/etc/hosts", "/etc/network/interfaces")
"""Files of the host outside of its configuration, which the other process reads for this one."""


class Task:
    """The task of the compiler's process. It is made in the parent, which may read the notes of an apply."""

    def __init__(
        self,
        source: Source,
        backend: str | None,
        settle: float,
        before: Before,
        past: LastCompile | None = None,
        judged: tuple[Desired | None, Desired | None] = (None, None),
    ) -> None:
        """Compile with the notes of ``past``, or judge a ruleset and the one before it.

        ``before`` are the facts known of the last apply. ``judged`` without a ruleset: the one that was found.
        """
        self._source = source
        self._past = past
        self._judged = judged
        self._backend = backend
        self._settle = settle
        self._before = before
        self._sent = _places(past.pieces if past is not None else ())
        self._last: Result | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process. Facts that only the host knows are left out: that process asks."""
        source = replace(self._source, local_network=_unasked, real_interface=_unasked, zones=dict, now=time.time)
        state = {"source": source, "backend": self._backend, "settle": self._settle, "before": self._before}
        return {**state, "past": self._past, "judged": self._judged}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._source, self._backend = state["source"], state["backend"]
        self._settle, self._before, self._past = state["settle"], state["before"], state["past"]
        self._judged = state["judged"]
        self._sent, self._last = _places(self._past.pieces if self._past is not None else ()), None
        load_stages()

    def serve(self, channel: Channel, missing: Sequence[str]) -> None:
        """Answer requests until the other process is gone."""
        asks = _Asks(channel)
        netdb.read_with(asks.names)
        source = replace(self._source, local_network=asks.network, real_interface=asks.interface, zones=asks.zones)
        if source.root == Path("/"):
            source = replace(source, observed_files=_HostFiles(source.files, asks))
        steady = SteadySource(source, self._backend, self._settle)
        cache = Cache()
        channel.send(encode({"missing": [*missing]}))
        with contextlib.suppress(EOFError), no_garbage():
            while True:
                request = decode(channel.receive())
                try:
                    match request["do"]:
                        case "nics":
                            frames = self._nics(steady)
                        case "judge":
                            frames = self._judge(steady, channel.receive())
                        case "unfiltered":
                            frames = self._unfiltered(steady)
                        case "switches":
                            frames = self._switches(steady)
                        case "changed":
                            frames = self._changed(steady, request["answers"])
                        case "holds":
                            frames = self._holds(steady, request["answers"])
                        case _:
                            frames = self._find(steady, cache, asks)
                except MemoryError:
                    raise  # its limit: a half-done compile is not worth keeping
                except Exception as error:
                    frames = [encode({"kind": "failed", "error": error_as_json(error)})]
                for frame in frames:
                    channel.send(frame)
                del frames
                _collect_garbage(channel)

    def _nics(self, steady: SteadySource) -> list[bytes]:
        known = None if self._last is None else self._last.guests
        found = steady.patience.run(lambda: read_filtered_nics(steady.source, known))
        return [encode({"kind": "nics", **nics_as_json(found)})]

    def _unfiltered(self, steady: SteadySource) -> list[bytes]:
        found = steady.patience.run(lambda: [*unfiltered_guests(steady.source)])
        return [encode({"kind": "unfiltered", "nics": [astuple(one) for one in found]})]

    def _switches(self, steady: SteadySource) -> list[bytes]:
        # deferred: only `doctor` asks for it
        from pvefw_nft.app.switches import read_switches, switches_as_json

        found = steady.patience.run(lambda: read_switches(steady.source, self._backend))
        return [encode({"kind": "switches", **switches_as_json(*found)})]

    def _changed(self, steady: SteadySource, answers: list[list[str]]) -> list[bytes]:
        return [encode({"kind": "changed", "questions": steady.changed(observations_of_json(answers))})]

    def _holds(self, steady: SteadySource, answers: list[list[str]] | None) -> list[bytes]:
        if answers is None:
            assert self._past is not None
            holds = steady.still_hold(self._past.observations)
        else:
            holds = steady.still_hold(observations_of_json(answers))
        return [encode({"kind": "holds", "holds": holds})]

    def _judge(self, steady: SteadySource, frame: bytes) -> list[bytes]:
        now: Connections = pickle.loads(frame)  # noqa: S301 - of the process that started this one
        given, before = self._judged
        desired = given or (None if self._last is None else self._last.desired)
        assert desired is not None
        source = replace(steady.source, zones=dict)

        def judged() -> Judgement:
            peers = cluster_peers(source, now.network) if desired.enabled else []
            if not now.sessions and now.tracked == () and not peers:
                return Judgement()  # there is no connection that the ruleset could break
            # deferred: only commands ask for it, the service does not
            from pvefw_nft.app.session_guard import judge

            return judge(desired, before, source, now, peers=peers)

        judgement = steady.patience.run(judged)
        return [encode({"kind": "judgement", **judgement_as_json(judgement)})]

    def _find(self, steady: SteadySource, cache: Cache, asks: _Asks) -> list[bytes]:
        past: LastCompile | None = None
        if self._last is None:
            load_stages(backends=BACKENDS if self._past is None else (self._past.backend,))
            result = steady.find_first(cache, self._before, asks.waiting, self._past)
            past, self._past = self._past, None
        else:
            result = steady.find(self._last, cache)
        paths, seconds = steady.doubtful()
        doubts = {"doubts": paths, "seconds": seconds}
        if result is self._last:
            return [encode({"kind": "same", **doubts})]
        message, pieces = result_as_json(result, self._sent, past)
        self._last = result
        self._sent = _places(result.desired.pieces)
        return [encode({"kind": "ruleset", **message, **doubts}), pieces]


def _places(pieces: Iterable[str]) -> dict[str, int]:
    """Return the place of each piece of the ruleset that the other process has."""
    return {piece: place for place, piece in enumerate(pieces)}


def _collect_garbage(channel: Channel) -> None:
    """Free objects in cycles, such as errors with their tracebacks, once the answer is out: they must not pile up.

    A command closes the channel after its answer: then this process ends, and its memory with it.
    """
    if not channel.closes_within(_PAUSE):
        gc.collect()
        gc.freeze()  # the rest has no cycles: it need not be searched again and again


def _unasked(*_: str) -> None:
    """Take the place of a function whose answers come from :class:`_Asks`."""


class _Asks:
    """Ask the other process for facts that only the host knows. Raises the errors that it met."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def network(self) -> str | None:
        return self._text("network")

    def interface(self, name: str) -> str | None:
        return self._text("interface", name)

    def names(self, file: str) -> str | None:
        return self._text("names", file)

    def file(self, path: str) -> str | None:
        return self._text("file", path)

    def zones(self) -> dict[tuple[int, int], int]:
        return {(vmid, index): zone for vmid, index, zone in self._ask("zones")}

    def waiting(self, path: str) -> None:
        self._channel.send(encode({"kind": "waiting", "path": path}))

    def _text(self, what: str, about: str = "") -> str | None:
        found = self._ask(what, about)
        return None if found is None else str(found)

    def _ask(self, what: str, about: str = "") -> Any:  # noqa: ANN401 - JSON
        self._channel.send(encode({"kind": "ask", "what": what, "about": about}))
        message = decode(self._channel.receive())
        if "error" in message:
            raise error_of_json(message["error"])
        return message["answer"]


class _HostFiles(OtherFiles):
    """The host's files; this process may read only the configuration among them."""

    def __init__(self, files: Files, asks: _Asks) -> None:
        super().__init__(files)
        self._asks = asks

    def text(self, path: Path | str) -> str | None:
        return self._asks.file(str(path)) if str(path) in HOST_FILES else self._files.text(path)
