"""Make the packaged unit from the output of ``pvefw run --print-unit``: standard input to standard output.

Only the command differs: it is the package's, with the options of /etc/default/pvefw.
"""

from __future__ import annotations

import re
import sys

SERVICE = "EnvironmentFile=-/etc/default/pvefw\nExecStart=/usr/bin/pvefw run $PVEFW_OPTIONS\n"


def main() -> int:
    """Replace the one line that starts the service; return 1 if there is none, or more than one."""
    unit, count = re.subn(r"(?m)^ExecStart=\S+ -m pvefw_nft\.cli run\n", SERVICE, sys.stdin.read())
    sys.stdout.write(unit)
    return int(count != 1)


if __name__ == "__main__":
    sys.exit(main())
