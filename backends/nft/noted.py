"""Lowered chains taken from the pieces of an earlier artefact, where a chain is known to be lowered alike."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from pvefw_nft.backends.nft.place import Place, chain_name
from pvefw_nft.backends.nft.scope import Simple
from pvefw_nft.backends.nft.syntax.objects import Block, ConstantSet
from pvefw_nft.cache import Once
from pvefw_nft.ir.nodes import Goto, Jump, Layer, SetKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pvefw_nft.ir.nodes import Dispatch, Rule

_PIECE = re.compile(
    r'\{"add":\{"(rule|set|map)":\{"family":"([a-z]+)","table":"pvefw","(?:chain|name)":("(?:[^"\\]|\\.)*")'
)
_CALLS: dict[str, type[Jump | Goto]] = {"jump": Jump, "goto": Goto}


def note_of(stage: str, _: Any, result: Any) -> Any:  # noqa: ANN401 - of any stage
    """Return what to note of a cached result of this backend, as JSON; None: nothing, or it is of another stage."""
    if stage.startswith("block "):
        return [bool(result.text), [made.name for made in result.sets]]
    if stage.startswith("simple "):
        calls = [_call_as_json(call) for call in dict.fromkeys(result.calls)]
        return None if None in calls else [calls, [[key.scope, key.name, version] for key, version in result.sets]]
    return None


def _call_as_json(call: Jump | Goto | Dispatch) -> list[str] | None:
    match call:
        case Jump(chain):
            return ["jump", chain]
        case Goto(chain):
            return ["goto", chain]
        case _:
            return None


class NotedChains:
    """The chains and constant sets in the pieces of an artefact."""

    def __init__(self, pieces: Iterable[str]) -> None:
        """Find the chains in the pieces that :meth:`.NftArtefact.loadable` gave."""
        self._found: dict[tuple[str, bool, str], str] = {}
        for piece in pieces:
            if (found := _PIECE.match(piece)) is not None:
                name = found[3]
                name = json.loads(name) if "\\" in name else name[1:-1]
                self._found[found[2], found[1] == "rule", name] = piece

    def result(self, stage: str, name: str, noted: Any, _: Any, make: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Return the result of a stage for a chain of which ``noted`` was noted; None where it is not there."""
        kind, place, layer = stage.split(" ")
        if kind == "simple":
            calls, sets = noted
            return NotedSimple(
                make,
                tuple([_CALLS[action](chain) for action, chain in calls]),
                tuple([(SetKey(scope, set_name), version) for scope, set_name, version in sets]),
            )
        return self._block(Place(place).family, chain_name(Layer(layer), name), noted)

    def _block(self, family: str, name: str, noted: Any) -> Block | None:  # noqa: ANN401 - JSON
        has_text, names = noted
        text = self._found.get((family, True, name), "") if has_text else ""
        sets = [NotedSet(set_name, self._found.get((family, False, set_name), "")) for set_name in names]
        if has_text != bool(text) or not all(made.text for made in sets):
            return None
        return Block(text, tuple(sets))


class NotedSet(ConstantSet):
    """A constant set by the command that made it."""

    __slots__ = ("text",)
    text: str

    def __init__(self, name: str, text: str) -> None:
        """Take the command as it was written."""
        super().__init__(name, (), (), verdicts=False, intervals=False)
        object.__setattr__(self, "text", text)

    def command(self, family: str, table: str) -> str:  # noqa: ARG002 - as of any set
        """Return the command."""
        return self.text


class NotedSimple(Simple):
    """A chain in its simplest form, whose rules are made when they are asked for."""

    __slots__ = ("_make",)
    _make: Callable[[], Simple]

    def __init__(
        self,
        make: Callable[[], Simple],
        calls: tuple[Jump | Goto | Dispatch, ...],
        sets: tuple[tuple[SetKey, int], ...],
    ) -> None:
        """Make nothing yet."""
        object.__setattr__(self, "_make", Once(make))
        object.__setattr__(self, "calls", calls)
        object.__setattr__(self, "sets", sets)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, made now."""
        return self._make().rules
