"""Bundles: the same results as from the files themselves, and nothing but files from a hostile one."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.app.cluster import read_cluster
from pvefw_nft.cli.node_work import work
from pvefw_nft.errors import ConfigurationError
from pvefw_nft.fleet.bundle import Bounds, digest_of, pack, unpack
from pvefw_nft.fleet.jobs import Job, do

from .clusters import break_three, make_cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def jobs(root: Path, *, analysis: bool = True) -> Iterator[Job]:
    cluster = read_cluster(root, local_network="10.0.0.0/24")
    common = {"local_network": "10.0.0.0/24", "network_origin": ""}
    for node in cluster.nodes:
        yield Job(node.name, "check", root, node.name, node.files, {**common, "analysis": analysis})
        yield Job(
            node.name, "compile", root, node.name, node.files, {**common, "backend": None, "form": None, "keep": True}
        )
    yield Job("", "check", root, "", cluster.files, {**common, "analysis": True})


def assert_same(root: Path, *, analysis: bool = True) -> None:
    for job in jobs(root, analysis=analysis):
        packed = pack(job)
        there = Job(job.name, job.command, root, job.node, unpack(packed, root), job.options)
        assert do(there, work) == do(job, work), job
        assert digest_of(pack(job)) == digest_of(packed)


def test_a_bundle_gives_the_same_results(tmp_path: Path) -> None:
    root = make_cluster(tmp_path / "c", 8)
    break_three(root)
    (root / "etc/pve/firewall/notes.txt").write_text("nothing")
    (root / "etc/pve/firewall/101.pvefw").write_text("[OPTIONS]\nl2: strict\n")
    (root / "etc/pve/firewall/202.fw").write_bytes(b"[RULES]\nIN ACCEPT # caf\xe9\n")
    assert_same(root)


@pytest.mark.parametrize(
    "root", sorted(path for path in EXAMPLES.iterdir() if (path / "etc/pve/nodes").is_dir()), ids=lambda path: path.name
)
def test_examples_give_the_same_results(root: Path) -> None:
    assert_same(root, analysis=False)


def test_no_secret_goes_into_a_bundle(tmp_path: Path) -> None:
    root = make_cluster(tmp_path / "c", 2)
    (root / "etc/pve/priv").mkdir()
    (root / "etc/pve/priv/authkey.key").write_text("SECRET1")
    config = root / "etc/pve/nodes/pve1/qemu-server/101.conf"
    config.write_text(config.read_text() + "cipassword: SECRET2\nsshkeys: SECRET3\n")
    for job in jobs(root):
        assert b"SECRET" not in gzip.decompress(pack(job))


# --- hostile bundles ----------------------------------------------------------------------------------------------


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as out:
        for entry, data in entries:
            entry.size = entry.size or len(data)
            out.addfile(entry, io.BytesIO(data.ljust(entry.size, b"\0")[: entry.size]))
    return gzip.compress(buffer.getvalue(), mtime=0)


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, target, size
    return made


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: tar((entry("etc/x", tarfile.SYMTYPE, "/etc/shadow"), b"")), "no file or folder"),
        (lambda: tar((entry("etc/x", tarfile.LNKTYPE, "etc/y"), b"")), "no file or folder"),
        (lambda: tar((entry("etc/x", tarfile.CHRTYPE), b"")), "no file or folder"),
        (lambda: tar((entry("etc/x", tarfile.BLKTYPE), b"")), "no file or folder"),
        (lambda: tar((entry("etc/x", tarfile.FIFOTYPE), b"")), "no file or folder"),
        (lambda: tar((entry("/etc/x"), b"")), "no name of a file below etc"),
        (lambda: tar((entry("etc/../../x"), b"")), "no name of a file below etc"),
        (lambda: tar((entry("etc//x"), b"")), "no name of a file below etc"),
        (lambda: tar((entry("root/x"), b"")), "no name of a file below etc"),
        (lambda: tar((entry("etc/x"), b"1"), (entry("etc/x"), b"2")), "there twice"),
        (lambda: tar((entry("etc/x", size=17 * 2**20), b"")), "too large"),
        (lambda: tar((entry("problems.json"), b"[]")), "its list of problems is none"),
        (lambda: tar((entry("problems.json"), b'{"etc/x": [1]}')), "its list of problems is none"),
        (lambda: tar((entry("problems.json"), b"[" * 100_000)), "cannot be used"),
        (lambda: gzip.compress(b"no tar" * 1000), "cannot be used"),
        (lambda: b"no gzip", "cannot be used"),
        (lambda: tar((entry("etc/x"), b"1"))[:-9], "cut off"),
        (lambda: tar((entry("etc/x"), b"1")) + b"more", "followed by something else"),
    ],
)
def test_a_hostile_bundle_is_refused(made: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        unpack(made(), Path("/srv"))


def test_there_are_bounds() -> None:
    bounds = Bounds(size=2**16, unpacked=2**20, entries=2)
    with pytest.raises(ConfigurationError, match="more than 2 files"):
        unpack(tar(*((entry(f"etc/{name}"), b"") for name in "abc")), Path("/srv"), bounds)
    with pytest.raises(ConfigurationError, match="holds more than 1 MiB"):
        unpack(gzip.compress(bytes(2**20 + 1)), Path("/srv"), bounds)
    with pytest.raises(ConfigurationError, match="larger than"):
        unpack(bytes(2**16 + 1), Path("/srv"), bounds)
