"""Write the metadata of the Python package as importlib.metadata reads it: ``packaging/metadata.py FOLDER``.

The name and version come from pyproject.toml, the only place that has them.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def main() -> None:
    """Write the folder ``pvefw-VERSION.dist-info`` below the folder of the command line."""
    project = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
    lines = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}"]
    folder = Path(sys.argv[1]) / f"{project['name']}-{project['version']}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("\n".join([*lines, f"Summary: {project['description']}", ""]), "utf-8")


if __name__ == "__main__":
    main()
