"""``python -m tests.kernel.guest [-t SECONDS] [--] COMMAND…``: run a command in a guest; end as it ends."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .image import LabUnavailableError
from .machine import Guest, GuestError


def main() -> int:
    """Boot, run, print, and return the command's status; 125 where there was none."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernel.guest", description=__doc__)
    parser.add_argument("-t", "--seconds", type=float, default=600.0, help="how long the command may take")
    parser.add_argument("-m", "--memory", type=int, default=1024, metavar="MIB", help="the guest's memory")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    arguments = parser.parse_args()

    def show(piece: bytes) -> None:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()

    try:
        with Guest(memory=arguments.memory) as guest:
            status, _ = guest.run(arguments.command, cwd=Path.cwd(), seconds=arguments.seconds, output=show)
    except (LabUnavailableError, GuestError) as error:
        print(f"guest: {error}", file=sys.stderr)
        return 125
    return status


if __name__ == "__main__":
    sys.exit(main())
