"""corosync.conf: how the nodes of a cluster talk to each other, and at which addresses (corosync.conf(5)).

A node's address may be a name, which Proxmox's firewall resolves. Here names are looked up in ``etc/hosts`` below the
root alone, so that a compile asks no name server and gives the same result on any machine.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pvefw_nft.config import grammar
from pvefw_nft.config.model import Corosync, CorosyncNode
from pvefw_nft.config.values import BadValue, Prefix, looks_like_address, read_prefix
from pvefw_nft.errors import ConfigurationError, Span

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pvefw_nft.config.files import Files
    from pvefw_nft.config.findings import Findings

_LINK_ADDRESS = re.compile(r"(?:ring|link)([0-7])_addr")
_VERSIONS = {"ipv4": (4,), "ipv6": (6,), "ipv6-4": (6, 4), "ipv4-6": (4, 6)}
_DEFAULT_VERSIONS = _VERSIONS["ipv6-4"]
"""The families of a name's addresses by totem's ``ip_version``, the one to be tried first before the other."""


def read_corosync(file: str, text: str, files: Files, root: Path, findings: Findings) -> Corosync | None:
    """Return the content of corosync.conf, or None if it cannot be read, which is reported.

    ``root`` is the folder whose ``etc/hosts`` knows the names of nodes.
    """
    try:
        blocks = grammar.read_corosync(file, text)
    except grammar.SyntaxProblem as problem:
        number = text.count("\n", 0, problem.start) + 1
        line = grammar.Line(file, number, text.split("\n")[number - 1].rstrip("\r"))
        findings.error("syntax", line.span(), "cannot be read from here on; no rules for corosync", problem.hint)
        return None
    totem = next((block.settings for block in blocks.blocks if block.name == "totem"), {})
    transport, ip_version = totem.get("transport"), totem.get("ip_version")
    versions = _DEFAULT_VERSIONS if ip_version is None else _VERSIONS.get(ip_version.text, _DEFAULT_VERSIONS)
    names = _Names(files, root / "etc" / "hosts", versions)
    nodes = []
    for block in (node for listed in blocks.blocks if listed.name == "nodelist" for node in listed.blocks):
        links: dict[int, Prefix] = {}
        for key, value in block.settings.items():
            found = _LINK_ADDRESS.fullmatch(key)
            if found is None:
                continue
            address = names.address(value.text)
            if address is None:
                _report(file, text, key, value, names, findings)
            else:
                links[int(found[1])] = address
        name = block.settings.get("name") or block.settings.get("ring0_addr")  # corosync.conf(5), nodelist
        nodes.append(CorosyncNode(name.text if name else "", links))
    return Corosync(transport.text if transport else "knet", tuple(nodes), file)


class _Names:
    """The names of hosts(5), read when the first is asked for."""

    def __init__(self, files: Files, file: Path, versions: tuple[int, ...]) -> None:
        self._files = files
        self.file = file
        self._versions = versions
        self._known: Mapping[tuple[str, int], Prefix] | None = None

    def address(self, text: str) -> Prefix | None:
        """Return an address, or the address of a name; None if the text is neither."""
        if looks_like_address(text):
            try:
                return read_prefix(text)
            except BadValue:
                pass  # a host's name may begin with a digit
        if self._known is None:
            self._known = self._read()
        name = text.lower()
        return next((self._known[name, version] for version in self._versions if (name, version) in self._known), None)

    def _read(self) -> dict[tuple[str, int], Prefix]:
        """Return the first address of each family for each name, letter case aside."""
        try:
            text = self._files.text(self.file) or ""
        except ConfigurationError:
            return {}
        known: dict[tuple[str, int], Prefix] = {}
        for line in text.split("\n"):
            address, *names = line.partition("#")[0].split() or [""]
            try:
                prefix = read_prefix(address)
            except BadValue:
                continue
            host = Prefix(prefix.version, prefix.address, prefix.length, prefix.canonical)
            for name in names:
                # the first line with a name counts (hosts(5)); names have no letter case (RFC 1035, section 2.3.3)
                known.setdefault((name.lower(), prefix.version), host)
        return known


def _report(file: str, text: str, key: str, value: grammar.Word, names: _Names, findings: Findings) -> None:
    number = text.count("\n", 0, value.start) + 1
    start = value.start - text.rfind("\n", 0, value.start) - 1
    line = grammar.Line(file, number, text.split("\n")[number - 1].rstrip("\r"))
    span = line.span(start, start + len(value.text)) if value.text else Span(file, number)
    findings.warning(
        "corosync-address",
        span,
        f"`{key}: {value.text[:60]}` is neither an address nor a name in {names.file}, "
        "so no rule lets this link through",
        "write the node's address there, or the name and its address into that file",
    )
