"""The declaration of a diagnostic code: its severity, its reason, and an example that a test runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pvefw_nft.errors import Severity

if TYPE_CHECKING:
    from collections.abc import Mapping

CLUSTER = "etc/pve/firewall/cluster.fw"
HOST = "etc/pve/local/host.fw"
GUEST = "etc/pve/firewall/100.fw"
CONFIG = "etc/pve/qemu-server/100.conf"
CONTAINER = "etc/pve/lxc/200.conf"
VNET = "etc/pve/sdn/firewall/vint.fw"
COROSYNC = "etc/pve/corosync.conf"

ON = "[OPTIONS]\nenable: 1\n"
NIC = "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1\n"

BASE: Mapping[str, str] = {CLUSTER: ON, CONFIG: NIC, GUEST: ON}
"""The files of an example that it does not give itself: one filtered VM with an empty, enabled firewall."""

SKIPPED = "it writes a warning to the log of its service, leaves the line out, and reports success."
"""How Proxmox's iptables firewall treats a line that it cannot use."""


UNTRIED = "this has not been tried with Proxmox's own firewall."
"""For codes where Proxmox's behaviour is unknown."""


@dataclass(frozen=True, slots=True)
class Example:
    """One file that causes a diagnostic, and the same file without the mistake.

    ``file`` is a path below the root; ``before`` and ``after`` are its whole text, None if it does not exist.
    ``beside`` holds the texts of further files, by path; the files of :data:`BASE` are added unless given.
    """

    file: str
    before: str | None
    after: str | None
    beside: Mapping[str, str] = field(default_factory=dict)

    def files(self, text: str | None) -> dict[str, str]:
        """Return all files of the example by path, with ``text`` (``before`` or ``after``) as the file it shows."""
        files = {**BASE, **self.beside}
        files.pop(self.file, None)
        return files if text is None else {**files, self.file: text}


@dataclass(frozen=True, slots=True)
class Code:
    """A kind of diagnostic. ``id`` is stable: scripts and SARIF viewers key on it.

    ``title`` is a few words, ``why`` gives the reason and the remedy. ``proxmox`` continues the sentence "In Proxmox
    VE: …" and describes the behaviour of its own firewall. Both are plain text.
    """

    id: str
    severity: Severity
    title: str
    why: str
    proxmox: str
    example: Example


def error(id: str, title: str, why: str, proxmox: str, example: Example) -> Code:  # noqa: A002 - the field's name
    """Declare a code for lines that have no effect as written: left out, or refused by the kernel's tools."""
    return Code(id, Severity.ERROR, title, why, proxmox, example)


def warning(id: str, title: str, why: str, proxmox: str, example: Example) -> Code:  # noqa: A002
    """Declare a code for lines that work as written, which is probably not the intention."""
    return Code(id, Severity.WARNING, title, why, proxmox, example)


def note(id: str, title: str, why: str, proxmox: str, example: Example) -> Code:  # noqa: A002
    """Declare a code for matters of style."""
    return Code(id, Severity.NOTE, title, why, proxmox, example)
