"""Checks beyond the ruleset of one node: every firewall file, and settings that defeat one another.

A cluster's firewall files are shared by its nodes, but a node compiles only the files of its own guests. The survey
reads the rest as their own nodes would, and names files that no node reads. Of each guest it tells whether its
firewall is on, and whether its NICs are filtered at all.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import TYPE_CHECKING

from pvefw_nft.config.budget import MAX_PROBLEMS
from pvefw_nft.config.model import GroupRule, Rule, RuleAction, RuleType
from pvefw_nft.config.option_values import Policy
from pvefw_nft.config.own_addresses import cut_off
from pvefw_nft.errors import Span, UnusableFileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pvefw_nft.config.findings import Findings
    from pvefw_nft.config.load import Configuration, Root
    from pvefw_nft.config.model import ClusterConfig, Group, Guest, GuestConfig, HostConfig, NodeConfig, RuleItem

_GUEST_FILE = re.compile(r"([1-9][0-9]{0,8})\.fw")
_COMPANION_FILE = re.compile(r"(?:[1-9][0-9]{0,8}|cluster)\.pvefw")
_BACKUP = re.compile(r"\..*|.*~|.*\.(?:bak|old|orig|save|swp|tmp|dpkg-[a-z]+)")
_VNETS_ENTRY = re.compile(r"vnet:[ \t]*(\S+)")

_HOMES = {
    "groups.fw": "groups are defined in cluster.fw, as [group name]",
    "host.fw": "a node's file is etc/pve/nodes/NODE/host.fw",
    "datacenter.fw": "the cluster's file is cluster.fw",
    "datacenter.cfg": "the cluster's firewall file is cluster.fw; its other settings are in etc/pve/datacenter.cfg",
    "aliases.fw": "aliases are defined in cluster.fw, below [ALIASES]",
    "ipsets.fw": "ipsets are defined in cluster.fw, as [IPSET name]",
}
"""The right place for content that users put into files of their own."""

_FILE_HINT = "files here are cluster.fw and VMID.fw, such as 100.fw"


def survey(root: Root, configuration: Configuration, findings: Findings, *, only_own: bool = False) -> None:
    """Report mistakes in files that this node does not compile, and settings that defeat one another.

    ``configuration`` belongs to ``root`` and was read with ``findings``. The compile reports findings in the node's own
    files, so they are left out here. ``only_own``: leave out findings of other nodes, which the other nodes and
    :func:`survey_strays` report. Raises ConfigurationError if the file system fails.
    """
    own = list(configuration.guests())
    findings.diagnostics.clear()
    others: list[Guest] = []
    strays: list[tuple[Path, str]] = []
    if not only_own:
        others = list(_other_guests(root, configuration, {guest.vmid for guest in own}))
        for path in _other_host_files(root):
            configuration.read_host_file(path)
        strays = list(_unread_files(root, configuration, {guest.vmid for guest in (*own, *others)}))
    _judge_node(configuration.node, [guest.firewall for guest in (*own, *others)], findings)
    groups = configuration.node.cluster.groups
    for guest in (*own, *others):
        _judge_guest(guest, groups, findings)
        _judge_answers(guest, configuration.node.cluster, findings)
    _report_strays(strays, findings)


def survey_strays(root: Root, configuration: Configuration, findings: Findings) -> None:
    """Report firewall files that no node of the cluster reads, and mistakes in such files of guests.

    ``root`` names no node. Raises ConfigurationError if the file system fails.
    """
    vmids = {vmid for _, _, vmid, _ in root.configs_elsewhere()}
    _report_strays(list(_unread_files(root, configuration, vmids)), findings)


def _report_strays(strays: Iterable[tuple[Path, str]], findings: Findings) -> None:
    for file, hint in strays:
        findings.warning("unread-file", Span(str(file), 0), "nothing reads this file", hint)


# --- files ----------------------------------------------------------------------------------------------------


def _other_guests(root: Root, configuration: Configuration, known: set[int]) -> Iterator[Guest]:
    """Yield the guests of other nodes, with their firewall files."""
    for _, kind, vmid, path in root.configs_elsewhere():
        if vmid not in known:
            known.add(vmid)
            yield configuration.read_guest(vmid, kind, path)


def _other_host_files(root: Root) -> Iterator[Path]:
    nodes = root.pve / "nodes"
    for node in sorted(root.files.listed(nodes)):
        if node != root.node and root.files.is_folder(nodes / node):
            yield nodes / node / "host.fw"


def _unread_files(root: Root, configuration: Configuration, vmids: set[int]) -> Iterator[tuple[Path, str]]:
    """Yield the firewall files that no node reads, with a hint. Files of guests are read nevertheless."""
    folder = root.pve / "firewall"
    for name in sorted(root.files.listed(folder)):
        if name == "cluster.fw" or _COMPANION_FILE.fullmatch(name) or _BACKUP.fullmatch(name):
            continue
        guest = _GUEST_FILE.fullmatch(name)
        if guest is None:
            yield folder / name, _HOMES.get(name.lower(), _FILE_HINT)
        elif int(guest[1]) not in vmids:
            configuration.read_guest_file(int(guest[1]))
            yield folder / name, f"no node has a guest {guest[1]}: remove the file, or name it after its guest"
    vnets = _vnets(root)
    for vnet, path in root.vnet_files().items():
        if vnets is not None and vnet not in vnets:
            yield path, f"there is no VNet {vnet}; VNets here are " + (", ".join(sorted(vnets)) or "none")


def _vnets(root: Root) -> set[str] | None:
    """Return the names of the VNets, or None if no file lists them."""
    sdn = root.pve / "sdn"
    listed = _text(root, sdn / "vnets.cfg")
    running = _text(root, sdn / ".running-config")
    if listed is None and running is None:
        return None
    found = {entry[1] for line in (listed or "").split("\n") if (entry := _VNETS_ENTRY.match(line))}
    try:
        state = json.loads(running or "{}")
        found |= set(state.get("vnets", {}).get("ids", {}))
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None  # reading the SDN's sets reports the error
    return found


def _text(root: Root, path: Path) -> str | None:
    try:
        return root.files.text(path)
    except UnusableFileError:
        return None


# --- settings that defeat one another -------------------------------------------------------------------------


def _judge_node(node: NodeConfig, guests: Iterable[GuestConfig | None], findings: Findings) -> None:
    """Judge cluster.fw and host.fw: rules of a firewall that is off do nothing."""
    cluster, host = node.cluster, node.host
    rules = [*cluster.rules, *host.rules, *(rule for guest in guests if guest is not None for rule in guest.rules)]
    if not cluster.options.enable and rules:
        _report_off(
            "the cluster's firewall is off, so no rule of any file has an effect", cluster, cluster.rules, findings
        )
    elif cluster.options.enable and host.options.enable:
        _judge_policies(cluster, (*cluster.rules, *host.rules), cluster.groups, findings)
    elif cluster.options.enable and (host.rules or cluster.rules):
        _report_off("the host's firewall is off: rules for the host have no effect", host, host.rules, findings)


def _judge_guest(guest: Guest, groups: Mapping[str, Group], findings: Findings) -> None:
    """Judge a guest's file against its NICs."""
    for nic in guest.nics:
        if nic.firewall and nic.bridge is None and not guest.closed:
            findings.warning(
                "nic-without-bridge",
                nic.span,
                f"net{nic.index} is to be filtered and is on no bridge, so it has no connection and no rules",
                "name its bridge, such as bridge=vmbr0",
            )
    config = guest.firewall
    if config is None or guest.closed:
        return
    filtered = {nic.index for nic in guest.nics if nic.firewall}
    if (config.rules or config.options.enable) and not filtered:
        span = _first_span(config, config.rules)
        nics = ", ".join(f"net{nic.index}" for nic in guest.nics)
        findings.warning(
            "guest-not-filtered",
            span,
            f"none of guest {guest.vmid}'s NICs has firewall=1, so nothing of it is filtered",
            f"add firewall=1 to {nics} in {guest.file}" if nics else f"{guest.file} has no NIC",
        )
        return
    if not config.options.enable and config.rules:
        _report_off(
            f"the firewall of guest {guest.vmid} is off, so its rules have no effect", config, config.rules, findings
        )
        return
    _judge_interfaces(guest, config.rules, filtered, findings)
    _judge_policies(config, config.rules, groups, findings)


def _judge_answers(guest: Guest, cluster: ClusterConfig, findings: Findings) -> None:
    """Report rules whose answers ``ipfilter_established`` drops."""
    config = guest.firewall
    if config is None or guest.closed or not config.hardening.over(cluster.hardening).ipfilter_established:
        return
    # one more than are shown, so that the rest is told of
    for rule, nic, prefix in islice(cut_off(guest, config, cluster.groups), MAX_PROBLEMS + 1):
        findings.warning(
            "answers-cut-off",
            rule.written.line.span(),
            f"net{nic.index} may not send from {prefix.canonical}, so its answers to what the rule accepts are dropped",
            f"add {prefix.canonical} to the ipset ipfilter-net{nic.index}, or switch ipfilter_established off",
        )


def _report_off(
    message: str, config: ClusterConfig | GuestConfig | HostConfig, rules: tuple[RuleItem, ...], findings: Findings
) -> None:
    """Report a firewall that is off: a warning if ``enable`` is missing, a note for ``enable: 0``."""
    line = config.option_lines.get("enable")
    if line is None:
        findings.warning("not-enabled", _first_span(config, rules), message, "add `enable: 1` below [OPTIONS]")
    else:
        findings.note("switched-off", Span(config.file, line), message, "write `enable: 1` to switch it on")


def _first_span(config: ClusterConfig | GuestConfig | HostConfig, rules: tuple[RuleItem, ...]) -> Span:
    return rules[0].written.line.span() if rules else Span(config.file, config.option_lines.get("enable", 0))


def _judge_interfaces(guest: Guest, rules: tuple[RuleItem, ...], filtered: set[int], findings: Findings) -> None:
    """Report rules for NICs that the guest lacks, or that are not filtered."""
    present = {nic.index for nic in guest.nics}
    for rule in rules:
        if rule.iface is None:
            continue
        index = int(rule.iface.removeprefix("net"))
        if index not in filtered:
            names = ", ".join(f"net{number}" for number in sorted(filtered))
            state = "is not filtered" if index in present else "does not exist"
            findings.warning(
                "missing-nic",
                rule.written.span("iface"),
                f"{rule.iface} of guest {guest.vmid} {state}, so the rule never matches",
                f"NICs with firewall=1 are {names}",
            )


def _judge_policies(
    config: ClusterConfig | GuestConfig, rules: Sequence[RuleItem], groups: Mapping[str, Group], findings: Findings
) -> None:
    """Report a policy ACCEPT beside rules that only accept; a rule that logs has an effect nevertheless."""
    flat = list(_distinct(rules, groups))
    for kind, name, policy in (
        (RuleType.IN, "policy_in", config.options.policy_in),
        (RuleType.OUT, "policy_out", config.options.policy_out),
    ):
        line = config.option_lines.get(name)
        own = [rule for rule in flat if rule.type is kind]
        plain = all(rule.action is RuleAction.ACCEPT and rule.log is None for rule in own)
        if line is not None and policy is Policy.ACCEPT and own and plain:
            findings.warning(
                "policy-accepts",
                Span(config.file, line),
                f"{name} is ACCEPT, and so is every {kind.value} rule: nothing is kept out",
                f"write `{name}: DROP` if only packets that the rules accept should pass",
            )


def _distinct(rules: Sequence[RuleItem], groups: Mapping[str, Group]) -> Iterator[Rule]:
    """Yield the rules of a file, and the rules of each group once: a file may name a large group in each line."""
    named = dict.fromkeys(rule.group for rule in rules if isinstance(rule, GroupRule))
    yield from (rule for rule in rules if not isinstance(rule, GroupRule))
    yield from (rule for name in named if name in groups for rule in groups[name].rules)
