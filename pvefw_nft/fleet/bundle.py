"""Bundles: all files that a job reads, as one compressed tar, so that another machine can run the job.

A bundle holds the texts of files, the names of folders, and the reason for each file that cannot be used.
Its name is its SHA-256: equal files give an equal bundle. The reader does not trust a bundle. It accepts only regular
files and folders below ``etc``, each once, up to the limits of size, and writes nothing to disk.

A bundle contains no file below ``etc/pve/priv``, except the state of the IPAM, and no password of cloud-init.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.config.files import MAX_FILE_SIZE, Files
from pvefw_nft.config.sdn import IPAM_STATES, RUNNING_CONFIG
from pvefw_nft.errors import ConfigurationError, UnusableFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.fleet.jobs import Job


class Bounds(NamedTuple):
    """The largest bundle that is read."""

    size: int = 64 * 2**20
    """in bytes"""
    unpacked: int = 512 * 2**20
    """in bytes"""
    entries: int = 200_000
    """files and folders: pmxcfs itself holds a tenth of that"""


BOUNDS = Bounds()

_PROBLEMS = "problems.json"
_CONFIG = re.compile(r"([1-9][0-9]{0,8})\.conf")
_SECRET = re.compile(r"(?m)^(cipassword|sshkeys):.*$")
_KINDS = ("qemu-server", "lxc")
_READ_SUFFIXES = (".fw", ".pvefw")


def digest_of(bundle: bytes) -> str:
    """Return the name of a bundle."""
    return hashlib.sha256(bundle).hexdigest()


# --- packing ------------------------------------------------------------------------------------------------------


def pack(job: Job) -> bytes:
    """Return the bundle of a job. Raises ConfigurationError if the file system fails."""
    packer = _Packer(job)
    packer.fill()
    # without times, so that equal files give equal bundles
    return gzip.compress(packer.finish(), compresslevel=1, mtime=0)


class _Packer:
    """A bundle in the making."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._files = job.files
        self._pve = job.root / "etc" / "pve"
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed below
        self._problems: dict[str, list[object]] = {}

    def fill(self) -> None:
        """Add the files that the job reads."""
        files, pve, node = self._files, self._pve, self._job.node
        nodes = pve / "nodes"
        own: set[str] = set()
        for name in sorted(files.listed(nodes)):
            if not files.is_folder(nodes / name):
                continue
            self._add_folder(nodes / name)
            for kind in _KINDS:
                for config in sorted(files.listed(nodes / name / kind)):
                    if match := _CONFIG.fullmatch(config):
                        self._add(nodes / name / kind / config, without_text=not node)
                        if name == node:
                            own.add(match[1])
            if name == node or not node:
                self._add(nodes / name / "host.fw")
                self._add(nodes / name / "host.pvefw")
        for path in self._firewall_files(own):
            self._add(path, without_text=path.suffix not in _READ_SUFFIXES)
        for path in self._shared_files():
            self._add(path)

    def _firewall_files(self, own: set[str]) -> Iterator[Path]:
        """Yield the files of this node's guests and of the cluster; for a job without a node, all files."""
        folder = self._pve / "firewall"
        for name in sorted(self._files.listed(folder)):
            stem, _, suffix = name.partition(".")
            if not self._job.node or (f".{suffix}" in _READ_SUFFIXES and (stem == "cluster" or stem in own)):
                yield folder / name

    def _shared_files(self) -> Iterator[Path]:
        pve = self._pve
        yield from (pve / name for name in ("corosync.conf", RUNNING_CONFIG, *IPAM_STATES, "sdn/vnets.cfg"))
        for name in sorted(self._files.listed(pve / "sdn" / "firewall")):
            if name.endswith(".fw"):
                yield pve / "sdn" / "firewall" / name
        yield self._job.root / "etc" / "hosts"
        yield self._job.root / "etc" / "network" / "interfaces"

    def finish(self) -> bytes:
        """Return the tar."""
        self._write(_PROBLEMS, json.dumps(self._problems, sort_keys=True).encode())
        self._tar.close()
        return self._buffer.getvalue()

    def _add(self, path: Path, *, without_text: bool = False) -> None:
        """Put in a file that is there; ``without_text``: its name alone."""
        name = str(path.relative_to(self._job.root))
        if without_text:
            self._write(name, b"")
            return
        try:
            text = self._files.text(path)
        except UnusableFileError as error:
            self._problems[name] = [error.line, error.reason, error.hint]
            self._write(name, b"")
            return
        if text is not None:
            if path.suffix == ".conf":
                text = _SECRET.sub(r"\1:", text)
            self._write(name, text.encode("utf-8", "surrogatepass"))

    def _add_folder(self, path: Path) -> None:
        entry = tarfile.TarInfo(str(path.relative_to(self._job.root)))
        entry.type = tarfile.DIRTYPE
        self._tar.addfile(entry)

    def _write(self, name: str, data: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        self._tar.addfile(entry, io.BytesIO(data))


# --- reading ------------------------------------------------------------------------------------------------------


def unpack(bundle: bytes, root: Path, bounds: Bounds = BOUNDS) -> BundleFiles:
    """Return the files of a bundle, as if they lay below ``root``.

    Raises ConfigurationError if it is not a bundle, exceeds the bounds, or holds a forbidden entry.
    """
    texts: dict[str, bytes] = {}
    folders: set[str] = set()
    try:
        with tarfile.open(fileobj=io.BytesIO(_decompressed(bundle, bounds)), mode="r:") as tar:
            for entry in tar:
                name = _checked(entry)
                if name in texts or len(texts) + len(folders) >= bounds.entries:
                    raise _bad(f"{name[:100]!r} is there twice, or it holds more than {bounds.entries} files")
                if entry.type == tarfile.DIRTYPE:
                    folders.add(name)
                    continue
                reader = tar.extractfile(entry)
                texts[name] = b"" if reader is None else reader.read()
        problems = _read_problems(texts.pop(_PROBLEMS, b"{}"))
    except (tarfile.TarError, zlib.error, EOFError, ValueError, RecursionError) as error:
        raise _bad(str(error)) from None
    return BundleFiles(root, texts, folders, problems)


def _decompressed(bundle: bytes, bounds: Bounds) -> bytes:
    if len(bundle) > bounds.size:
        raise _bad(f"it is larger than {bounds.size // 2**20} MiB")
    unzip = zlib.decompressobj(wbits=31)  # with the header of gzip (zlib.h, inflateInit2)
    data = unzip.decompress(bundle, bounds.unpacked)
    if unzip.unconsumed_tail:
        raise _bad(f"it holds more than {bounds.unpacked // 2**20} MiB")
    if not unzip.eof or unzip.unused_data:
        raise _bad("it is cut off, or followed by something else")
    return data


def _checked(entry: tarfile.TarInfo) -> str:
    """Return the name of an entry that may be in a bundle. Raises ConfigurationError for another one."""
    name = entry.name
    parts = PurePosixPath(name).parts
    is_plain = entry.type in (tarfile.REGTYPE, tarfile.DIRTYPE) and not entry.issparse()
    if not is_plain or entry.size > MAX_FILE_SIZE:
        raise _bad(f"{name[:100]!r} is no file or folder, or too large")
    if name != _PROBLEMS and (parts[:1] != ("etc",) or ".." in parts or str(PurePosixPath(name)) != name):
        raise _bad(f"{name[:100]!r} is no name of a file below etc")
    return name


def _read_problems(data: bytes) -> dict[str, tuple[int, str, str]]:
    found = json.loads(data)
    if not isinstance(found, dict):
        raise _bad("its list of problems is none")
    problems = {}
    for name, told in found.items():
        match told:
            case [int(line), str(reason), str(hint)]:
                problems[name] = (line, reason, hint)
            case _:
                raise _bad("its list of problems is none")
    return problems


def _bad(reason: str) -> ConfigurationError:
    return ConfigurationError(f"the bundle cannot be used: {reason}", "make it with this version of pvefw")


class BundleFiles(Files):
    """The files of a bundle, in memory."""

    def __init__(
        self, root: Path, texts: dict[str, bytes], folders: set[str], problems: dict[str, tuple[int, str, str]]
    ) -> None:
        """Show files by their names below ``root``; ``problems`` maps unusable files to their reasons."""
        self._root = root
        self._texts = texts
        self._problems = problems
        self._folders: dict[str, set[str]] = {".": set()}
        for name in (*texts, *folders):
            place = PurePosixPath(name)
            for path in (place, *place.parents):
                if path != PurePosixPath():
                    self._folders.setdefault(str(path.parent), set()).add(path.name)
        for name in folders:
            self._folders.setdefault(name, set())

    def text(self, path: Path | str) -> str | None:
        """Return the text of a file, or None if it is not there. Raises UnusableFileError."""
        name = self._name(path)
        if name in self._problems:
            raise UnusableFileError(str(path), *self._problems[name])
        data = self._texts.get(name)
        return None if data is None else data.decode("utf-8", "surrogatepass")

    def listed(self, folder: Path) -> list[str]:
        """Return the names in a folder; none if it does not exist."""
        return sorted(self._folders.get(self._name(folder), ()))

    def is_folder(self, path: Path) -> bool:
        """Tell whether a path leads to a folder."""
        return self._name(path) in self._folders

    def link(self, path: Path) -> str | None:  # noqa: ARG002 - the signature of Files
        """Return None: a bundle has no links."""
        return None

    def _name(self, path: Path | str) -> str:
        try:
            return str(Path(path).relative_to(self._root))
        except ValueError:
            return ""
