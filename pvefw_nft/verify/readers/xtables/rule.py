"""Reads one iptables rule: its matches and target, meaning what iptables-extensions(8) says."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.verify.model import (
    HAS_CONNECTION,
    Condition,
    Effect,
    Goto,
    Jump,
    UnknownVerdict,
    Verdict,
    rate_test,
)
from pvefw_nft.verify.readers.shared import Assume, RulesetError
from pvefw_nft.verify.readers.xtables.matches import BY_PROTOCOL, GENERAL, MATCHES, WITHOUT_VALUE, hashlimit_text
from pvefw_nft.verify.readers.xtables.state import Context, State, UnknownOptionError, split_words
from pvefw_nft.verify.readers.xtables.targets import PLAIN_TARGETS, TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pvefw_nft.verify.model import Table
    from pvefw_nft.verify.readers.ipset import IpSets
    from pvefw_nft.verify.readers.shared import Reading

Parsed: TypeAlias = tuple[tuple[Condition, ...], tuple[Effect, ...], Verdict | None]

_COMMENT = re.compile(r'-m comment --comment "[^"\\]*"')
_LEADING = re.compile(r'(-[sdio]) ([^!"\s][^"\s]*) (?=\S)')
_LOGGING = re.compile(r'([^"!]*[^"!\s]) -j NFLOG --nflog-prefix "([^"\\]+)"')
_OF_PORT = re.compile(
    r'(-m physdev(?: --physdev-is-bridged)?) (--physdev-(?:in|out)) ([^!"\s][^"\s]*) (-[jg] [^!"\s][^"\s]*)'
)
_WITH_PORT = re.compile(
    r'-p (tcp|udp) (--[sd]port) ([^!"\s][^"\s]*)( -m limit --limit [^!"\s][^"\s]*)?( -[jg] [^!"\s][^"\s]*)?'
)
_TARGET_WORDS = ("-j", "-g", "--jump", "--goto")


class RuleParser:
    """Reads the rules of one IP version. Bodies met before are not read again."""

    def __init__(self, version: int, reading: Reading, sets: IpSets) -> None:
        self.reading = reading
        self._context = Context(version, sets)
        self.known: dict[str, Parsed] = {}
        self._targets: dict[tuple[str, str], tuple[str, str]] = {}

    def parse(self, table: Table, chain: str, index: int, body: str) -> Parsed:
        """Return the conditions, effects and verdict of a rule's text, without ``-A CHAIN``."""
        known = self.known.get(body)
        if known is None:
            where = f"table {table.key}, chain {chain}, rule {index}"
            try:
                known = self._parse_known_parts(body) or self._parse(where, body)
            except (ValueError, KeyError, IndexError) as error:
                raise self.reading.error(where, f"cannot read '{body}': {error}") from None
            if self.reading.assume is None:
                self.known[body] = known
        target = known[2]
        if isinstance(target, (Jump, Goto)) and (table.key.name, target.chain) not in self._targets:
            self._targets[table.key.name, target.chain] = f"chain {chain}, rule {index}", body
        return known

    def _parse_known_parts(self, body: str) -> Parsed | None:
        """Return what :meth:`_parse` returns, made of parts that most rules repeat; None: read it as a whole.

        Options are read from left to right, so that a rule says what its parts say, as long as one part changes nothing
        for the other. Addresses and interfaces at the front change nothing for what follows, nor does a bridge port.
        Before ``-j NFLOG`` there must be no other target, and what is there must be readable by itself.
        """
        if self.reading.assume is not None:
            return None
        if _COMMENT.fullmatch(body):
            return (), (), None
        leading: list[Condition] = []
        place = 0
        try:
            while found := _LEADING.match(body, place):
                leading.append(self._leading_condition(*found.groups()))
                place = found.end()
            logging = _LOGGING.fullmatch(body, place)
            if logging is not None and not any(word in logging[1] for word in _TARGET_WORDS):
                conditions, effects, verdict = self._part(logging[1])
                more, _ = TARGETS["NFLOG"](self._context, {"--nflog-prefix": [logging[2]]})
                return (*leading, *conditions), effects + more, verdict
            dispatch = _OF_PORT.fullmatch(body, place)
            if dispatch is not None:
                return self._of_port(leading, *dispatch.groups())
            if not leading:
                return self._with_port(body)
            conditions, effects, verdict = self._part(body[place:])
        except (ValueError, KeyError, IndexError, RulesetError):
            return None  # reading the rule as a whole says what is wrong with it
        return (*leading, *conditions), effects, verdict

    def _of_port(self, leading: list[Condition], match: str, option: str, port: str, target: str) -> Parsed:
        """Return what a rule about a bridge port says. Raises what :meth:`_parse` raises."""
        state = State([port])
        MATCHES["physdev"][option](self._context, state, False)  # noqa: FBT003 - as for every reader of an option
        bridged, (conditions, effects, verdict) = self._part(match)[0], self._target_of(target)
        return (*leading, *bridged, *state.conditions, *conditions), effects, verdict

    def _target_of(self, text: str) -> Parsed:
        """Return what ``-j TARGET`` or ``-g CHAIN`` says. Raises what :meth:`_parse` raises."""
        option, _, target = text.partition(" ")
        if option == "-j" and target not in TARGETS and target not in PLAIN_TARGETS:
            return (), (), Jump(sys.intern(target))
        return self._part(text)

    def _part(self, body: str) -> Parsed:
        """Return what a part of a rule says. Raises what :meth:`_parse` raises."""
        known = self.known.get(body)
        if known is None:
            known = self.known[body] = self._with_port(body) or self._parse("", body)
        return known

    def _with_port(self, body: str) -> Parsed | None:
        """Return what a rule about a port says, of which only the limit and the target follow; None: another rule.

        Raises what :meth:`_parse` raises.
        """
        found = _WITH_PORT.fullmatch(body)
        if found is None:
            return None
        protocol, option, port, limit, target = found.groups()
        state = State([port], protocol=protocol)
        MATCHES[BY_PROTOCOL[protocol]][option](self._context, state, False)  # noqa: FBT003 - as for every option
        parts = [self._part(f"-p {protocol}"), (tuple(state.conditions), (), None)]
        parts += [self._part(limit.lstrip())] if limit else []
        parts += [self._target_of(target.lstrip())] if target else []
        *_, (_, effects, verdict) = parts
        return tuple([condition for conditions, _, _ in parts for condition in conditions]), effects, verdict

    def _leading_condition(self, option: str, value: str) -> Condition:
        """Return the condition of an option with a value. Raises what its reader raises."""
        state = State([value])
        GENERAL[option](self._context, state, False)  # noqa: FBT003 - as for every reader of an option
        return state.conditions[0]

    def check_targets(self, tables: Iterable[Table]) -> None:
        """Raise RulesetError for a rule whose target is neither a chain of its table nor an extension we
        know.

        With an assumption, such rules stay as they were read, as an unknown verdict.
        """
        for table in tables:
            for (name, target), (where, body) in self._targets.items():
                if name == table.key.name and target not in table.chains:
                    self._unknown_target(table, where, target, body)

    def _unknown_target(self, table: Table, where: str, target: str, body: str) -> None:
        self.reading.unknown(f"table {table.key}, {where}", body)
        nomatch = self.reading.assume is Assume.NOMATCH
        for chain in table.chains.values():
            for number, rule in enumerate(chain.rules):
                if isinstance(rule.verdict, (Jump, Goto)) and rule.verdict.chain == target:
                    verdict = None if nomatch else UnknownVerdict(f"-j {target}")
                    chain.rules[number] = rule._replace(verdict=verdict)

    def _parse(self, where: str, body: str) -> Parsed:
        state = State(split_words(body))
        words = state.words
        inverted = False
        while state.position < len(words):
            word = words[state.position]
            state.position += 1
            if word == "!":
                inverted = True
                continue
            try:
                self._option(state, word, inverted)
            except UnknownOptionError as error:
                text = self._skip_unknown(state, str(error), inverted)
                state.conditions.append(self.reading.unknown(where, text))
            inverted = False
        self._finish_held(state)
        effects, verdict = self._target(state, where)
        if state.target == "CONNMARK":
            state.conditions.append(HAS_CONNECTION)  # without one it does nothing (connmark_tg, xt_connmark.c)
        return tuple(state.conditions), effects, verdict

    def _skip_unknown(self, state: State, start: str, inverted: bool) -> str:  # noqa: FBT001
        """Return the text of an unknown match, up to the next match or target."""
        words = [start]
        while state.position < len(state.words) and state.words[state.position] not in GENERAL:
            following = state.words[state.position + 1 : state.position + 2]
            if state.words[state.position] == "!" and following and following[0] in GENERAL:
                break
            words.append(state.words[state.position])
            state.position += 1
        return ("! " if inverted else "") + " ".join(words)

    def _option(self, state: State, word: str, inverted: bool) -> None:  # noqa: FBT001
        general = GENERAL.get(word)
        if general is not None:
            general(self._context, state, inverted)
            return
        for module in reversed(state.modules):
            handler = MATCHES[module].get(word)
            if handler is not None:
                handler(self._context, state, inverted)
                return
        implicit = BY_PROTOCOL.get(state.protocol)
        handler = MATCHES[implicit].get(word) if implicit else None
        if handler is not None:
            handler(self._context, state, inverted)
        elif state.target and word.startswith("--"):
            values = state.options.setdefault(word, [])
            if word not in WITHOUT_VALUE and state.position < len(state.words):
                values.append(state.take())
            while state.position < len(state.words) and not state.words[state.position].startswith("-"):
                values.append(state.take())
        else:
            raise UnknownOptionError(f"-m {state.modules[-1]} {word}" if state.modules else word)

    # --- matches that belong together --------------------------------------------------------------------

    def _finish_held(self, state: State) -> None:
        """Make the conditions of matches whose options only mean something together."""
        held = state.held
        if "limit" in held:
            rate = held["limit"][0]
            burst = held.get("limit-burst", ["5"])[0]
            state.conditions.append(rate_test(f"{rate} burst {int(burst)}", over="limit-over" in held))
        if "hash-rate" in held:
            over = held["hash-kept"] == ["over"]
            counter = "".join(held.get("hash-name", [])) or None
            text = hashlimit_text(held, self._context.version)
            state.conditions.append(rate_test(text, over=over, counter=counter))

    # --- targets -------------------------------------------------------------------------------------------

    def _target(self, state: State, where: str) -> tuple[tuple[Effect, ...], Verdict | None]:
        target = state.target
        if not target:
            return (), None
        if state.is_goto:
            return (), Goto(sys.intern(target))
        plain = PLAIN_TARGETS.get(target)
        if plain is not None:
            return (), plain
        maker = TARGETS.get(target)
        if maker is None:
            if state.options:
                self.reading.unknown(where, " ".join([f"-j {target}", *state.options]))
                return (), None if self.reading.assume is Assume.NOMATCH else UnknownVerdict(f"-j {target}")
            return (), Jump(sys.intern(target))
        options = dict(state.options)
        effects, verdict = maker(self._context, options)
        if options:
            self.reading.unknown(where, f"-j {target} {' '.join(options)}")
        return effects, verdict
