"""What tables hold beside rules, in nft's text: sets, maps, helpers and the hooks of chains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pvefw_nft.backends.nft.syntax.text.expressions import value_text
from pvefw_nft.backends.nft.syntax.text.statements import verdict_text
from pvefw_nft.backends.nft.syntax.text.words import integer, listed, one_of, quoted_identifier, whole
from pvefw_nft.errors import InternalError

if TYPE_CHECKING:
    from pvefw_nft.backends.nft.syntax.text.words import Node

TABLE_FAMILIES = ("bridge", "inet")

_SET_TYPES = frozenset(
    {"ipv4_addr", "ipv6_addr", "ifname", "ether_type", "inet_proto", "inet_service"}
    | {"icmp_type", "icmpv6_type", "ct_state"}
)

_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")

_TYPED = {
    "ifname": "meta iifname",
    "ether_type": "meta protocol",
    "inet_proto": "meta l4proto",
    "icmp_type": "icmp type",
    "icmpv6_type": "icmpv6 type",
}
"""A selector for each type of elements that has words of its own."""


def object_lines(kind: str, rest: Node) -> tuple[list[str], list[str]]:
    """Return the properties of a set, map or helper, one each, and its elements; ``rest`` is emptied."""
    elements: list[str] = []
    match kind:
        case "set" | "map":
            lines, elements = _set_lines(kind, rest)
        case "ct helper":
            protocol = one_of(rest.pop("protocol"), ("tcp", "udp"))
            lines = [f"type {quoted_identifier(rest.pop('type'))} protocol {protocol}"]
        case _:
            raise InternalError(f"nft's text has no place for {kind!r}")
    if rest:
        raise InternalError(f"nft's text has no place for {', '.join(rest)} of a {kind}")
    return lines, elements


def _set_lines(kind: str, rest: Node) -> tuple[list[str], list[str]]:
    key = rest.pop("type")
    types = " . ".join(one_of(part, _SET_TYPES) for part in (key if isinstance(key, list) and key else [key]))
    lines = [f"type {types}" + (f" : {one_of(rest.pop('map'), ('verdict',))}" if kind == "map" else "")]
    flags = [one_of(flag, ("interval", "timeout")) for flag in listed(rest.pop("flags", []))]
    timeout = whole(rest.pop("timeout")) if "timeout" in rest else None
    if "size" in rest:
        lines.append(f"size {integer(rest.pop('size'))}")
    if timeout is not None and "timeout" in flags:
        flags = ["dynamic", *flags]  # a set that rules fill; from JSON, nft sees it by the rules
    if flags:
        lines.append(f"flags {','.join(flags)}")
    if timeout is not None:
        lines.append(f"timeout {_duration(timeout)}")
    return lines, [_element(types, element, verdicts=kind == "map") for element in listed(rest.pop("elem", []))]


def _element(key: str, element: Any, *, verdicts: bool) -> str:  # noqa: ANN401 - a value, or a value and a verdict
    of = " . ".join(_TYPED.get(kind, kind) for kind in key.split(" . "))
    if verdicts:
        value, verdict = element
        return f"{value_text(of, value)} : {verdict_text(verdict)}"
    return value_text(of, element)


def _duration(seconds: int) -> str:
    """Return a time as nft writes it, such as ``1m5s``."""
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        number, seconds = divmod(seconds, size)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"


def hook_text(body: Node) -> str:
    """Return the type, hook, priority and policy of a base chain."""
    kind, hook = one_of(body["type"], ("filter", "nat")), one_of(body["hook"], _HOOKS)
    priority = body["prio"]
    sign, number = ("-", -priority) if isinstance(priority, int) and priority < 0 else ("", priority)
    policy = one_of(body["policy"], ("accept", "drop"))
    return f"type {kind} hook {hook} priority {sign}{integer(number)}; policy {policy};"
