"""Rulesets as data: read a compiler's output, and load it into the host of the lab."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .network.build import HOST_NAMESPACE
from .network.namespace import inside
from .wire import WATCH_TABLE, flush_connections

IPTABLES = "iptables"
NFT = "nft"
BACKENDS = (IPTABLES, NFT)


@dataclass(frozen=True, slots=True)
class Part:
    """Input for one tool: the command without its path, and its standard input."""

    command: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Artefact:
    """A whole ruleset of one backend, as the parts in the order in which they are loaded."""

    backend: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The artefact as the compiler prints it."""
        if self.backend == NFT:
            return "".join(part.text for part in self.parts)
        return "".join(f"### {' '.join(part.command)}\n{part.text}" for part in self.parts)

    def part(self, *command: str) -> str:
        """Return the input of the tool whose command begins with these words; empty if there is none."""
        return "".join(part.text for part in self.parts if part.command[: len(command)] == command)


class ArtefactError(Exception):
    """The text is not an artefact, or the kernel does not take it."""


_HEADING = re.compile(r"^### (.+)$", re.MULTILINE)

TOOLS = {
    "ipset": "ipset",
    "iptables-restore": "iptables-nft-restore",
    "ip6tables-restore": "ip6tables-nft-restore",
    "ebtables-restore": "ebtables-nft-restore",
}
"""The tools an iptables artefact may name, and what runs: where both kinds are installed, the nft kind."""


def parse_iptables(text: str) -> Artefact:
    """Return the artefact in restore text: parts headed by ``### TOOL ARGUMENTS``.

    Raises:
        ArtefactError: there is text above the first heading, or a heading names another tool.
    """
    pieces = _HEADING.split(text)
    if pieces[0].strip():
        raise ArtefactError(f"restore text above the first '### TOOL' line: {pieces[0][:100]!r}")
    parts = []
    for heading, body in zip(pieces[1::2], pieces[2::2], strict=True):
        command = tuple(heading.split())
        if command[0] not in TOOLS or not all(re.fullmatch(r"[\w-]+", word) for word in command):
            raise ArtefactError(f"not a tool the lab runs: {heading!r}")
        parts.append(Part(command, body.lstrip("\n")))
    return Artefact(IPTABLES, tuple(parts))


def parse_nft(text: str) -> Artefact:
    """Return the artefact in nft's JSON.

    Raises:
        ArtefactError: the text is no JSON.
    """
    try:
        json.loads(text)
    except ValueError as error:
        raise ArtefactError(f"not JSON: {error}") from error
    return Artefact(NFT, (Part(("nft", "-j", "-f", "-"), text),))


def parse(backend: str, text: str) -> Artefact:
    """Return the artefact of ``backend``."""
    return parse_nft(text) if backend == NFT else parse_iptables(text)


# --- in the guest -------------------------------------------------------------------------------------------


def load(artefact: Artefact, *, vlan_filter: bool = False) -> None:
    """Load an artefact into the host, instead of whatever is loaded; connections are forgotten.

    Bridged packets go through iptables for that backend and not for the other. ``vlan_filter`` has iptables
    look into VLAN-tagged frames, which it does not by default.

    Raises:
        ArtefactError: a tool refused its part; the message is the tool's.
    """
    unload()
    with inside(HOST_NAMESPACE):
        on = "1" if artefact.backend == IPTABLES else "0"
        settings = {"iptables": on, "ip6tables": on, "arptables": "0"}
        settings |= {"vlan-tagged": "1" if vlan_filter else "0"}
        for name, value in settings.items():
            kind = "filter" if name == "vlan-tagged" else "call"
            Path(f"/proc/sys/net/bridge/bridge-nf-{kind}-{name}").write_text(value)
        for part in artefact.parts:
            _feed(part)
    flush_connections()


def load_part(part: Part) -> None:
    """Feed one part to its tool, over the loaded rules; connections are forgotten.

    Raises:
        ArtefactError: the tool refused it.
    """
    with inside(HOST_NAMESPACE):
        _feed(part)
    flush_connections()


def _feed(part: Part) -> None:
    tool, *arguments = part.command
    done = subprocess.run(
        [TOOLS.get(tool, tool), *arguments], input=part.text, text=True, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise ArtefactError(f"{' '.join(part.command)}: status {done.returncode}: {done.stderr.strip()[-2000:]}")


def unload() -> None:
    """Remove every ruleset and address set but the lab's own watch."""
    with inside(HOST_NAMESPACE):
        listing = subprocess.run(["nft", "-j", "list", "tables"], check=True, capture_output=True, text=True).stdout
        tables = [item["table"] for item in json.loads(listing)["nftables"] if "table" in item]
        lines = [f"delete table {t['family']} {t['name']}\n" for t in tables if t["name"] != WATCH_TABLE]
        if lines:
            subprocess.run(["nft", "-f", "-"], input="".join(lines), text=True, check=True)
        subprocess.run(["ipset", "destroy"], check=True)


def prepare_kernel() -> None:
    """Load the modules that neither tool asks for by itself, and lift the kernel's global limit on ICMP."""
    modules = ("br_netfilter", "nf_conntrack_bridge", "nft_meta_bridge", "nft_reject_bridge", "nfnetlink_log")
    subprocess.run(["modprobe", "-a", *modules], check=True)
    for name in ("icmp_msgs_per_sec", "icmp_msgs_burst"):
        Path(f"/proc/sys/net/ipv4/{name}").write_text("100000")
