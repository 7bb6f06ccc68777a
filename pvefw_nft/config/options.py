"""The options of each kind of file, each declared once: :func:`option` in the body of a dataclass.

A declaration gives the field of the model with its type and default, the reader of its value (:mod:`~.option_readers`),
and its row in the tables of the manual, for which :data:`OPTIONS` collects all of them in the order of the fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, TypeVar, cast

from pvefw_nft.config.option_readers import (
    HELPERS,
    MAX_CONNTRACK,
    MAX_LIMIT,
    MAX_SETTING,
    MAX_SOURCES,
    Doubtful,
    number_reader,
    read_enable,
    read_flag,
    read_forward_policy,
    read_helpers,
    read_layer2,
    read_layer2_protocols,
    read_level,
    read_limit,
    read_log_ratelimit,
    read_policy,
    read_queues,
    read_sources,
    read_synflood_number,
)
from pvefw_nft.config.option_values import NOLOG, EtherType, Layer2, LogRatelimit, Policy, Queues
from pvefw_nft.config.values import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_T = TypeVar("_T")

# what options take, as the manual says it
YES = "0, 1"
POLICIES = "ACCEPT, DROP, REJECT"
FORWARD_POLICIES = "ACCEPT, DROP"
LEVEL = "a log level"


class FileKind(Enum):
    """The kinds of firewall files; the value names the file for people."""

    CLUSTER = "cluster.fw"
    HOST = "host.fw"
    GUEST = "a guest's .fw file"
    VNET = "a VNet's .fw file"
    CLUSTER_HARDENING = "cluster.pvefw"
    HOST_HARDENING = "host.pvefw"
    GUEST_HARDENING = "a guest's .pvefw file"

    @property
    def is_companion(self) -> bool:
        """Tell whether it is a companion file, which only pvefw reads and which has only options."""
        return self in (FileKind.CLUSTER_HARDENING, FileKind.HOST_HARDENING, FileKind.GUEST_HARDENING)


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a kind of file, as declared. ``takes`` and ``effect`` are the texts of the manual.

    ``strict`` is the value that an unreadable one counts as in a companion file; None in a file of Proxmox VE.
    """

    name: str
    default: object
    read: Callable[[str], object]
    takes: str
    effect: str
    strict: object

    @property
    def default_text(self) -> str:
        """The default as a file would say it."""
        value = self.default
        if value is None and self.strict is not None:
            return "as cluster.pvefw"
        if value is None:
            return "nolog" if "log_level" in self.name else "none"
        if isinstance(value, Enum):
            return str(value.value)
        if isinstance(value, bool):
            return str(int(value))
        return str(value) if value != () else "none"


def option(
    default: _T, read: Callable[[str], _T | Doubtful], takes: str, effect: str, *, strict: _T | None = None
) -> _T:
    """Declare a field of a dataclass as an option; see :class:`Option`.

    Example: ``nosmurfs: bool = option(True, read_flag, YES, "Drop packets that come from a broadcast address.")``.
    """
    declared = {"read": read, "takes": takes, "effect": effect, "strict": strict}
    return field(default=default, metadata=declared)


def as_cluster(name: str) -> _T | None:
    """Declare an option of a guest as in :class:`ClusterHardening`; its default None leaves it to cluster.pvefw."""
    (declared,) = (other.metadata for other in fields(ClusterHardening) if other.name == name)
    return field(default=None, metadata=declared)


def declared_options(options: type, *, is_companion: bool) -> Mapping[str, Option]:
    """Return the options that a dataclass declares, by name. Raises TypeError for an incomplete declaration."""
    found = {}
    for each in fields(options):
        if not each.metadata:
            raise TypeError(f"{options.__name__}.{each.name} is not declared by option()")
        declared = Option(each.name, each.default, **each.metadata)
        if not declared.takes or not declared.effect:
            raise TypeError(f"{options.__name__}.{each.name} has no text for the manual")
        if is_companion != (declared.strict is not None):
            raise TypeError(f"{options.__name__}.{each.name}: options of companion files, and only they, have `strict`")
        found[each.name] = declared
    return found


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Options of cluster.fw. ``log_ratelimit`` None: not given, so the default limit."""

    enable: bool = option(
        False,
        cast("Callable[[str], bool]", read_enable),  # a time is a number until `is_enabled` decides
        "0, 1, or a time",
        "Switch the firewall of the whole cluster on. A time (seconds since 1970) is on for 60 s.",
    )
    ebtables: bool = option(True, read_flag, YES, "Load the layer-2 rules: MAC filter and protocols of guests.")
    policy_in: Policy = option(
        Policy.DROP, read_policy, POLICIES, "The verdict on packets to hosts that no rule decides."
    )
    policy_out: Policy = option(
        Policy.ACCEPT, read_policy, POLICIES, "The verdict on packets from hosts that no rule decides."
    )
    policy_forward: Policy = option(
        Policy.ACCEPT,
        read_forward_policy,
        FORWARD_POLICIES,
        "The verdict on forwarded packets that no rule decides; nft only.",
    )
    log_ratelimit: LogRatelimit | None = option(
        None,
        read_log_ratelimit,
        "enable=0|1,rate=N/UNIT,burst=N",
        "How much is logged, by default 1/second with a burst of 5.",
    )


@dataclass(frozen=True, slots=True)
class HostOptions:
    """Options of host.fw. Times in seconds, log levels from 0 to 7 or None, the synflood rate in packets a second."""

    enable: bool = option(True, read_flag, YES, "Filter the host itself.")
    nftables: bool = option(False, read_flag, YES, "Load the nft ruleset (1) or the iptables ruleset (0).")
    log_level_in: int | None = option(NOLOG, read_level, LEVEL, "Log packets to the host that the policy decides.")
    log_level_out: int | None = option(NOLOG, read_level, LEVEL, "Log packets from the host that the policy decides.")
    log_level_forward: int | None = option(
        NOLOG, read_level, LEVEL, "Log forwarded packets that the policy decides; nft only."
    )
    tcp_flags_log_level: int | None = option(
        NOLOG, read_level, LEVEL, "Log packets with an illegal combination of TCP flags."
    )
    smurf_log_level: int | None = option(NOLOG, read_level, LEVEL, "Log packets that come from a broadcast address.")
    nosmurfs: bool = option(True, read_flag, YES, "Drop packets that come from a broadcast address.")
    tcpflags: bool = option(False, read_flag, YES, "Drop packets with an illegal combination of TCP flags.")
    ndp: bool = option(True, read_flag, YES, "Accept neighbour discovery of IPv6.")
    nf_conntrack_max: int = option(
        262144,
        number_reader(32768, MAX_CONNTRACK, MAX_CONNTRACK),
        "at least 32768",
        "How many connections the kernel tracks.",
    )
    nf_conntrack_tcp_timeout_established: int = option(
        432000,
        number_reader(7875, MAX_SETTING, MAX_SETTING),
        "at least 7875",
        "Seconds after which an idle TCP connection is forgotten.",
    )
    nf_conntrack_tcp_timeout_syn_recv: int = option(
        60, number_reader(30, 60, MAX_SETTING), "30 to 60", "Seconds for which a TCP handshake may be half open."
    )
    nf_conntrack_allow_invalid: bool = option(False, read_flag, YES, "Let packets with the state INVALID pass.")
    nf_conntrack_helpers: tuple[str, ...] = option(
        (), read_helpers, ", ".join(HELPERS), "Protocols whose further connections are followed; a list."
    )
    protection_synflood: bool = option(False, read_flag, YES, "Limit how many TCP connections a source may open.")
    protection_synflood_rate: int = option(
        200, read_synflood_number, "a number", "New connections per second and source."
    )
    protection_synflood_burst: int = option(
        1000, read_synflood_number, "a number", "New connections of a source before the rate counts."
    )
    log_nf_conntrack: bool = option(False, read_flag, YES, "Read, without effect.")


@dataclass(frozen=True, slots=True)
class GuestOptions:
    """Options of a guest's firewall file. ``ips_queues`` None: queue 0, by the kernel's default."""

    enable: bool = option(False, read_flag, YES, "Filter the guest's NICs that have firewall=1.")
    macfilter: bool = option(True, read_flag, YES, "Drop frames whose source is not the NIC's own MAC address.")
    dhcp: bool = option(True, read_flag, YES, "Accept DHCP.")
    ndp: bool = option(True, read_flag, YES, "Accept neighbour discovery of IPv6.")
    radv: bool = option(False, read_flag, YES, "Let the guest send router advertisements.")
    ipfilter: bool = option(
        False, read_flag, YES, "Let the guest send from its own addresses only; sets named ipfilter-netN add some."
    )
    policy_in: Policy = option(
        Policy.DROP, read_policy, POLICIES, "The verdict on packets to the guest that no rule decides."
    )
    policy_out: Policy = option(
        Policy.ACCEPT, read_policy, POLICIES, "The verdict on packets from the guest that no rule decides."
    )
    log_level_in: int | None = option(NOLOG, read_level, LEVEL, "Log packets to the guest that the policy decides.")
    log_level_out: int | None = option(NOLOG, read_level, LEVEL, "Log packets from the guest that the policy decides.")
    ips: bool = option(False, read_flag, YES, "Hand accepted packets to an intrusion prevention system by NFQUEUE.")
    ips_queues: Queues | None = option(None, read_queues, "N or N:M", "The queues for that; by default queue 0.")
    layer2_protocols: tuple[EtherType, ...] = option(
        (),
        read_layer2_protocols,
        "names of /etc/ethertypes",
        "Protocols that may leave the guest; a list. Default: all.",
    )


@dataclass(frozen=True, slots=True)
class VnetOptions:
    """Options of a VNet's firewall file."""

    enable: bool = option(False, read_flag, YES, "Filter packets that are forwarded within the VNet; nft only.")
    policy_forward: Policy = option(
        Policy.ACCEPT, read_forward_policy, FORWARD_POLICIES, "The verdict on packets that no rule decides."
    )
    log_level_forward: int | None = option(NOLOG, read_level, LEVEL, "Log packets that the policy decides.")


@dataclass(frozen=True, slots=True)
class ClusterHardening:
    """Options of cluster.pvefw, which hold for all guests. A limit of 0 is none."""

    l2: Layer2 = option(
        Layer2.OPEN,
        read_layer2,
        "open, strict",
        "With strict, a guest sends no frames without IP, except ARP and its layer2_protocols.",
        strict=Layer2.STRICT,
    )
    ipfilter_established: bool = option(
        False, read_flag, YES, "Apply the IP filter to replies within connections, too.", strict=True
    )
    max_connections: int = option(
        0,
        read_limit,
        f"0 to {MAX_LIMIT}",
        "Open connections that a NIC may have started; more are dropped. 0: no limit.",
        strict=10_000,
    )
    max_fragments: int = option(
        0,
        read_limit,
        f"0 to {MAX_LIMIT}",
        "Fragments that a NIC may send in a second; more are dropped. 0: no limit.",
        strict=1_000,
    )


@dataclass(frozen=True, slots=True)
class HostHardening:
    """Options of host.pvefw. ``harden``: harden the iptables ruleset, too. ``synflood_sources``: how many sources
    ``protection_synflood`` counts at once.
    """

    harden: bool = option(
        False, read_flag, YES, "Load the stateless checks of the nft ruleset beside the iptables ruleset.", strict=True
    )
    synflood_sources: int = option(
        262_144,
        read_sources,
        f"1024 to {MAX_SOURCES}",
        "How many sources protection_synflood counts at once.",
        strict=262_144,
    )


@dataclass(frozen=True, slots=True)
class GuestHardening:
    """Options of a guest's .pvefw file; None if cluster.pvefw decides.

    ``one_zone``: the connections of all its NICs are tracked together.
    """

    qinq: bool = option(False, read_flag, YES, "Let the guest send frames with two VLAN tags.", strict=False)
    one_zone: bool = option(
        False, read_flag, YES, "Let the guest answer by another NIC than the one that got the request.", strict=False
    )
    l2: Layer2 | None = as_cluster("l2")
    ipfilter_established: bool | None = as_cluster("ipfilter_established")
    max_connections: int | None = as_cluster("max_connections")
    max_fragments: int | None = as_cluster("max_fragments")

    def over(self, cluster: ClusterHardening) -> GuestHardening:
        """Return the options; the cluster's option applies if the guest has none."""
        unset = [each.name for each in fields(self) if getattr(self, each.name) is None]
        return replace(self, **{name: getattr(cluster, name) for name in unset})


OPTION_CLASSES: Mapping[FileKind, type] = {
    FileKind.CLUSTER: ClusterOptions,
    FileKind.HOST: HostOptions,
    FileKind.GUEST: GuestOptions,
    FileKind.VNET: VnetOptions,
    FileKind.CLUSTER_HARDENING: ClusterHardening,
    FileKind.HOST_HARDENING: HostHardening,
    FileKind.GUEST_HARDENING: GuestHardening,
}
"""The dataclass that declares the options of each kind of file."""

OPTIONS: Mapping[FileKind, Mapping[str, Option]] = {
    kind: declared_options(options, is_companion=kind.is_companion) for kind, options in OPTION_CLASSES.items()
}
"""The options of each kind of file, by name."""

OLD_OPTIONS = {"optimize": None, "allow_bridge_route": None, "protection_limit": FileKind.HOST}
"""Names of options without effect that files still have, and the kind of file that has them (None: any)."""


def has_no_effect(kind: FileKind, name: str) -> bool:
    """Tell whether a file of this kind may name the option although it has no effect."""
    return name in OLD_OPTIONS and OLD_OPTIONS[name] in (None, kind)


def option_hint(kind: FileKind, name: str) -> str | None:
    """Return a hint for an option that this kind of file does not have."""
    homes = [other.value for other, options in OPTIONS.items() if name in options and other is not kind]
    if homes:
        return f"`{name}` belongs in " + " or in ".join(homes)
    return nearest(name, tuple(OPTIONS[kind])) or "options here are " + ", ".join(OPTIONS[kind])
