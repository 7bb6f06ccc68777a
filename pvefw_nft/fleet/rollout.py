"""A roll-out, node by node: apply with a watchdog, check over a new connection, confirm; stop at the first failure.

A node keeps a change only after its confirmation, over a connection made after the change. If the new rules block ssh,
or the check fails, the node's watchdog restores its previous ruleset. With ``keep_open``, changes are confirmed only
after all nodes have passed, so that all of them can be rolled back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from pvefw_nft.fleet.ssh import Answer, connected, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pvefw_nft.fleet.ssh import Login, Node, Target

_WAITS = "run `pvefw confirm` to keep this ruleset"
"""A line that ``pvefw start --confirm`` prints once the ruleset is in place."""

_MARGIN = 5.0
"""Seconds that must be left of the time for confirmation when all nodes have passed."""

_MAX_SAID = 2000


class State(Enum):
    """How a node ended up."""

    DONE = "done"
    UNCHANGED = "nothing to do"
    FAILED = "failed"
    ROLLED_BACK = "rolled back"
    NOT_TRIED = "not tried"
    LEFT_OPEN = "goes back by itself"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Step:
    """A node of a roll-out, its final state, and remarks about it."""

    target: Target
    state: State = State.NOT_TRIED
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The task on each node. ``words`` start pvefw there; ``options`` are options of ``start`` or ``update``.

    ``seconds`` is the time of ``--confirm``. ``keep_open``: confirm only after all nodes have passed.
    """

    words: tuple[str, ...]
    verb: str
    seconds: float
    options: tuple[str, ...] = ()
    keep_open: bool = False


@dataclass(slots=True)
class _Open:
    """A node whose change waits for its confirmation."""

    step: Step
    process: Any
    deadline: float


async def roll_out(
    targets: Sequence[Target], login: Login, plan: Plan, tell: Callable[[Step], None] = lambda _: None
) -> list[Step]:
    """Do a roll-out; ``tell`` is called after each change of a node's state. The first failure ends it."""
    steps = [Step(target) for target in targets]
    waiting: list[_Open] = []
    async with AsyncExitStack() as stack:
        try:
            for step in steps:
                opened = await _apply(step, login, plan, stack)
                if opened is not None and await _passes(opened, login, plan):
                    waiting.append(opened)
                    if not plan.keep_open and not await _confirm(waiting.pop(), login, plan):
                        step.state = State.FAILED
                tell(step)
                if step.state in (State.FAILED, State.LEFT_OPEN):
                    break
            else:
                await _confirm_all(waiting, login, plan, tell)
        finally:
            await _undo_all(waiting, login, plan, tell)
    return steps


async def dry_run(targets: Sequence[Target], login: Login, plan: Plan) -> list[Step]:
    """Report for each node the changes that would be made; make none."""
    steps = []
    for target in targets:
        step = Step(target)
        steps.append(step)
        answer = await _ask(target, login, [*plan.words, plan.verb, "--dry-run", *plan.options])
        if answer.code == 0:
            lines = len(answer.out.splitlines())
            step.state, step.detail = State.DONE, f"would be fed {lines} lines" if lines else "nothing would be done"
        else:
            step.state, step.detail = State.FAILED, _failure_text(answer)
    return steps


# --- one node -----------------------------------------------------------------------------------------------------


async def _apply(step: Step, login: Login, plan: Plan, stack: AsyncExitStack) -> _Open | None:
    """Start the change on a node; return it once it waits for its confirmation, None if it does not come to that."""
    command = [*plan.words, plan.verb, "--confirm", f"{plan.seconds:g}", "--refuse-cuts", *plan.options]
    try:
        node: Node = await stack.enter_async_context(connected(step.target, login))
        process = await node.start(command)
        async with asyncio.timeout(login.command_seconds):
            said = await _until_it_waits(process)
    except Exception as error:
        step.state, step.detail = State.FAILED, reason_of(error)
        return None
    if said is None:
        return _Open(step, process, time.monotonic() + plan.seconds)
    if process.exit_status == 0:
        step.state, step.detail = State.UNCHANGED, said
    else:
        step.state, step.detail = State.FAILED, f"pvefw {plan.verb}: exit code {process.exit_status}: {said}"
    return None


async def _until_it_waits(process: Any) -> str | None:  # noqa: ANN401 - asyncssh's
    """Return None once the change waits for its confirmation, or the command's message if it ends before."""
    said = ""
    while line := await process.stderr.readline():
        if line.startswith(_WAITS):
            return None
        said = (said + line)[-_MAX_SAID:]
    await process.wait_closed()
    return said.strip() or "it printed nothing"


async def _passes(opened: _Open, login: Login, plan: Plan) -> bool:
    """Check a node over a new connection: it must run its configuration, else it goes back."""
    step = opened.step
    answer = await _ask(step.target, login, [*plan.words, "status", "--format", "json"], plan.seconds)
    problem = _problem_of(answer)
    if not problem:
        return True
    step.state, step.detail = State.FAILED, f"the check failed: {problem}"
    if answer.code is None:  # it cannot be reached: its guard has to do it
        left = max(0.0, opened.deadline - time.monotonic())
        step.state = State.LEFT_OPEN
        step.detail += f"; within {left:.0f} s it goes back by itself"
    else:
        await _roll_back(opened, login, plan, State.FAILED)
    return False


def _problem_of(answer: Answer) -> str:
    """Return the reasons against keeping a change; empty if there are none."""
    if answer.code is None:
        return f"over a new connection, {answer.failure}"
    if answer.code != 0:
        return f"pvefw status: exit code {answer.code}: {_status_words(answer)}"
    return ""


def _status_words(answer: Answer) -> str:
    try:
        status = json.loads(answer.out)
        parts = {
            "it does not run": not status["running"],
            f"{len(status['changes'] or ())} changes are pending": status["changes"],
            f"{len(status['drifted'] or ())} changed by hand": status["drifted"],
            f"{len(status['unplugged'])} NICs are not behind their firewall bridges": status["unplugged"],
            "the configuration has errors": status["configuration_errors"],
            "Proxmox VE's own firewall runs beside it": status["proxmox_firewall"],
            "some parts could not be examined": status["unseen"],
        }
    except (ValueError, KeyError, TypeError, RecursionError):
        return _failure_text(answer)
    return ", ".join(text for text, holds in parts.items() if holds) or _failure_text(answer)


async def _confirm(opened: _Open, login: Login, plan: Plan) -> bool:
    """Confirm a node's change over a new connection, and tell whether it is kept."""
    step = opened.step
    answer = await _ask(step.target, login, [*plan.words, "confirm"])
    if answer.code == 0:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(30):
                await opened.process.wait_closed()
        step.state, step.detail = State.DONE, ""
        return True
    step.state, step.detail = State.UNKNOWN, f"it could not be confirmed: {_failure_text(answer)}"
    return False


async def _roll_back(opened: _Open, login: Login, plan: Plan, state: State) -> None:
    step = opened.step
    answer = await _ask(step.target, login, [*plan.words, "rollback"])
    if answer.code == 0:
        step.state = state
        step.detail = "; ".join(filter(None, (step.detail, answer.out.strip().partition("\n")[0])))
    else:
        left = max(0.0, opened.deadline - time.monotonic())
        step.state = State.LEFT_OPEN
        step.detail = f"rolling back failed: {_failure_text(answer)}; within {left:.0f} s it goes back by itself"


# --- all of them --------------------------------------------------------------------------------------------------


async def _confirm_all(waiting: list[_Open], login: Login, plan: Plan, tell: Callable[[Step], None]) -> None:
    """Confirm all nodes, if there is time for it; otherwise leave them to be rolled back."""
    left = min((opened.deadline for opened in waiting), default=0.0) - time.monotonic()
    if waiting and left < _MARGIN:
        waiting[0].step.detail = f"--confirm {plan.seconds:g} was too short for all nodes"
        return
    while waiting:
        opened = waiting[0]
        if not await _confirm(opened, login, plan):
            tell(opened.step)
            waiting.pop(0)
            return
        waiting.pop(0)
        tell(opened.step)


async def _undo_all(waiting: list[_Open], login: Login, plan: Plan, tell: Callable[[Step], None]) -> None:
    """Roll back changes that wait for their confirmation, the last first."""
    while waiting:
        opened = waiting.pop()
        await _roll_back(opened, login, plan, State.ROLLED_BACK)
        tell(opened.step)


async def _ask(target: Target, login: Login, words: Sequence[str], seconds: float | None = None) -> Answer:
    """Run a command over a new connection."""
    try:
        async with connected(target, login) as node:
            return await node.run(words, seconds)
    except Exception as error:
        return Answer(None, failure=reason_of(error))


def _failure_text(answer: Answer) -> str:
    if answer.code is None:
        return answer.failure
    lines = [line.strip() for line in (answer.err or answer.out).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error")]
    return "; ".join((errors or lines)[:3])[:_MAX_SAID] or f"exit code {answer.code}"
