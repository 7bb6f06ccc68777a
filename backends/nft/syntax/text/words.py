"""Words of nft's text, and the shapes of the JSON that they come from: each function refuses all but what it names."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from pvefw_nft.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Collection
    from collections.abc import Set as AbstractSet

Node: TypeAlias = dict[str, Any]
"""An object, statement or expression of a command, as :mod:`json` reads it."""

_IDENTIFIER = re.compile(r"[A-Za-z_.][A-Za-z0-9/_.-]*")
"""Names that nft reads without quotes (``string`` in its scanner.l)."""

_QUOTABLE = re.compile(r"[ -!#%-~]*")
"""Printable ASCII but for the quote, which would end the text, and the dollar sign, which begins a variable."""

_INTERFACE = re.compile(r"(?!@)[!#%-)+-.0-\[\]-~]+\*?")
"""Names of interfaces, or the beginning of names and an asterisk: quotable, without blanks, slashes and backslashes.

nft reads an asterisk at another place, or behind a backslash, as a character of the name.
"""

_NUMBER = re.compile(r"0x[0-9a-f]{1,32}|[0-9]{1,10}")

_MAC = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}")

_ADDRESS = re.compile(r"[0-9A-Fa-f:.]{2,45}")

_DOTTED = re.compile(r"::(?:ffff:)?[0-9.]+", re.IGNORECASE)
"""Of IPv6 addresses with an IPv4 address at their end, those that nft's scanner reads as one token."""

_MOST = 2**32 - 1
"""The largest number that a command holds."""

_CONSTANTS = frozenset(
    {"ip", "ip6", "arp", "vlan", "8021q", "8021ad", "ipv4", "ipv6"}  # protocols
    | {"tcp", "udp", "icmp", "icmpv6", "sctp"}
    | {"host", "unicast", "broadcast", "multicast", "anycast", "other", "local"}  # kinds of packets and addresses
    | {
        "invalid",
        "established",
        "related",
        "new",
        "untracked",
        "original",
        "reply",
        "request",
    }  # of connections; of ARP
)
"""Values that are words of nft's own."""


def fields(body: Any, needed: AbstractSet[str], optional: AbstractSet[str] = frozenset()) -> Node:  # noqa: ANN401 - JSON
    """Return an object that has the needed keys, and none but these and the optional ones."""
    if not isinstance(body, dict) or not needed <= body.keys() <= needed | optional:
        raise InternalError(f"nft's text has no place for {str(body)[:200]}")
    return body


def listed(value: Any) -> list[Any]:  # noqa: ANN401 - JSON
    """Return a list."""
    if not isinstance(value, list):
        raise InternalError(f"nft's text has no place for {str(value)[:200]}, which is no list")
    return value


def some(value: Any) -> list[Any]:  # noqa: ANN401 - JSON
    """Return a list that is not empty."""
    if not listed(value):
        raise InternalError("nft cannot read an empty list there")
    return list(value)


def one_of(text: Any, words: Collection[str]) -> str:  # noqa: ANN401 - JSON
    """Return a text that is one of the words."""
    if not isinstance(text, str) or text not in words:
        raise InternalError(f"nft cannot read {str(text)[:200]!r} there")
    return text


def is_set(body: Node, key: str) -> bool:
    """Tell whether a flag of an object is true; it need not be there."""
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise InternalError(f"nft's text has no place for {str(value)[:200]}, which is no truth value")
    return value


def whole(value: Any, most: int = _MOST) -> int:  # noqa: ANN401 - JSON
    """Return a whole number from 0 to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise InternalError(f"nft cannot read {str(value)[:200]!r} as a number")
    return value


def integer(value: Any, most: int = _MOST) -> str:  # noqa: ANN401 - JSON
    """Return a whole number from 0 to ``most`` in decimal."""
    return str(whole(value, most))


def identifier(text: Any) -> str:  # noqa: ANN401 - JSON
    """Return a name that nft reads without quotes."""
    if not isinstance(text, str) or not _IDENTIFIER.fullmatch(text):
        raise InternalError(f"nft cannot read {text!r} as a name")
    return text


def reference(text: Any) -> str:  # noqa: ANN401 - JSON
    """Return ``@`` and the name of a set or map."""
    if not isinstance(text, str) or not text.startswith("@"):
        raise InternalError(f"nft cannot read {text!r} as a reference")
    return f"@{identifier(text[1:])}"


def constant(text: Any) -> str:  # noqa: ANN401 - JSON
    """Return a word of nft's own, a number or an address."""
    return text if isinstance(text, str) and text in _CONSTANTS else number_or_address(text)


def number_or_address(text: Any) -> str:  # noqa: ANN401 - JSON
    """Return a number, also of the size of an address, or an address."""
    return text if isinstance(text, str) and _NUMBER.fullmatch(text) else address(text)


def address(text: Any) -> str:  # noqa: ANN401 - JSON
    """Return an address of IPv4, IPv6 or Ethernet."""
    if not isinstance(text, str) or not is_address(text):
        raise InternalError(f"nft cannot read {text!r} as an address")
    return text


@lru_cache(maxsize=10_000)
def is_address(text: str) -> bool:
    """Tell whether a text is an address that nft reads as one token."""
    if _MAC.fullmatch(text):
        return True
    if not _ADDRESS.fullmatch(text) or (":" in text and "." in text and not _DOTTED.fullmatch(text)):
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def quoted(text: Any) -> str:  # noqa: ANN401 - JSON
    """Return a text between quotes."""
    if not isinstance(text, str) or not _QUOTABLE.fullmatch(text):
        raise InternalError(f"nft cannot read {text!r} between quotes")
    return f'"{text}"'


def interface(text: Any) -> str:  # noqa: ANN401 - JSON
    """Return the name of an interface between quotes; a ``*`` at its end stands for any end."""
    if not isinstance(text, str) or not _INTERFACE.fullmatch(text):
        raise InternalError(f"nft cannot read {text!r} between quotes, as an interface")
    return f'"{text}"'


def quoted_identifier(text: Any) -> str:  # noqa: ANN401 - JSON
    """Return a name between quotes."""
    if not isinstance(text, str) or not _IDENTIFIER.fullmatch(text):
        raise InternalError(f"nft cannot read {text!r} between quotes, as a name")
    return f'"{text}"'
