"""``./pvefw`` installs only packages of the locks, and refuses to run unsafe folders as root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

from pvefw_nft.host import bindings
from tests.test_bootstrap import greeting, make_checkout, pvefw

if TYPE_CHECKING:
    from collections.abc import Iterable

REPOSITORY = Path(__file__).resolve().parent.parent
NOBODY = 65534
PINNED = re.compile(r"(?m)^([a-z0-9.-]+)==(\S+)(?: ; [^\\]*)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n?)+)")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root refuses what others may change")


def pinned(name: str) -> dict[str, str]:
    """Return the versions that a lock names, by package; each must have a hash."""
    text = (REPOSITORY / "requirements" / f"{name}.lock").read_text("utf-8")
    pins = PINNED.findall(text)  # one package may have a version for each of several Pythons
    found = {package: version for package, version, _ in pins}
    assert len(pins) == text.count("==") - len(re.findall(r"; [^\n]*==", text))
    return found


def requirements(*extras: str) -> Iterable[Requirement]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    texts = project["dependencies"] + [text for extra in extras for text in project["optional-dependencies"][extra]]
    return [made for made in map(Requirement, texts) if made.name != "pvefw"]


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("core", ()),
        ("host", ("host", "nft")),
        ("fleet", ("fleet",)),
        ("docs", ("docs",)),
        ("dev", ("host", "nft", "fleet", "dev")),
    ],
)
def test_lock_fits_the_dependencies(name: str, extras: tuple[str, ...]) -> None:
    versions = pinned(name)
    for requirement in requirements(*extras):
        assert requirement.name in versions, "run scripts/lock.py"
        assert requirement.specifier.contains(versions[requirement.name]), requirement


def test_the_build_tools_are_locked() -> None:
    (backend,) = map(
        Requirement, tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
    )
    assert backend.specifier.contains(pinned("build")[backend.name])


def test_a_package_with_another_hash_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "evil-1-py3-none-any.whl"
    wheel.write_bytes(b"whatever a bad mirror sends")
    requires = f"evil @ file://{wheel} --hash=sha256:{'0' * 64}"
    checkout = make_checkout(tmp_path / "checkout", requires=requires)
    run = pvefw(checkout)
    assert "retrying without" in run.stderr
    assert not list((checkout / ".venv").rglob("evil*"))


def test_pip_heeds_neither_the_environment_nor_the_users_configuration(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".config/pip").mkdir(parents=True)
    (home / ".config/pip/pip.conf").write_text("[install]\nrequire-virtualenv = nonsense\nprefix = /nonexistent\n")
    checkout = make_checkout(tmp_path / "checkout")
    run = pvefw(checkout, HOME=str(home), PIP_PREFIX="/nonexistent", PIP_CONSTRAINT="/nonexistent")
    assert run.stdout == greeting(checkout), run.stderr


def test_the_callers_environment_adds_no_code(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    assert pvefw(checkout).returncode == 0
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("sitecustomize", "usercustomize", "pvefw_nft"):
        (trap / f"{name}.py").write_text("raise SystemExit('code of the caller')")
    for tool in ("readlink", "find", "cmp", "id", "stat", "python", "python3"):
        (trap / tool).write_text("#!/bin/sh\necho code of the caller >&2\n")
        (trap / tool).chmod(0o755)
    variables = {
        "PYTHONPATH": str(trap),
        "PYTHONHOME": str(trap),
        "PYTHONSTARTUP": str(trap / "sitecustomize.py"),
        "PYTHONEXECUTABLE": str(trap / "python"),
        "PATH": f"{trap}:{os.environ['PATH']}",
        "ENV": str(trap / "find"),
    }
    run = pvefw(checkout, **variables)
    assert (run.stdout, run.stderr) == (greeting(checkout), "")


def test_missing_packages_are_tried_again_after_an_hour(tmp_path: Path) -> None:
    requires = f"absent @ file://{tmp_path}/absent.whl"
    checkout = make_checkout(tmp_path / "checkout", requires=requires)
    assert "tried again" in pvefw(checkout).stderr
    assert pvefw(checkout).stderr == ""
    incomplete = checkout / ".venv/.pvefw/incomplete"
    os.utime(incomplete, (0, 0))
    (checkout / "requirements/host.lock").write_text("")
    assert "installing pvefw with host" in pvefw(checkout).stderr
    assert not incomplete.exists()
    assert pvefw(checkout).stderr == ""


@needs_root
@pytest.mark.parametrize("place", [".", ".venv", ".venv/bin", "pvefw_nft"])
@pytest.mark.parametrize("how", ["owner", "others", "group"])
def test_root_refuses_files_that_other_users_may_change(tmp_path: Path, place: str, how: str) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(sys.executable)
    (checkout / ".venv/.pvefw").mkdir()
    (checkout / ".venv/.pvefw/checkout").write_text(f"{checkout}\n")
    shutil.copy(checkout / "pyproject.toml", checkout / ".venv/.pvefw")
    (checkout / ".venv/bin/pvefw").write_text("print('ran')")
    assert pvefw(checkout).stdout == "ran\n"
    path = checkout / place
    match how:
        case "owner":
            os.chown(path, NOBODY, 0)
        case "others":
            path.chmod(0o757)
        case _:
            os.chown(path, 0, NOBODY)
            path.chmod(0o775)
    run = pvefw(checkout)
    assert (run.returncode, run.stdout) == (3, "")
    assert "may be changed by other users" in run.stderr
    if how == "owner":
        assert pvefw(checkout, SUDO_UID=str(NOBODY)).stdout == "ran\n"


@needs_root
def test_root_makes_no_environment_where_other_users_may_write(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    run = pvefw(checkout, PVEFW_VENV=str(shared))
    assert run.returncode == 3
    assert list(shared.iterdir()) == []


def test_other_users_may_not_write_to_the_environment_under_any_umask(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    subprocess.run(["sh", "-c", 'umask 0; exec "$0"', checkout / "pvefw"], check=True, capture_output=True)
    assert [
        path for path in (checkout / ".venv").rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022
    ] == []


def test_debians_bindings_of_libnftables_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "nftables", raising=False)
    monkeypatch.setattr(bindings, "DEBIAN", tmp_path)
    (tmp_path / "__init__.py").write_text("from nftables.inner import origin\n")
    (tmp_path / "inner.py").write_text("origin = 'Debian'\n")
    assert bindings.is_debian()
    assert bindings.load().origin == "Debian"
    for name in ("nftables", "nftables.inner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "__init__.py").write_text("raise OSError('no library')\n")
    with pytest.raises(OSError, match="no library"):
        bindings.load()
    assert "nftables" not in sys.modules
