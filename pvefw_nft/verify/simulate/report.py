"""Write the result of simulate: text for people, plain data that fits into JSON for programs."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.verify.model import Accept, Drop, Family, Goto, Jump, Log, Reject, Return, Test, UnknownVerdict
from pvefw_nft.verify.model.text import (
    condition_text,
    packet_text,
    range_text,
    rule_text,
    value_text,
    verdict_text,
)
from pvefw_nft.verify.network.path import NicEnd, candidates
from pvefw_nft.verify.simulate.guesses import guess_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.verify.model import Condition, Field
    from pvefw_nft.verify.model.intervals import IntervalSet
    from pvefw_nft.verify.network.path import End
    from pvefw_nft.verify.simulate.packet import Guess
    from pvefw_nft.verify.simulate.walk import ChainWalk, Outcome, StageWalk, Step

Data: TypeAlias = "bool | int | str | list[Data] | dict[str, Data] | None"
PASSING = ("layer 2", "not IP")
"""Origins of rules by which a part of the ruleset lets through what another part filters."""
_MAX_RULE = 110
"""How much of a rule's text is shown, in characters."""


def outcome_lines(outcome: Outcome, *, verbose: bool = False, title: str = "") -> Iterator[str]:
    """Yield the lines that explain a packet's verdict.

    Each hop of the way with the base chains that had something to say, the chains that led to the rule that
    decided, and that rule with the place in the configuration it is there for. ``verbose`` adds each rule tried.
    """
    head = f"{title}: " if title else ""
    yield f"{head}{outcome.text}: {packet_text(outcome.probe.fields)} ({outcome.probe.path})"
    for hop, stages in groupby(outcome.stages, key=lambda stage: stage.stage.hop):
        yield f"  {hop}"
        walks = [(stage, walk) for stage in stages for walk in stage.chains]
        telling = [one for one in walks if verbose or _tells(one[1])]
        for stage, walk in telling:
            yield from _walk_lines(stage, walk, verbose=verbose)
        if not telling:
            yield "    passes, no rule matches it" if walks else "    passes, nothing filters here"
    yield from (f"  log: {_log_text(log)}" for log in outcome.logs)
    yield from (f"  note: {note}" for note in outcome.notes)
    for guess in outcome.guesses:
        if guess.otherwise or not guess.made_up.stands_for_many or verbose:
            yield f"  {'warning' if is_doubtful(guess) else 'note'}: {guess_text(guess)}"
    decider = outcome.decider
    if outcome.stopped is not None:
        yield f"  decided by: {outcome.stopped}"
    elif decider is not None:
        yield f"  decided by: {step_text(decider)}"
    elif outcome.deciding:
        stage, walk = outcome.deciding[-1]
        yield f"  decided by: the policy of {walk.table.key} {walk.chain.name} ({stage.stage})"
    else:
        yield "  decided by: no rule; nothing on the way filters this packet"


def answer_line(outcome: Outcome) -> str:
    """Return the answer in few words: verdict, place, line of the configuration: ``DROP at vm111, 111.fw:5``."""
    if outcome.verdict == "UNDECIDED":
        return outcome.text
    if outcome.stopped is not None:
        return f"{outcome.text}: {outcome.stopped}"
    decider = outcome.decider
    found = [(stage, walk) for stage, walk in outcome.deciding if decider is None or walk.decider is decider]
    if not found:
        return f"{outcome.text}: no rule filters it"
    stage, walk = found[-1]
    if decider is None:
        reason = f"policy of {walk.chain.name}"
    else:
        reason = decider.origin or f"{decider.chain.name} rule {decider.number}"
    return f"{outcome.text} at {_place(stage, outcome)}, {reason}"


def _place(stage: StageWalk, outcome: Outcome) -> str:
    """Return where on its way a packet was: at a guest (known by its bridge), a bridge or the host."""
    bridge, _, ports = stage.stage.hop.partition(": ")
    topology = outcome.probe.topology
    for nic in candidates(topology.nics, bridge) if topology is not None else ():
        if bridge == nic.firewall_bridge:
            return nic.zone if nic.index == 0 else nic.name
    return "the host" if "host" in ports.split() and stage.stage.family is not Family.BRIDGE else bridge


def is_doubtful(guess: Guess) -> bool:
    """Return whether the verdict may be wrong: it depends on a made-up address of one guest, or of the host."""
    return not guess.made_up.stands_for_many and bool(guess.otherwise or not guess.complete)


def _tells(walk: ChainWalk) -> bool:
    """Return whether a walk is worth a line: it ended the way, or a rule let the packet pass.

    Skipped: the layer 2 filter passing IP, the other filters passing frames without IP, and base chains that return.
    """
    if not isinstance(walk.end, Accept):
        return True
    decider = walk.decider
    if decider is not None and not decider.callers and isinstance(decider.verdict, Return):
        return False
    return decider is not None and walk.table.key.tool != "ebtables" and decider.origin not in PASSING


def _walk_lines(stage: StageWalk, walk: ChainWalk, *, verbose: bool) -> Iterator[str]:
    decider = walk.decider
    last = decider if decider is not None else (walk.steps[-1] if walk.steps else None)
    chains = [walk.chain.name]
    if last is not None and not walk.policy:
        chains = [*(caller.chain.name for caller in last.callers), last.chain.name]
    end = _end_text(walk)
    yield f"    {stage.stage!s:<18} {walk.table.key}: {' → '.join(chains)}: {end}"
    if verbose:
        for step in walk.steps:
            if step.rule.verdict is not None or step.rule.effects:  # else a comment: our signatures
                yield f"      {'✓' if step.matched else '·'} {_tried_text(step)}"
    elif decider is not None:
        yield f"      {step_text(decider)}"


def _end_text(walk: ChainWalk) -> str:
    match walk.end:
        case Accept():
            return "policy accept" if walk.policy else "accept"
        case Drop():
            return "policy drop" if walk.policy else "drop"
        case Reject():
            return verdict_text(walk.end)
        case UnknownVerdict(text):
            return f"unknown ({text})"


def step_text(step: Step) -> str:
    """Return a rule with its place: chain, number, the configuration's file and line, and text."""
    place = f" ({step.origin})" if step.origin else ""
    return f"{step.chain.name} rule {step.number}{place}: {_short(step)}"


def _short(step: Step) -> str:
    text = rule_text(step.rule).removeprefix(f"-A {step.chain.name} ").strip()
    return text if len(text) <= _MAX_RULE else text[: _MAX_RULE - 1] + "…"


def _tried_text(step: Step) -> str:
    if step.failed is None:
        return step_text(step)
    return f"{step_text(step)}  [{_why_not(step.failed, step.seen)}]"


def _why_not(failed: Condition, seen: int | None) -> str:
    """Return why a rule did not match: ``ct state is new``, or the condition where no single value tells it."""
    if isinstance(failed, Test) and seen is not None and failed.field.size > 2:
        return f"{failed.field} is {value_text(failed.field, seen)}"
    why = condition_text(failed)
    return f"no: {why if len(why) <= 80 else why[:79] + '…'}"


def _log_text(log: Log) -> str:
    where = f"NFLOG group {log.group}" if log.group is not None else f"level {log.level}"
    return f'"{log.prefix}" ({where})'


# --- data ---------------------------------------------------------------------------------------------------


def outcome_data(outcome: Outcome, *, verbose: bool = False) -> dict[str, Data]:
    """Return the same as plain data; names and meaning of the keys are a public interface."""
    decider = outcome.decider
    fields = outcome.probe.fields
    return {
        "verdict": outcome.verdict,
        "kind": outcome.kind,
        "answered": outcome.answered,
        "stopped_by": outcome.stopped,
        "packet": packet_text(fields),
        "fields": {on.name: value_text(on, value) for on, value in fields.items() if on.size > 2},
        "from": end_text(outcome.probe.path.source),
        "to": end_text(outcome.probe.path.destination),
        "hops": list(_hops(outcome, verbose=verbose)),
        "decided_by": None if decider is None else _step_data(decider),
        "logs": [{"prefix": log.prefix, "group": log.group, "level": log.level} for log in outcome.logs],
        "notes": [*outcome.notes],
        "made_up": [_guess_data(guess) for guess in outcome.guesses],
    }


def _guess_data(guess: Guess) -> dict[str, Data]:
    on = guess.made_up.field
    return {
        "end": guess.made_up.end,
        "field": on.name,
        "address": value_text(on, guess.address),
        "stands_for_many": guess.made_up.stands_for_many,
        "otherwise": {verdict: _ranges(on, values) for verdict, values in guess.otherwise.items()},
        "complete": guess.complete,
        "text": guess_text(guess),
    }


def _ranges(on: Field, values: IntervalSet) -> list[Data]:
    return [range_text(on, first, last) for first, last in values]


def end_text(end: End) -> str:
    """Return an end by the name that finds it again."""
    return end.nic.name if isinstance(end, NicEnd) else str(end)


def _hops(outcome: Outcome, *, verbose: bool) -> Iterator[Data]:
    for stage in outcome.stages:
        for walk in stage.chains:
            decider = walk.decider
            data: dict[str, Data] = {
                "hop": stage.stage.hop,
                "hook": stage.stage.point.name.lower(),
                "family": "bridge" if stage.stage.family is Family.BRIDGE else "ip",
                "table": str(walk.table.key),
                "chain": walk.chain.name,
                "chains": [*dict.fromkeys(step.chain.name for step in walk.steps)],
                "end": _end_text(walk),
                "decided_by": None if decider is None else _step_data(decider),
            }
            if verbose:
                data["rules"] = [{**_step_data(step), "matched": step.matched} for step in walk.steps]
            yield data


def _step_data(step: Step) -> dict[str, Data]:
    return {
        "table": str(step.table.key),
        "chain": step.chain.name,
        "number": step.number,
        "rule": rule_text(step.rule),
        "origin": step.origin or None,
        "by": [f"{caller.chain.name} rule {caller.number}" for caller in step.callers if _goes(caller)],
    }


def _goes(step: Step) -> bool:
    return isinstance(step.rule.verdict, (Jump, Goto))
