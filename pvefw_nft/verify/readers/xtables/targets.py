"""The targets of iptables rules that are modelled, with their options: iptables-extensions(8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.verify.model import (
    ACCEPT,
    DROP,
    DSCP,
    RETURN,
    TRUE,
    TTL,
    Alter,
    CopyMark,
    Effect,
    Log,
    MarkTarget,
    Nat,
    NoTrack,
    Queue,
    Reject,
    SetField,
    SetHelper,
    SetMark,
    SetZone,
    UpdateSet,
    Verdict,
    names,
)
from pvefw_nft.verify.readers.nft.values import DSCP_CLASSES
from pvefw_nft.verify.readers.xtables.state import FULL, Context, masked

if TYPE_CHECKING:
    from collections.abc import Callable

TOS_NAMES = {
    "minimize-delay": 0x10, "maximize-throughput": 0x08, "maximize-reliability": 0x04, "minimize-cost": 0x02,
    "normal-service": 0x00,
}  # fmt: skip
"""Values of the TOS field by name (iptables-extensions(8))."""

Options: TypeAlias = dict[str, list[str]]
Made: TypeAlias = tuple[tuple[Effect, ...], Verdict | None]


def _one(options: Options, name: str) -> str | None:
    values = options.pop(name, None)
    return values[0] if values else None


def _reject(context: Context, options: Options) -> Made:
    name = _one(options, "--reject-with")
    if context.version == 4:
        return (), Reject(names.REJECT_KINDS4[name or "icmp-port-unreachable"], None)
    return (), Reject(None, names.REJECT_KINDS6[name or "icmp6-port-unreachable"])


def _log(_context: Context, options: Options) -> Made:
    level = _one(options, "--log-level") or "warning"
    prefix = _one(options, "--log-prefix") or ""
    for name in (
        "--log-tcp-sequence",
        "--log-tcp-options",
        "--log-ip-options",
        "--log-uid",
        "--log-macdecode",
    ):
        options.pop(name, None)
    return (Log(prefix, int(level) if level.isdecimal() else names.LOG_LEVELS[level]),), None


def _nflog(_context: Context, options: Options) -> Made:
    group = _one(options, "--nflog-group") or "0"
    prefix = _one(options, "--nflog-prefix") or ""
    for name in ("--nflog-range", "--nflog-size", "--nflog-threshold"):
        options.pop(name, None)
    return (Log(prefix, None, int(group)),), None


def _set_mark(target: MarkTarget, options: Options) -> Made:
    """MARK and CONNMARK; each of their forms as ``(mark & keep) ^ flip``."""
    if (value := _one(options, "--set-mark")) is not None:
        number, mask = masked(value)
        return (SetMark(target, FULL & ~(mask | number), number),), None
    if (value := _one(options, "--set-xmark")) is not None:
        number, mask = masked(value)
        return (SetMark(target, FULL & ~mask, number),), None
    if (value := _one(options, "--and-mark")) is not None:
        return (SetMark(target, int(value, 0), 0),), None
    if (value := _one(options, "--or-mark")) is not None:
        return (SetMark(target, FULL & ~int(value, 0), int(value, 0)),), None
    if (value := _one(options, "--xor-mark")) is not None:
        return (SetMark(target, FULL, int(value, 0)),), None
    raise ValueError("a mark target without a value")


def _mark_target(_context: Context, options: Options) -> Made:
    return _set_mark(MarkTarget.PACKET, options)


def _connmark_target(_context: Context, options: Options) -> Made:
    for name, target in (("--save-mark", MarkTarget.CONNECTION), ("--restore-mark", MarkTarget.PACKET)):
        if options.pop(name, None) is not None:
            mask = _one(options, "--mask")
            packet = int(_one(options, "--nfmask") or mask or hex(FULL), 0)
            connection = int(_one(options, "--ctmask") or mask or hex(FULL), 0)
            written, read = (connection, packet) if target is MarkTarget.CONNECTION else (packet, connection)
            return (CopyMark(target, FULL & ~written, read),), None
    return _set_mark(MarkTarget.CONNECTION, options)


def _conntrack_target(_context: Context, options: Options) -> Made:
    """CT. Its zones are numbers; ``--zone mark`` (the packet's mark) is not modelled."""
    if options.pop("--notrack", None) is not None:
        return (NoTrack(),), None
    effects: list[Effect] = []
    for name, original, reply in (("--zone", True, True), ("--zone-orig", True, False), ("--zone-reply", False, True)):
        zone = _one(options, name)
        if zone is not None:
            number = int(zone, 0)
            if not 0 <= number < 1 << 16:
                raise ValueError(f"no zone: {zone}")
            effects.append(SetZone(((TRUE, number),), original, reply))
    helper = _one(options, "--helper")
    if helper is not None:
        effects.append(SetHelper(helper, template=True))
    return tuple(effects), None


def _queue(_context: Context, options: Options) -> Made:
    bypass = options.pop("--queue-bypass", None) is not None
    options.pop("--queue-cpu-fanout", None)
    balance = _one(options, "--queue-balance")
    number = _one(options, "--queue-num")
    first, _, last = (balance or number or "0").partition(":")
    return (), Queue(int(first), int(last or first), bypass)


def _nat(kind: str, option: str) -> Callable[[Context, Options], Made]:
    def maker(context: Context, options: Options) -> Made:
        for name in ("--random", "--random-fully", "--persistent"):
            options.pop(name, None)
        to = _one(options, option)
        return (), _nat_to(kind, to, context.version) if to else Nat(kind)

    return maker


def _nat_to(kind: str, to: str, version: int) -> Nat:
    """Return the translation to ``ADDRESS[-ADDRESS][:PORT[-PORT]]``, or to ``PORT[-PORT]`` alone."""
    if kind in ("redirect", "masquerade"):
        address, ports = "", to
    elif version == 6 and to.startswith("["):
        address, _, ports = to[1:].partition("]")
        ports = ports.removeprefix(":")
    elif version == 6:
        address, ports = to, ""
    else:
        address, _, ports = to.partition(":")
    first, _, last = ports.partition("/")[0].partition("-")
    return Nat(
        kind,
        addresses=names.network_range(address, version) if address else None,
        ports=(int(first), int(last or first)) if first else None,
    )


def _dscp(_context: Context, options: Options) -> Made:
    name = _one(options, "--set-dscp-class")
    number = DSCP_CLASSES[name.lower()] if name is not None else int(_one(options, "--set-dscp") or "", 0)
    return (SetField(DSCP, number),), None


def _tos(_context: Context, options: Options) -> Made:
    """TOS: ``(tos & ~mask) ^ value``; its upper six bits are the DSCP (xt_DSCP.c)."""
    keep, flip = 0, 0
    if (value := _one(options, "--set-tos")) is not None:
        number, _, mask = value.partition("/")
        flip = TOS_NAMES[number.lower()] if number.lower() in TOS_NAMES else int(number, 0)
        keep = ~int(mask, 0) if mask else (~0x3F if number.lower() in TOS_NAMES else 0)
    elif (value := _one(options, "--and-tos")) is not None:
        keep = int(value, 0)
    elif (value := _one(options, "--or-tos")) is not None:
        keep, flip = ~int(value, 0), int(value, 0)
    else:
        keep, flip = ~0, int(_one(options, "--xor-tos") or "", 0)
    table = tuple(((old << 2) & keep & 0xFF ^ flip) >> 2 & 0x3F for old in range(64))
    return (SetField(DSCP, table[0] if len(set(table)) == 1 else table),), None


def _ttl(option: str) -> Callable[[Context, Options], Made]:
    def maker(_context: Context, options: Options) -> Made:
        if (value := _one(options, f"--{option}-set")) is not None:
            return (SetField(TTL, int(value, 0)),), None
        more, less = _one(options, f"--{option}-inc"), _one(options, f"--{option}-dec")
        by = int(more, 0) if more is not None else -int(less or "", 0)
        return (SetField(TTL, tuple(min(255, max(0, old + by)) for old in range(256))),), None

    return maker


def _set_update(_context: Context, options: Options) -> Made:
    """SET: the ipset gets or loses the packet's addresses, or its mark and the like are set from it."""
    for option in ("--add-set", "--del-set", "--map-set"):
        if option in options:
            name, *directions = options.pop(option)
            words = [option.removeprefix("--"), *directions]
            timeout = _one(options, "--timeout")
            words += ["timeout", timeout] if timeout is not None else []
            words += [flag.removeprefix("--") for flag in ("--exist",) if options.pop(flag, None) is not None]
            if option == "--map-set":
                raise ValueError("--map-set is not modelled")
            return (UpdateSet(f"ipset {name}", " ".join(words)),), None
    raise ValueError("a SET target without a set")


def _altering(target: str) -> Callable[[Context, Options], Made]:
    def maker(_context: Context, options: Options) -> Made:
        text = " ".join([target, *(" ".join((name, *values)) for name, values in options.items())])
        options.clear()
        return (Alter(text),), None

    return maker


PLAIN_TARGETS: dict[str, Verdict] = {"ACCEPT": ACCEPT, "DROP": DROP, "RETURN": RETURN}
TARGETS: dict[str, Callable[[Context, Options], Made]] = {
    "REJECT": _reject,
    "LOG": _log,
    "NFLOG": _nflog,
    "MARK": _mark_target,
    "CONNMARK": _connmark_target,
    "CT": _conntrack_target,
    "NOTRACK": lambda _context, _options: ((NoTrack(),), None),
    "NFQUEUE": _queue,
    "QUEUE": _queue,
    "DNAT": _nat("dnat", "--to-destination"),
    "SNAT": _nat("snat", "--to-source"),
    "MASQUERADE": _nat("masquerade", "--to-ports"),
    "REDIRECT": _nat("redirect", "--to-ports"),
    **{name: _altering(name) for name in ("TCPMSS", "CHECKSUM", "CLASSIFY", "TRACE", "AUDIT")},
    "DSCP": _dscp,
    "TOS": _tos,
    "TTL": _ttl("ttl"),
    "HL": _ttl("hl"),
    "SET": _set_update,
}
