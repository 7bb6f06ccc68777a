"""Reading a configuration while its file system may fail, hang, or show a file that is being written."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pvefw_nft.app import desired as desired_ruleset
from pvefw_nft.config.patience import Patience
from pvefw_nft.config.steady import SETTLE_SECONDS as SETTLE_SECONDS
from pvefw_nft.config.steady import SteadyFiles
from pvefw_nft.host.watching import file_probe

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.app.desired import Before, Result
    from pvefw_nft.cache import Cache
    from pvefw_nft.pipeline import Observations, Source
    from pvefw_nft.pipeline.notes import LastCompile

_T = TypeVar("_T")


def patient(source: Source) -> Source:
    """Return a source that does not wait for ever: UnreadableError if the file system does not answer."""
    return replace(source, observed_files=patience_of(source).files(source.files))


def patience_of(source: Source) -> Patience:
    """Return a guard that gives up on a file system that does not answer."""
    return Patience(source.root / "etc" / "pve", partial(file_probe.answers, source.root))


class SteadySource:
    """The configuration as a service sees it: a file that is missing, empty or cut off has to stay so to count."""

    def __init__(self, source: Source, backend: str | None, settle: float = SETTLE_SECONDS) -> None:
        """Read with ``source``; ``settle`` is in seconds."""
        self.patience = patience_of(source)
        self._backend = backend
        self._settle = settle
        self._patient = replace(source, observed_files=self.patience.files(source.files))
        self._files = SteadyFiles(self._patient.files, settle)
        self.source = replace(source, observed_files=self._files)

    def look(self, function: Callable[[], _T], /) -> _T:
        """Run a function that touches the folders of the configuration; UnreadableError if they do not answer."""

        def looking() -> _T:
            with self.patience.call(self.source.root / "etc" / "pve"):
                return function()

        return self.patience.run(looking)

    def find(self, last: Result | None, cache: Cache, past: LastCompile | None = None) -> Result:
        """Return the ruleset; ``last``, if none of its inputs changed. ``past``: see :func:`.desired.compiled`.

        Raises the errors of :func:`.desired.compiled`; UnreadableError if the file system does not answer.
        """

        def read() -> Result:
            if last is not None and last.observations.still_hold(self.source):
                return last
            return desired_ruleset.compiled(self.source, self._backend, cache, past)

        return self.patience.run(read)

    def find_first(
        self, cache: Cache, before: Before, waiting: Callable[[str], None], past: LastCompile | None = None
    ) -> Result:
        """Return the first ruleset: ``waiting`` is called with each path that is waited for. Raises as :meth:`find`.

        ``before`` tells which files had been there at the last apply.
        """
        self._files.files = desired_ruleset.waiting_source(self._patient, before, self._settle, waiting).files
        try:
            return self.find(None, cache, past)
        finally:
            self._files.files = self._patient.files

    def still_hold(self, observations: Observations) -> bool:
        """Tell whether the configuration gives the same answers now. Raises UnreadableError."""
        return self.patience.run(lambda: observations.still_hold(self._patient))

    def changed(self, observations: Observations) -> list[tuple[str, str]]:
        """Return the questions, each a kind and a name, that have another answer now. Raises UnreadableError."""
        return self.patience.run(lambda: observations.changed(self._patient))

    def doubtful(self) -> tuple[list[str], float | None]:
        """Return the paths whose content is not believed yet, and the seconds until the first of them is."""
        return self._files.doubtful(), self._files.doubt_ends()
