"""The commands of an artefact as text that reads like nft's own, for golden files. Unknown commands raise."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def show(document: str, wanted: tuple[str, ...]) -> Iterator[str]:
    """Yield the objects whose line begins with one of the wanted words, such as ``bridge chain tap100i0-IN``."""
    for command in json.loads(document)["nftables"]:
        for line in _command(command.get("add", {})):
            if line.removeprefix("  in ").startswith(wanted):
                yield line


def _command(command: dict[str, Any]) -> Iterator[str]:
    for kind, body in command.items():
        family = body["family"]
        if kind == "rule":
            words = " ".join(_statement(one) for one in body["expr"])
            yield f"{family} chain {body['chain']}: {words}  # {body['comment'].partition(' sig:')[0]}"
        elif kind == "chain" and "hook" in body:
            yield f"{family} chain {body['name']}: hook {body['hook']} {body['prio']}, policy {body['policy']}"
        elif kind in ("set", "map"):
            options = [str(body["type"]), *(f"{key} {body[key]}" for key in ("timeout", "size") if key in body)]
            elements = ", ".join(_pair(one) for one in body.get("elem", ()))
            yield f"{family} {kind} {body['name']}: {' '.join(options)} {{{elements}}}"
        elif kind == "ct helper":
            yield f"{family} helper {body['name']}: {body['type']} {body['protocol']}"


def _pair(value: Any) -> str:  # noqa: ANN401 - any JSON
    if isinstance(value, list):
        key, mapped = value
        return f"{_value(key)} : {_statement(mapped) if isinstance(mapped, dict) else _value(mapped)}"
    return _value(value)


def _statement(statement: dict[str, Any]) -> str:  # noqa: C901 - one case for each kind
    ((kind, body),) = statement.items()
    match kind:
        case "match":
            operator = {"==": "", "in": "", "!=": "!= "}[body["op"]]
            return f"{_value(body['left'])} {operator}{_value(body['right'])}"
        case "accept" | "drop" | "return" | "counter":
            return str(kind)
        case "jump" | "goto":
            return f"{kind} {body['target']}"
        case "vmap":
            return f"{_value(body['key'])} vmap {_value(body['data'])}"
        case "reject":
            return f"reject with {body['type']} {body.get('expr', '')}".rstrip()
        case "limit":
            return f"limit rate {body['rate']}/{body['per']} burst {body['burst']}"
        case "log":
            return f'log group {body["group"]} prefix "{body["prefix"]}"'
        case "queue":
            return " ".join(["queue", *body.get("flags", ()), "to", _value(body["num"])])
        case "mangle":
            return f"{_value(body['key'])} set {_value(body['value'])}"
        case "ct helper":
            return f"ct helper set {body}"
        case "dnat" | "snat":
            return f"{kind} {body['family']} to {_value(body['addr'])}"
        case "set":
            within = " ".join(_statement(one) for one in body["stmt"])
            return f"{body['op']} {body['set']} {{ {_value(body['elem'])} {within} }}"
        case _:
            raise AssertionError(f"a statement that is not known here: {kind}")


def _value(value: Any) -> str:  # noqa: ANN401, C901 - any JSON, one case for each kind
    match value:
        case int() | str():
            return str(value)
        case list():
            return ",".join(_value(one) for one in value)
        case {"meta": {"key": key}}:
            return f"meta {key}"
        case {"ct": {"key": key}}:
            return f"ct {key}"
        case {"payload": {"protocol": protocol, "field": field}}:
            return f"{protocol} {field}"
        case {"fib": {"result": result, "flags": flags}}:
            return f"fib {' . '.join(flags)} {result}"
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case {"range": [first, last]}:
            return f"{first}-{last}"
        case {"map": {"key": key, "data": data}}:
            return f"{_value(key)} map {_value(data)}"
        case {"set": members}:
            return "{ " + ", ".join(_pair(one) for one in members) + " }"
        case {"concat": parts}:
            return " . ".join(_value(part) for part in parts)
        case {"payload": {"base": base, "offset": offset, "len": length}}:
            return f"@{base},{offset},{length}"
        case {"exthdr": {"name": name}}:
            return f"exthdr {name}"
        case {"&": [left, mask]}:
            return f"{_value(left)} & {_value(mask)}"
        case {"|": [left, mask]}:
            return f"{_value(left)} | {_value(mask)}"
        case _:
            raise AssertionError(f"a value that is not known here: {value}")
