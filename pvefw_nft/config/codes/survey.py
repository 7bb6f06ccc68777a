"""Codes about files that no node reads, and settings that defeat one another: only ``pvefw check`` reports them."""

from __future__ import annotations

from pvefw_nft.config.codes.declaration import (
    CLUSTER,
    CONFIG,
    GUEST,
    HOST,
    NIC,
    ON,
    UNTRIED,
    Code,
    Example,
    error,
    note,
    warning,
)

_SILENT = "no warning is given."
_FILTER = "[IPSET ipfilter-net0]\n"
_RULES = "[RULES]\nIN SSH(ACCEPT)\n"

CODES: tuple[Code, ...] = (
    warning(
        "borrowed-network",
        "the local network of this machine, for another host",
        "The host's management set holds its local network. With a root other than / name that network with the alias "
        "local_network or with --local-network; otherwise it is taken from the machine that runs pvefw.",
        "each node detects its own local network.",
        Example(CLUSTER, ON, ON + "[ALIASES]\nlocal_network 192.0.2.0/24\n"),
    ),
    warning(
        "borrowed-names",
        "a name that only this machine knows",
        "Names of services, protocols and Ethernet protocols are looked up in this machine's /etc. This name was added "
        "there, or has another number than in Debian's files. On the host that the configuration is for, it may be "
        "unknown or have another number.",
        "each node looks names up in its own files.",
        Example(
            GUEST,
            ON + "[RULES]\nIN ACCEPT -p tcp -dport localthing\n",
            ON + "[RULES]\nIN ACCEPT -p tcp -dport 4711\n",
        ),
    ),
    warning(
        "guest-not-filtered",
        "a guest with rules, and no filtered NIC",
        "A NIC is filtered only if its line in the guest's config has firewall=1. Without such a NIC, the rules of the "
        "guest have no effect, and every packet reaches it. This is the most common reason for a firewall that seems "
        "to do nothing.",
        "the guest is not filtered, without a warning.",
        Example(CONFIG, NIC.replace(",firewall=1", ""), NIC, {GUEST: ON + _RULES}),
    ),
    warning(
        "not-enabled",
        "rules of a firewall that was never switched on",
        "Clusters and guests have `enable: 0` by default, so their rules do nothing without `enable: 1`. The cluster's "
        "`enable` switches all firewalls; a guest's `enable` switches its own.",
        _SILENT,
        Example(GUEST, _RULES, ON + _RULES),
    ),
    warning(
        "answers-cut-off",
        "a rule for an address that the guest may not answer from",
        "With `ipfilter_established` the IP filter also checks packets of established connections. This rule accepts "
        "packets to an address that is not in the NIC's set, so the guest's answers are dropped. This happens with "
        "addresses that move between guests.",
        "it has no such option: answers within a connection are not filtered.",
        Example(
            GUEST,
            ON + _FILTER + "192.0.2.1\n[RULES]\nIN SSH(ACCEPT) -dest 192.0.2.9\n",
            ON + _FILTER + "192.0.2.1\n192.0.2.9\n[RULES]\nIN SSH(ACCEPT) -dest 192.0.2.9\n",
            {"etc/pve/firewall/100.pvefw": "[OPTIONS]\nipfilter_established: 1\n"},
        ),
    ),
    note(
        "switched-off",
        "rules of a firewall that is switched off",
        "`enable: 0` says that the rules should do nothing. The note is a reminder.",
        _SILENT,
        Example(GUEST, "[OPTIONS]\nenable: 0\n" + _RULES, ON + _RULES),
    ),
    warning(
        "missing-nic",
        "a rule for a NIC that the guest lacks, or that is not filtered",
        "The rule never matches: the guest has no NIC of that number, or the NIC has no firewall=1.",
        "the rule is left out of the ruleset, without a warning.",
        Example(
            GUEST,
            ON + "[RULES]\nIN SSH(ACCEPT) -i net1\n",
            ON + "[RULES]\nIN SSH(ACCEPT) -i net0\n",
        ),
    ),
    warning(
        "nic-without-bridge",
        "a filtered NIC that is on no bridge",
        "A NIC without a bridge has no connection, or a connection that no firewall sees (QEMU's user network).",
        UNTRIED,
        Example(CONFIG, NIC.replace(",bridge=vmbr0", ""), NIC),
    ),
    warning(
        "policy-accepts",
        "a policy ACCEPT beside rules that only accept",
        "Packets that match no rule are accepted, too, so the rules have no effect. Most likely the policy should be "
        "DROP.",
        _SILENT,
        Example(
            GUEST,
            ON + "policy_in: ACCEPT\n[RULES]\nIN SSH(ACCEPT)\n",
            ON + "policy_in: DROP\n[RULES]\nIN SSH(ACCEPT)\n",
        ),
    ),
    warning(
        "unread-file",
        "a firewall file that nothing reads",
        "Proxmox VE reads cluster.fw, one VMID.fw for each guest, one host.fw in each node's folder, and one file for "
        "each VNet. A file by another name, or of a guest or VNet that does not exist, has no effect.",
        "the file is not read, without a warning.",
        Example("etc/pve/firewall/groups.fw", "[group web]\nIN HTTP(ACCEPT)\n", None),
    ),
    error(
        "host-file-unusable",
        "another node's host.fw that cannot be used",
        "The file is not a text file, is too large, or is a directory. Its node has none of its rules.",
        UNTRIED,
        Example("etc/pve/nodes/n2/host.fw", "\0", "", {"etc/pve/nodes/n1/host.fw": ""}),
    ),
    warning(
        "lock-out",
        "a host that accepts no login from outside",
        "No packet from outside to the host's ssh (tcp port 22) or web interface (tcp port 8006) is accepted. A rule "
        "`IN DROP` comes before the rules that let the management network in. Move it to the policy, or accept "
        "your own addresses above it.",
        "the rules are loaded without a warning.",
        Example(
            HOST,
            "[RULES]\nIN SMTP(ACCEPT)\nIN DROP\n",
            "[RULES]\nIN SMTP(ACCEPT)\n",
        ),
    ),
)
