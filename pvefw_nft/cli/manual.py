"""A diagnostic code explained: the manual's page of all codes, ``pvefw explain``, and the help texts of SARIF."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from pvefw_nft.cli.render import printable
from pvefw_nft.pipeline.codes import diagnostic_codes

if TYPE_CHECKING:
    from pvefw_nft.pipeline.codes import Code

_INTRODUCTION = """\
# Diagnostics

The codes that `pvefw check` and `pvefw compile` report. `pvefw explain CODE` prints one section of this page, and
`pvefw explain --format markdown` prints the page.

An **error** is a line without effect: it is left out, or the kernel's tools would refuse it. The exit
code is then 1, and `start` refuses the configuration without `--skip-invalid`. A **warning** is a line
that works as written, but is probably not intended. A **note** is a matter of style. Warnings and notes
leave the exit code at 0. A mistake in a rule that is switched off with `|` is a warning.

Each example shows one file before and after. Other files are not shown: one VM with a filtered NIC, and a firewall
that is enabled.
"""


def page() -> str:
    """Return the manual's page of all codes."""
    parts = [_INTRODUCTION]
    for subject, codes in diagnostic_codes().items():
        parts.append(f"## {subject}\n")
        parts += [section(code, "###") for code in codes]
    return "\n".join(parts)


def section(code: Code, heading: str = "##") -> str:
    """Return an explanation of one code as Markdown; ``heading`` is the mark of its heading's level."""
    example = code.example
    parts = [
        f"{heading} {code.id}\n",
        f"**{code.severity.value}**: {code.title}\n",
        _wrapped(code.why, 119) + "\n",
        _wrapped(f"In Proxmox VE: {code.proxmox}", 119) + "\n",
        f"Before, in `{example.file}`:\n",
        _block(example.before),
        "After:\n",
        _block(example.after),
    ]
    return "\n".join(parts)


def _block(text: str | None) -> str:
    return "\n".join(["```text", *_shown(text), "```", ""])


def text(code: Code) -> str:
    """Return an explanation of one code for a terminal."""
    example = code.example
    parts = [
        f"{code.severity.value}[{code.id}]: {code.title}",
        "",
        _wrapped(code.why, 100),
        "",
        _wrapped(f"In Proxmox VE: {code.proxmox}", 100),
        "",
        f"Before, in {example.file}:",
        *(f"  {line}".rstrip() for line in _shown(example.before)),
        "",
        "After:",
        *(f"  {line}".rstrip() for line in _shown(example.after)),
    ]
    return "\n".join([*parts, ""])


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _shown(text: str | None) -> list[str]:
    """Return the lines of a file as they are shown: printable, long ones cut."""
    if text is None:
        return ["(no such file)"]
    lines = [printable(line) for line in text.splitlines()] or ["(empty)"]
    return [line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…" for line in lines]


_LONGEST = 68
"""Characters of a line of an example that are shown."""
