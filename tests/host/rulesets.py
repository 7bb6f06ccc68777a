"""Rulesets for tests, in the shapes that the backends emit."""

from __future__ import annotations

import json
from typing import Any

Rules = dict[str, list[str]]


def iptables(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return a small iptables artefact; ``changes`` replace its parts."""
    artefact: dict[str, Any] = {
        "enabled": True,
        "iptables": {
            "filter": {
                "PVEFW-INPUT": ["-A PVEFW-INPUT -j PVEFW-HOST-IN"],
                "PVEFW-OUTPUT": [],
                "PVEFW-FORWARD": ["-A PVEFW-FORWARD -m conntrack --ctstate INVALID -j DROP"],
                "PVEFW-HOST-IN": [
                    "-A PVEFW-HOST-IN -i lo -j ACCEPT",
                    "-A PVEFW-HOST-IN -m set --match-set PVEFW-0-management-v4 src -p tcp --dport 22 -j RETURN",
                    "-A PVEFW-HOST-IN -s 10.0.0.1,10.0.0.2 -j DROP",
                ],
                "tap100i0-IN": ["-A tap100i0-IN -p tcp --dport 80 -j ACCEPT", "-A tap100i0-IN -j DROP"],
            },
            "raw": {"PVEFW-PREROUTING": ["-A PVEFW-PREROUTING -p tcp --dport 1 -j DROP"]},
        },
        "ip6tables": {
            "filter": {"PVEFW-INPUT": ["-A PVEFW-INPUT -s 2001:db8::/32 -j DROP"]},
            "raw": {},
        },
        "ipset": {
            "PVEFW-0-management-v4": [
                "create PVEFW-0-management-v4 hash:net family inet hashsize 64 maxelem 64",
                "add PVEFW-0-management-v4 10.0.0.0/24",
                "add PVEFW-0-management-v4 10.0.0.7 nomatch",
            ],
            "PVEFW-0-management-v6": ["create PVEFW-0-management-v6 hash:net family inet6 hashsize 64 maxelem 64"],
        },
        "ebtables": {
            "PVEFW-FORWARD": ["-A PVEFW-FORWARD -p IPv4 -j ACCEPT", "-A PVEFW-FORWARD -o fwln+ -j PVEFW-FWBR-OUT"],
            "PVEFW-FWBR-OUT": ["-A PVEFW-FWBR-OUT -i tap100i0 -j tap100i0-OUT"],
            "tap100i0-OUT": ["-A tap100i0-OUT -s ! bc:24:11:a:0:1 -j DROP", "-A tap100i0-OUT -j ACCEPT"],
        },
    }
    return {**artefact, **changes}


def nft(
    nics: tuple[int, ...] = (100,), networks: tuple[str, ...] = ("10.0.0.0/24",), ports: tuple[int, ...] = (80,)
) -> dict[str, Any]:
    """Return a small nft artefact: a verdict map to the chains of these guests, a set, a host table."""
    bridge = {"family": "bridge", "table": "pvefw"}
    inet = {"family": "inet", "table": "pvefw"}

    def prefix(network: str) -> Any:  # noqa: ANN401 - JSON
        address, length = network.split("/")
        return {"prefix": {"addr": address, "len": int(length)}}

    base = {"type": "filter", "prio": -150, "policy": "accept"}
    flooders = {"name": "flooders", "type": "ipv4_addr", "flags": ["timeout"], "timeout": 60, "size": 1024}
    commands: list[dict[str, Any]] = [
        {"add": {"table": {"family": "bridge", "name": "pvefw"}}},
        {"add": {"table": {"family": "inet", "name": "pvefw"}}},
        {"add": {"chain": {**bridge, "name": "prerouting", "hook": "prerouting", **base}}},
        {"add": {"chain": {**inet, "name": "input", "hook": "input", **base}}},
        {"add": {"set": {**bridge, "name": "friends", "type": "ipv4_addr", "flags": ["interval"]}}},
        {"add": {"set": {**inet, **flooders}}},
        *({"add": {"chain": {**bridge, "name": f"tap{nic}i0-OUT"}}} for nic in nics),
        {"add": {"map": {**bridge, "name": "nics", "type": "ifname", "map": "verdict"}}},
    ]
    if networks:
        elements = [prefix(network) for network in networks]
        commands.append({"add": {"element": {**bridge, "name": "friends", "elem": elements}}})
    if nics:
        pairs = [[f"tap{nic}i0", {"goto": {"target": f"tap{nic}i0-OUT"}}] for nic in nics]
        commands.append({"add": {"element": {**bridge, "name": "nics", "elem": pairs}}})
    source = {"payload": {"protocol": "ip", "field": "saddr"}}
    port = {"payload": {"protocol": "tcp", "field": "dport"}}
    dispatch = {"vmap": {"key": {"meta": {"key": "iifname"}}, "data": "@nics"}}
    commands.append({"add": {"rule": {**bridge, "chain": "prerouting", "expr": [dispatch]}}})
    for nic in nics:
        chain = {**bridge, "chain": f"tap{nic}i0-OUT"}
        friend = [{"match": {"op": "==", "left": source, "right": "@friends"}}, {"accept": None}]
        commands.append({"add": {"rule": {**chain, "expr": friend, "comment": f"{nic}.fw:1"}}})
        for number in ports:
            match = {"match": {"op": "==", "left": port, "right": number}}
            commands.append({"add": {"rule": {**chain, "expr": [match, {"counter": None}, {"accept": None}]}}})
        commands.append({"add": {"rule": {**chain, "expr": [{"counter": None}, {"drop": None}]}}})
    return {"nftables": commands}


def pieces(artefact: dict[str, Any]) -> list[str]:
    """Return an artefact of either backend as a compile gives it."""
    if "nftables" in artefact:
        return [json.dumps(artefact["nftables"])[1:-1]]
    return [json.dumps(artefact)]
