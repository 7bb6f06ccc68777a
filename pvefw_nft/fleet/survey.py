"""Compare each node's running rules with its configuration, as the node's own pvefw reports."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pvefw_nft.fleet.ssh import connected, each, reason_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pvefw_nft.fleet.ssh import Answer, Login, Node, Target

NO_ANSWER = 3
"""The exit code of a node that could not be asked."""


async def survey(
    targets: Sequence[Target], login: Login, pvefw: Sequence[str], count: int, compare: Sequence[str] | None
) -> list[dict[str, Any]]:
    """Return an entry for each node: its versions, its status, and with ``compare`` how its rules differ.

    ``pvefw`` are the words that start pvefw there, ``compare`` the options of ``pvefw compare live``. An entry has
    ``node``, ``address``, ``exit`` (the worst of its commands), ``error`` (why it could not be asked), ``pvefw`` and
    ``kernel`` (versions), ``status`` and ``compare`` (the JSON of these commands).
    """

    async def ask(target: Target) -> dict[str, Any]:
        entry: dict[str, Any] = {"node": target.name, "address": target.address, "exit": NO_ANSWER, "error": None}
        entry |= {"pvefw": None, "kernel": None, "status": None, "compare": None}
        try:
            async with connected(target, login) as node:
                await _fill(entry, node, pvefw, compare)
        except Exception as error:
            entry["error"] = reason_of(error)
        return entry

    return await each(targets, count, ask)


async def _fill(entry: dict[str, Any], node: Node, pvefw: Sequence[str], compare: Sequence[str] | None) -> None:
    version = await node.run([*pvefw, "--version"])
    if version.code != 0:
        entry["error"] = _failure(version, "pvefw --version")
        return
    entry["pvefw"] = version.out.partition("\n")[0].strip().rpartition(" ")[2]  # libraries and tools are below it
    kernel = await node.run(["uname", "-r"])
    entry["kernel"] = kernel.out.strip() if kernel.code == 0 else None
    status = await node.run([*pvefw, "status", "--format", "json"])
    codes = [_take(entry, "status", status)]
    if compare is not None:
        codes.append(_take(entry, "compare", await node.run([*pvefw, "compare", "live", "--format", "json", *compare])))
    entry["exit"] = max(codes, key=lambda code: (0, 5, 1, 2, 3).index(code) if code in (0, 5, 1, 2, 3) else 5)


def _take(entry: dict[str, Any], name: str, answer: Answer) -> int:
    """Put the JSON of an answer into an entry, or why there is none; return the exit code."""
    try:
        read = json.loads(answer.out) if answer.code is not None else None
    except (ValueError, RecursionError):
        read = None
    if isinstance(read, dict):
        entry[name] = read
    elif entry["error"] is None:
        entry["error"] = _failure(answer, f"pvefw {name}")
    return NO_ANSWER if answer.code is None or not isinstance(read, dict) else answer.code


def _failure(answer: Answer, command: str) -> str:
    if answer.code is None:
        return answer.failure
    said = next((line for line in (answer.err or answer.out).splitlines() if line.strip()), "it printed nothing")
    return f"{command}: exit code {answer.code}: {said.strip()[:300]}"
