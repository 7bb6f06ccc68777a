"""Numbers that have a name in nft, where nft needs no file of the host to know it."""

from __future__ import annotations

PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 33: "dccp", 50: "esp", 51: "ah", 58: "icmpv6", 132: "sctp"}
PROTOCOLS |= {108: "comp", 136: "udplite"}
"""Protocols that are words of nft's own."""

ICMP_TYPES = {
    0: "echo-reply",
    3: "destination-unreachable",
    4: "source-quench",
    5: "redirect",
    8: "echo-request",
    9: "router-advertisement",
    10: "router-solicitation",
    11: "time-exceeded",
    12: "parameter-problem",
    13: "timestamp-request",
    14: "timestamp-reply",
    15: "info-request",
    16: "info-reply",
    17: "address-mask-request",
    18: "address-mask-reply",
}
"""nft's names of ICMP types (``nft describe icmp type``)."""

ICMPV6_TYPES = {
    1: "destination-unreachable",
    2: "packet-too-big",
    3: "time-exceeded",
    4: "parameter-problem",
    128: "echo-request",
    129: "echo-reply",
    130: "mld-listener-query",
    131: "mld-listener-report",
    132: "mld-listener-done",
    133: "nd-router-solicit",
    134: "nd-router-advert",
    135: "nd-neighbor-solicit",
    136: "nd-neighbor-advert",
    137: "nd-redirect",
}
"""nft's names of ICMPv6 types (``nft describe icmpv6 type``)."""

TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr")
"""The flags of TCP by bit, the lowest first."""

ETHERTYPES = {0x0800: "ip", 0x0806: "arp", 0x8100: "vlan", 0x86DD: "ip6", 0x88A8: "8021ad"}
"""nft's names of protocols above Ethernet (``nft describe ether type``)."""

NAMES = {
    "meta protocol": ETHERTYPES,
    "ether type": ETHERTYPES,
    "arp ptype": ETHERTYPES,
    "meta l4proto": PROTOCOLS,
    "icmp type": ICMP_TYPES,
    "icmpv6 type": ICMPV6_TYPES,
}
