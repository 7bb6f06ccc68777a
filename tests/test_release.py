"""packaging/release builds the named files, and refuses a tree that is not a release."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.shown import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

SCRIPT = REPOSITORY / "packaging" / "release"
pytest.importorskip("hatchling")


@pytest.fixture
def release() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("release", str(SCRIPT))
    spec = importlib.util.spec_from_loader("release", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_dry_run_builds_sound_files(tmp_path: Path, release: Any) -> None:  # noqa: ANN401 - a script
    done = run("--dry-run", "--skip", "deb,sbom,install", tmp_path)
    assert done.returncode == 0, done.stderr
    version = release.project_version()
    wheel, sdist = f"pvefw-{version}-py3-none-any.whl", f"pvefw-{version}.tar.gz"
    assert {file.name for file in tmp_path.iterdir()} == {wheel, sdist, "SHA256SUMS"}
    for line in (tmp_path / "SHA256SUMS").read_text().splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert f"git tag -s v{version}" in done.stdout
    again = run("--dry-run", "--skip", "deb,sbom,install", tmp_path)
    assert "is not empty" in again.stderr


def test_no_release_without_its_notes(tmp_path: Path, release: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [1.0.0] - 2026-01-31\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    commit = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty", "-m", "x"]
    subprocess.run(commit, cwd=tmp_path, check=True)
    monkeypatch.setattr(release, "REPOSITORY", tmp_path)
    assert release.shortcomings("1.0.0") == []
    assert release.shortcomings("1.0.1") == ["CHANGELOG.md has no line `## [1.0.1] - YYYY-MM-DD`"]
    subprocess.run(["git", "tag", "v1.0.0"], cwd=tmp_path, check=True)
    subprocess.run(commit, cwd=tmp_path, check=True)
    (tmp_path / "more").write_text("")
    changed, tagged = release.shortcomings("1.0.0")
    assert changed == "1 files are changed and not committed"
    assert "of another commit" in tagged


def test_a_wrong_part_is_refused() -> None:
    assert run("--skip", "all").returncode == 2
