"""Codes about the sets of software-defined networks and the state files they are made from."""

from __future__ import annotations

from pvefw_nft.config.codes.declaration import CLUSTER, ON, UNTRIED, Example, error, warning

RUNNING = "etc/pve/sdn/.running-config"
IPAM = "etc/pve/sdn/pve-ipam-state.json"

_STATE = """{"vnets": {"ids": {"vint": {"zone": "z"}}},
 "subnets": {"ids": {"z-10.3.10.0-24": {"vnet": "vint"}}}}
"""

CODES = (
    error(
        "bad-sdn-state",
        "a state file of the SDN that cannot be used",
        "Proxmox writes the state of software-defined networks when it is applied; a file that was cut short or "
        "changed by hand can lack networks. The readable parts are used. If the whole file is unusable, its sets do "
        "not exist, and each rule that refers to one is an error, too.",
        UNTRIED,
        Example(RUNNING, _STATE[:60], _STATE),
    ),
    warning(
        "unreadable-sdn-state",
        "a state file of the SDN that cannot be opened",
        "The rights to read the file are missing (`priv` is for root alone), or the file is not text. Its sets do not "
        "exist, and each rule that refers to one is an error.",
        UNTRIED,
        Example(IPAM, '{"zones"\0', '{"zones": {}}'),
    ),
    warning(
        "empty-set",
        "a rule with a set of the SDN that is empty",
        "No packet comes from, or goes to, an empty set. The VNet has no subnet, no gateway or no DHCP range, or IPAM "
        "gave the guest no address.",
        "the set is empty there, too, without a warning.",
        Example(
            CLUSTER,
            ON + "[RULES]\nIN ACCEPT -source +sdn/vint-dhcp\n",
            ON + "[RULES]\nIN ACCEPT -source +sdn/vint-all\n",
            {RUNNING: _STATE},
        ),
    ),
    warning(
        "hidden-ipset",
        "an ipset with the name of a set of the SDN",
        "Both have the same name in the kernel, and the set holds the SDN's addresses. Rules for the ipset therefore "
        "use other addresses than its entries.",
        "the addresses of the SDN are loaded, without a warning.",
        Example(
            CLUSTER,
            ON + "[IPSET vint-all]\n192.0.2.1\n[RULES]\nIN ACCEPT -source +vint-all\n",
            ON + "[IPSET vint-offices]\n192.0.2.1\n[RULES]\nIN ACCEPT -source +vint-offices\n",
            {RUNNING: _STATE},
        ),
    ),
)
