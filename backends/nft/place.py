"""Places: where in the kernel a chain of the IR runs, and the facts known of a packet there.

The IR's filter chains describe iptables' one FORWARD hook, which sees bridged and routed packets alike. nft has hooks
for each. Packets that cross a firewall bridge are filtered when they enter one of its two ports: this hook of the
bridge family knows the direction and may reject. Other forwarded packets pass the forward hooks of both families.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from pvefw_nft.ir.nodes import Layer

if TYPE_CHECKING:
    from pvefw_nft.backends.nft.syntax.objects import Family as TableFamily


class Place(Enum):
    """A place for chains."""

    GUEST = "guest"
    """bridge prerouting, IP packets at the ports of firewall bridges"""
    LINK = "link"
    """bridge prerouting, all frames"""
    BRIDGE = "bridge"
    """bridge forward, IP packets"""
    HOST = "host"
    """all hooks of family inet"""

    @property
    def family(self) -> TableFamily:
        """The family of the table that the place is in."""
        return "inet" if self is Place.HOST else "bridge"

    @property
    def knows_guests(self) -> bool:
        """Tell whether a packet's NIC is known here."""
        return self in (Place.GUEST, Place.LINK)


_PREFIXES = {
    Layer.FILTER: "",
    Layer.RAW: "raw/",
    Layer.FORWARD: "forward/",
    Layer.LINK: "link/",
    Layer.STATELESS: "stateless/",
    Layer.LIMIT: "limit/",
}


def chain_name(layer: Layer, name: str) -> str:
    """Return the name in its table of a chain of the IR: layers may use a name twice, a table may not."""
    return _PREFIXES[layer] + name
