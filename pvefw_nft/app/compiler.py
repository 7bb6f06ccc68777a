"""The compiler in a process of its own, without privileges: tenants' files are read there, and nowhere else.

    this process                             the compiler's (:mod:`pvefw_nft.host.confine`)
    find, nics, judge, holds, … ─────────▶   reads the files, compiles
       ◀── network? interface? zones? …──    questions that only the host can answer, answered here
       ◀── ruleset, diagnostics, answers ─   kept for the next request, so that only changes are compiled

A command asks once; the service keeps the process, and starts another one where it has ended. A compiler that ends by
its limits is a :class:`CompilerError`: the running ruleset stays, and at boot the ruleset that was confirmed last comes
back.
"""

from __future__ import annotations

import pickle
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pvefw_nft
from pvefw_nft.app import desired as desired_ruleset
from pvefw_nft.app.compile_messages import (
    checked,
    decode,
    encode,
    error_as_json,
    error_of_json,
    judgement_of_json,
    nics_of_json,
    observations_as_json,
    result_of_json,
)
from pvefw_nft.app.compile_task import HOST_FILES, Task
from pvefw_nft.app.judgement import Judgement, read_connections
from pvefw_nft.app.steady_source import SETTLE_SECONDS, patience_of
from pvefw_nft.app.unfiltered import Unfiltered
from pvefw_nft.config import netdb
from pvefw_nft.config.files import FILES
from pvefw_nft.config.patience import PatientFiles
from pvefw_nft.errors import CompilerError, DeniedError, PvefwError
from pvefw_nft.host.confined import KILLED_BY_FILTER, Worker
from pvefw_nft.host.records.state import typed
from pvefw_nft.host.tracking import zone_change

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pvefw_nft.app.desired import Before, Result
    from pvefw_nft.app.judgement import Connections
    from pvefw_nft.app.nics import FilteredNics
    from pvefw_nft.host.doctor import Switches
    from pvefw_nft.host.records.record import Desired
    from pvefw_nft.pipeline import Observations, Source
    from pvefw_nft.pipeline.notes import LastCompile


PROBE_SECONDS = 1.0
"""Seconds after an answer of the file system for which further requests to the same process do not probe it."""


class Compiler:
    """The compiler of one source. ``missing`` lists the confinements that its process lacks."""

    def __init__(self, source: Source, backend: str | None, settle: float = SETTLE_SECONDS) -> None:
        """Compile for ``backend``; None: the one that host.fw asks for. ``settle`` is in seconds."""
        files = source.files
        self._source = replace(source, observed_files=files.files if isinstance(files, PatientFiles) else files)
        self._backend = backend
        self._settle = settle
        self._patience = patience_of(source)
        self._worker: Worker | None = None
        self._last: Result | None = None
        self._past: LastCompile | None = None
        self._known: Desired | None = None
        self._before: Before | None = None
        self._answered = 0.0  # when the file system answered last, by the monotonic clock
        self.missing: tuple[str, ...] = ()
        self.doubts: tuple[list[str], float | None] = ([], None)
        """Paths whose content is not believed yet, and the seconds until the first of them is."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take_up(self, known: Desired, past: LastCompile) -> None:
        """Have the process that is started next begin with the notes of the compile that made a ruleset on record."""
        self.close()
        self._known, self._past = known, past

    def find_once(
        self,
        *,
        waiting: Callable[[str], None] = lambda _: None,
        from_notes: bool = False,
        afresh: bool = False,
    ) -> Result:
        """Return the desired ruleset, for a command that runs once.

        ``from_notes``: where the configuration has changed, take up the notes of the last compile about unchanged
        guests. ``afresh``: compile all, even if the configuration has not changed.

        If it settles, it waits for files that are missing, empty or cut off and were not at the last apply, and calls
        ``waiting`` with the path of each. Raises the errors of :meth:`find`.
        """
        noted = desired_ruleset.read_notes(self._source, self._backend)
        self._before = desired_ruleset.known_before(noted) if self._settle else desired_ruleset.Before()
        past = desired_ruleset.last_compile(noted) if from_notes else None
        if past is not None:
            self.take_up(*past)
        known = None if afresh else desired_ruleset.on_record(noted, self.still_hold)
        return self.find(waiting) if known is None else known

    def find(self, waiting: Callable[[str], None] = lambda _: None) -> Result:
        """Return the desired ruleset; the same object as before, if the configuration has not changed.

        ``waiting`` is called with each path that the first request waits for. Raises the errors of
        :func:`.desired.compiled`, UnreadableError if the file system does not answer, and CompilerError.
        """
        message = self._ask({"do": "find"}, waiting)
        self.doubts = checked(lambda: ([*map(str, message["doubts"])], message["seconds"]))
        if message["kind"] == "same":
            if self._last is None:
                raise self._closed("it knows of no ruleset before this one")
            return self._last
        before = self._known if self._last is None else self._last.desired
        frame = self._receive()
        try:
            past = self._past if self._last is None else None
            self._last = checked(lambda: result_of_json(message, frame, before, self._backend, past))
        except CompilerError:
            self.close()
            raise
        return self._last

    def filtered_nics(self) -> FilteredNics:
        """Return the filtered NICs of the configuration. Raises as :meth:`find`."""
        message = self._ask({"do": "nics"})
        found: FilteredNics = checked(lambda: nics_of_json(message))
        return found

    def judge(
        self, desired: Desired, before: Desired | None, read: Callable[[], Connections] = read_connections
    ) -> Judgement:
        """Return the effect of loading ``desired`` on the connections that this host has now.

        ``before`` is pvefw's running ruleset; None: none runs. ``read`` gives the connections. The process that found
        the ruleset judges it. Where that is another one, the process that is started for it has both rulesets, without
        sending. Raises as :meth:`find`, and HostError if the kernel does not tell its connections.
        """
        if not desired.enabled:
            return Judgement()
        if self._worker is None or self._last is None or desired is not self._last.desired or before is not self._known:
            self._judged_by_another(desired, before)
        message = self._ask(
            {"do": "judge"}, frames=[pickle.dumps(read())], again=lambda: self._judged_by_another(desired, before)
        )
        found: Judgement = checked(lambda: judgement_of_json(message))
        return found

    def _judged_by_another(self, desired: Desired, before: Desired | None) -> None:
        self.close()
        self._start((desired, before))

    def still_hold(self, observations: Observations) -> bool:
        """Tell whether the configuration gives the same answers now. Raises as :meth:`find`."""
        known = self._past is not None and observations is self._past.observations  # the process has them too
        message = self._ask({"do": "holds", "answers": None if known else observations_as_json(observations)})
        holds: bool = checked(lambda: typed(message["holds"], bool))
        return holds

    def changed(self, observations: Observations) -> list[tuple[str, str]]:
        """Return the questions, each a kind and a name, that have another answer now. Raises as :meth:`find`."""
        message = self._ask({"do": "changed", "answers": observations_as_json(observations)})
        found: list[tuple[str, str]] = checked(
            lambda: [(typed(kind, str), typed(name, str)) for kind, name in message["questions"]]
        )
        return found

    def unfiltered(self) -> list[Unfiltered]:
        """Return the NICs of this node's guests that no rule filters. Raises as :meth:`find`."""
        message = self._ask({"do": "unfiltered"})
        found: list[Unfiltered] = checked(
            lambda: [Unfiltered(*(typed(text, str) for text in one)) for one in message["nics"]]
        )
        return found

    def switches(self) -> tuple[str, Switches]:
        """Return the backend of the configuration, and its enable switches. Raises as :meth:`find`."""
        from pvefw_nft.app.switches import switches_of_json  # deferred: only `doctor` asks for it

        message = self._ask({"do": "switches"})
        found: tuple[str, Switches] = checked(lambda: switches_of_json(message))
        return found

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.close()
            self._worker = self._last = None

    def _ask(
        self,
        request: dict[str, Any],
        waiting: Callable[[str], None] = lambda _: None,
        frames: Sequence[bytes] = (),
        again: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Return the answer to a request, which ``frames`` follow. ``again`` starts another process for it.

        Raises the error that the compiler ended with, and CompilerError.
        """
        fresh = self._worker is None
        try:
            return self._request(request, waiting, frames)
        except DeniedError:
            if fresh:
                raise
            # a file system that was mounted again is another one to Landlock: a new process may read it
            self.close()
            if again is not None:
                again()
            return self._request(request, waiting, frames)

    def _request(
        self, request: dict[str, Any], waiting: Callable[[str], None], frames: Sequence[bytes]
    ) -> dict[str, Any]:
        if self._worker is None or time.monotonic() - self._answered > PROBE_SECONDS:
            self._patience.run(lambda: None)  # a process that hangs in a file system cannot be ended: ask that first
            self._answered = time.monotonic()
        if self._worker is None:
            self._start()
        assert self._worker is not None
        self._worker.allow()
        self._send(encode(request), *frames)
        while True:
            message = self._message()
            match message.get("kind"):
                case "ask":
                    self._send(encode(self._answer(message)))
                case "waiting":
                    waiting(_text_of(message, "path"))
                case "failed":
                    raise _error_of(message)
                case str() as kind if kind in _ANSWERS[request["do"]]:
                    return message
                case other:
                    raise self._closed(f"it said {str(other)[:40]!r}")

    def _start(self, judged: tuple[Desired | None, Desired | None] | None = None) -> None:
        self._last = None
        before = self._before
        if before is None and self._settle:
            before = desired_ruleset.known_before(desired_ruleset.read_notes(self._source, self._backend))
        judged = judged or (None, self._known)
        before = before or desired_ruleset.Before()
        task = Task(self._source, self._backend, self._settle, before, self._past, judged)
        self._worker = Worker(task.serve, _readable(self._source.root))
        self.missing = tuple(checked(lambda: [str(name) for name in self._message()["missing"]]))

    def _answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a question that only the host can answer. Raises CompilerError for another question."""
        what, about = checked(lambda: (typed(message["what"], str), typed(message["about"], str)))
        try:
            match what:
                case "network":
                    return {"answer": self._source.local_network()}
                case "interface":
                    return {"answer": self._source.real_interface(about)}
                case "zones":
                    zones = zone_change.zones_in_force()
                    return {"answer": [[vmid, index, zone] for (vmid, index), zone in zones.items()]}
                case "names" if about in netdb.FILES:
                    return {"answer": netdb.host_text(about)}
                case "file" if about in HOST_FILES:
                    return {"answer": FILES.text(about)}
        except PvefwError as error:
            return {"error": error_as_json(error)}
        raise self._closed(f"it asked for {what[:40]!r}")

    def _send(self, *frames: bytes) -> None:
        assert self._worker is not None
        try:
            for frame in frames:
                self._worker.channel.send(frame)
        except (OSError, TimeoutError):
            raise self._closed() from None

    def _message(self) -> dict[str, Any]:
        frame = self._receive()
        try:
            return decode(frame)
        except CompilerError:
            self.close()
            raise

    def _receive(self) -> bytes:
        assert self._worker is not None
        try:
            return self._worker.channel.receive()
        except TimeoutError:
            raise self._closed("it did not answer") from None
        except (EOFError, OSError):
            raise self._closed() from None
        except ValueError as error:
            raise self._closed(str(error)) from None

    def _closed(self, reason: str = "") -> CompilerError:
        """End the process, and return the error that tells why: ``reason``, or else how it had ended."""
        how = self._worker.close() if self._worker is not None else ""
        self._worker = self._last = None
        hint = "see `pvefw check`; its limits are PVEFW_COMPILER_MEMORY (MiB) and PVEFW_COMPILER_SECONDS"
        if how == KILLED_BY_FILTER:
            hint = (
                "the systemd unit is older than this pvefw and forbids a system call: `pvefw run OPTIONS --print-unit` "
                "prints the current one"
            )
        return CompilerError(f"the compiler's process ended before it had answered: {reason or how}", hint)


def find_once(
    source: Source,
    backend: str | None,
    *,
    settle: float = 0.0,
    waiting: Callable[[str], None] = lambda _: None,
    from_notes: bool = False,
    afresh: bool = False,
) -> Result:
    """Return the desired ruleset, for a command that runs once; ``source`` is one of :func:`patient`.

    ``from_notes``: where the configuration has changed, take up the notes of the last compile about unchanged guests.
    ``afresh``: compile all, even if the configuration has not changed.

    With ``settle`` seconds it waits for files that are missing, empty or cut off and were not at the last apply, and
    calls ``waiting`` with the path of each. Raises the errors of :meth:`Compiler.find`.
    """
    with Compiler(source, backend, settle) as compiler:
        return compiler.find_once(waiting=waiting, from_notes=from_notes, afresh=afresh)


def find_nics_once(source: Source) -> FilteredNics:
    """Return the filtered NICs of the configuration, for a command that runs once. Raises as :meth:`Compiler.find`."""
    with Compiler(source, None, settle=0.0) as compiler:
        return compiler.filtered_nics()


def _text_of(message: Mapping[str, Any], key: str) -> str:
    text: str = checked(lambda: typed(message[key], str))
    return text


def _error_of(message: Mapping[str, Any]) -> PvefwError:
    error: PvefwError = checked(lambda: error_of_json(message["error"]))
    return error


_ANSWERS = {"find": ("same", "ruleset"), "nics": ("nics",), "judge": ("judgement",), "holds": ("holds",)}
_ANSWERS |= {kind: (kind,) for kind in ("changed", "switches", "unfiltered")}
"""The kinds of answer to each request."""


def _readable(root: Path) -> list[Path]:
    """Return the paths that the compiler may read: the configuration, and this program with its Python.

    The checker looks names up by the C library, which reads files of ``/etc`` that all may read (nsswitch.conf(5)).
    """
    package = Path(pvefw_nft.__file__).resolve().parent
    own = [package, package.parent / "backends", *map(Path, (sys.prefix, sys.base_prefix))]
    parser = find_spec("pyparsing")  # that process may import it only when a file has changed
    parsers = [Path(parser.origin).parent] if parser is not None and parser.origin else []
    configuration = root / "etc" / "pve" if root == Path("/") else root
    names = [netdb.ETC / name for name in (*netdb.FILES, "nsswitch.conf")]
    return [configuration, *own, *parsers, *names, Path("/usr"), Path("/lib"), Path("/lib64")]
