"""Packets of a hostile guest or neighbour, as data: ``NAME/packets.toml`` beside the configuration that filters them.

The form is that in :mod:`tests.kernel.cases`. ``verdict`` is the nft ruleset's verdict. ``iptables`` is the verdict of
the iptables ruleset, which equals the reference's byte for byte, if it differs. ``open`` gives the reason if a packet
passes that should not. ``root`` at the top names another folder's configuration, if the suite has none.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel import cases
from tests.kernel.artefact import IPTABLES
from tests.kernel.configurations import Configuration

if TYPE_CHECKING:
    from tests.kernel.packets import Probe

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Attempt:
    """A packet, with packets sent before it, and its verdicts."""

    probe: Probe
    nft: str
    iptables: str

    def expected(self, backend: str) -> str:
        """Return the verdict of a backend's ruleset."""
        return self.iptables if backend == IPTABLES else self.nft


def names() -> list[str]:
    """Return the names of all suites."""
    return sorted(path.parent.name for path in FOLDER.glob("*/packets.toml"))


def load(name: str) -> tuple[Configuration, list[Attempt]]:
    """Read a suite: its configuration and its packets.

    Raises:
        CaseError: a packet is described with keys or values that are not known.
    """
    data = tomllib.loads((FOLDER / name / "packets.toml").read_text())
    attempts = []
    for table in data["packet"]:
        packet = {key: value for key, value in table.items() if key not in ("iptables", "open")}
        if table.get("open") == "" or (table["verdict"] == "ACCEPT" and "iptables" in table):
            raise cases.CaseError(f"{name}: {table.get('about')}: what passes nft has a reason, and passes iptables")
        nft = table["verdict"]
        attempts += [Attempt(probe, nft, table.get("iptables", nft)) for probe in cases.read_packets(packet)]
    root = (FOLDER / name / data.get("root", ".")).resolve()
    return Configuration(f"evasion/{name}", root, data["node"], data["local_network"]), attempts
