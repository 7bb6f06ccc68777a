"""Connection tracking on firewall bridges: a zone for each, and no address translation on them.

A packet crosses a firewall bridge, the guest's bridge and perhaps the host, and is tracked on each. In one zone for all
of them, the firewall bridge would confirm the connection before the host routes its first packet, and NAT does not
change confirmed connections; and an answer forged on one bridge would make a connection established on another. So each
firewall bridge has a zone of its own, given to IP packets at both of its ports before connection tracking looks them
up::

    chain zones  { type filter hook prerouting priority -300
      meta protocol { ip, ip6 } ct zone set meta ibrname map { "fwbr100i0" : 7297, "fwbr101i0" : 7329 } accept
      meta protocol { ip, ip6 } meta ibrname "fwbr*" ct zone set 4096 }

The rule tests the bridge and not the port: an unplugged NIC stays in the zone of all other bridges, like its peers on
the same bridge. Frames that are not IP get no zone: bridge connection tracking would not give back the reference that a
zone takes (nf_ct_bridge_pre, Linux 6.1).

With br_netfilter, bridged packets pass the host's NAT rules on each bridge. If a rule translated a packet on a firewall
bridge, the packet would be handed to the host there and be lost. So a translation to its own address comes first::

    chain nat-prerouting  { type nat hook prerouting priority -110
      iifname "fwbr*" dnat ip to ip daddr }
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pvefw_nft.backends.nft.keys import ADDRESS_FIELDS
from pvefw_nft.backends.nft.syntax import statements as nft
from pvefw_nft.backends.nft.syntax.expressions import anonymous_set, ct, meta, value_map
from pvefw_nft.backends.nft.syntax.objects import Hook, Rule
from pvefw_nft.ir.nodes import Side
from pvefw_nft.ir.zones import SHARED_ZONE

if TYPE_CHECKING:
    from collections.abc import Mapping

ZONES: Final = "zones"
"""The chain that sets zones, of the table of family bridge."""
ZONES_HOOK: Final = Hook("prerouting", -300)

NO_NAT: Final = {
    "nat-prerouting": Hook("prerouting", -110, "nat"),  # before destination NAT, -100
    "nat-postrouting": Hook("postrouting", 90, "nat"),  # before source NAT, 100
}
"""The chains that keep bridged packets from being translated on firewall bridges, of the table of family inet."""

_FIREWALL_BRIDGES = "fwbr*"
_IP = nft.match(meta("protocol"), anonymous_set(["ip", "ip6"]))


def zone_rules(zones: Mapping[str, int]) -> tuple[Rule, ...]:
    """Return the rules of the chain :data:`ZONES`; ``zones`` maps names of firewall bridges to zones."""
    shared = nft.match(meta("ibrname"), _FIREWALL_BRIDGES)
    others = Rule((_IP, shared, nft.mangle(ct("zone"), SHARED_ZONE)), "other firewall bridges")
    # libnftables refuses a map without elements
    if not zones:
        return (others,)
    of_bridge = value_map(meta("ibrname"), [*zones.items()])
    # accept, so that the second rule does not set another zone
    return Rule((_IP, nft.mangle(ct("zone"), of_bridge), nft.ACCEPT), "firewall bridges"), others


def no_nat_rules(chain: str) -> tuple[Rule, ...]:
    """Return the rules of one of the chains :data:`NO_NAT`."""
    if NO_NAT[chain].point == "prerouting":
        here = nft.match(meta("iifname"), _FIREWALL_BRIDGES)
        v4 = nft.destination_nat("ip", ADDRESS_FIELDS[4, Side.DESTINATION])
        v6 = nft.destination_nat("ip6", ADDRESS_FIELDS[6, Side.DESTINATION])
        return Rule((here, v4), "firewall bridges"), Rule((here, v6), "firewall bridges")
    here = nft.match(meta("oifname"), _FIREWALL_BRIDGES)
    from_v4 = nft.source_nat("ip", ADDRESS_FIELDS[4, Side.SOURCE])
    from_v6 = nft.source_nat("ip6", ADDRESS_FIELDS[6, Side.SOURCE])
    return Rule((here, from_v4), "firewall bridges"), Rule((here, from_v6), "firewall bridges")
