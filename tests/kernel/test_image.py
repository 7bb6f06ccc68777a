"""Make a kernel bootable, or name the missing part."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.kernel.guest import image

if TYPE_CHECKING:
    from pathlib import Path


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = shutil.which
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool in ("qemu-system-x86_64", "nft") else there(tool))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("PVEFW_NO_APT", "1")
    with pytest.raises(image.LabUnavailableError, match="missing Debian packages: nftables qemu-system-x86; "):
        image.prepare()


def test_root_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(image.LabUnavailableError, match="needs root"):
        image.prepare()


def test_the_archive_is_one_that_cpio_unpacks(tmp_path: Path) -> None:
    if shutil.which("busybox") is None:
        pytest.skip("no busybox to unpack it with")
    archive = image._cpio({"dir": (0o040755, b""), "dir/file": (0o100644, b"hello"), "link": (0o120777, b"dir/file")})
    subprocess.run(["busybox", "cpio", "-i"], input=archive, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "link").read_bytes() == b"hello"
