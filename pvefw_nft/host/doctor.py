"""Find problems that keep the firewall of a host from working, each with its remedy. Nothing is changed."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError, PvefwError

from . import bindings, sysctl, tools
from .apply.nftables_state import TABLE, Nftables
from .backend_info import info
from .bridges.firewall_bridge import plan_plug
from .bridges.unplugged import find_unplugged, on_open_vswitch
from .firewall import is_present, missing_for
from .links import open_route, read_links
from .proxmox.services import read_services, running_firewalls
from .tracking import nat_zone

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .bridges.firewall_bridge import Nic
    from .bridges.unplugged import Misconfigured
    from .firewall import Firewall
    from .links import Links

# the kernel's support for a bridge ruleset: `nft --check` loads nothing
_PROBES = (
    ("bridge connection tracking", "ct state established accept", "nf_conntrack_bridge"),
    ("rejecting on bridges", "reject", "nft_reject_bridge"),
    ("bridge names", 'meta ibrname "vmbr0" accept', "nft_meta_bridge"),
)


class Level(Enum):
    """How bad a finding is."""

    GOOD = "ok"
    NOTE = "note"
    WARNING = "warning"
    BAD = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One examined condition, and what to do about it."""

    level: Level
    text: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Switches:
    """The enable switches of a configuration: the cluster's, the node's, and by VMID the guests' with filtered NICs.

    ``open_layer2`` are the VMIDs of filtered guests whose frames without IP pass, spanning tree among them. ``divided``
    are those with several NICs in one network, each in a connection tracking zone of its own.
    """

    cluster: bool
    host: bool
    guests: dict[int, bool]
    open_layer2: tuple[int, ...] = ()
    divided: tuple[int, ...] = ()


def examine(
    firewall: Firewall,
    backend: str,
    switches: Switches | None,
    nics: Sequence[Nic],
    misconfigured: Sequence[Misconfigured] = (),
) -> Iterator[Finding]:
    """Look at everything.

    ``nics`` are the NICs with firewall=1 of the configuration, ``misconfigured`` are NICs whose bridge, VLAN or name
    cannot be used.
    ``switches`` None: the configuration cannot be read.
    """
    if os.geteuid() != 0:
        yield Finding(Level.WARNING, "not run as root: most checks are impossible", "run it as root")
    if switches is not None:
        yield from _switches(switches)
    yield from _tools(backend)
    yield from _left_rules(firewall, backend)
    yield from _kernel(backend)
    yield from _bridge_settings(backend)
    yield from _other_rules(backend)
    yield from _nat(backend)
    yield from _other_firewalls()
    yield from _firewall_bridges(nics, misconfigured, backend)
    if switches is not None:
        yield from _spanning_tree(switches)
        yield from _divided(switches)


def _switches(switches: Switches) -> Iterator[Finding]:
    if not switches.cluster:
        yield Finding(
            Level.BAD,
            "the firewall is off for the whole cluster, so nothing is filtered",
            "set `enable: 1` in [OPTIONS] of cluster.fw",
        )
        return
    yield Finding(Level.GOOD, "cluster.fw: enabled")
    if not switches.host:
        yield Finding(Level.WARNING, "host.fw: this node itself is not filtered", "set `enable: 1` in host.fw")
    off = sorted(vmid for vmid, enabled in switches.guests.items() if not enabled)
    if off:
        yield Finding(
            Level.WARNING,
            f"guests with firewall=1 on a NIC whose own firewall is off: {_few(off)}",
            "set `enable: 1` in [OPTIONS] of their .fw files",
        )


def _tools(backend: str) -> Iterator[Finding]:
    for tool in info(backend).tools:
        try:
            path = tools.find(tool)
        except HostError as error:
            yield Finding(Level.BAD, error.message, error.hint)
            continue
        if "-" not in tool:
            yield _version(tool, path)
    if backend == "nft":
        try:
            Nftables()
        except HostError as error:
            yield Finding(Level.BAD, error.message, error.hint)


def _left_rules(firewall: Firewall, backend: str) -> Iterator[Finding]:
    """Look for rules of another backend that cannot be removed."""
    for other in firewall.others(backend):
        try:
            missing = missing_for(other) if is_present(other) else []
        except HostError as failed:
            text = f"unknown whether rules of the {other.name} backend are loaded: {failed.message}"
            yield Finding(Level.WARNING, text, failed.hint)
            continue
        for error in missing:
            text = f"rules of the {other.name} backend are loaded, and could not be removed: {error.message}"
            yield Finding(Level.BAD, text, error.hint)


def _version(tool: str, path: str) -> Finding:
    try:
        return Finding(Level.GOOD, f"{path}: {tools.version(tool)}")
    except HostError as error:
        return Finding(Level.WARNING, f"{path}: {error.message}", error.hint)


def _kernel(backend: str) -> Iterator[Finding]:
    yield Finding(Level.GOOD, f"kernel {platform.release()}")
    if info(backend).needs_br_netfilter:
        if sysctl.read("net/bridge/bridge-nf-call-iptables") is None:
            yield Finding(
                Level.WARNING,
                "br_netfilter is not loaded, so bridged packets bypass iptables",
                "`pvefw start` loads it; if that fails, install the kernel's modules",
            )
        return
    if not bindings.is_debian():
        text = "the Python bindings of libnftables come from PyPI's pip-nftables, a rebuild of nftables' own"
        yield Finding(
            Level.NOTE, text, "apt-get install python3-nftables, which Debian signs; it is used where it is there"
        )
    if not tools.is_installed("nft") or os.geteuid() != 0:
        return
    for what, rule, module in _PROBES:
        probe = f"table bridge {TABLE}-probe {{ chain c {{ type filter hook prerouting priority 0; {rule}; }} }}"
        try:
            tools.run(["nft", "-c", "-f", "-"], probe)
        except HostError:
            yield Finding(Level.BAD, f"this kernel lacks {what}", f"modprobe {module}, or use a kernel that has it")
        else:
            yield Finding(Level.GOOD, f"kernel: {what}")


def _bridge_settings(backend: str) -> Iterator[Finding]:
    values = {family: sysctl.read(f"net/bridge/bridge-nf-call-{family}") for family in ("iptables", "ip6tables")}
    if not info(backend).needs_br_netfilter and "1" in values.values():
        yield Finding(
            Level.NOTE,
            "bridged packets also pass iptables' chains (br_netfilter), which the nft backend does not need",
            "if nothing else needs it: sysctl net.bridge.bridge-nf-call-iptables=0 and -ip6tables=0",
        )
    if not info(backend).needs_br_netfilter:
        return
    for family, value in values.items():
        if value == "0":
            yield Finding(
                Level.BAD,
                f"net.bridge.bridge-nf-call-{family} is 0: bridged packets bypass {family}",
                "`pvefw start` sets it; find the program that resets it (sysctl.d, Docker, libvirt)",
            )
    if sysctl.read("net/bridge/bridge-nf-filter-vlan-tagged") == "0":
        yield Finding(
            Level.WARNING,
            "frames that a guest tags with a VLAN itself pass iptables unfiltered",
            "sysctl net.bridge.bridge-nf-filter-vlan-tagged=1, or use the nft backend",
        )


def _other_rules(backend: str) -> Iterator[Finding]:
    legacy = _has_rules("iptables-legacy-save") or _has_rules("ip6tables-legacy-save")
    modern = _has_rules("iptables-nft-save") or _has_rules("ip6tables-nft-save")
    if legacy and modern:
        yield Finding(
            Level.WARNING,
            "there are rules of both iptables-legacy and iptables-nft: a packet passes both",
            "move all programs to one: update-alternatives --config iptables",
        )
    for tool in ("iptables", "ip6tables"):
        policy = re.search(r"^:FORWARD DROP", _saved(f"{tool}-save"), re.MULTILINE)
        bridged = sysctl.read(f"net/bridge/bridge-nf-call-{tool}") == "1"
        if policy is not None and (bridged or info(backend).needs_br_netfilter):
            yield Finding(
                Level.WARNING,
                f"{tool}: FORWARD drops by policy (Docker sets it), also bridged packets that no rule accepts",
                f"{tool} -P FORWARD ACCEPT, or keep Docker on a host or guest of its own",
            )
    yield from _other_tables()


def _other_tables() -> Iterator[Finding]:
    if os.geteuid() != 0:
        return  # libnftables would print to standard error
    try:
        entries = Nftables().run([{"list": {"chains": None}}])
    except HostError:
        return
    ours = [entry["chain"] for entry in entries if "chain" in entry and entry["chain"].get("table") == TABLE]
    if ours and _has_chain("iptables-save", "PVEFW-INPUT"):
        yield Finding(
            Level.WARNING,
            "rulesets of both backends are loaded: a packet must pass both",
            "`pvefw start` leaves the one that host.fw asks for",
        )
    for entry in entries:
        chain = entry.get("chain", {})
        if chain.get("table") == TABLE or "hook" not in chain or chain.get("policy") != "drop":
            continue
        yield Finding(
            Level.NOTE,
            f"nftables: chain {chain['family']} {chain['table']} {chain['name']} drops by policy at {chain['hook']}",
            "it may drop packets that pvefw accepts",
        )


def _nat(backend: str) -> Iterator[Finding]:
    """Look for NAT rules that do not translate what guests behind firewall bridges send; zones need nothing for it."""
    if info(backend).sets_zones:
        return
    try:
        for line in nat_zone.missing():
            yield Finding(Level.BAD, line, nat_zone.REMEDY)
    except HostError as error:
        yield Finding(Level.WARNING, f"unknown whether NAT works for guests: {error.message}", error.hint)


def _other_firewalls() -> Iterator[Finding]:
    try:
        theirs = running_firewalls()
        firewalld = any(service.running for service in read_services("firewalld.service"))
    except HostError as error:
        yield Finding(Level.WARNING, f"services could not be examined: {error.message}", error.hint)
        return
    for name in theirs:
        yield Finding(Level.BAD, name, "`pvefw take-over` replaces it: two firewalls that write the same rules clash")
    if firewalld:
        yield Finding(Level.NOTE, "firewalld.service runs", "it may drop packets that pvefw accepts")


def _firewall_bridges(nics: Sequence[Nic], misconfigured: Sequence[Misconfigured], backend: str) -> Iterator[Finding]:
    try:
        with open_route() as route:
            links = read_links(route)
    except HostError as error:
        yield Finding(Level.WARNING, error.message, error.hint)
        return
    wrong = 0
    there = [nic for nic in nics if links.get(nic.interface) is not None]
    for unplugged in find_unplugged((), misconfigured, links):
        wrong += 1
        yield Finding(Level.BAD, f"{unplugged}: it is not filtered", unplugged.hint)
    for nic in there:
        found = _nic(nic, links, backend)
        if found is not None:
            wrong += 1
            yield found
    if there and not wrong:
        yield Finding(Level.GOOD, f"{len(there)} NICs with firewall=1 are behind their firewall bridges")


def _nic(nic: Nic, links: Links, backend: str) -> Finding | None:
    link = links.get(nic.interface)
    assert link is not None
    for unplugged in find_unplugged([nic], (), links, backend):
        return Finding(Level.BAD, f"{unplugged}: it is not filtered", unplugged.hint or f"pvefw plug {nic.interface}")
    if on_open_vswitch(nic, links):
        return None  # plugged by Proxmox VE: pvefw has no plan for it
    try:
        steps = plan_plug(nic, links)
    except PvefwError as error:
        return Finding(Level.BAD, f"{nic.interface}: {error.message}", error.hint)
    if steps:
        return Finding(
            Level.WARNING,
            f"{nic.interface}: its firewall bridge differs from its configuration ({steps[0]}, …)",
            f"pvefw plug {nic.interface}",
        )
    return None


def _spanning_tree(switches: Switches) -> Iterator[Finding]:
    """Advise about BPDUs: a switch with BPDU guard closes the host's own port if a guest sends them.

    A note, not a warning: they pass every firewall of Proxmox VE, and so on every host by default.
    """
    if switches.cluster and switches.open_layer2:
        yield Finding(
            Level.NOTE,
            f"frames of spanning tree (BPDUs) of guests pass: {_few(switches.open_layer2)}",
            "write `l2: strict` in etc/pve/firewall/cluster.pvefw (with iptables also `harden: 1` in host.pvefw)",
        )


def _divided(switches: Switches) -> Iterator[Finding]:
    """Advise about guests that may answer by another NIC than they were asked by, as Linux does within one network."""
    if switches.cluster and switches.divided:
        yield Finding(
            Level.NOTE,
            "TCP answers by another NIC than the one that was asked are dropped, in guests with several NICs in one"
            f" network: {_few(switches.divided)}",
            "write `one_zone: 1` in etc/pve/firewall/VMID.pvefw",
        )


def _saved(tool: str) -> str:
    try:
        return tools.run([tool], timeout=30)
    except HostError:
        return ""


def _has_rules(tool: str) -> bool:
    return any(line.startswith("-A ") for line in _saved(tool).splitlines())


def _has_chain(tool: str, chain: str) -> bool:
    return any(line.startswith(f":{chain} ") for line in _saved(tool).splitlines())


def _few(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:8]))
    return shown if len(values) <= 8 else f"{shown} and {len(values) - 8} more"
