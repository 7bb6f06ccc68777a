"""Draw terminal sessions as SVG: ``scripts/terminal_picture.py`` renews the pictures in docs/images.

A picture is made of the output of real commands; tests/test_docs.py reports one that is out of date. SVG with text
needs no font file and no tool, and stays readable in a diff.
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = CHECKOUT / "docs" / "images"

PICTURES: Final = {
    "first-look": (
        "check --root examples/tutorial/half",
        "simulate --root examples/tutorial/half --from vm110 --to vm111:5432",
    ),
}
"""The pictures by name, each with the commands that it shows."""

MAX_COLUMNS: Final = 118
CELL_WIDTH, LINE_HEIGHT, MARGIN = 7.83, 18, 16  # px, for a monospaced font of 13 px
COLOURS: Final = (
    (re.compile(r"^\$"), "#7ee787"),
    (re.compile(r"^(error|DROP|REJECT)"), "#ff7b72"),
    (re.compile(r"^ACCEPT"), "#7ee787"),
    (re.compile(r"^(warning|\d+ warning)"), "#e3b341"),
    (re.compile(r"^  decided by|^  = help"), "#79c0ff"),
)
"""The colour of a line, by the first pattern that fits it; other lines are plain."""
PLAIN: Final = "#d0d7de"


def main() -> int:
    """Write all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name, commands in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(picture(commands), "utf-8")
    return 0


def picture(commands: tuple[str, ...]) -> str:
    """Return the SVG of a terminal in which these commands of pvefw were run, one after the other."""
    lines: list[str] = []
    for command in commands:
        lines += ["", f"$ pvefw {command}", *output(command)]
    lines = [line if len(line) <= MAX_COLUMNS else f"{line[: MAX_COLUMNS - 1]}…" for line in lines[1:]]
    width = round(MAX_COLUMNS * CELL_WIDTH + 2 * MARGIN)
    height = len(lines) * LINE_HEIGHT + 2 * MARGIN
    texts = [
        f'<text x="{MARGIN}" y="{MARGIN + LINE_HEIGHT * number - 4}" fill="{colour(line)}">{html.escape(line)}</text>'
        for number, line in enumerate(lines, start=1)
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="ui-monospace, monospace" font-size="13" xml:space="preserve">'
    )
    return "\n".join((head, f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>', *texts, "</svg>", ""))


def output(command: str) -> list[str]:
    """Return the lines that a command of pvefw prints, errors among them."""
    run = subprocess.run(
        [sys.executable, "-c", "from pvefw_nft.cli import main; main()", *command.split()],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=CHECKOUT, check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    return run.stdout.splitlines()


def colour(line: str) -> str:
    """Return the colour of a line."""
    return next((colour for pattern, colour in COLOURS if pattern.match(line)), PLAIN)


if __name__ == "__main__":
    sys.exit(main())
