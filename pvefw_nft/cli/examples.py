"""Examples of each command, which its help shows: the line to type, and its purpose.

``tests/cli/test_manner.py`` holds that each command has one, that the options exist, and that a command that changes a
host's rules has a way back.
"""

from __future__ import annotations

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "compile": (
        ("pvefw compile --backend nft --format text", "this host's ruleset, in nft's own syntax"),
        (
            "pvefw compile --root copy --node pve1 -o pve1.rules",
            "another node's ruleset, from a copy of its files",
        ),
    ),
    "check": (
        ("pvefw check", "the files of this host"),
        ("pvefw check --format sarif copy >pvefw.sarif", "a copy below ./copy, for GitHub's code scanning"),
    ),
    "explain": (
        ("pvefw explain never-matches", "one code"),
        ("pvefw explain", "a list of all codes"),
    ),
    "simulate": (
        ("pvefw simulate --from outside --to vm100:22", "does ssh from outside reach VM 100?"),
        ("pvefw simulate --from ct200 --to vm100:5432 --backend both -v", "each rule tried, in both rulesets"),
        ("pvefw simulate --tests packets.toml", "a file of packets with the verdicts that they must get"),
    ),
    "compare": (
        ("pvefw compare", "will nftables do the same as iptables?"),
        ("pvefw compare live", "do this host's rules agree with the configuration?"),
        ("pvefw compare before after", "which packets does a change of the files affect?"),
    ),
    "start": (
        ("pvefw start --dry-run", "the changes, with + and -"),
        ("pvefw start --confirm 60", "load the ruleset; without `pvefw confirm` the old state returns"),
    ),
    "update": (
        ("pvefw update --dry-run", "the pending changes"),
        ("pvefw update --confirm 60", "apply them; without `pvefw confirm` the old state returns"),
    ),
    "restart": (("pvefw restart --confirm 60", "load everything again; then run `pvefw confirm`"),),
    "stop": (("pvefw stop", "this host is unfiltered afterwards"),),
    "status": (
        ("pvefw status --diff", "pending changes, line by line"),
        ("pvefw status --format json", "for monitoring"),
    ),
    "confirm": (("pvefw confirm", "keep what `pvefw start --confirm 60` loaded"),),
    "rollback": (("pvefw rollback", "undo the last change"),),
    "run": (
        ("pvefw run --print-unit >/etc/systemd/system/pvefw.service", "make the unit of the service"),
        ("pvefw run --fail-closed --print-unit", "a unit that lets guests start only when rules are loaded"),
    ),
    "take-over": (
        ("pvefw take-over --dry-run", "the steps"),
        ("pvefw take-over --confirm 120", "take them; without `pvefw confirm` Proxmox VE's firewall returns"),
    ),
    "hand-back": (
        ("pvefw hand-back --dry-run", "the steps"),
        ("pvefw hand-back --confirm 120", "take them; without `pvefw confirm` pvefw returns"),
    ),
    "plug": (
        ("pvefw plug tap100i0", "as the configuration of VM 100 says"),
        ("pvefw plug tap100i0 --bridge vmbr0 --tag 20", "without a configuration, in VLAN 20"),
    ),
    "unplug": (("pvefw unplug tap100i0", "when the guest is gone"),),
    "plumb": (("pvefw plumb --dry-run", "the steps for all running guests"),),
    "localnet": (("pvefw localnet", "who may administer this node?"),),
    "doctor": (("pvefw doctor", "does anything keep the rules from working?"),),
    "cluster status": (("pvefw cluster status", "all nodes of this cluster"),),
    "cluster compare": (("pvefw cluster compare --only ours", "do their rules agree with the files?"),),
    "cluster start": (("pvefw cluster start --confirm 120", "node by node, each with a way back"),),
    "cluster update": (("pvefw cluster update --confirm 120", "node by node, each with a way back"),),
    "completion": (("pvefw completion bash >/etc/bash_completion.d/pvefw", "completion for bash"),),
}
