"""Codes about lines that are correct, but have no effect in their place."""

from __future__ import annotations

from pvefw_nft.config.codes.declaration import CLUSTER, GUEST, HOST, ON, VNET, Example, note, warning

_TAKEN = "the line is accepted without a warning."

CODES = (
    warning(
        "never-matches",
        "a rule that can never match",
        "Earlier rules decide all packets that the rule describes. The diagnostic names their lines. Move the rule up, "
        "or remove it.",
        _TAKEN,
        Example(
            GUEST,
            ON + "[RULES]\nIN ACCEPT -source 192.0.2.0/24\nIN DROP -source 192.0.2.7\n",
            ON + "[RULES]\nIN DROP -source 192.0.2.7\nIN ACCEPT -source 192.0.2.0/24\n",
        ),
    ),
    note(
        "no-effect",
        "a rule that changes nothing",
        "Without the rule every packet would have the same verdict and leave the same log entries. The diagnostic "
        "names the later line, policy or standard rule that does the same. Some standard rules are easily overlooked: "
        "before a policy DROP the chain PVEFW-Drop drops broadcasts and multicasts, udp 135, 137 to 139, 445 and 1900, "
        "tcp 135, 139 and 445, and udp from port 53, without a log entry. Remove the rule, or keep it as "
        "documentation.",
        _TAKEN,
        Example(
            GUEST,
            ON + "[RULES]\nIN SSH(ACCEPT)\nIN DROP -p tcp -dport 99\n",
            ON + "[RULES]\nIN SSH(ACCEPT)\n",
        ),
    ),
    note(
        "unused-alias",
        "an alias that nothing uses",
        "No rule and no ipset of any file below the root names the alias.",
        _TAKEN,
        Example(
            GUEST,
            ON + "[ALIASES]\nadmin 192.0.2.1\n",
            ON + "[ALIASES]\nadmin 192.0.2.1\n[RULES]\nIN SSH(ACCEPT) -source admin\n",
        ),
    ),
    note(
        "unused-ipset",
        "an ipset that nothing uses",
        "No rule of any file below the root names the ipset. The sets management, blacklist and ipfilter-netN are used "
        "without being named.",
        _TAKEN,
        Example(
            GUEST,
            ON + "[IPSET admins]\n192.0.2.1\n",
            ON + "[IPSET admins]\n192.0.2.1\n[RULES]\nIN SSH(ACCEPT) -source +admins\n",
        ),
    ),
    note(
        "unused-group",
        "a group that nothing uses",
        "No GROUP rule of any file below the root names the group.",
        _TAKEN,
        Example(
            CLUSTER,
            ON + "[group web]\nIN HTTP(ACCEPT)\n[RULES]\nIN SSH(ACCEPT)\n",
            ON + "[group web]\nIN HTTP(ACCEPT)\n[RULES]\nGROUP web\n",
        ),
    ),
    warning(
        "not-carried-out",
        "a FORWARD rule or policy under iptables",
        "The iptables ruleset has no place for FORWARD rules, policy_forward and VNet files. The nft ruleset has.",
        "the iptables firewall ignores them, the nft firewall applies them.",
        Example(
            HOST,
            "[OPTIONS]\nnftables: 0\n",
            "[OPTIONS]\nnftables: 1\n",
            {CLUSTER: ON + "[RULES]\nFORWARD DROP -source 192.0.2.7\n"},
        ),
    ),
    warning(
        "drops-instead",
        "REJECT in a VNet",
        "The kernel cannot reject bridged packets in its forward hook, so the packet is dropped and the sender waits "
        "for a time-out. Rules at the guests' NICs can reject.",
        "the nft firewall drops, too.",
        Example(
            VNET, ON + "[RULES]\nFORWARD REJECT\n", ON + "[RULES]\nFORWARD DROP\n", {HOST: "[OPTIONS]\nnftables: 1\n"}
        ),
    ),
)
