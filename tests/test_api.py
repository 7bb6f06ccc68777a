"""The public Python API: its names, and the examples of its page in the manual."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import pvefw_nft
from pvefw_nft import api

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "reference" / "python-api.md"


def test_the_examples_of_the_manual_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    result = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert result.attempted > 10
    assert result.failed == 0


def test_the_package_gives_the_names_of_the_api() -> None:
    assert pvefw_nft.__all__ == api.__all__
    for name in pvefw_nft.__all__:
        assert getattr(pvefw_nft, name) is getattr(api, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lead'"):
        pvefw_nft.lead  # noqa: B018 - the access is the test


def test_importing_the_package_loads_none_of_it() -> None:
    script = "import sys, pvefw_nft; print(sorted(name for name in sys.modules if name.startswith('pvefw_nft.')))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert run.stdout == "[]\n"


def test_a_folder_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(pvefw_nft.UsageError, match="not a folder"):
        pvefw_nft.load(tmp_path / "missing")


def test_the_host_is_not_asked_for_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def detect() -> str:
        raise AssertionError("asked")

    monkeypatch.setattr("pvefw_nft.host.localnet.detect", detect)
    pvefw_nft.compile(pvefw_nft.load(REPOSITORY / "examples" / "homelab"))
