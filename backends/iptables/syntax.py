"""The syntax of iptables, ipset and ebtables rules: options, targets and lines, and nothing about firewalls.

An :data:`Option` is a match or a target with its arguments, as the words of a command line. The functions here
know how each option is spelled (iptables(8), iptables-extensions(8), ebtables(8)); :func:`rule` puts them on a line.
Words are never quoted, since none can hold a blank; the one text that can, a log prefix, is quoted by
:func:`nflog`. :func:`rule` refuses a line that could be read as anything but one rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Iterable

Option: TypeAlias = str
"""A match or target with its arguments, such as ``-p tcp``."""


def rule(chain: str, options: str, target: Option, *, padded: bool = False) -> str:
    """Return the line that appends a rule; ``options`` are joined by blanks.

    ``padded``: with no options, the reference leaves their place empty, so that two blanks follow the chain.
    Raises InternalError if the line would not be one line of printable ASCII.
    """
    if options:
        return _checked(f"-A {chain} {options} {target}")
    return _checked(f"-A {chain}  {target}" if padded else f"-A {chain} {target}")


def _checked(line: str) -> str:
    if line.isascii() and line.isprintable():
        return line
    raise InternalError(f"not a line: {line!r}", "this is a bug of pvefw; please report it")


# --- matches of iptables -------------------------------------------------------------------------------------


def in_interface(name: str) -> Option:
    """Match the interface a packet comes in by."""
    return f"-i {name}"


def out_interface(name: str) -> Option:
    """Match the interface a packet leaves by."""
    return f"-o {name}"


def address(side: str, networks: Iterable[str]) -> Option:
    """Match the address on side ``src`` or ``dst``."""
    return f"-{side[0]} {','.join(networks)}"


def address_range(side: str, text: str) -> Option:
    """Match an address range ``first-last``."""
    return f"-m iprange --{side}-range {text}"


def match_set(name: str, side: str, *, negated: bool = False) -> Option:
    """Match the addresses of a set."""
    return f"-m set {'! ' if negated else ''}--match-set {name} {side}"


def address_type(side: str, kind: str) -> Option:
    """Match the type of an address, as the routing table sees it."""
    return f"-m addrtype --{side}-type {kind}"


def protocol(name: str) -> Option:
    """Match the protocol."""
    return f"-p {name}"


def protocol_module(name: str) -> Option:
    """Load the match module of a protocol explicitly."""
    return f"-m {name}"


def icmp_type(version: int, name: str) -> Option:
    """Match the type of ICMP (version 4) or ICMPv6 (version 6)."""
    return f"--icmp-type {name}" if version == 4 else f"--icmpv6-type {name}"


def ports(source: tuple[str, ...], destination: tuple[str, ...], *, multiport: bool = False) -> Option:
    """Match ports and port ranges: one on a side by itself, several (or, with ``multiport``, any) by multiport.

    Single ports come first; a list of destination ports comes before a list of source ports.
    """
    most_alone = 0 if multiport else 1
    words = []
    if 0 < len(source) <= most_alone:
        words.append(f"--sport {source[0]}")
    if 0 < len(destination) <= most_alone:
        words.append(f"--dport {destination[0]}")
    if len(destination) > most_alone:
        words.append(f"--match multiport --dports {','.join(destination)}")
    if len(source) > most_alone:
        words.append(f"--match multiport --sports {','.join(source)}")
    return " ".join(words)


def tcp_flags(mask: Iterable[str], flags: Iterable[str], *, negated: bool = False) -> Option:
    """Match the flags of a TCP segment."""
    return f"{'! ' if negated else ''}--tcp-flags {','.join(mask)} {','.join(flags) or 'NONE'}"


def connection_state(states: Iterable[str]) -> Option:
    """Match the state that connection tracking knows."""
    return f"-m conntrack --ctstate {','.join(states)}"


def mark(value: int, mask: int) -> Option:
    """Match bits of the packet mark."""
    return f"-m mark --mark 0x{value:08x}/0x{mask:08x}"


def mac_source(text: str, *, negated: bool = False) -> Option:
    """Match the sender's MAC address."""
    return f"-m mac {'! ' if negated else ''}--mac-source {text}"


def bridged(*, port_in: str | None = None, port_out: str | None = None) -> Option:
    """Match a packet that a bridge carries from or to a port."""
    port = f"--physdev-in {port_in}" if port_in is not None else f"--physdev-out {port_out}"
    return f"-m physdev --physdev-is-bridged {port}"


def leaving_port(name: str) -> Option:
    """Match a packet that a bridge carries to a port; the same as :func:`bridged`, in the order of PVEFW-IPS."""
    return f"-m physdev --physdev-out {name} --physdev-is-bridged"


def rate_over(rate: int, burst: int, mask: int, expire: int) -> Option:
    """Match packets beyond a rate per second, counted for each source network of ``mask`` bits for ``expire`` ms."""
    return (
        f"-m hashlimit --hashlimit-above {rate}/sec --hashlimit-burst {burst} --hashlimit-mode srcip "
        f"--hashlimit-name syn --hashlimit-htable-size 2097152 --hashlimit-srcmask {mask} "
        f"--hashlimit-htable-expire {expire}"
    )


def limit(rate: str, burst: int | None) -> Option:
    """Match up to a rate, such as ``1/second``."""
    return f"-m limit --limit {rate}" + ("" if burst is None else f" --limit-burst {burst}")


# --- targets -------------------------------------------------------------------------------------------------


def jump(target: str) -> Option:
    """Jump to a chain, or apply a target without arguments."""
    return f"-j {target}"


def goto(chain: str) -> Option:
    """Go to a chain."""
    return f"-g {chain}"


def reject(kind: str) -> Option:
    """Reject a packet."""
    return f"-j REJECT --reject-with {kind}"


def nfqueue(first: int | None, last: int | None, *, bypass: bool) -> Option:
    """Hand a packet to a program: by default queue 0, else one queue or a range of them."""
    queue = "" if first is None else f" --queue-num {first}" if last is None else f" --queue-balance {first}:{last}"
    return f"-j NFQUEUE{queue}{' --queue-bypass' if bypass else ''}"


def set_mark(value: int, mask: int) -> Option:
    """Set bits of the packet mark."""
    return f"-j MARK --set-mark 0x{value:08x}/0x{mask:08x}"


def set_connmark(value: int) -> Option:
    """Set the connection mark."""
    return f"-j CONNMARK --set-mark {value}"


def ct_helper(name: str) -> Option:
    """Assign a helper of connection tracking."""
    return f"-j CT --helper {name}"


def nflog(prefix: str) -> Option:
    """Log with a prefix. Raises InternalError for one that cannot be quoted."""
    if '"' in prefix or "\\" in prefix:
        raise InternalError(f"not a log prefix: {prefix!r}", "this is a bug of pvefw; please report it")
    return f'-j NFLOG --nflog-prefix "{prefix}"'


# --- ebtables ------------------------------------------------------------------------------------------------


def ether_type(name: str) -> Option:
    """Match the protocol of a frame."""
    return f"-p {name}"


def ether_source(mac: int, *, negated: bool = False) -> Option:
    """Match the sender of a frame; ebtables prints MAC addresses without leading zeros."""
    text = ":".join(f"{mac >> shift & 0xFF:x}" for shift in range(40, -1, -8))
    return f"-s {'! ' if negated else ''}{text}"


def arp_source(network: str) -> Option:
    """Match the sender's IPv4 address in ARP."""
    return f"--arp-ip-src {network}"


# --- ipset ---------------------------------------------------------------------------------------------------


def create_set(name: str, version: int, size: int) -> str:
    """Return the line that creates a set of networks, with room for ``size`` entries."""
    family = "inet" if version == 4 else "inet6"
    return _checked(f"create {name} hash:net family {family} hashsize {size} maxelem {size} bucketsize 12")


def add_entry(name: str, network: str, *, nomatch: bool) -> str:
    """Return the line that adds an entry."""
    return _checked(f"add {name} {network}{' nomatch' if nomatch else ''}")
