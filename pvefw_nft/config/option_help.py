"""The values and effect of each option of a firewall file, for the manual's tables and pvefw.fw(5).

The names come from :data:`~.options.OPTIONS`, the defaults from the model.
"""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.config import model
from pvefw_nft.config.options import HELPERS, OPTIONS, STRICT_VALUES, FileKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_YES = "0, 1"
_POLICY = "ACCEPT, DROP, REJECT"
_LEVEL = "a log level"
_HOLDERS: Mapping[FileKind, type] = {
    FileKind.CLUSTER: model.ClusterOptions,
    FileKind.HOST: model.HostOptions,
    FileKind.GUEST: model.GuestOptions,
    FileKind.VNET: model.VnetOptions,
    FileKind.CLUSTER_HARDENING: model.ClusterHardening,
    FileKind.HOST_HARDENING: model.HostHardening,
    FileKind.GUEST_HARDENING: model.GuestHardening,
}

_LIMITS: Mapping[str, tuple[str, str]] = {
    "l2": ("open, strict", "With strict, a guest sends no frames without IP, except ARP and its layer2_protocols."),
    "ipfilter_established": (_YES, "Apply the IP filter to replies within connections, too."),
    "max_connections": (
        "0 to 10000000",
        "Open connections that a NIC may have started; more are dropped. 0: no limit.",
    ),
    "max_fragments": ("0 to 10000000", "Fragments that a NIC may send in a second; more are dropped. 0: no limit."),
}

_HELP: Mapping[FileKind, Mapping[str, tuple[str, str]]] = {
    FileKind.CLUSTER: {
        "enable": (
            "0, 1, or a time",
            "Switch the firewall of the whole cluster on. A time (seconds since 1970) is on for 60 s.",
        ),
        "ebtables": (_YES, "Load the layer-2 rules: MAC filter and protocols of guests."),
        "policy_in": (_POLICY, "The verdict on packets to hosts that no rule decides."),
        "policy_out": (_POLICY, "The verdict on packets from hosts that no rule decides."),
        "policy_forward": ("ACCEPT, DROP", "The verdict on forwarded packets that no rule decides; nft only."),
        "log_ratelimit": (
            "enable=0|1,rate=N/UNIT,burst=N",
            "How much is logged, by default 1/second with a burst of 5.",
        ),
    },
    FileKind.HOST: {
        "enable": (_YES, "Filter the host itself."),
        "nftables": (_YES, "Load the nft ruleset (1) or the iptables ruleset (0)."),
        "log_level_in": (_LEVEL, "Log packets to the host that the policy decides."),
        "log_level_out": (_LEVEL, "Log packets from the host that the policy decides."),
        "log_level_forward": (_LEVEL, "Log forwarded packets that the policy decides; nft only."),
        "tcp_flags_log_level": (_LEVEL, "Log packets with an illegal combination of TCP flags."),
        "smurf_log_level": (_LEVEL, "Log packets that come from a broadcast address."),
        "nosmurfs": (_YES, "Drop packets that come from a broadcast address."),
        "tcpflags": (_YES, "Drop packets with an illegal combination of TCP flags."),
        "ndp": (_YES, "Accept neighbour discovery of IPv6."),
        "nf_conntrack_max": ("at least 32768", "How many connections the kernel tracks."),
        "nf_conntrack_tcp_timeout_established": (
            "at least 7875",
            "Seconds after which an idle TCP connection is forgotten.",
        ),
        "nf_conntrack_tcp_timeout_syn_recv": ("30 to 60", "Seconds for which a TCP handshake may be half open."),
        "nf_conntrack_allow_invalid": (_YES, "Let packets with the state INVALID pass."),
        "nf_conntrack_helpers": (", ".join(HELPERS), "Protocols whose further connections are followed; a list."),
        "protection_synflood": (_YES, "Limit how many TCP connections a source may open."),
        "protection_synflood_rate": ("a number", "New connections per second and source."),
        "protection_synflood_burst": ("a number", "New connections of a source before the rate counts."),
        "log_nf_conntrack": (_YES, "Read, without effect."),
    },
    FileKind.GUEST: {
        "enable": (_YES, "Filter the guest's NICs that have firewall=1."),
        "macfilter": (_YES, "Drop frames whose source is not the NIC's own MAC address."),
        "dhcp": (_YES, "Accept DHCP."),
        "ndp": (_YES, "Accept neighbour discovery of IPv6."),
        "radv": (_YES, "Let the guest send router advertisements."),
        "ipfilter": (_YES, "Let the guest send from its own addresses only; sets named ipfilter-netN add some."),
        "policy_in": (_POLICY, "The verdict on packets to the guest that no rule decides."),
        "policy_out": (_POLICY, "The verdict on packets from the guest that no rule decides."),
        "log_level_in": (_LEVEL, "Log packets to the guest that the policy decides."),
        "log_level_out": (_LEVEL, "Log packets from the guest that the policy decides."),
        "ips": (_YES, "Hand accepted packets to an intrusion prevention system by NFQUEUE."),
        "ips_queues": ("N or N:M", "The queues for that; by default queue 0."),
        "layer2_protocols": ("names of /etc/ethertypes", "Protocols that may leave the guest; a list. Default: all."),
    },
    FileKind.VNET: {
        "enable": (_YES, "Filter packets that are forwarded within the VNet; nft only."),
        "policy_forward": ("ACCEPT, DROP", "The verdict on packets that no rule decides."),
        "log_level_forward": (_LEVEL, "Log packets that the policy decides."),
    },
    FileKind.CLUSTER_HARDENING: _LIMITS,
    FileKind.HOST_HARDENING: {
        "harden": (_YES, "Load the stateless checks of the nft ruleset beside the iptables ruleset."),
        "synflood_sources": ("1024 to 16777216", "How many sources protection_synflood counts at once."),
    },
    FileKind.GUEST_HARDENING: {
        "qinq": (_YES, "Let the guest send frames with two VLAN tags."),
        "one_zone": (_YES, "Let the guest answer by another NIC than the one that got the request."),
        **_LIMITS,
    },
}


class OptionHelp(NamedTuple):
    """An option of a kind of file: its values, its default as written in a file, and its effect."""

    name: str
    takes: str
    default: str
    effect: str


def option_help(kind: FileKind) -> Iterator[OptionHelp]:
    """Yield the options that a kind of file may have, in the order in which they are declared."""
    defaults = {field.name: field.default for field in fields(_HOLDERS[kind])}
    for name in OPTIONS[kind]:
        takes, effect = _HELP[kind][name]
        yield OptionHelp(name, takes, _written(name, defaults[name]), effect)


def _written(name: str, value: object) -> str:
    """Return a default as a file would say it."""
    if name in STRICT_VALUES and value is None:
        return "as cluster.pvefw"
    if value is None:
        return "nolog" if "log_level" in name else "none"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(int(value))
    return str(value) if value != () else "none"
