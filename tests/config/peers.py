"""Constructs that Proxmox's two firewalls and pvefw do not all read alike.

Each row is a case: its files, the behaviour of the peers (observed on versions 5.1 to 6.0 of pve-firewall and 1.2 of
proxmox-firewall), and of pvefw, which :mod:`test_peers` checks. ``scripts/peer_table.py`` prints the rows as the table
of docs/language.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pvefw_nft.config.option_values import Policy
from pvefw_nft.ir.nodes import Layer
from tests.support import VM

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pvefw_nft.pipeline import Checked

ON = "[OPTIONS]\nenable: 1\n"
OFFICE = "[ALIASES]\noffice 192.0.2.0/24\n"
RUNNING = "etc/pve/sdn/.running-config"
_STATE = '{"vnets": {"ids": {"web": {"zone": "z"}}}, "subnets": {"ids": {"z-10.1.0.0-24": {"vnet": "web"}}}}'
_COROSYNC = """\
nodelist {
  node {
    name: n1
    ring0_addr: one
  }
  node {
    name: n2
    ring0_addr: 10.0.0.2
  }
}
"""

TAKEN, SKIPPED, UNTRIED = "takes it", "leaves the line out", "not tried"


@dataclass(frozen=True, slots=True)
class Peers:
    """A construct, its reading by each of the three, and the proof of pvefw's reading.

    ``files`` are by short name (see :mod:`tests.support`) or path; ``codes`` are the diagnostics, and ``holds`` tells
    whether the configuration means what ``pvefw`` says.
    """

    construct: str
    iptables: str
    nft: str
    pvefw: str
    files: Mapping[str, str]
    codes: tuple[str, ...] = ()
    holds: Callable[[Checked], bool] = field(default=lambda _: True)


def _cluster(text: str) -> dict[str, str]:
    return {"cluster": ON + text}


def _guest_rule(text: str) -> dict[str, str]:
    return {"100.conf": VM, "100.fw": f"{ON}[RULES]\n{text}\n"}


def _is_left_out(checked: Checked) -> bool:
    """Tell whether the guest's chain has no rule from a file."""
    return not any(rule.origin.line for rule in checked.ruleset.chains[Layer.FILTER]["tap100i0-IN"].rules)


def _is_taken(checked: Checked) -> bool:
    return not _is_left_out(checked)


def _entries(checked: Checked, name: str) -> list[tuple[str, bool]]:
    """Return the networks of a set of the cluster, each with whether it is a hole."""
    made = next(made for made in checked.ruleset.sets if made.key.scope == 0 and made.key.name == name)
    return [(entry.prefix.canonical, entry.nomatch) for entry in made.entries]


def _limit(checked: Checked) -> tuple[int, int | None]:
    ratelimit = checked.node.cluster.options.log_ratelimit
    assert ratelimit is not None
    assert ratelimit.limit is not None
    return ratelimit.limit.number, ratelimit.limit.burst


ROWS = (
    Peers(
        "`Enable: 1`, `POLICY_OUT:`: an option's name in another letter case",
        TAKEN,
        UNTRIED,
        TAKEN,
        {"cluster": "[OPTIONS]\nEnable: 1\nPOLICY_OUT: DROP\n"},
        holds=lambda checked: checked.ruleset.enabled and checked.node.cluster.options.policy_out is Policy.DROP,
    ),
    Peers(
        "`policy_in: reject`: a policy in another letter case",
        TAKEN,
        TAKEN,
        TAKEN,
        _cluster("policy_in: reject\n"),
        holds=lambda checked: checked.node.cluster.options.policy_in is Policy.REJECT,
    ),
    Peers(
        "`log_level_in: INFO`, `nf_conntrack_helpers: FTP`; an empty `log_level_in:` for nolog",
        TAKEN,
        UNTRIED,
        TAKEN,
        {"host": "[OPTIONS]\nlog_level_in: INFO\nlog_level_out:\nnf_conntrack_helpers: FTP\n"},
        holds=lambda checked: (
            checked.node.host.options.log_level_in == 6
            and checked.node.host.options.log_level_out is None
            and checked.node.host.options.nf_conntrack_helpers == ("ftp",)
        ),
    ),
    Peers(
        "`enable: 1 # on`: a comment behind an option's value",
        SKIPPED,
        "refuses the file",
        "error, the line is left out; `start` takes the `enable` for 1",
        {"cluster": "[OPTIONS]\nenable: 1 # on\n"},
        ("option-comment",),
        lambda checked: not checked.ruleset.enabled,
    ),
    Peers(
        "`policy_out: DROPP`: a policy that cannot be read",
        "keeps the default, here ACCEPT",
        UNTRIED,
        "error; the policy counts as DROP",
        _cluster("policy_out: DROPP\n"),
        ("bad-option-value",),
        lambda checked: checked.node.cluster.options.policy_out is Policy.DROP,
    ),
    Peers(
        "`ebtables: no`: another option that cannot be read",
        "keeps the default, here 1",
        UNTRIED,
        "error; the default",
        _cluster("ebtables: no\n"),
        ("bad-option-value",),
        lambda checked: checked.node.cluster.options.ebtables,
    ),
    Peers(
        "`log_ratelimit: enable=1,rate=3/hour`: no burst",
        "`--limit 3/hour` without a burst",
        TAKEN,
        "the same; nft gets the burst of 5 that iptables takes then",
        _cluster("log_ratelimit: enable=1,rate=3/hour\n"),
        holds=lambda checked: _limit(checked) == (3, None),
    ),
    Peers(
        "`log_ratelimit: enable=yes`, also `on` and `true`",
        TAKEN,
        TAKEN,
        TAKEN,
        _cluster("log_ratelimit: enable=yes,rate=3/second\n"),
        holds=lambda checked: _limit(checked) == (3, None),
    ),
    Peers(
        "`burst=0`, `burst=20000`, `rate=20000/second`",
        "takes it; iptables then refuses the ruleset",
        TAKEN,
        "takes it with a warning; the nearest is loaded that the kernel takes",
        _cluster("log_ratelimit: rate=20000/second,burst=0\n"),
        ("unusual-value",),
        lambda checked: _limit(checked) == (20000, 0),
    ),
    Peers(
        "`nf_conntrack_max: 1000`, `protection_synflood_rate: 2000000`: beyond the API's limits",
        TAKEN,
        UNTRIED,
        "takes it with a warning; the nearest is loaded that the kernel takes",
        {"host": "[OPTIONS]\nnf_conntrack_max: 1000\nprotection_synflood_rate: 2000000\n"},
        ("unusual-value", "unusual-value"),
        lambda checked: (
            checked.node.host.options.nf_conntrack_max == 1000
            and checked.node.host.options.protection_synflood_rate == 2000000
        ),
    ),
    Peers(
        "`protection_limit: 5` in host.fw",
        "reads it, without effect",
        UNTRIED,
        "warning, without effect",
        {"host": "[OPTIONS]\nprotection_limit: 5\n"},
        ("old-option",),
    ),
    Peers(
        "the same text twice in an ipset, as `10.0.0.1` and `!10.0.0.1`",
        "the first counts",
        UNTRIED,
        "the first counts; a warning names both lines",
        _cluster("[IPSET ab]\n10.0.0.1\n!10.0.0.1\n"),
        ("contradictory-entry",),
        lambda checked: _entries(checked, "ab") == [("10.0.0.1", False)],
    ),
    Peers(
        "one network in two texts in an ipset, as an alias and `!` with its address",
        "the last counts",
        UNTRIED,
        "the last counts; a warning names both lines",
        _cluster(f"{OFFICE}[IPSET ab]\noffice\n!192.0.2.0/24\n"),
        ("contradictory-entry",),
        lambda checked: _entries(checked, "ab") == [("192.0.2.0/24", True)],
    ),
    Peers(
        "cluster `enable:` as a time some seconds in the future",
        "on",
        UNTRIED,
        "on, up to 60 s before the time",
        {"cluster": "[OPTIONS]\nenable: 1700000050\n"},
        holds=lambda checked: checked.ruleset.enabled,
    ),
    Peers(
        "`ring0_addr: NAME` in corosync.conf",
        "looks the name up",
        UNTRIED,
        "looks it up in `etc/hosts` below the root, by totem's `ip_version`; asks no name server",
        {"corosync": _COROSYNC, "etc/hosts": "10.0.0.1 one\n"},
        holds=lambda checked: (
            checked.node.corosync is not None and checked.node.corosync.nodes[0].links[0].canonical == "10.0.0.1"
        ),
    ),
    Peers(
        "`firewall=on`, `yes`, `true` of a NIC",
        "filters the NIC",
        "filters the NIC",
        "filters the NIC",
        {"100.conf": VM.replace("firewall=1", "firewall=on"), "100.fw": ON},
        holds=lambda checked: len(checked.ruleset.nics) == 1,
    ),
    Peers(
        "`-icmp-type 8`, `-icmp-type 3/4`: numbers",
        SKIPPED,
        TAKEN,
        "error, which tells the name; the line is left out",
        _guest_rule("IN ACCEPT -p icmp -icmp-type 8"),
        ("bad-icmp-type",),
        _is_left_out,
    ),
    Peers(
        "`-icmp-type nd-router-advert`: nft's names of ICMP types",
        SKIPPED,
        TAKEN,
        "error, which tells the name; the line is left out",
        _guest_rule("IN ACCEPT -p icmpv6 -icmp-type nd-router-advert"),
        ("bad-icmp-type",),
        _is_left_out,
    ),
    Peers(
        "`-p icmp -icmp-type any`",
        TAKEN,
        TAKEN,
        TAKEN,
        _guest_rule("IN ACCEPT -p icmp -icmp-type any"),
        holds=_is_taken,
    ),
    Peers(
        "`-p icmpv6 -icmp-type any`",
        SKIPPED,
        TAKEN,
        "error; the line is left out",
        _guest_rule("IN ACCEPT -p icmpv6 -icmp-type any"),
        ("bad-icmp-type",),
        _is_left_out,
    ),
    Peers(
        "`Ping(ACCEPT) -p icmp -icmp-type echo-request`: what the macro says, said again",
        TAKEN,
        UNTRIED,
        TAKEN,
        _guest_rule("IN Ping(ACCEPT) -p icmp -icmp-type echo-request"),
        holds=_is_taken,
    ),
    Peers(
        "macro `PBS`",
        SKIPPED,
        "takes it: tcp 8007",
        "error, which tells the rule to write; the line is left out",
        _guest_rule("IN PBS(ACCEPT)"),
        ("unknown-macro",),
        _is_left_out,
    ),
    Peers(
        "`+web-all`, without `sdn/`, for a set of the SDN",
        "looks in the guest, the cluster, then the SDN",
        UNTRIED,
        "the same",
        {**_guest_rule("IN ACCEPT -source +web-all"), RUNNING: _STATE},
        holds=_is_taken,
    ),
    Peers(
        "an ipset of cluster.fw with the name of a set of the SDN",
        "the SDN's addresses count",
        UNTRIED,
        "the same, with a warning",
        {**_cluster("[IPSET web-all]\n192.0.2.1\n"), RUNNING: _STATE},
        ("hidden-ipset",),
        lambda checked: _entries(checked, "web-all") == [("10.1.0.0/24", False)],
    ),
)


def table() -> str:
    """Return the rows as a table in Markdown."""
    head = ("construct", "Proxmox, iptables", "Proxmox, nft", "pvefw")
    rows = [(row.construct, row.iptables, row.nft, row.pvefw) for row in ROWS]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ("---",) * len(head), *rows))
