"""Reads one nft rule in JSON form: matches, statements and verdict.

Example: ``{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}}``
becomes the tests ``l4proto in [6]`` and ``dport in [22]``.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.verify.model import (
    ACCEPT,
    DPORT,
    DROP,
    DSCP,
    EXTENSION,
    EXTENSIONS,
    FRAGMENT,
    HAS_CONNECTION,
    ICMP,
    ICMP6,
    INNER_TYPE,
    INNER_VLAN_ID,
    IPV4,
    IPV6,
    L4PROTO,
    MARK,
    NO_EXTENSION,
    PROTOCOL,
    RETURN,
    SPORT,
    TAGS,
    TCP_FLAGS,
    TH_DESTINATION,
    TH_SOURCE,
    TRUE,
    TTL,
    VLAN_ID,
    All,
    Alter,
    Any,
    Condition,
    CopyMark,
    Effect,
    Family,
    Field,
    FieldKind,
    Goto,
    Guard,
    Jump,
    Log,
    MarkTarget,
    Nat,
    Not,
    NoTrack,
    PlainVerdict,
    Queue,
    Reject,
    SetField,
    SetHelper,
    SetZone,
    Test,
    UnknownVerdict,
    UpdateSet,
    Verdict,
    VerdictMap,
    equals,
    expiry_field,
    label_field,
    names,
    negate,
    rate_test,
)
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.readers.nft.parts import (
    REJECTIONS,
    any_of,
    as_integer,
    flag_bits,
    harmless,
    helper_match,
    is_expression,
    is_over,
    label_match,
    label_number,
    limit_text,
    mark_bits,
    mark_change,
    mark_match,
    member_condition,
    merged,
    nat_range,
    route_match,
    state_match,
    status_match,
)
from pvefw_nft.verify.readers.nft.values import (
    ND_TARGET_SELECTOR,
    ND_TYPES,
    PORTED,
    Json,
    Selector,
    UnknownExpressionError,
    as_list,
    as_object,
    as_pair,
    ranges_of,
    selector,
    text_of,
    values_of,
)
from pvefw_nft.verify.readers.shared import Assume

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.verify.readers.shared import Reading

Parsed: TypeAlias = tuple[tuple[Condition, ...], tuple[Effect, ...], Verdict | None]
Lasting: TypeAlias = tuple[tuple[Test, ...], Condition]
"""A match's meaning, and all that it depends on, in any rule of a table."""


@dataclass(slots=True)
class NftTable:
    """The objects of a table that rules refer to by name: the members of sets and maps, and the types of helpers.

    ``counting`` are references of sets that rules fill with rates. Their members are unknown.
    """

    family: Family
    name: str
    elements: dict[str, list[Json]] = field(default_factory=dict)
    helpers: dict[str, str] = field(default_factory=dict)
    values: dict[tuple[str, Field], IntervalSet] = field(default_factory=dict)
    counting: set[str] = field(default_factory=set)
    timeouts: dict[str, str] = field(default_factory=dict)
    lookups: set[str] = field(default_factory=set)

    def set_name(self, reference: str) -> str:
        """Return the name of a set by its reference, unique among all tables."""
        return f"nft {self.family.value} {self.name} {reference[1:]}"

    def members(self, reference: str) -> list[Json]:
        """Return the elements of a set or map by its reference, ``@name``; raises ValueError."""
        self.lookups.add(self.set_name(reference))
        known = self.elements.get(reference[1:])
        if known is None:
            raise ValueError(f"there is no set or map '{reference[1:]}'")
        return known


TAG_TYPES = IntervalSet.from_ranges((tag, tag) for tag in TAGS)
_TAG_FIELDS: dict[tuple[tuple[object, ...], int | None], Field] = {
    (("ll", 112, 16), 0x0FFF): VLAN_ID,
    (("ll", 144, 16), 0x0FFF): INNER_VLAN_ID,
    (("ll", 160, 16), None): INNER_TYPE,
}
"""Bits of a frame with two VLAN tags (IEEE 802.1Q, section 9.6): their place in the frame, mask, and field."""


def _is_plain(left: dict[str, Json]) -> bool:
    """Return whether an expression reads a named field unchanged, by a cheap test: nearly all do."""
    payload, meta = left.get("payload"), left.get("meta")
    if len(left) != 1:
        return False
    if isinstance(payload, dict):
        return "protocol" in payload and "base" not in payload and payload.get("field") not in ("flags", "frag-off")
    return isinstance(meta, dict) and meta.get("key") != "mark"


def _plain_match(left: Json, operator: str, right: Json) -> tuple[str | int, ...] | None:
    """Return what a match of a named field with one value says; None for another match.

    A type is compared, since True equals 1 and is no value. The members of a set by name may change.
    """
    if operator != "==" or not isinstance(left, dict) or not _is_plain(left):
        return None
    if type(right) is str:
        if right.startswith("@"):
            return None
    elif type(right) is not int:
        return None
    payload, meta = left.get("payload"), left.get("meta")
    if isinstance(payload, dict):
        protocol, name = payload.get("protocol"), payload.get("field")
        if len(payload) == 2 and isinstance(protocol, str) and isinstance(name, str):
            return protocol, name, right
    elif isinstance(meta, dict) and len(meta) == 1 and isinstance(key := meta.get("key"), str):
        return key, right
    return None


class NftRuleParser:
    """Read the rules of one table, whose sets and maps do not change meanwhile."""

    def __init__(self, table: NftTable, reading: Reading) -> None:
        self.table = table
        self.reading = reading
        self.conditions: list[Condition] = []
        self.effects: list[Effect] = []
        self.verdict: Verdict | None = None
        self.where = ""
        self._matches: dict[tuple[str | int, ...], Lasting] = {}
        """The meaning of plain matches. Most rules repeat matches of others."""
        self._known: dict[str, Lasting | Verdict] = {}
        self._parsed: dict[str, Parsed] = {}
        """By text: what matches say in any rule and plain verdicts, and whole rules."""

    def parse(self, statements: list[Json], where: str) -> Parsed:
        """Return the conditions, effects and verdict of a rule. Raises RulesetError, naming ``where``."""
        self.conditions, self.effects, self.verdict, self.where = [], [], None, where
        for statement in statements:
            self._read(statement)
        return self._made()

    def parse_text(self, text: str, where: str) -> Parsed | None:
        """As :meth:`parse`, of the text between the brackets of a JSON list; None: read it as JSON.

        The text is split at commas that seem to divide statements. If each piece is a JSON object, these are the
        list's elements, since a text has one meaning as JSON at most. Of pieces and whole rules that were met before,
        the meaning is known, but of rules that change a set: what these do depends on which sets were looked up before.
        Where something is assumed, that is told of each rule, so all are read.
        """
        if self.reading.assume is not None:
            return None
        known = self._parsed.get(text)
        if known is not None:
            return known
        pieces = _BETWEEN_STATEMENTS.split(text)
        statements = [self._known.get(piece) or _decoded(piece) for piece in pieces]
        if None in statements:
            return None
        self.conditions, self.effects, self.verdict, self.where = [], [], None, where
        for piece, statement in zip(pieces, statements, strict=True):
            if isinstance(statement, tuple):
                self._depend(statement[0])
                self._require(statement[1])
            elif isinstance(statement, dict):
                lasting = self._read(statement)
                if lasting is not None:
                    self._known[piece] = lasting
                elif statement.keys() <= _PLAIN and self.verdict is not None:
                    self._known[piece] = self.verdict
            elif statement is not None:
                self.verdict = statement
        made = self._parsed[text] = self._made()
        return made

    def _made(self) -> Parsed:
        return merged(self.conditions), tuple(self.effects), self.verdict

    def _read(self, statement: Json) -> Lasting | None:
        """Read a statement of the rule, as :meth:`_statement` does. Raises RulesetError."""
        try:
            return self._statement(statement)
        except UnknownExpressionError as error:
            text = text_of(statement)
            detail = text if str(error) in text else f"{text} ({error})"
            self._require(self.reading.unknown(self.where, detail))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise self.reading.error(self.where, f"cannot read '{text_of(statement)}': {error}") from None
        return None

    def _require(self, condition: Condition) -> None:
        """Add a condition that the rest of the rule depends on."""
        if self.effects:
            # statements run in order: those before this condition take effect even if it does not hold
            self.effects.append(Guard(condition))
        elif condition not in self.conditions:
            self.conditions.append(condition)

    def _statement(self, statement: Json) -> Lasting | None:
        if not isinstance(statement, dict) or len(statement) != 1:
            raise UnknownExpressionError(text_of(statement))
        (kind, body), = statement.items()  # fmt: skip
        if kind == "match":
            return self._match(body)
        if kind == "limit":
            rate = rate_test(limit_text(body), over=is_over(body))
            self._require(rate)
            return (), rate
        handler = _STATEMENTS.get(kind)
        if handler is None:
            raise UnknownExpressionError(text_of(statement))
        handler(self, body)
        return None

    # --- matches --------------------------------------------------------------------------------------------

    def _match(self, body: Json) -> Lasting | None:
        """Read a match. Return what it depends on and says, where that is the same in any rule of the table."""
        body = as_object(body)
        left, right, operator = body.get("left"), body.get("right"), str(body.get("op", "=="))
        key = _plain_match(left, operator, right)
        known = None if key is None else self._matches.get(key)
        if known is not None:
            self._depend(known[0])
            self._require(known[1])
            return known
        if isinstance(right, str) and right in self.table.counting:
            # rules fill this set as packets come: its members are as open as the state of a rate
            self._require(rate_test(f"of who is in {right}", over=operator in ("==", "in")))
            return None
        if isinstance(left, dict):
            if "concat" in left:
                condition = self._concat(left["concat"], right)
                self._require(Not(condition) if operator == "!=" else condition)
                return None
            special = None if _is_plain(left) else self._special(left, operator, right)
            if special is not None:
                self._require(special)
                return None
        on = self._selector(left)
        condition = self._everywhere(left, on, operator, right)
        self._require(condition)
        if on.of_any_protocol:
            return None
        lasting = self._needs(on), condition  # whatever the rule's other conditions are
        if key is not None:
            self._matches[key] = lasting
        return lasting

    def _everywhere(self, left: Json, on: Selector, operator: str, right: Json) -> Condition:
        """Return the condition of a match, also where its operand is in another field of the model.

        ``ip6 nexthdr`` is the number of the first header, which may be one of an extension; ``th dport`` are bytes of
        whatever follows the network header (nft_payload_eval and nft_meta_get_eval of net/netfilter).
        """
        if is_expression(left, "payload", "ip6", "nexthdr"):
            first = self._compare(on, operator, right)
            assert isinstance(first, Test)
            extended = Test(EXTENSION, first.values & EXTENSIONS)
            return Any((All((equals(EXTENSION, NO_EXTENSION), first)), extended))
        if on.of_any_protocol and not self._has(PORTED):
            others = (SPORT, ICMP, ICMP6, TH_SOURCE) if on.field is SPORT else (DPORT, TH_DESTINATION)
            return Any(tuple(self._compare(replace(on, field=other), operator, right) for other in others))
        return self._compare(on, operator, right)

    def _selector(self, expression: Json) -> Selector:
        """Return the field of an expression, after requiring the conditions that it depends on."""
        on = selector(expression, self.table.family)
        self._depend(self._needs(on))
        return on

    def _needs(self, on: Selector) -> tuple[Test, ...]:
        """Return the tests that a field depends on."""
        if self.table.family in (Family.IP, Family.IP6, Family.ARP):
            # hooks of these families see packets of one network protocol only
            return tuple(test for test in on.depends if test.field is not PROTOCOL)
        return on.depends

    def _depend(self, tests: tuple[Test, ...]) -> None:
        """Require the conditions that a field depends on."""
        for test in tests:
            if not self._has(test):
                self._require(test)

    def _has(self, test: Test) -> bool:
        """Return whether the rule already has a condition as strict as this test."""
        for condition in self.conditions:
            if condition is test:
                return True
            if isinstance(condition, Test) and condition.field is test.field:
                both = condition.values & test.values
                if both is condition.values:
                    return True
        return False

    def _compare(self, on: Selector, operator: str, right: Json) -> Condition:
        timed = self._timed(right)
        if timed:
            return self._expiring(on, operator, right, timed)
        values = self._values(on, right)
        if operator in ("==", "in"):
            return Test(on.field, values)
        if operator in ("!=", "!"):
            return negate(Test(on.field, values))
        ranges = ranges_of(on, right)
        first, last = ranges[0][0], ranges[-1][1]
        wanted = {
            "<": (0, first - 1),
            "<=": (0, last),
            ">": (last + 1, on.domain - 1),
            ">=": (first, on.domain - 1),
        }[operator]
        if wanted[0] > wanted[1]:
            return Test(on.field, IntervalSet())
        pairs = on.widen(*wanted) if on.widen is not None else [wanted]
        return Test(on.field, IntervalSet.from_ranges(pairs))

    def _values(self, on: Selector, right: Json) -> IntervalSet:
        if isinstance(right, str) and right.startswith("@"):
            key = (right, on.field)
            known = self.table.values.get(key)
            if known is None or on.widen is not None:
                known = values_of(on, self.table.members(right))
                self.table.values[key] = known
            return known
        return values_of(on, right)

    def _timed(self, right: Json) -> dict[str, list[Json]]:
        """Return the elements of a set that expire, by their timeout."""
        found: dict[str, list[Json]] = {}
        if isinstance(right, str) and right.startswith("@"):
            for element in self.table.members(right):
                inner = element.get("elem") if isinstance(element, dict) else None
                if isinstance(inner, dict) and {"timeout", "expires"} & inner.keys():
                    timeout = inner.get("timeout", self.table.timeouts.get(right[1:], "a timeout"))
                    found.setdefault(f"{timeout} s", []).append(inner["val"])
        return found

    def _expiring(self, on: Selector, operator: str, right: Json, timed: dict[str, list[Json]]) -> Condition:
        """Return the condition of a set with elements that expire: each matches until then."""
        if operator not in ("==", "in", "!=", "!"):
            raise UnknownExpressionError(f"{on.field} {operator} {right}")
        expiring = [value for values in timed.values() for value in values]
        lasting = [
            element
            for element in self.table.members(str(right))
            if not (isinstance(element, dict) and "elem" in element and as_object(element["elem"])["val"] in expiring)
        ]
        parts: list[Condition] = [Test(on.field, values_of(on, lasting))]
        parts += [
            All((Test(on.field, values_of(on, values)), equals(expiry_field(timeout), 0)))
            for timeout, values in timed.items()
        ]
        return Any(tuple(parts)) if operator in ("==", "in") else Not(Any(tuple(parts)))

    def _concat(self, parts: Json, right: Json) -> Condition:
        """Return the condition of a concatenation in a set: one of the members, part by part."""
        selectors = [self._selector(part) for part in as_list(parts)]
        if isinstance(right, str) and right.startswith("@"):
            members = self.table.members(right)
        elif isinstance(right, dict) and "set" in right:
            members = as_list(right["set"])
        else:
            members = [right]
        return Any(tuple(self._member(selectors, member) for member in members))

    def _member(self, selectors: list[Selector], element: Json) -> Condition:
        """Return the condition of one member of a set or map. Raises UnknownExpressionError.

        ``th dport`` is read there only beside a protocol that has ports, or behind a match of such.
        """
        condition = member_condition(selectors, element)
        if any(on.of_any_protocol for on in selectors) and not self._has(PORTED):
            tests = condition.of if isinstance(condition, All) else (condition,)
            if not any(isinstance(t, Test) and t.field is L4PROTO and not t.values - PORTED.values for t in tests):
                raise UnknownExpressionError("th ports without a protocol")
        return condition

    def _special(self, left: dict[str, Json], operator: str, right: Json) -> Condition | None:
        """Return the condition of a match on marks, flags, fragments or with a mask; None: a plain match."""
        mask: Json = None
        inner: Json = left
        if "&" in left:
            inner, mask = as_pair(left["&"])
        bits = mark_bits(inner)
        if bits is not None:
            return mark_match(bits, mask, operator, right)
        if is_expression(inner, "payload", "tcp", "flags"):
            return self._tcp_flags(inner, mask, operator, right)
        if is_expression(inner, "payload", "ip", "frag-off"):
            return self._fragment(mask, operator, right)
        if inner == {"exthdr": {"name": "frag"}} and mask is None:
            return self._has_fragment_header(operator, right)
        unnamed = self._unnamed(inner, mask, operator, right)
        if unnamed is not None:
            return unnamed
        if is_expression(inner, "ct", None, "status"):
            return status_match(mask, operator, right)
        for key, matching in _CONNECTION.items():
            if mask is None and is_expression(inner, "ct", None, key):
                return matching(operator, right)
        if mask is None and isinstance(fib := inner.get("fib") if isinstance(inner, dict) else None, dict):
            return route_match(fib, operator, right)
        if mask is not None:
            return self._masked(inner, mask, operator, right)
        return None

    def _tcp_flags(self, inner: Json, mask: Json, operator: str, right: Json) -> Condition:
        self._selector(inner)
        value = flag_bits(right)
        # nft(8), bitmask types: `in` matches if any of these flags is set, `!` if none is
        if operator in ("in", "!"):
            none_set = Test(TCP_FLAGS, IntervalSet.masked(value, 0, 8))
            return none_set if operator == "!" else negate(none_set)
        if mask is None and isinstance(right, dict):
            return self._compare(selector(inner, self.table.family), operator, right)
        test = Test(TCP_FLAGS, IntervalSet.masked(0xFF if mask is None else flag_bits(mask), value, 8))
        if operator not in ("==", "!="):
            raise UnknownExpressionError(f"tcp flags {operator}")
        return negate(test) if operator == "!=" else test

    def _fragment(self, mask: Json, operator: str, right: Json) -> Condition:
        """``ip frag-off & 0x1fff`` is zero for whole packets and first fragments, & 0x3fff for whole ones."""
        if not self._has(equals(PROTOCOL, IPV4)) and self.table.family not in (Family.IP, Family.IP6):
            self._require(equals(PROTOCOL, IPV4))
        whole = {0x1FFF: (0, 1), 0x3FFF: (0, 0)}.get(mask if isinstance(mask, int) else -1)
        if whole is None or right != 0 or operator not in ("==", "!="):
            raise UnknownExpressionError(f"ip frag-off & {mask} {operator} {right}")
        test = Test(FRAGMENT, IntervalSet.of(whole))
        return negate(test) if operator == "!=" else test

    def _has_fragment_header(self, operator: str, right: Json) -> Condition:
        """``exthdr frag exists`` holds for the fragments of IPv6 packets."""
        if operator not in ("==", "!=") or not isinstance(right, bool):
            raise UnknownExpressionError(f"exthdr frag {operator} {right}")
        if not self._has(equals(PROTOCOL, IPV6)):
            self._require(equals(PROTOCOL, IPV6))
        fragments = Test(FRAGMENT, IntervalSet.of((1, 2)))
        return fragments if right == (operator == "==") else negate(fragments)

    def _unnamed(self, inner: Json, mask: Json, operator: str, right: Json) -> Condition | None:
        """Return the condition of a match on bits without a name in nft, if they are known here.

        Behind the transport header of neighbour discovery, the target address; in a frame with two VLAN tags, the ids
        of both and what is behind them.
        """
        body = inner.get("payload") if isinstance(inner, dict) else None
        if not isinstance(body, dict) or not isinstance(mask, int | None):
            return None
        place = tuple(body.get(key) for key in ("base", "offset", "len"))
        if place == ("th", 64, 128) and mask is None and self._has(Test(ICMP6, ND_TYPES)):
            return self._compare(ND_TARGET_SELECTOR, operator, right)
        on = _TAG_FIELDS.get((place, mask))
        if on is not None and self._has(Test(PROTOCOL, TAG_TYPES)):
            return self._compare(Selector(on), operator, right)
        return None

    def _masked(self, inner: Json, mask: Json, operator: str, right: Json) -> Condition:
        on = self._selector(inner)
        if (
            (on.of_any_protocol and not self._has(PORTED))
            or on.widen is not None
            or on.field.kind not in _BITWISE
            or operator not in ("==", "!=")
        ):
            raise UnknownExpressionError(f"{on.field} & {text_of(mask)} {operator}")
        bits = (on.domain - 1).bit_length()
        number = ranges_of(on, mask)[0][0]
        values = IntervalSet()
        for first, last in ranges_of(on, right):
            if first != last:
                raise UnknownExpressionError(f"{on.field} & {text_of(mask)} {text_of(right)}")
            values |= IntervalSet.masked(number, first, bits)
        test = Test(on.field, values)
        return negate(test) if operator == "!=" else test

    # --- verdict maps and limits ----------------------------------------------------------------------------

    def _vmap(self, body: Json) -> None:
        body = as_object(body)
        key, data = body.get("key"), body.get("data")
        members: Json = data
        if isinstance(data, str) and data.startswith("@"):
            members = self.table.members(data)
        elif isinstance(data, dict):
            members = data.get("set")
        concat = key.get("concat") if isinstance(key, dict) else None
        parts = concat if isinstance(concat, list) else [key]
        bits = mark_bits(key)
        selectors = [] if bits is not None else [self._selector(part) for part in parts]
        entries: list[tuple[Condition, PlainVerdict]] = []
        default: PlainVerdict | None = None
        for member in as_list(members):
            element, target = as_pair(member)
            verdict = self._plain(target)
            if element == "*":
                default = verdict
            elif bits is not None:
                entries.append((mark_match(bits, None, "==", element), verdict))
            else:
                entries.append((self._member(selectors, element), verdict))
        if default is not None:
            entries.append((Not(Any(tuple(condition for condition, _ in entries))), default))
        self.verdict = VerdictMap(tuple(entries))

    def _plain(self, body: Json) -> PlainVerdict:
        if isinstance(body, dict) and len(body) == 1:
            (kind, target), = body.items()  # fmt: skip
            if kind in _VERDICTS:
                return _VERDICTS[kind]
            if kind in ("jump", "goto") and isinstance(target, dict):
                name = sys.intern(str(target["target"]))
                return Jump(name) if kind == "jump" else Goto(name)
        raise UnknownExpressionError(text_of(body))

    def _go(self, kind: str, body: Json) -> None:
        self.verdict = self._plain({kind: body})

    def _count(self, body: Json) -> None:
        """``ct count over N``: more connections than that came to this rule."""
        body = as_object(body)
        self._require(rate_test(f"{body['val']} connections", over=bool(body.get("inv"))))

    def _set(self, body: Json) -> None:
        """``update @set { key limit rate over … }``: a rate of its own for each key."""
        body = as_object(body)
        statements = body.get("stmt")
        if not statements or self.table.set_name(str(body.get("set"))) in self.table.lookups:
            self.effects.append(self._update(body))
        if not statements:
            return
        element = body.get("elem")
        if isinstance(element, dict) and "elem" in element:
            element = as_object(element["elem"])["val"]
        key = self._rate_key(element)
        for statement in as_list(statements):
            if not isinstance(statement, dict) or len(statement) != 1:
                raise UnknownExpressionError(text_of(statement))
            if "limit" in statement:
                limit = statement["limit"]
                counter = self.table.set_name(str(body.get("set")))
                self._require(rate_test(f"{limit_text(limit)} per {key}", over=is_over(limit), counter=counter))
            elif "counter" not in statement:
                raise UnknownExpressionError(text_of(statement))

    def _update(self, body: dict[str, Json]) -> UpdateSet:
        """Return that a set gets or loses an element, for how long; without one said, for the set's timeout."""
        name = str(body.get("set"))
        timeout = self.table.timeouts.get(name[1:])
        text = f"{body.get('op')} {text_of(body.get('elem'))}" + (f" timeout {timeout}" if timeout else "")
        return UpdateSet(self.table.set_name(name), text)

    def _rate_key(self, element: Json) -> str:
        mask: Json = None
        inner = element
        if isinstance(element, dict) and "&" in element:
            inner, mask = as_pair(element["&"])
        on = self._selector(inner)
        if on.of_any_protocol and not self._has(PORTED):
            raise UnknownExpressionError(text_of(inner))
        bits = (on.domain - 1).bit_length()
        length = bits
        if mask is not None:
            number = ranges_of(on, mask)[0][0]
            length = bits - ((number ^ ((1 << bits) - 1)).bit_length())
        return f"{on.field}/{length}"

    # --- other statements -----------------------------------------------------------------------------------

    def _reject(self, body: Json) -> None:
        kind = str(body["type"]) if isinstance(body, dict) and "type" in body else ""
        code = body.get("expr") if isinstance(body, dict) else None
        family = self.table.family
        if not kind:
            kind = {Family.IP: "icmp", Family.IP6: "icmpv6"}.get(family, "icmpx")
        code = "port-unreachable" if code is None else code
        if kind == "tcp reset":
            if not self._has(equals(L4PROTO, 6)):
                self._require(equals(L4PROTO, 6))
            self.verdict = Reject("tcp-reset", "tcp-reset")
            return
        pairs = REJECTIONS[kind]
        v4, v6 = pairs[str(code)]
        protocol = {"icmp": IPV4, "icmpv6": IPV6}.get(kind)
        if protocol is not None and family not in (Family.IP, Family.IP6):
            test = equals(PROTOCOL, protocol)
            if not self._has(test):
                self._require(test)
        self.verdict = Reject(v4, v6)

    def _log(self, body: Json) -> None:
        options = body if isinstance(body, dict) else {}
        group = options.get("group")
        level = options.get("level", "warn")
        if level == "audit":
            raise UnknownExpressionError("log level audit")
        self.effects.append(
            Log(
                str(options.get("prefix", "")),
                None if group is not None else names.LOG_LEVELS[str(level)],
                int(str(group)) if group is not None else None,
            )
        )

    def _mangle(self, body: Json) -> None:
        body = as_object(body)
        key, value = body.get("key"), body.get("value")
        bits = mark_bits(key)
        if bits is not None:
            target = MarkTarget.PACKET if bits is MARK else MarkTarget.CONNECTION
            change = mark_change(target, value)
            if target is MarkTarget.PACKET and isinstance(change, CopyMark):
                self._require(HAS_CONNECTION)  # the mark of no connection cannot be read, which ends the rule
            if target is MarkTarget.CONNECTION and change.keep:
                self._require(HAS_CONNECTION)
            self.effects.append(change)
        elif is_expression(key, "ct", None, "zone"):
            self._zone(as_object(as_object(key)["ct"]).get("dir"), value)
        elif is_expression(key, "ct", None, "label") and (number := label_number(value)) is not None:
            self.effects.append(SetField(label_field(number), 1))
        elif isinstance(key, dict) and key.keys() & {"payload"}:
            self.effects.append(self._set_field(key, value))
        elif isinstance(key, dict) and harmless(key):
            self.effects.append(Alter(f"{text_of(key)} set {text_of(value)}"))
        else:
            raise UnknownExpressionError(text_of(key))

    def _set_field(self, key: dict[str, Json], value: Json) -> SetField:
        """``ip dscp set cs1``: of fields that a packet has all the way, to a constant."""
        on = self._selector(key)
        if on.field not in _SETTABLE or on.widen is not None:
            raise UnknownExpressionError(text_of(key))
        ranges = ranges_of(on, value)
        if len(ranges) != 1 or ranges[0][0] != ranges[0][1]:
            raise UnknownExpressionError(text_of(value))
        return SetField(on.field, ranges[0][0])

    def _zone(self, direction: Json, value: Json) -> None:
        """``ct zone set 5``, or by a map, anonymous or named; where the map has no entry, the rule ends."""
        entries: list[tuple[Condition, int]]
        if isinstance(value, dict) and "map" in value:
            entries = [(condition, as_integer(zone)) for condition, zone in self._map(as_object(value["map"]))]
            self._require(any_of([condition for condition, _ in entries]))
        else:
            entries = [(TRUE, as_integer(value))]
        if any(not 0 <= zone < 1 << 16 for _, zone in entries):
            raise ValueError("a zone is a number from 0 to 65535")
        self.effects.append(SetZone(tuple(entries), direction != "reply", direction != "original"))

    def _map(self, body: dict[str, Json]) -> list[tuple[Condition, Json]]:
        """Return the entries of a map that is looked up: what a packet must be for one, and its value."""
        key, data = body.get("key"), body.get("data")
        if isinstance(data, str) and data.startswith("@"):
            members: Json = self.table.members(data)
        else:
            members = data.get("set") if isinstance(data, dict) else data
        concat = key.get("concat") if isinstance(key, dict) else None
        selectors = [self._selector(part) for part in (concat if isinstance(concat, list) else [key])]
        return [
            (self._member(selectors, element), value)
            for element, value in (as_pair(member) for member in as_list(members))
        ]

    def _helper(self, body: Json) -> None:
        name = str(body)
        if name not in self.table.helpers:
            raise ValueError(f"there is no ct helper '{name}'")
        self.effects.append(SetHelper(self.table.helpers[name]))

    def _queue(self, body: Json) -> None:
        options = body if isinstance(body, dict) else {}
        flags = options.get("flags", [])
        number = options.get("num", 0)
        first = last = 0
        if isinstance(number, int):
            first = last = number
        else:
            ends = as_pair(as_object(number).get("range"))
            first, last = as_integer(ends[0]), as_integer(ends[1])
        self.verdict = Queue(first, last, flags == "bypass" or (isinstance(flags, list) and "bypass" in flags))

    def _nat(self, kind: str, body: Json) -> None:
        options = body if isinstance(body, dict) else {}
        version = 6 if options.get("family") == "ip6" or self.table.family is Family.IP6 else 4
        if options.get("port") is None and options.get("addr") == _own_address(kind, version):
            # nothing changes, and no rule behind this one translates the packet
            self._require(equals(PROTOCOL, IPV6 if version == 6 else IPV4))
            self.verdict = ACCEPT
            return
        addresses = nat_range(options.get("addr"), lambda text: names.network_range(text, version))
        ports = nat_range(options.get("port"), lambda text: (int(text), int(text)))
        self.verdict = Nat(kind, None, addresses, ports)


def _decoded(piece: str) -> dict[str, Json] | None:
    """Return the statement that a piece of a rule's text is; None where it is none, or one that changes a set."""
    try:
        found = json.loads(piece)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found and "set" not in found else None


def _own_address(kind: str, version: int) -> Json:
    """Return the expression for the address that a translation of this kind would replace."""
    field = "daddr" if kind == "dnat" else "saddr"
    return {"payload": {"protocol": "ip6" if version == 6 else "ip", "field": field}}


_CONNECTION: dict[str, Callable[[str, Json], Condition | None]] = {
    "state": state_match,
    "label": label_match,
    "helper": helper_match,
}
"""The readers of matches on a property of the connection, by key."""
_SETTABLE = (DSCP, TTL)
"""Fields that a rule may set: what decides about a packet's way, or about its connection, is not among them."""
_BITWISE = (FieldKind.NUMBER, FieldKind.IPV4, FieldKind.IPV6, FieldKind.MAC)
"""Kinds of fields whose values are nft's own numbers, so that a mask means the same for both."""

Statement: TypeAlias = "Callable[[NftRuleParser, Json], None]"


def _verdict(verdict: PlainVerdict) -> Statement:
    def handler(parser: NftRuleParser, _body: Json) -> None:
        parser.verdict = verdict

    return handler


def _nothing(_parser: NftRuleParser, _body: Json) -> None:
    """A statement that decides nothing and changes nothing a rule could look at."""


def _notrack(parser: NftRuleParser, _body: Json) -> None:
    parser.effects.append(NoTrack())


def _translating(kind: str) -> Statement:
    return lambda parser, body: parser._nat(kind, body)


def _xt(parser: NftRuleParser, body: Json) -> None:
    """An iptables extension that nft has no words for. Its arguments are not listed: no two are known to be alike."""
    text = text_of(body)
    if isinstance(body, dict) and body.get("name") == "comment":
        return
    condition = parser.reading.unknown(parser.where, f"xt {text}", whole=False)
    parser._require(condition)
    if isinstance(body, dict) and body.get("type") == "target" and parser.reading.assume is not Assume.NOMATCH:
        parser.verdict = UnknownVerdict(f"xt {text}")


_VERDICTS: dict[str, PlainVerdict] = {"accept": ACCEPT, "drop": DROP, "return": RETURN}
_PLAIN = {*_VERDICTS, "jump", "goto"}
"""Statements that only set the rule's verdict."""
_STATEMENTS: dict[str, Statement] = {
    **{kind: _verdict(verdict) for kind, verdict in _VERDICTS.items()},
    "jump": lambda parser, body: parser._go("jump", body),
    "goto": lambda parser, body: parser._go("goto", body),
    "continue": _nothing,
    "vmap": NftRuleParser._vmap,
    "counter": _nothing,
    "last": _nothing,
    "ct count": NftRuleParser._count,
    "set": NftRuleParser._set,
    "reject": NftRuleParser._reject,
    "log": NftRuleParser._log,
    "mangle": NftRuleParser._mangle,
    "ct helper": NftRuleParser._helper,
    "notrack": _notrack,
    "queue": NftRuleParser._queue,
    "xt": _xt,
    "comment": _nothing,
    **{name: _translating(name) for name in ("dnat", "snat", "masquerade", "redirect")},
}
_BETWEEN_STATEMENTS = re.compile(rf'(?<=\}}),(?=\{{"(?:{"|".join(["match", "limit", *_STATEMENTS])})":)')
"""The commas between the statements of a rule; others may look so, too."""
