"""Messages between the compiler's process and the one that applies: JSON, and the pieces of an artefact.

The compiler reads files of tenants, so the form of its messages is checked here, and the artefact by the engine
that applies it. A ruleset of 1,000 guests has 12 MB, so pieces that the last one had are named by their place in it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeVar

from pvefw_nft.app.desired import Result, diagnostic_as_json, diagnostic_of_json, texts_by_guest
from pvefw_nft.app.judgement import Cut, GuestLoss, Judgement
from pvefw_nft.app.nics import FilteredNics
from pvefw_nft.errors import (
    CompilerError,
    ConfigurationError,
    DeniedError,
    HostError,
    InternalError,
    PvefwError,
    UnreadableError,
    UsageError,
)
from pvefw_nft.host.backend_info import BACKENDS
from pvefw_nft.host.bridges.firewall_bridge import Nic
from pvefw_nft.host.bridges.unplugged import Misconfigured
from pvefw_nft.host.links import VlanRange
from pvefw_nft.host.records import record
from pvefw_nft.host.records.state import typed
from pvefw_nft.host.settings import Conntrack
from pvefw_nft.pipeline import Observations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pvefw_nft.host.records.record import Desired
    from pvefw_nft.pipeline.notes import LastCompile

_Key = TypeVar("_Key", str, tuple[str, str])

_BETWEEN = b"\0"  # no JSON text holds it
_ERRORS = {
    kind.__name__: kind
    for kind in (CompilerError, ConfigurationError, DeniedError, HostError, InternalError, UnreadableError, UsageError)
}
_BUG = "this is a bug of pvefw; please report it"
_INTERFACE = re.compile(r"(?:tap|veth)([1-9][0-9]{0,8})i([0-9]{1,2})")
_LONGEST = 10_000


def encode(message: dict[str, Any]) -> bytes:
    """Return a message as a frame."""
    return json.dumps(message).encode("ascii")


def decode(frame: bytes) -> dict[str, Any]:
    """Return the message of a frame. Raises CompilerError."""
    message: dict[str, Any] = checked(lambda: typed(json.loads(frame), dict))
    return message


def checked(read: Callable[[], Any]) -> Any:  # noqa: ANN401 - any JSON value
    """Return the content of a message. Raises CompilerError if its form is wrong."""
    try:
        return read()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError, UsageError) as error:
        raise CompilerError(f"the compiler's process sent an invalid message: {error!r}"[:300], _BUG) from error


# --- errors ---------------------------------------------------------------------------------------------------


def error_as_json(error: BaseException) -> list[str | None]:
    """Encode an error for the other process. Any error but a PvefwError is a bug of pvefw."""
    if not isinstance(error, PvefwError):
        return ["InternalError", f"pvefw failed: {type(error).__name__}: {error}"[:_LONGEST], _BUG]
    kinds = (kind.__name__ for kind in type(error).__mro__)
    name = next((name for name in kinds if name in _ERRORS), "InternalError")
    return [name, error.message[:_LONGEST], error.hint]


def error_of_json(value: Any) -> PvefwError:  # noqa: ANN401 - JSON
    """Return the error of a message."""
    kind, message, hint = value
    return _ERRORS[kind](typed(message, str)[:_LONGEST], None if hint is None else typed(hint, str)[:_LONGEST])


# --- rulesets -------------------------------------------------------------------------------------------------


def result_as_json(
    result: Result, sent: dict[str, int], past: LastCompile | None = None
) -> tuple[dict[str, Any], bytes]:
    """Return a result as a message, and the frame of the pieces that are not in ``sent``, by their place.

    Of answers and notes about guests, only those that differ from ``past`` are sent.
    """
    desired = result.desired
    conntrack = desired.conntrack
    fresh = [piece for piece in dict.fromkeys(desired.pieces) if piece not in sent]
    place = {piece: -1 - number for number, piece in enumerate(fresh)}
    message = {
        "backend": desired.backend,
        "enabled": desired.enabled,
        "conntrack": None if conntrack is None else [conntrack.maximum, conntrack.established, conntrack.syn_recv],
        "hardening": desired.hardening,
        "pieces": [sent[piece] if piece in sent else place[piece] for piece in desired.pieces],
        "diagnostics": [diagnostic_as_json(diagnostic) for diagnostic in result.diagnostics],
        "answers": _changes({} if past is None else past.observations.answers, result.observations.answers),
        "guests": _changes({} if past is None else past.guests, result.notes),
    }
    return message, _BETWEEN.join(piece.encode() for piece in fresh)


def result_of_json(
    message: dict[str, Any],
    frame: bytes,
    last: Desired | None,
    backend: str | None,
    past: LastCompile | None = None,
) -> Result:
    """Return the result of a message: ``last`` is the ruleset before it, ``backend`` the one that was asked for.

    ``past`` is as for :func:`result_as_json`.
    """
    fresh = frame.decode().split(_BETWEEN.decode()) if frame else []
    known = last.pieces if last is not None else ()
    name = typed(message["backend"], str)
    if name not in BACKENDS or backend not in (None, name):
        raise ValueError(f"a ruleset for {name[:40]!r}")
    numbers = message["conntrack"]
    conntrack = None if numbers is None else Conntrack(*(typed(number, int) for number in numbers))
    pieces = [known[typed(place, int)] if place >= 0 else fresh[-1 - place] for place in message["pieces"]]
    desired = record.desired(
        name,
        pieces,
        enabled=typed(message["enabled"], bool),
        conntrack=conntrack,
        hardening=typed(message["hardening"], str),
    )
    answers = _changed({} if past is None else past.observations.answers, message["answers"], _question_of)
    diagnostics = tuple(map(diagnostic_of_json, message["diagnostics"]))
    notes = _changed({} if past is None else past.guests, message["guests"], lambda key: typed(key, str))
    return Result(desired, diagnostics, Observations(answers), notes=texts_by_guest(notes))


def _changes(before: Mapping[Any, str], now: Mapping[Any, str]) -> list[Any]:
    """Return what turns one mapping into another as JSON, for :func:`_changed`. Keys are texts, or tuples of texts."""
    set_now = [[key, text] for key, text in now.items() if before.get(key) != text]
    return [set_now, [key for key in before if key not in now]]


def _changed(before: Mapping[_Key, str], changes: list[Any], key_of: Callable[[Any], _Key]) -> dict[_Key, str]:
    """Return a mapping with changes; ``key_of`` checks a key. Raises KeyError, TypeError and ValueError."""
    set_now, gone = changes
    found = dict(before)
    for key in gone:
        del found[key_of(key)]
    for key, text in set_now:
        found[key_of(key)] = typed(text, str)
    return found


def _question_of(value: Any) -> tuple[str, str]:  # noqa: ANN401 - JSON
    kind, name = value
    return typed(kind, str), typed(name, str)


def observations_as_json(observations: Observations) -> list[list[str]]:
    """Return the answers that a compile had as a message."""
    return [[*question, answer] for question, answer in observations.answers.items()]


def observations_of_json(value: list[list[str]]) -> Observations:
    """Return the answers of a message."""
    return Observations({(typed(kind, str), typed(about, str)): typed(answer, str) for kind, about, answer in value})


# --- judgements -----------------------------------------------------------------------------------------------


def judgement_as_json(judgement: Judgement) -> dict[str, Any]:
    """Return a judgement as a message."""
    return {
        "cuts": [[cut.connection, cut.effect, cut.place, cut.add] for cut in judgement.cuts],
        "guests": [[loss.place, loss.connections] for loss in judgement.guests],
        "notes": judgement.notes,
    }


def judgement_of_json(message: dict[str, Any]) -> Judgement:
    """Return the judgement of a message."""
    cuts = tuple(
        Cut(typed(connection, str), typed(effect, str), typed(place, str), typed(add, str))
        for connection, effect, place, add in message["cuts"]
    )
    guests = tuple(GuestLoss(typed(place, str), _texts(lost)) for place, lost in message["guests"])
    return Judgement(cuts, guests, _texts(message["notes"]))


def _texts(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - JSON
    return tuple(typed(text, str) for text in typed(value, list))


# --- NICs -----------------------------------------------------------------------------------------------------


def nics_as_json(found: FilteredNics) -> dict[str, Any]:
    """Return filtered NICs as a message."""
    return {
        "nics": [
            [
                nic.interface,
                nic.bridge,
                nic.vmid,
                nic.index,
                nic.tag,
                [[part.first, part.last] for part in nic.trunks],
                nic.mtu,
            ]
            for nic in found.nics
        ],
        "misconfigured": [[one.interface, one.firewall_bridge, one.reason, one.hint] for one in found.misconfigured],
    }


def nics_of_json(message: dict[str, Any]) -> FilteredNics:
    """Return the NICs of a message."""
    misconfigured = [
        Misconfigured(
            typed(interface, str), typed(bridge, str), typed(reason, str), None if hint is None else typed(hint, str)
        )
        for interface, bridge, reason, hint in message["misconfigured"]
    ]
    return FilteredNics(tuple(map(_nic, message["nics"])), tuple(misconfigured))


def _nic(value: Sequence[Any]) -> Nic:
    interface, bridge, vmid, index, tag, trunks, mtu = value
    found = _INTERFACE.fullmatch(typed(interface, str))
    if found is None or (int(found[1]), int(found[2])) != (typed(vmid, int), typed(index, int)):
        raise ValueError(f"a NIC {interface[:40]!r} of guest {vmid}")
    ranges = tuple(VlanRange(typed(first, int), typed(last, int)) for first, last in trunks)
    numbers = [None if number is None else typed(number, int) for number in (tag, mtu)]
    return Nic(interface, typed(bridge, str), vmid, index, numbers[0], ranges, numbers[1])
