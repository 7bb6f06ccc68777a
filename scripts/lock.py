"""Pin what ``./pvefw`` installs: ``scripts/lock.py`` writes ``requirements/*.lock`` from pyproject.toml.

Each file has the exact version and the SHA-256 of every file of each package; pip takes nothing else
(``--require-hashes``). Run it after a change of the dependencies in pyproject.toml, or to move to newer versions, and
read the difference before it is committed. It installs uv into a folder of its own, which is removed afterwards.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = CHECKOUT / "requirements"
OLDEST_PYTHON: Final = "3.11"

EXTRAS: Final = {"core": (), "host": ("host", "nft"), "fleet": ("fleet",), "dev": ("dev",), "docs": ("docs",)}
"""The locks of pyproject.toml's dependencies, each with the extras that it covers."""

BUILD: Final = ("hatchling>=1.27", "editables>=0.5")
"""The build requirements of an editable installation; hatchling asks for ``editables`` only then."""


def main() -> int:
    """Write all locks."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "-q", "uv"], check=True)
        for name, extras in EXTRAS.items():
            compile_lock(python, name, ["pyproject.toml", *(f"--extra={extra}" for extra in extras)])
        build = Path(folder) / "build.in"
        build.write_text("".join(f"{line}\n" for line in BUILD))
        compile_lock(python, "build", [str(build)])
    return 0


def compile_lock(python: str, name: str, sources: list[str]) -> None:
    """Write one lock, for all supported versions of Python and all platforms."""
    options = ["--universal", f"--python-version={OLDEST_PYTHON}", "--generate-hashes", "--no-annotate"]
    options += ["--custom-compile-command=scripts/lock.py", "--quiet", "--upgrade"]
    command = [python, "-m", "uv", "pip", "compile", *options, *sources, "-o", str(FOLDER / f"{name}.lock")]
    subprocess.run(command, check=True, cwd=CHECKOUT)


if __name__ == "__main__":
    sys.exit(main())
