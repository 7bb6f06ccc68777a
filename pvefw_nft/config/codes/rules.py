"""Codes about single rules: their words and values."""

from __future__ import annotations

from pvefw_nft.config.codes.declaration import CLUSTER, GUEST, ON, SKIPPED, Code, Example, error, warning
from pvefw_nft.config.rule_fields import listed_options


def _rule(before: str, after: str, names: str = "") -> Example:
    """Return an example of one rule of a guest; ``names`` are sections above it."""
    return Example(GUEST, f"{ON}{names}[RULES]\n{before}\n", f"{ON}{names}[RULES]\n{after}\n")


WORDS: tuple[Code, ...] = (
    error(
        "unknown-rule-option",
        "an unknown option of a rule",
        f"A rule's options are {listed_options()}. Options of iptables, such as -s or -j, are not known here.",
        SKIPPED,
        _rule("IN ACCEPT -s 192.0.2.1", "IN ACCEPT -source 192.0.2.1"),
    ),
    error(
        "bad-rule-type",
        "a rule type that is unknown or not allowed here",
        "Rules begin with IN, OUT, FORWARD or GROUP. Guests have no FORWARD rules, groups have no GROUP rules, VNets "
        "have FORWARD and GROUP rules only.",
        SKIPPED,
        _rule("FORWARD ACCEPT", "IN SSH(ACCEPT)"),
    ),
    error(
        "bad-action",
        "an unknown action",
        "A rule's action is ACCEPT, DROP or REJECT in upper case, or a macro with one of them, such as SSH(ACCEPT).",
        SKIPPED,
        _rule("IN SSH", "IN SSH(ACCEPT)"),
    ),
    error(
        "unknown-macro",
        "an unknown macro",
        "No macro has this name. The rule is left out, so traffic that it should accept is not accepted.",
        SKIPPED,
        _rule("IN SHS(ACCEPT)", "IN SSH(ACCEPT)"),
    ),
    error(
        "macro-conflict",
        "a rule that contradicts its macro",
        "A macro sets protocol and ports itself. The rule may add conditions that the macro leaves open, but must not "
        "contradict it.",
        SKIPPED,
        _rule("IN HTTP(ACCEPT) -dport 8080", "IN ACCEPT -p tcp -dport 8080"),
    ),
    warning(
        "macro-other-family",
        "a macro for IPv6 with IPv4 addresses",
        "The macro has rules for IPv6 only, and the addresses of the rule are IPv4. No packet can match.",
        "nothing is emitted for the rule, without a warning.",
        _rule("IN DHCPv6(ACCEPT) -source 192.0.2.1", "IN DHCPv6(ACCEPT) -source fe80::/10"),
    ),
    error(
        "group-condition",
        "a condition in a GROUP rule",
        "A GROUP rule takes an interface and nothing else. Conditions belong into the rules of the group.",
        SKIPPED,
        Example(
            GUEST,
            ON + "[RULES]\nGROUP web -p tcp\n",
            ON + "[RULES]\nGROUP web\n",
            {CLUSTER: ON + "[group web]\nIN HTTP(ACCEPT)\n"},
        ),
    ),
    error(
        "misplaced-interface",
        "an interface where rules have none",
        "Rules of groups and VNets have no interface. For a group, name it in the GROUP rule that uses the group.",
        SKIPPED,
        Example(
            CLUSTER,
            ON + "[group web]\nIN HTTP(ACCEPT) -i net0\n",
            ON + "[group web]\nIN HTTP(ACCEPT)\n",
            {GUEST: ON + "[RULES]\nGROUP web -i net0\n"},
        ),
    ),
    error(
        "bad-interface",
        "a name that cannot be an interface",
        "In a guest's file interfaces are net0 to net31. Elsewhere they have at most 15 letters, digits, `.`, `-` and "
        "`_`, as Linux allows.",
        SKIPPED,
        _rule("IN SSH(ACCEPT) -i eth0", "IN SSH(ACCEPT) -i net0"),
    ),
)

VALUES: tuple[Code, ...] = (
    error(
        "bad-address",
        "an address that cannot be read",
        "An address is one address, a network, a range, a list, `+ipset` or the name of an alias. The line is left "
        "out.",
        SKIPPED,
        _rule("IN SSH(ACCEPT) -source 192.0.2.256", "IN SSH(ACCEPT) -source 192.0.2.25"),
    ),
    error(
        "host-bits",
        "host bits in the address of a rule",
        "`192.0.2.5/24` may mean the host or the network. The diagnostic names both spellings.",
        SKIPPED,
        _rule("IN SSH(ACCEPT) -source 192.0.2.5/24", "IN SSH(ACCEPT) -source 192.0.2.0/24"),
    ),
    error(
        "mixed-families",
        "IPv4 and IPv6 in one rule",
        "No packet has a source of one family and a destination, or ICMP protocol, of the other. Write one rule for "
        "each family; an ipset may hold both.",
        SKIPPED,
        _rule("IN ACCEPT -source 192.0.2.1,2001:db8::1", "IN ACCEPT -source 192.0.2.1"),
    ),
    error(
        "unknown-alias",
        "an alias that is not defined above",
        "Files are read from top to bottom: an alias must be defined in a line above its use, in the same file or in "
        "cluster.fw.",
        SKIPPED,
        _rule("IN SSH(ACCEPT) -source adnim", "IN SSH(ACCEPT) -source admin", "[ALIASES]\nadmin 192.0.2.1\n"),
    ),
    error(
        "unknown-ipset",
        "an ipset that is not defined above",
        "Files are read from top to bottom: an ipset must be defined above its use, in the same file or in cluster.fw. "
        "Names of ipsets are in lower case.",
        SKIPPED,
        _rule("IN SSH(ACCEPT) -source +Admins", "IN SSH(ACCEPT) -source +admins", "[IPSET admins]\n192.0.2.1\n"),
    ),
    error(
        "unknown-group",
        "a group that is not defined",
        "Groups are defined in cluster.fw. The GROUP rule is left out; the other rules of the guest hold.",
        "the ruleset has no chains for a guest that uses an unknown group.",
        Example(
            GUEST,
            ON + "[RULES]\nGROUP wbe\n",
            ON + "[RULES]\nGROUP web\n",
            {CLUSTER: ON + "[group web]\nIN HTTP(ACCEPT)\n"},
        ),
    ),
    error(
        "port-without-protocol",
        "a port without a protocol that has ports",
        "Ports belong to tcp, udp, udplite, dccp or sctp. Name one with -p.",
        "the iptables firewall leaves the line out. The nft firewall ignores the port: the rule then matches "
        "every packet.",
        _rule("IN ACCEPT -dport 22", "IN ACCEPT -p tcp -dport 22"),
    ),
    error(
        "bad-port",
        "a port that cannot be read",
        "A port is a number from 0 to 65535, a range FIRST:LAST, a name of /etc/services, or a list of these.",
        SKIPPED,
        _rule("IN ACCEPT -p tcp -dport 90:80", "IN ACCEPT -p tcp -dport 80:90"),
    ),
    error(
        "too-many-ports",
        "more ports than fit into one rule",
        "iptables' multiport match holds 15 ports, a range counting two. Split the rule.",
        SKIPPED,
        _rule("IN ACCEPT -p tcp -dport 1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31", "IN ACCEPT -p tcp -dport 1:31"),
    ),
    error(
        "bad-protocol",
        "an unknown protocol",
        "A protocol is a name of /etc/protocols or a number from 1 to 255. The kernel's tools read 0 as any "
        "protocol, so it is refused.",
        "a line with an unknown name is left out, but 0 is taken and matches every packet.",
        _rule("IN ACCEPT -p tpc -dport 22", "IN ACCEPT -p tcp -dport 22"),
    ),
    error(
        "bad-icmp-type",
        "an unknown ICMP type",
        "The type is not one of this protocol, or the rule has no ICMP protocol.",
        SKIPPED,
        _rule("IN ACCEPT -p icmp -icmp-type ech-request", "IN ACCEPT -p icmp -icmp-type echo-request"),
    ),
)

CODES = WORDS + VALUES
