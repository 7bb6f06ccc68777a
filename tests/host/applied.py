"""Rulesets that differ in a port, and the parts of them in the kernel."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from .network import ruleset
from .rulesets import iptables

if TYPE_CHECKING:
    from pvefw_nft.host.records.record import Desired


def with_port(port: int) -> Desired:
    """Return an iptables ruleset that is told by this port."""
    artefact = iptables()
    artefact["iptables"]["filter"]["tap100i0-IN"] = [f"-A tap100i0-IN -p tcp --dport {port} -j ACCEPT"]
    return ruleset("iptables", artefact)


def shell(script: str) -> str:
    return subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=True).stdout


class Killed(BaseException):
    """In place of SIGKILL."""


def die(*_: object, **__: object) -> None:
    raise Killed


def everything() -> list[str]:
    text = shell("iptables-save; ip6tables-save; ipset save; ebtables-save; nft list table inet mine")
    lines = (re.sub(r" initval \S+| \[\d+:\d+\]", "", line) for line in text.splitlines() if not line.startswith("#"))
    return sorted(line for line in lines if line not in ("*filter", "*raw"))


def ours() -> list[str]:
    return [line for line in everything() if "PVEFW" in line or "tap100i0" in line]


def has_port(port: int) -> bool:
    return f"--dport {port} -j ACCEPT" in shell("iptables-save")
