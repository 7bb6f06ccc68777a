"""pvefw on a kernel that cannot track connections on bridges: what needs that is left out of what is loaded.

Usage: ``python benchmarks/cut_down.py COMMAND ...``, as ``pvefw COMMAND ...``

For ``benchmarks/host.py --cut-down``, and tests that look at the service alone: all else is as always, the number of
rules too, but they do not filter.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pvefw_nft.cli import main
from pvefw_nft.host.apply import nftables_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pvefw_nft.host.apply.nftables_state import Command

_run = nftables_state.Nftables.run


def _run_cut_down(library: nftables_state.Nftables, commands: Sequence[Command]) -> list[Command]:
    return _run(library, [_cut_down(command) for command in commands if "ct helper" not in command.get("add", {})])


def _cut_down(command: Command) -> Command:
    rule = command.get("add", {}).get("rule")
    if rule is None or rule["family"] != "bridge" or all(map(_is_known, rule["expr"])):
        return command
    expressions = [expression for expression in rule["expr"] if _is_known(expression)]
    return {"add": {"rule": {**rule, "expr": expressions or [{"continue": None}]}}}


def _is_known(statement: dict[str, Any]) -> bool:
    """Tell whether a kernel without modules for bridges takes a statement."""
    ((kind, body),) = statement.items()
    if kind in ("reject", "ct helper"):
        return False
    selector = {"match": "left", "vmap": "key", "mangle": "key"}.get(kind)
    if selector is None:
        return True
    return not _needs_modules(body[selector])


def _needs_modules(expression: Any) -> bool:  # noqa: ANN401 - an expression of nft's JSON, or a value
    """Tell whether an expression, or one within it (``ct status & 2048``), asks for a connection or a bridge's name."""
    if isinstance(expression, list):
        return any(map(_needs_modules, expression))
    if not isinstance(expression, dict):
        return False
    return "ct" in expression or expression.get("key") == "ibrname" or any(map(_needs_modules, expression.values()))


def cut_down() -> None:
    """Have this process load what the kernel can take."""
    setattr(nftables_state.Nftables, "run", _run_cut_down)  # noqa: B010 - to a type checker it is another type


if __name__ == "__main__":
    cut_down()
    main()
