"""Make or renew the virtual environment that ``./pvefw`` and ``./run-tests`` run in.

Usage: ``bootstrap.py VENV [EXTRA ...]``

Installs this checkout into VENV, editable, with its dependencies and extras. Without EXTRA those come along
that the commands on a host need; where they cannot be had, it is made without them, says so, and tries again later.

Packages come with the versions and hashes of requirements/*.lock, and as wheels only: nothing of them runs while they
are installed. pip sees neither the environment nor the user's configuration. $PVEFW_WHEELHOUSE names a folder with the
files (scripts/wheelhouse makes it), $PVEFW_INDEX_URL an index to ask instead of pip's own.

Several runs at once wait for one another. What a killed run left behind is made again. Only an environment of
this script's own making is ever touched; run as root, only one that no other user may write to. Reports on stderr;
exits 0 when VENV is ready, else 3.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parent.parent
PYPROJECT: Final = CHECKOUT / "pyproject.toml"
LOCKS: Final = CHECKOUT / "requirements"
HOST_EXTRAS: Final = ("host", "nft")
PIP_CONFIGURATION: Final = ("/etc/pip.conf", "/etc/xdg/pip/pip.conf")
RETRY_AFTER: Final = 3600
"""Seconds after which packages that could not be had are tried again."""


class BootstrapError(Exception):
    """The environment cannot be made; the message says why, and what to do."""


def main(arguments: list[str]) -> int:
    """Make the environment that the first argument names, with the extras of the rest. Return the exit code."""
    os.umask(0o022)  # other users may not write to the environment, under any umask of the caller
    if not arguments:
        return fail("usage: bootstrap.py VENV [EXTRA ...]")
    try:
        prepare(Path(arguments[0]).absolute(), frozenset(arguments[1:]))
    except BootstrapError as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"cannot make {arguments[0]}: {error.strerror or error}\n{WRITE_HINT}")
    except KeyboardInterrupt:
        return fail("interrupted; the next use starts again")
    return 0


WRITE_HINT: Final = "give pvefw a folder it may write to: PVEFW_VENV=/path/to/a/new/folder ./pvefw …"


def fail(message: str) -> int:
    """Report why there is no environment and return the exit code."""
    for line in message.splitlines():
        say(line)
    return 3


def say(line: str) -> None:
    """Report one line of progress."""
    sys.stderr.write(f"pvefw: {line}\n")
    sys.stderr.flush()


def prepare(venv: Path, extras: frozenset[str]) -> None:
    """Bring ``venv`` up to date with this checkout, unless it is; one process at a time."""
    venv.mkdir(parents=True, exist_ok=True)
    check_owners(venv)
    lock = os.open(venv, os.O_RDONLY | os.O_DIRECTORY)
    try:
        wait_for(lock)
        stamp = Stamp(venv / ".pvefw")
        if not stamp.is_current(extras):
            build(venv, stamp, extras | stamp.extras(), lock)
    finally:
        os.close(lock)


def check_owners(venv: Path) -> None:
    """Refuse, as root, to run what other users may change. The user of sudo(8) is no other."""
    if os.geteuid() != 0:
        return
    trusted = {0, int(os.environ.get("SUDO_UID") or 0)}
    for place in (CHECKOUT, venv):
        status = place.stat()
        if status.st_uid not in trusted or status.st_mode & 0o002 or (status.st_mode & 0o020 and status.st_gid != 0):
            raise BootstrapError(
                f"{place} may be changed by other users, and this is root\n"
                f"make it root's own (chown -R root: {place}; chmod -R go-w {place}), or run pvefw as its owner"
            )


def wait_for(lock: int) -> None:
    """Lock the environment, and say so when another process has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another run that is making the environment")
        fcntl.flock(lock, fcntl.LOCK_EX)


class Stamp:
    """The record of an environment's inputs: a folder in it, complete only when the environment is.

    ``checkout`` is the path of the checkout, ``pyproject.toml`` a copy, ``extras`` one name a line.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def is_current(self, extras: frozenset[str]) -> bool:
        """Tell whether the environment is complete, belongs to this checkout as it is, and has the extras."""
        return (
            os.access(self.folder.parent / "bin" / "python", os.X_OK)
            and self._read("checkout") == f"{CHECKOUT}\n"
            and self._read("pyproject.toml") == PYPROJECT.read_text("utf-8")
            and extras <= self.extras()
            and not self.should_retry()
        )

    def should_retry(self) -> bool:
        """Tell whether packages were missing when the environment was made, long enough ago to try again."""
        try:
            return time.time() - (self.folder / "incomplete").stat().st_mtime >= RETRY_AFTER
        except FileNotFoundError:
            return False

    def is_complete(self) -> bool:
        """Tell whether the environment was once complete, if perhaps for another state of the checkout."""
        return self._read("checkout") is not None

    def extras(self) -> frozenset[str]:
        """Return the extras the environment was made with."""
        return frozenset((self._read("extras") or "").split())

    def start(self) -> None:
        """Mark the environment as made by this script, and as incomplete."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "checkout").unlink(missing_ok=True)

    def finish(self, pyproject: str, extras: frozenset[str]) -> None:
        """Mark the environment as complete. ``pyproject`` is the text it was made from."""
        (self.folder / "pyproject.toml").write_text(pyproject, "utf-8")
        if extras:
            (self.folder / "incomplete").unlink(missing_ok=True)
        else:
            (self.folder / "incomplete").write_text("packages for commands on a host are missing\n", "utf-8")
        (self.folder / "extras").write_text("".join(f"{extra}\n" for extra in sorted(extras)), "utf-8")
        unfinished = self.folder / "checkout.new"
        unfinished.write_text(f"{CHECKOUT}\n", "utf-8")
        unfinished.rename(self.folder / "checkout")

    def _read(self, name: str) -> str | None:
        try:
            return (self.folder / name).read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None


def build(venv: Path, stamp: Stamp, extras: frozenset[str], lock: int) -> None:
    """Make or renew the environment and stamp it."""
    if any(venv.iterdir()) and not stamp.folder.is_dir():
        raise BootstrapError(f"{venv} exists and was not made by ./pvefw\nmove it away, or name another in PVEFW_VENV")
    keep = stamp.is_complete() and can_run(venv)
    pyproject = PYPROJECT.read_text("utf-8")
    if not keep:
        check_network()
    say(f"{'renewing' if keep else 'first use: making'} the virtual environment {venv}")
    stamp.start()
    if not keep:
        make_empty(venv, stamp, lock)
    stamp.finish(pyproject, install(venv, extras, lock))
    say("ready")


def check_network() -> None:
    """Refuse at once where no network can be reached: pip would say so after many tries, and not what to do.

    A given source of packages may be on this machine.
    """
    named = ("PVEFW_WHEELHOUSE", "PVEFW_INDEX_URL", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    if any(os.environ.get(name) for name in named) or names_packages(PIP_CONFIGURATION) or has_route():
        return
    raise BootstrapError(
        "the first use downloads packages, and this machine has no route to a network\n"
        "without network: install the Debian package, or make a folder of the packages elsewhere with\n"
        "scripts/wheelhouse and set PVEFW_WHEELHOUSE=FOLDER (docs/how-to/install.md)"
    )


def names_packages(files: tuple[str, ...]) -> bool:
    """Tell whether the machine's configuration of pip names where packages are."""
    words = ("index-url", "find-links", "proxy")
    texts = [Path(file).read_text("utf-8", "replace") for file in files if Path(file).is_file()]
    return any(word in text for text in texts for word in words)


def has_route() -> bool:
    """Tell whether the kernel has a route beyond loopback and the link (proc(5)); True if that is not shown."""
    try:
        four = Path("/proc/net/route").read_text("ascii").splitlines()[1:]
        ipv6 = Path("/proc/net/ipv6_route")
        six = ipv6.read_text("ascii").splitlines() if ipv6.exists() else []
    except OSError:
        return True
    local = ("fe80", "ff00")
    return any(line.split()[0] != "lo" for line in four) or any(
        line.split()[-1] != "lo" and not line.startswith(local) for line in six
    )


def can_run(venv: Path) -> bool:
    """Tell whether the environment's Python starts: the one it was made with may be gone by now."""
    try:
        run = subprocess.run([venv / "bin" / "python", "-c", ""], capture_output=True, check=False)
    except OSError:
        return False
    return run.returncode == 0


def make_empty(venv: Path, stamp: Stamp, lock: int) -> None:
    """Make an environment with nothing in it but pip, in place of whatever was left there."""
    for left in venv.iterdir():
        if left != stamp.folder:
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    # The interpreter by its own name (python3.11, not python3): an upgrade of Python then leaves a link to
    # nothing, which is noticed, and not another Python that finds no packages.
    python = os.path.realpath(sys.executable)
    pip = [] if has("ensurepip") else ["--without-pip"]
    if pip and not has("pip"):
        raise BootstrapError(missing_ensurepip())
    run([python, "-m", "venv", *pip, str(venv)], lock, "python -m venv failed")


def has(module: str) -> bool:
    """Tell whether this Python brings a module."""
    return importlib.util.find_spec(module) is not None


def missing_ensurepip() -> str:
    """Say what to install where Python can make no environment with pip in it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"this Python ({sys.executable}) has neither ensurepip nor pip to make a virtual environment with\n"
        f"install them (Debian, Ubuntu: apt-get install python{version}-venv), then try again"
    )


def install(venv: Path, extras: frozenset[str], lock: int) -> frozenset[str]:
    """Install the checkout and return the extras that came along."""
    if extras - set(HOST_EXTRAS):
        pip_install(venv, extras, lock)
        return extras
    extras = frozenset(HOST_EXTRAS)
    try:
        pip_install(venv, extras, lock)
    except BootstrapError:
        say("retrying without the packages that only commands on a host need")
        pip_install(venv, frozenset(), lock)
        say("compiling and checking work now, commands on a host do not")
        say(f"the packages are tried again in {RETRY_AFTER // 60} minutes, or at once after rm -r {venv}")
        return frozenset()
    return extras


def pip_install(venv: Path, extras: frozenset[str], lock: int) -> None:
    """Install the locked packages of these extras, then the checkout itself, editable."""
    python = str(venv / "bin" / "python")
    own_pip = (venv / "bin" / "pip").exists()
    pip = [python, "-I", "-m", "pip"] if own_pip else [sys.executable, "-m", "pip", "--python", python]
    command = [*pip, "--isolated", "--disable-pip-version-check", "install", "-qq", "--no-input"]
    say(f"installing {'pvefw with ' + ', '.join(sorted(extras)) if extras else 'pvefw'}")
    locked = [word for lock in ("build", *locks_of(extras)) for word in ("-r", str(LOCKS / f"{lock}.lock"))]
    hashed = ["--require-hashes", "--only-binary", ":all:", *package_source(), *locked]
    failure = "pip could not install it, see above"
    run([*command, *hashed], lock, failure)
    # what builds the checkout was installed just now: without isolation pip fetches nothing that is not locked
    run([*command, "--no-deps", "--no-build-isolation", "--no-index", "--editable", str(CHECKOUT)], lock, failure)


def locks_of(extras: frozenset[str]) -> list[str]:
    """Return the names of the locks that cover these extras."""
    if "dev" in extras:
        return ["dev"]
    names = [name for name, covered in (("host", set(HOST_EXTRAS)), ("fleet", {"fleet"})) if extras & covered]
    return names or ["core"]


def package_source() -> list[str]:
    """Return the options that tell pip where packages come from."""
    wheelhouse, index = os.environ.get("PVEFW_WHEELHOUSE"), os.environ.get("PVEFW_INDEX_URL")
    if wheelhouse:
        return ["--no-index", "--find-links", wheelhouse]
    return ["--retries", "1", "--timeout", "20", *(["--index-url", index] if index else [])]


def run(command: list[str], lock: int, failure: str) -> None:
    """Run a command that shares our lock, so that it holds even when we are killed; raise when it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment, pass_fds=[lock], check=False
    )
    if done.returncode:
        raise BootstrapError(failure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
