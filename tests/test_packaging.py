"""The Debian package's parts; ``packaging/test-deb`` builds it and tries it in clean roots."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pvefw_nft.host import service_user

REPOSITORY = Path(__file__).resolve().parent.parent
DEBIAN = REPOSITORY / "packaging" / "debian"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]


def test_unit_starts_the_packaged_command_and_is_the_printed_one_otherwise() -> None:
    command = [sys.executable, "-m", "pvefw_nft.cli", "run", "--print-unit", "--as-user"]
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, cwd=REPOSITORY).stdout
    packaged = subprocess.run(
        [sys.executable, REPOSITORY / "packaging" / "unit.py"],
        input=printed,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    changed = set(packaged.splitlines()) ^ set(printed.splitlines())
    assert {line.partition("=")[0] for line in changed} == {"EnvironmentFile", "ExecStart"}
    assert "ExecStart=/usr/bin/pvefw run $PVEFW_OPTIONS\n" in packaged
    assert f"User={service_user.NAME}\n" in packaged
    rules = (DEBIAN / "rules").read_text("utf-8")
    assert "run --write-units $(units) --as-user" in rules
    assert "run --print-unit --as-user | /usr/bin/python3 packaging/unit.py" in rules


def test_user_of_the_package_equals_the_unit() -> None:
    lines = (DEBIAN / "pvefw.sysusers").read_text("utf-8").splitlines()
    (line,) = [line for line in lines if not line.startswith("#")]
    assert f"'{line}'" in service_user.MAKE


def test_scripts_run_no_file_that_the_services_user_may_have_written() -> None:
    for script in ("postinst", "prerm", "postrm"):
        for line in (DEBIAN / f"pvefw.{script}").read_text("utf-8").splitlines():
            names_its_folders = re.search(r"/(var/lib|run)/pvefw(/|\b(?!-))", line) is not None
            assert not names_its_folders or line.strip().startswith(("[ ! -e /", "if [ -e /", "rm -rf ", "#")), line


def test_unit_without_its_command_is_refused() -> None:
    made = subprocess.run(
        [sys.executable, REPOSITORY / "packaging" / "unit.py"],
        input=b"[Service]\n",
        stdout=subprocess.PIPE,
        check=False,
    )
    assert made.returncode == 1


def test_metadata_has_the_version_of_the_project(tmp_path: Path) -> None:
    subprocess.run([sys.executable, REPOSITORY / "packaging" / "metadata.py", tmp_path], check=True)
    (metadata,) = tmp_path.glob("pvefw-*.dist-info/METADATA")
    assert f"\nVersion: {PROJECT['version']}\n" in metadata.read_text("utf-8")


@pytest.mark.parametrize("name", ["click", "pyparsing", "pyroute2"])
def test_lower_bounds_equal_the_project_file(name: str) -> None:
    texts = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["host"]]
    (bound,) = [text.partition(">=")[2] for text in texts if text.startswith(f"{name}>=")]
    control = (DEBIAN / "control").read_text("utf-8")
    assert re.search(rf"python3-{name} \(>= {re.escape(bound)}\)", control)


@pytest.mark.parametrize("script", ["pvefw.postinst", "pvefw.prerm", "pvefw.postrm"])
def test_maintainer_scripts_are_sh(script: str) -> None:
    subprocess.run(["sh", "-n", DEBIAN / script], check=True)
