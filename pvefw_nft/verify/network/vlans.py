"""Where VLAN-tagged frames for the host end up: at the VLAN interface of their tag, or nowhere.

A bridge hands a tagged frame for the host to its own interface, and that passes it on to the VLAN interface on top of
it, ``vmbr0.5`` for tag 5. From there on the packet is an ordinary one that came in by ``vmbr0.5``. Where the host has
no such interface the frame is lost: the host's stack does not look behind the tag.

Sources: br_pass_frame_up (net/bridge/br_input.c), vlan_do_receive (net/8021q/vlan_core.c) and
__netif_receive_skb_core (net/core/dev.c) of Linux 6.1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pvefw_nft.verify.model import IIF, IS_BRIDGED, PHYSIN, Family, Point, interface_number
from pvefw_nft.verify.network.path import Path, Stage

if TYPE_CHECKING:
    from pvefw_nft.verify.network.path import Topology


def deliver_tagged(topology: Topology, path: Path, tag: int) -> Path:
    """Return the path of a frame with this tag: unchanged where a bridge alone passes it on, else by a VLAN interface.

    Example: a frame with tag 5 from ``vmbr0/eth0`` to the host meets the bridge's hooks, and then the IP hooks with
    ``vmbr0.5`` as its input interface.
    """
    place = next((at for at, stage in enumerate(path.stages) if _enters_host(stage)), None)
    if place is None:
        return path
    before, after = path.stages[: place + 1], path.stages[place + 1 :]
    bridge = before[-1].hop.partition(":")[0]
    device = next((link.name for link in topology.links if link.vlan == (bridge, tag)), None)
    if device is None:
        reason = f"the host has no interface {bridge}.{tag}: no interface receives frames of VLAN {tag} from {bridge}"
        return replace(path, stages=before, dead_end=reason)
    fields = ((IIF, interface_number(device)), (IS_BRIDGED, 0))
    arrival = Stage(Family.IP, Point.PREROUTING, fields, before[-1].hop, untagged=True)
    rest = [_by_device(stage, device) for stage in after if stage.point is not Point.PREROUTING]
    return replace(path, stages=(*before, arrival, *rest))


def _enters_host(stage: Stage) -> bool:
    return stage.family is Family.BRIDGE and stage.point is Point.INPUT


def _by_device(stage: Stage, device: str) -> Stage:
    """Return a stage behind the VLAN interface: that is the input interface, and the bridge's port is forgotten."""
    if stage.family is Family.BRIDGE or not any(on is IIF for on, _ in stage.fields):
        return stage
    fields = tuple((on, interface_number(device) if on is IIF else value) for on, value in stage.fields)
    return replace(stage, fields=tuple(pair for pair in fields if pair[0] is not PHYSIN), untagged=True)
