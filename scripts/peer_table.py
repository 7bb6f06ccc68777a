"""Print the table of constructs that Proxmox's two firewalls and pvefw do not all read alike.

Usage: ``peer_table.py [--write]``, with the Python of the virtual environment

The rows come from tests/config/peers.py, whose test checks their statements about pvefw. With ``--write`` the table in
docs/language.md is replaced by them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = CHECKOUT / "docs" / "language.md"
HEAD: Final = "| construct | "


def main() -> None:
    """Print the table, or write it into the manual."""
    sys.path.insert(0, str(CHECKOUT))
    from tests.config.peers import table

    if sys.argv[1:] != ["--write"]:
        sys.stdout.write(table())
        return
    lines = PAGE.read_text("utf-8").splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.startswith(HEAD))
    end = next((number for number, line in enumerate(lines[start:], start) if not line.startswith("|")), len(lines))
    PAGE.write_text("".join([*lines[:start], table(), *lines[end:]]), "utf-8")


if __name__ == "__main__":
    main()
