"""``./pvefw`` makes its own environment: on first use, once, and again when it must.

A small project of our making stands for the checkout. It needs nothing from the network, since it brings its
own build backend, and its command prints where it was imported from.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from tests.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parent.parent

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""

BACKEND = """
import pathlib, zipfile

FILES = {
    "demo.pth": str(pathlib.Path(__file__).resolve().parent),
    "pvefw-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: pvefw\\nVersion: 1\\nProvides-Extra: host\\n"
        "Provides-Extra: nft\\nProvides-Extra: dev\\n" + EXTRA,
    "pvefw-1.dist-info/WHEEL": "Wheel-Version: 1.0\\nGenerator: demo\\nRoot-Is-Purelib: true\\n"
        "Tag: py3-none-any\\n",
    "pvefw-1.dist-info/entry_points.txt": "[console_scripts]\\npvefw = pvefw_nft.cli:main\\n",
    "pvefw-1.dist-info/RECORD": "",
}

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    DELAY
    name = "pvefw-1-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / name, "w") as wheel:
        for path, text in FILES.items():
            wheel.writestr(path, text)
    return name
"""

COMMAND = """
import sys

def main():
    print(__file__, *sys.argv[1:])
    return 7 if "fail" in sys.argv else 0
"""


def make_checkout(folder: Path, *, requires: str = "", delay: str = "pass") -> Path:
    """Lay a checkout; ``requires`` is a requirement of the extra ``host``, ``delay`` runs before a build."""
    (folder / "scripts").mkdir(parents=True)
    (folder / "pvefw_nft").mkdir()
    shutil.copy(REPOSITORY / "pvefw", folder)
    shutil.copy(REPOSITORY / "scripts" / "bootstrap.py", folder / "scripts")
    extra = f"Requires-Dist: {requires} ; extra == 'host'\n" if requires else ""
    (folder / "backend.py").write_text(BACKEND.replace("EXTRA", repr(extra)).replace("DELAY", delay))
    (folder / "requirements").mkdir()
    for lock in ("build", "core", "host", "dev"):
        (folder / "requirements" / f"{lock}.lock").write_text(f"{requires}\n" if lock == "host" else "")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "pvefw_nft" / "__init__.py").touch()
    (folder / "pvefw_nft" / "cli.py").write_text(COMMAND)
    return folder


def blind(folder: Path, *modules: str) -> str:
    """Return a command that is our Python without these modules."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *more: None if name in {modules!r} else find(name, *more)\n"
    )
    command = folder / "python"
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    command.chmod(0o755)
    return str(command)


@cache
def quick_python() -> str:
    """Return a Python whose environments have no pip of their own: making that takes most of a first use."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return blind(folder, "ensurepip")


def environment(**more: str) -> dict[str, str]:
    """Return this environment without variables that would lead ``./pvefw`` elsewhere."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PVEFW_", "PYTHON"))}
    return {**clean, "PVEFW_PYTHON": quick_python(), **more}


def pvefw(checkout: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "pvefw", *arguments], capture_output=True, text=True, env=environment(**more), check=False
    )


def greeting(checkout: Path, *arguments: str) -> str:
    """Return the output of the command from that checkout."""
    return " ".join([str(checkout / "pvefw_nft" / "cli.py"), *arguments]) + "\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a checkout that was used before."""
    checkout = make_checkout(tmp_path_factory.mktemp("made") / "a check out")
    run = pvefw(checkout, "first")
    assert run.stdout == greeting(checkout, "first")
    assert "first use" in run.stderr
    assert "ready" in run.stderr
    assert run.returncode == 0
    return checkout


def copy_of(made: Path, copy: Path) -> Path:
    shutil.copytree(made, copy, symlinks=True)
    return copy


# --- afterwards ---------------------------------------------------------------------------------------------


def test_later_uses_print_nothing_of_the_bootstrap(made: Path) -> None:
    run = pvefw(made, "-x", "two words", "*")
    assert (run.stdout, run.stderr, run.returncode) == (greeting(made, "-x", "two words", "*"), "", 0)


def test_the_commands_exit_code_is_its_own(made: Path) -> None:
    assert pvefw(made, "fail").returncode == 7


def test_checkout_runs_through_a_link(made: Path, tmp_path: Path) -> None:
    link = tmp_path / "pvefw"
    link.symlink_to(made / "pvefw")
    run = subprocess.run([link], capture_output=True, text=True, env=environment(), check=False)
    assert (run.stdout, run.stderr) == (greeting(made), "")


def test_nothing_is_imported_from_the_folder_it_is_called_in(made: Path, tmp_path: Path) -> None:
    trap = tmp_path / "pvefw_nft"
    trap.mkdir()
    (trap / "__init__.py").write_text("raise SystemExit('imported from the current folder')")
    run = subprocess.run([made / "pvefw"], capture_output=True, text=True, env=environment(), cwd=tmp_path, check=False)
    assert (run.stdout, run.stderr) == (greeting(made), "")


def test_a_changed_pyproject_renews_the_environment(made: Path) -> None:
    with (made / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    run = pvefw(made)
    assert run.stdout == greeting(made)
    assert "renewing" in run.stderr
    assert pvefw(made).stderr == ""


def test_a_copy_of_a_used_checkout_runs_its_own_code(made: Path, tmp_path: Path) -> None:
    copy = copy_of(made, tmp_path / "copy")
    assert pvefw(copy).stdout == greeting(copy)


def test_extras_are_added_and_kept(made: Path) -> None:
    extras = made / ".venv" / ".pvefw" / "extras"
    assert pvefw(made, PVEFW_EXTRAS="dev").stdout == greeting(made)
    assert extras.read_text().split() == ["dev", "host", "nft"]
    assert pvefw(made, PVEFW_EXTRAS="dev").stderr == ""
    with (made / "pyproject.toml").open("a") as file:
        file.write("# changed again\n")
    assert "renewing" in pvefw(made).stderr
    assert extras.read_text().split() == ["dev", "host", "nft"]


# --- failures -----------------------------------------------------------------------------------------------


def test_two_first_uses_at_once(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout", delay="__import__('time').sleep(1)")
    runs = [
        subprocess.Popen(
            [checkout / "pvefw"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [stdout for stdout, _ in outputs] == [greeting(checkout)] * 2, outputs
    assert sum("first use" in stderr for _, stderr in outputs) == 1
    assert sum("waiting" in stderr for _, stderr in outputs) == 1


@pytest.mark.parametrize("with_children", [True, False])
def test_a_killed_first_use_is_made_good(tmp_path: Path, with_children: bool) -> None:
    mark = tmp_path / "building"
    checkout = make_checkout(tmp_path / "checkout", delay=f"open({str(mark)!r}, 'w'); __import__('time').sleep(3)")
    run = subprocess.Popen(
        [sys.executable, checkout / "scripts" / "bootstrap.py", checkout / ".venv"],
        stderr=subprocess.DEVNULL,
        env=environment(),
        start_new_session=True,
    )
    wait_until(lambda: mark.exists() or run.poll() is not None, 120)
    assert mark.exists()
    assert run.poll() is None
    if with_children:
        os.killpg(run.pid, signal.SIGKILL)
    else:
        run.kill()
    run.wait()
    again = pvefw(checkout)
    assert again.stdout == greeting(checkout)
    # pip, left behind, still writes: the next use must let it end before it starts afresh.
    assert ("waiting" in again.stderr) is not with_children
    assert pvefw(checkout).stderr == ""


def test_an_environment_whose_python_is_gone_is_remade(made: Path, tmp_path: Path) -> None:
    checkout = copy_of(made, tmp_path / "copy")
    for python in (checkout / ".venv" / "bin").glob("python*"):
        python.unlink()
        python.symlink_to("/nowhere/python")
    run = pvefw(checkout)
    assert run.stdout == greeting(checkout)
    assert "first use" in run.stderr


def test_an_environment_of_another_user_is_left_alone(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    other = checkout / ".venv" / "precious"
    other.parent.mkdir()
    other.touch()
    run = pvefw(checkout)
    assert (run.returncode, run.stdout) == (3, "")
    assert "was not made by ./pvefw" in run.stderr
    assert list(other.parent.iterdir()) == [other]


def test_packages_for_the_host_may_be_missing(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout", requires=f"absent @ file://{tmp_path}/absent.whl")
    run = pvefw(checkout)
    assert run.stdout == greeting(checkout)
    assert "retrying without" in run.stderr
    assert pvefw(checkout).stderr == ""


def test_a_failed_installation_is_an_error_and_tried_again(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout", delay="raise SystemExit('no')")
    run = pvefw(checkout)
    assert (run.returncode, run.stdout) == (3, "")
    assert "pip could not install" in run.stderr
    shutil.copy(make_checkout(tmp_path / "good") / "backend.py", checkout)
    assert pvefw(checkout).stdout == greeting(checkout)


def test_checkout_without_network_names_the_remedy_at_once(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    script = checkout / "scripts" / "bootstrap.py"
    # as on a machine whose pip has no configuration
    script.write_text(re.sub(r"PIP_CONFIGURATION: Final = .*", "PIP_CONFIGURATION: Final = ()", script.read_text()))

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["unshare", "--net", checkout / "pvefw"],
            capture_output=True,
            text=True,
            env=environment(**more),
            check=False,
        )

    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespaces here")
    refused = run()
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "has no route to a network" in refused.stderr
    assert "PVEFW_WHEELHOUSE" in refused.stderr
    assert not (checkout / ".venv" / "bin").exists()
    assert run(PVEFW_WHEELHOUSE=str(tmp_path)).stdout == greeting(checkout)


@pytest.mark.parametrize("place", ["/proc/pvefw", "{file}/venv"])
def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path, place: str) -> None:
    file = tmp_path / "file"
    file.touch()
    run = pvefw(make_checkout(tmp_path / "checkout"), PVEFW_VENV=place.format(file=file))
    assert (run.returncode, run.stdout) == (3, "")
    assert "cannot make" in run.stderr
    assert "PVEFW_VENV=" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_read_only_checkout_is_an_error_or_has_its_environment_elsewhere(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && echo mounted && exec "$1/pvefw"'

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", checkout],
            capture_output=True,
            text=True,
            env=environment(**more),
            check=False,
        )

    refused = run()
    if "mounted" not in refused.stdout:
        pytest.skip(f"no mount namespace: {refused.stderr.strip()}")
    assert (refused.returncode, refused.stdout) == (3, "mounted\n")
    assert "Read-only file system" in refused.stderr
    assert "PVEFW_VENV=" in refused.stderr
    assert run(PVEFW_VENV=str(tmp_path / "venv")).stdout == "mounted\n" + greeting(checkout)


# --- which Python -------------------------------------------------------------------------------------------


def fake_path(folder: Path, **commands: str) -> str:
    """Make a search path with only the script's own commands and these commands, given as shell text."""
    folder.mkdir()
    for tool in ("cmp", "find", "id", "readlink", "sh", "stat"):
        (folder / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    for name, text in commands.items():
        file = folder / name.replace("_", ".")
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
    return str(folder)


def test_checkout_names_the_package_for_a_new_enough_python(tmp_path: Path) -> None:
    path = fake_path(tmp_path / "bin", python3="exit 1", python3_11="exit 127")
    run = pvefw(make_checkout(tmp_path / "checkout"), PATH=path, PVEFW_PYTHON="")
    assert (run.returncode, run.stdout) == (3, "")
    assert "Python 3.11 or newer" in run.stderr
    assert "apt-get install python3 python3-venv" in run.stderr
    assert not (tmp_path / "checkout" / ".venv").exists()


def test_a_newer_python_is_found_beside_an_old_python3(tmp_path: Path) -> None:
    path = fake_path(tmp_path / "bin", python3="exit 1", python3_12=f'exec "{sys.executable}" "$@"')
    checkout = make_checkout(tmp_path / "checkout")
    assert pvefw(checkout, PATH=path, PVEFW_PYTHON="").stdout == greeting(checkout)


def test_without_ensurepip_the_pip_of_the_system_serves(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    run = pvefw(checkout, PVEFW_PYTHON=blind(tmp_path / "blind", "ensurepip"))
    assert run.stdout == greeting(checkout), run.stderr
    assert not (checkout / ".venv" / "bin" / "pip").exists()


def test_checkout_names_the_package_for_ensurepip_and_pip(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    run = pvefw(checkout, PVEFW_PYTHON=blind(tmp_path / "blind", "ensurepip", "pip"))
    assert (run.returncode, run.stdout) == (3, "")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"apt-get install python{version}-venv" in run.stderr
    assert "Traceback" not in run.stderr
