"""Expressions of nft's own syntax: fields of a packet, and the values they are compared with."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pvefw_nft.verify.model import names
from pvefw_nft.verify.readers.nft.text_tokens import NUMBER, Tokens, integer

if TYPE_CHECKING:
    from pvefw_nft.verify.readers.nft.values import Json

_LINK = ("ether", "vlan", "arp")
_NETWORK = ("ip", "ip6", "icmp", "icmpv6", "igmp")
_TRANSPORT = ("tcp", "udp", "udplite", "sctp", "dccp", "th", "esp", "ah", "comp")
PAYLOADS = frozenset((*_LINK, *_NETWORK, *_TRANSPORT))
"""The headers whose fields are read; ``th`` is the header of any protocol with ports."""

_UNQUALIFIED = frozenset(
    ("iif", "oif", "iifname", "oifname", "iiftype", "oiftype", "skuid", "skgid", "rtclassid", "mark", "pkttype")
)
"""The properties of ``meta`` that nft writes without this word, and so do older versions (nft(8))."""

_ADDRESS = r"[0-9]+(?:\.[0-9]+){3}|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*|[0-9]+|0x[0-9a-fA-F]+"
_RANGE = re.compile(rf"({_ADDRESS})-({_ADDRESS})")
_PREFIX = re.compile(rf"({_ADDRESS})/([0-9]{{1,3}})")


def scalar(word: str) -> Json:
    """Return a value of one word: a number, a network, a range, a reference ``@set``, or a name or address."""
    if NUMBER.fullmatch(word):
        return integer(word)
    if (prefix := _PREFIX.fullmatch(word)) is not None:
        return {"prefix": {"addr": scalar(prefix[1]), "len": int(prefix[2])}}
    if (ends := _RANGE.fullmatch(word)) is not None:
        return {"range": [scalar(ends[1]), scalar(ends[2])]}
    return word


def is_field(expression: Json, kind: str, protocol: str | None, key: str) -> bool:
    """Tell whether an expression is this field of a header, or this property."""
    body = expression.get(kind) if isinstance(expression, dict) else None
    if not isinstance(body, dict):
        return False
    return body.get("field" if protocol else "key") == key and (protocol is None or body.get("protocol") == protocol)


class Expressions(Tokens):
    """Reads selectors and values."""

    def _bits(self) -> int:
        """Read flags of TCP as a number: ``syn``, ``syn,ack``, ``syn | ack`` or ``0x12``."""
        closing = self._skip("(")
        bits = self._bit()
        while self._skip(",", "|"):
            bits |= self._bit()
        if closing:
            self._expect(")")
        return bits

    def _bit(self) -> int:
        word = self._word()
        if word in names.TCP_FLAG_BITS:
            return names.TCP_FLAG_BITS[word]
        if NUMBER.fullmatch(word):
            return integer(word)
        self._at -= 1
        raise self._error("expected a flag of TCP")

    def _values(self) -> Json:
        """Read one value, or several with commas between them."""
        first = self._value()
        if not self._is(","):
            return first
        found: list[Json] = [first]
        while self._skip(","):
            found.append(self._value())
        return found

    def _value(self) -> Json:
        """Read a value, or the values of a concatenation."""
        parts = [self._one()]
        while self._skip("."):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else {"concat": parts}

    def _one(self) -> Json:
        if self._next.quoted:
            return self._take().text
        return scalar(self._word())

    def _starts_selector(self) -> bool:
        token = self._next
        if token.quoted:
            return False
        words = ("meta", "ct", "fib", "exthdr", *_UNQUALIFIED, *PAYLOADS)
        return token.raw or token.text in words

    def _selector(self) -> Json:
        parts = [self._one_selector()]
        while self._skip("."):
            parts.append(self._one_selector())
        return parts[0] if len(parts) == 1 else {"concat": parts}

    def _one_selector(self) -> Json:
        selector = self._field()
        if not self._skip("&"):
            return selector
        mask: Json = self._bits() if is_field(selector, "payload", "tcp", "flags") else self._value()
        return {"&": [selector, mask]}

    def _field(self) -> Json:
        word = self._word()
        if word.startswith("@") and "," in word:
            base, offset, length = word[1:].split(",")
            return {"payload": {"base": base, "offset": int(offset), "len": int(length)}}
        if word in _UNQUALIFIED:
            return {"meta": {"key": word}}
        if word == "meta":
            return {"meta": {"key": self._word()}}
        if word == "ct":
            if self._is("original", "reply"):
                raise self._error("expected a property of a connection without a direction")
            return {"ct": {"key": self._word()}}
        if word == "exthdr":
            return {"exthdr": {"name": self._word()}}
        if word == "fib":
            flags: list[Json] = [self._word()]
            while self._skip("."):
                flags.append(self._word())
            return {"fib": {"result": self._word(), "flags": flags}}
        if word in PAYLOADS:
            field = self._word()
            if word == "arp" and field in ("saddr", "daddr"):
                field += f" {self._word()}"
            return {"payload": {"protocol": word, "field": field}}
        self._at -= 1
        raise self._error("expected a property of packets that is known")
