"""Groups, ipsets and aliases that nothing refers to.

The cluster's names may be used by any file of any node, so all firewall files below the root count, by their words:
a name that occurs anywhere, even in a disabled line, is in use.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pvefw_nft.errors import UnusableFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pvefw_nft.config.findings import Findings
    from pvefw_nft.config.grammar import Line
    from pvefw_nft.config.load import Configuration, Root
    from pvefw_nft.config.model import Alias, ClusterConfig, Ipset

_IMPLIED_IPSETS = re.compile(r"management|blacklist|ipfilter-net[0-9]+")
_IMPLIED_ALIASES = ("local_network",)
_MAY_DEFINE = re.compile(r"ipset|aliases", re.IGNORECASE)
"""The word in the header of a section that defines names."""
_CODES = {"alias": "unused-alias", "ipset": "unused-ipset", "group": "unused-group"}
_SCOPES = ("", "dc/", "guest/")


def find_unused_of_cluster(root: Root, cluster: ClusterConfig, findings: Findings) -> None:
    """Add a note for each name of cluster.fw that no file refers to. Raises ConfigurationError for an unusable file."""
    everywhere = {word for path in _firewall_files(root) for word in _words(_text(root, path))}
    for name, group in cluster.groups.items():
        if name not in everywhere:
            _report(findings, "group", name, group.header)
    _ipsets(cluster.ipsets, everywhere, findings)
    _aliases(cluster.aliases, everywhere, findings)


def find_unused_of_guests(root: Root, configuration: Configuration, findings: Findings) -> None:
    """Add a note for each name of a guest's file that it does not refer to itself."""
    for guest in configuration.guests(only=_MayDefine(root)):
        config = guest.firewall
        if config is not None and (config.ipsets or config.aliases):
            words = set(_words(_text(root, root.pve / "firewall" / f"{guest.vmid}.fw")))
            _ipsets(config.ipsets, words, findings)
            _aliases(config.aliases, words, findings)


class _MayDefine:
    """The guests in whose firewall file a section may define names, by VMID: few files have one, and rules take long
    to read.
    """

    def __init__(self, root: Root) -> None:
        self.root = root

    def __contains__(self, vmid: object) -> bool:
        return bool(_MAY_DEFINE.search(_text(self.root, self.root.pve / "firewall" / f"{vmid}.fw")))


def _firewall_files(root: Root) -> Iterator[Path]:
    for folder in (root.pve / "firewall", root.pve / "sdn" / "firewall"):
        yield from (folder / name for name in root.files.listed(folder) if name.endswith(".fw"))
    yield root.host_file()
    nodes = root.pve / "nodes"
    yield from (nodes / name / "host.fw" for name in root.files.listed(nodes) if root.files.is_folder(nodes / name))


def _text(root: Root, path: Path) -> str:
    """Return a file's text; none of one that cannot be used, which was reported where it is read for its rules."""
    try:
        return root.files.text(path) or ""
    except UnusableFileError:
        return ""


def _words(text: str) -> Iterator[str]:
    """Yield the words of a file that may refer to a name, without the first word of a line that defines one."""
    defines = False
    for raw in text.split("\n"):
        line = raw.partition("#")[0].strip().removeprefix("!").strip()
        if line.startswith("["):
            defines = line.lower().startswith("[aliases")
        else:
            words = line.replace(",", " ").split()
            yield from words[1:] if defines else words


def _ipsets(ipsets: Mapping[str, Ipset], words: set[str], findings: Findings) -> None:
    for name, ipset in ipsets.items():
        if not _IMPLIED_IPSETS.fullmatch(name) and not any(f"+{scope}{name}" in words for scope in _SCOPES):
            _report(findings, "ipset", name, ipset.header)


def _aliases(aliases: Mapping[str, Alias], words: set[str], findings: Findings) -> None:
    folded = {word.lower() for word in words} if aliases else set()
    for name, alias in aliases.items():
        if name not in _IMPLIED_ALIASES and not any(f"{scope}{name}" in folded for scope in _SCOPES):
            _report(findings, "alias", name, alias.line)


def _report(findings: Findings, what: str, name: str, line: Line) -> None:
    findings.note(_CODES[what], line.span(), f"nothing uses {what} `{name}`", "remove it, or use it")
