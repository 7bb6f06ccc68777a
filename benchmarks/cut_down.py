"""Run pvefw on a kernel that cannot track connections on bridges: rules that need it are replaced at the load.

Usage: ``python benchmarks/cut_down.py COMMAND ...``, as ``pvefw COMMAND ...``

For ``benchmarks/host.py --cut-down``, and tests that look at the service alone. All else is as always, the number of
rules too. They filter without connections: a TCP segment that opens none counts as established, all else as new. Rules
that ask for a bridge's name, or for more of a connection than its state, do nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pvefw_nft.cli import main
from pvefw_nft.host.apply import nftables_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pvefw_nft.host.apply.nftables_state import Command

Statement = dict[str, Any]
_run = nftables_state.Nftables.run


def _run_cut_down(library: nftables_state.Nftables, commands: Iterable[Command]) -> list[Command]:
    def cut() -> Iterator[Command]:
        return (cut_command(command) for command in commands if "ct helper" not in command.get("add", {}))

    return _run(library, nftables_state.Commands((cut,)))


def cut_command(command: Command) -> Command:
    """Return a command, or one that does about the same without connection tracking and names of bridges."""
    rule = command.get("add", {}).get("rule")
    if rule is None or rule["family"] != "bridge" or not _needs_modules(rule["expr"]):
        return command
    return {"add": {"rule": {**rule, "expr": _without_connections(rule["expr"])}}}


def _without_connections(statements: list[Statement]) -> list[Statement]:
    """Return the statements of a rule that does about the same without connection tracking and names of bridges."""
    changed: list[Statement] = []
    for statement in statements:
        if not _needs_modules(statement):
            changed.append(statement)
        elif "reject" in statement:
            changed.append({"drop": None})
        elif "vmap" in statement and _is_state(statement["vmap"]["key"]):
            changed += [_LATER_SEGMENT, {"accept": None}]
        elif "match" in statement and _is_state(statement["match"]["left"]):
            states = _states(statement["match"]["right"])
            if "established" in states:
                changed.append(_LATER_SEGMENT)
            elif "new" not in states:
                return _NOTHING
        elif "mangle" not in statement:
            return _NOTHING
    return changed or _NOTHING


_NOTHING: list[Statement] = [{"continue": None}]
_FLAGS = {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, 0x12]}  # SYN and ACK
_LATER_SEGMENT: Statement = {"match": {"op": "!=", "left": _FLAGS, "right": 0x02}}


def _is_state(expression: Any) -> bool:  # noqa: ANN401 - an expression of nft's JSON
    return bool(expression == {"ct": {"key": "state"}})


def _states(value: Any) -> list[str]:  # noqa: ANN401 - a value of nft's JSON
    if isinstance(value, dict):
        value = value["set"]
    return value if isinstance(value, list) else [value]


def _needs_modules(expression: Any) -> bool:  # noqa: ANN401 - statements or expressions of nft's JSON, or a value
    """Tell whether something asks for a connection or a bridge's name, or rejects: modules for bridges do that."""
    if isinstance(expression, list):
        return any(map(_needs_modules, expression))
    if not isinstance(expression, dict):
        return False
    if not {"ct", "ct helper", "reject"}.isdisjoint(expression) or expression.get("key") == "ibrname":
        return True
    return any(map(_needs_modules, expression.values()))


def cut_down() -> None:
    """Have this process load what the kernel can take."""
    setattr(nftables_state.Nftables, "run", _run_cut_down)  # noqa: B010 - to a type checker it is another type


if __name__ == "__main__":
    cut_down()
    main()
