"""The source of a compile. It records each question of the compile, so that a later run can tell that nothing changed.

A compile depends only on the answers to its questions: files, folders, the local network, names of links, and this
program itself. If all answers are equal, the ruleset is equal.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import time
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pvefw_nft.config import netdb
from pvefw_nft.config.files import Files, files_of
from pvefw_nft.errors import ConfigurationError, DeniedError, InternalError, PvefwError, UnusableFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_T = TypeVar("_T")

PACKAGES = ("pvefw_nft", "pvefw_nft.backends", "pyparsing")
"""The packages whose code decides how a configuration is read and compiled."""


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a compile: the folder that holds ``etc/pve``, and the node.

    ``node`` None: the one that ``etc/pve/local`` links to, else this host's short name. ``local_network`` is asked
    for a CIDR, or None, if cluster.fw has no alias ``local_network``. ``real_interface`` returns the name of the
    link that has an alternative name, or None; ``now`` the epoch time. ``cautious``: an ``enable`` that cannot be read
    counts as 1. ``as_reference``: leave out rules that make a ruleset stricter than the reference's.
    ``harden``: the iptables ruleset is hardened from beside it, whether or not host.pvefw says so.
    ``zones`` gives the connection tracking zones of NICs, by VMID and number, in the ruleset that runs. They are not
    recorded as an answer: compiled again with the zones that it has, a ruleset is the same.
    ``borrows_network`` and ``borrows_names``: the root belongs to another host. Facts from this machine's network, or
    from its tables of services and protocols, are reported.
    """

    root: Path
    node: str | None
    local_network: Callable[[], str | None]
    real_interface: Callable[[str], str | None] = lambda _: None
    observed_files: Files | None = None
    now: Callable[[], float] = time.time
    cautious: bool = False
    as_reference: bool = False
    harden: bool = False
    zones: Callable[[], Mapping[tuple[int, int], int]] = dict
    borrows_network: bool = False
    borrows_names: bool = False

    @property
    def files(self) -> Files:
        """The access to files: ``observed_files`` if given, else the root's own."""
        return self.observed_files or files_of(self.root)


@dataclass(frozen=True, slots=True)
class Observations:
    """The questions of a compile, each a kind and a name, with a digest of the answer."""

    answers: dict[tuple[str, str], str] = field(default_factory=dict)

    def observed(self, source: Source) -> Source:
        """Return the source whose answers are recorded here. Forgets cached names of this process."""
        netdb.forget_if_changed()
        self.note("program", "", program_digest())

        def network() -> str | None:
            return self.note("network", "", source.local_network())

        def interface(name: str) -> str | None:
            return self.note("interface", name, source.real_interface(name))

        def now() -> float:
            self.answers["time", ""] = ""  # no other time is like this one
            return source.now()

        files = _ObservedFiles(source.files, self)
        return replace(source, observed_files=files, local_network=network, real_interface=interface, now=now)

    def note(self, kind: str, name: str, answer: _T) -> _T:
        """Note an answer and return it. One that changed while the compile ran is noted as none that can come again."""
        made = _digest(answer)
        if self.answers.setdefault((kind, name), made) != made:
            self.answers[kind, name] = ""
        return answer

    def finish(self) -> None:
        """Record the files of names of services and protocols, once the compile is done."""
        for name, text in netdb.texts_read().items():
            self.note("names", name, text)

    def had_other_text(self, path: str, text: str | None) -> bool:
        """Tell whether the file is known to have had a text, and another one than this."""
        noted = self.answers.get(("text", path), _NO_TEXT)
        return noted not in (_NO_TEXT, _EMPTY_TEXT, "", _digest(text))

    def paths_with_text(self) -> list[str]:
        """Return the paths of the files that are known to have had a text."""
        return [name for (kind, name), answer in self.answers.items() if kind == "text" and answer != _NO_TEXT]

    def still_hold(self, source: Source) -> bool:
        """Tell whether each recorded answer still holds; False if nothing was recorded."""
        if not self.answers:
            return False
        try:
            return all(_digest(_ask(source, *question)) == answer for question, answer in self.answers.items())
        except (PvefwError, OSError):
            return False

    def changed(self, source: Source) -> list[tuple[str, str]]:
        """Return the questions, each a kind and a name, that have another answer now, or none that can be had."""
        return [question for question, answer in self.answers.items() if _digest_now(source, *question) != answer]


def _digest_now(source: Source, kind: str, name: str) -> str | None:
    try:
        return _digest(_ask(source, kind, name))
    except (PvefwError, OSError):
        return None


def _ask(source: Source, kind: str, name: str) -> Any:  # noqa: ANN401 - one answer for each kind
    match kind:
        case "program":
            return program_digest()
        case "names":
            return netdb.host_text(name)
        case "text":
            return _text_or_problem(source.files, name)
        case "folder":
            return sorted(source.files.listed(Path(name)))
        case "is folder":
            return source.files.is_folder(Path(name))
        case "link":
            return source.files.link(Path(name))
        case "host name":
            return source.files.host_name()
        case "network":
            return source.local_network()
        case "interface":
            return source.real_interface(name)
        case "time":
            return source.now()
        case _:
            raise InternalError(f"a compile asked for {kind!r}")


def _text_or_problem(files: Files, name: str) -> object:
    try:
        return files.text(name)
    except (UnusableFileError, DeniedError) as error:
        return _problem(error)


def _problem(error: UnusableFileError | DeniedError) -> list[str]:
    """Return the answer of a file that cannot be used; a list, so that no text is equal to it."""
    return ["unusable", error.message]


class _ObservedFiles(Files):
    """Files whose answers are noted."""

    def __init__(self, files: Files, notes: Observations) -> None:
        self._files = files
        self._notes = notes

    def text(self, path: Path | str) -> str | None:
        try:
            text = self._files.text(path)
        except (UnusableFileError, DeniedError) as error:
            # an answer, too: a guest with an unusable file is closed, SDN's state may be denied
            self._notes.note("text", str(path), _problem(error))
            raise
        except ConfigurationError:
            self._notes.answers["text", str(path)] = ""  # no other failure is like this one
            raise
        return self._notes.note("text", str(path), text)

    def listed(self, folder: Path) -> list[str]:
        names = self._files.listed(folder)
        self._notes.note("folder", str(folder), sorted(names))
        return names

    def is_folder(self, path: Path) -> bool:
        return self._notes.note("is folder", str(path), self._files.is_folder(path))

    def link(self, path: Path) -> str | None:
        return self._notes.note("link", str(path), self._files.link(path))

    def host_name(self) -> str:
        return self._notes.note("host name", "", self._files.host_name())


def _digest(answer: Any) -> str:  # noqa: ANN401 - text, or what JSON can hold
    if isinstance(answer, str):
        return hashlib.sha256(answer.encode("utf-8", "surrogatepass")).hexdigest()
    return hashlib.sha256(b"\0" + json.dumps(answer).encode()).hexdigest()


_NO_TEXT, _EMPTY_TEXT = _digest(None), _digest("")


@cache
def program_digest(packages: tuple[str, ...] = PACKAGES) -> str:
    """Return a digest of the files of packages, as first seen: of this program, and of libraries that it reads with."""
    digest = hashlib.sha256(sys.version.encode())
    for name in packages:
        found = importlib.util.find_spec(name)
        for folder in (found.submodule_search_locations or ()) if found is not None else ():
            for path in program_files(Path(folder)):
                digest.update(f"{path}\0{path.stat().st_size}\0".encode("utf-8", "surrogateescape"))
                digest.update(path.read_bytes())
    return digest.hexdigest()


def program_files(folder: Path) -> list[Path]:
    """Return the files of a package, including linked folders, in a fixed order.

    Folders of compiled files are skipped: another run may make or remove these files at the same time.
    """
    found = []
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found += [Path(here, name) for name in files if not name.endswith(".pyc")]
    return sorted(path for path in found if path.is_file())
