"""How much one configuration may cost. A guest that asks for more is closed, since its tenant may be hostile.

The limits apply to files of tenants, that is, of guests. They are far above files written by hand, and far below sizes
that would keep a node from compiling in time (benchmarks/compile.py: 30,000 lines a second and more).
"""

from __future__ import annotations

from dataclasses import dataclass

from pvefw_nft.errors import UnusableFileError

MAX_LINES = 50_000
"""Lines in the firewall file of one guest or VNet."""

MAX_LINES_OF_ALL = 1_000_000
"""Lines in the firewall files of all guests of a node."""

SMALL_FILE = 1_000
"""Lines that a guest's file may always have, even if other guests' files use up the budget."""

MAX_RULES = 50_000
"""Rules that one guest's file becomes, once macros are expanded and each NIC has its own."""

MAX_ENTRIES = 65_536
"""Entries of all sets of one guest; as many as ipset takes for one set by default (ipset(8))."""

MAX_PROBLEMS = 1_000
"""Limit of diagnostics about one file: more do not help, and each takes time to make and to print."""

MAX_COMPARISONS = 2_000
"""Names that the misspelt words of one file are compared with, to guess the intended one: some 0.3 ms each."""

MAX_COMPARISONS_OF_ALL = 20_000
"""The same for all files of a run."""


@dataclass(slots=True)
class Lines:
    """The lines of guests' files read so far."""

    total: int = 0

    def take(self, file: str, text: str) -> None:
        """Count a file. Raises UnusableFileError if it is too long."""
        lines = text.count("\n") + 1
        if lines > MAX_LINES:
            raise UnusableFileError(
                file, MAX_LINES + 1, f"more than {MAX_LINES:,} lines", "put addresses into ipsets of cluster.fw"
            )
        if lines > SMALL_FILE and self.total + lines > MAX_LINES_OF_ALL:
            raise UnusableFileError(
                file,
                SMALL_FILE + 1,
                f"the firewall files of all guests have more than {MAX_LINES_OF_ALL:,} lines; beyond that only files "
                f"of at most {SMALL_FILE:,} lines are read",
                "shorten the longest of them",
            )
        self.total += lines


class Comparisons:
    """The comparisons that guesses at misspelt words may still make."""

    def __init__(self) -> None:
        """Start with all of them."""
        self.begin_run()

    def begin_run(self) -> None:
        """Allow for all files of a run."""
        self._of_all = MAX_COMPARISONS_OF_ALL
        self.begin_file()

    def begin_file(self) -> None:
        """Start the budget of one file, within the rest of the budget for all."""
        self._of_file = min(MAX_COMPARISONS, self._of_all)

    def take(self, count: int) -> bool:
        """Tell whether so many comparisons are still allowed, and count them."""
        if count > self._of_file:
            return False
        self._of_file -= count
        self._of_all -= count
        return True


comparisons = Comparisons()
"""The comparisons of this process: a compile reads one file after the other."""
