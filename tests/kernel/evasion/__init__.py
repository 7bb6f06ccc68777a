"""What a hostile guest or a hostile neighbour sends, as data: ``NAME/packets.toml`` beside the configuration it meets.

Written as in :mod:`tests.kernel.cases`. ``verdict`` is what the nft ruleset does. Where the iptables ruleset, which is
the reference's byte for byte, does something else, ``iptables`` says what; ``open`` says why something passes that
should not. ``root`` at the top is another folder's configuration, where the suite has none of its own.
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
    """A packet, or several of which the last is judged, and the verdicts it gets."""

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
    """Read a suite: its configuration, and what is tried on it.

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
