"""Advice of ``pvefw check`` on random configurations, tested by following it: without the line nothing may change.

For each line that is said to never match, or to change nothing, the configuration is compiled without it. The prover
must find both rulesets equal, logs and marks included, and sample packets must meet the same verdict and leave the
same log entries. ``PVEFW_ADVICE_FINDINGS`` is how many findings are tested; by default few, for a short run.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

from pvefw_nft.cli.rulesets import Named, compiled_ruleset
from pvefw_nft.errors import UsageError
from pvefw_nft.pipeline import BACKENDS, Source, check_root
from pvefw_nft.pipeline.review import analyse_root
from pvefw_nft.verify.prove.compare import Options, compare
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.render import report_text
from pvefw_nft.verify.simulate.packet import make_probe
from pvefw_nft.verify.simulate.spec import PacketSpec
from pvefw_nft.verify.simulate.walk import simulate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NODE = "n1"
FINDINGS = int(os.environ.get("PVEFW_ADVICE_FINDINGS", "8"))
SEED = int(os.environ.get("PVEFW_ADVICE_SEED", "0"))
PACKETS = 40
ADVICE = ("never-matches", "no-effect")

ADDRESSES = ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "192.0.2.0/24", "lan", "+office", "+void", "2001:db8::/32", "")
SERVICES = (
    "ACCEPT", "DROP", "REJECT", "ACCEPT -p tcp", "DROP -p tcp -dport 22", "ACCEPT -p tcp -dport 22",
    "ACCEPT -p tcp -dport 20:30", "REJECT -p udp -dport 53", "ACCEPT -p udp -sport 53", "DNS(ACCEPT)", "SSH(ACCEPT)",
    "SSH(DROP)", "Web(ACCEPT)", "Ping(ACCEPT)", "SMB(DROP)", "DROP -p udp -dport 137", "ACCEPT -p icmp",
    "DROP -p icmpv6 -icmp-type echo-request", "DHCPfwd(ACCEPT)", "ACCEPT -p tcp -dport 8006", "BitTorrent(REJECT)",
    "NeighborDiscovery(ACCEPT)", "DROP -p igmp", "ACCEPT -p gre",
)  # fmt: skip
NETS = {"lan": 4, "10.0.0.0/8": 4, "10.1.0.0/16": 4, "10.1.2.3": 4, "192.0.2.0/24": 4, "2001:db8::/32": 6}


class Maker:
    """Makes random configurations from small pools, so that rules meet."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def policy(self, name: str) -> str:
        return f"{name}: {self.random.choice(('ACCEPT', 'DROP', 'DROP', 'REJECT'))}\n"

    def options(self, choices: dict[str, Sequence[str]]) -> str:
        lines = [
            f"{name}: {self.random.choice(values)}\n" for name, values in choices.items() if self.random.random() < 0.4
        ]
        return "".join(lines)

    def rule(self, types: Sequence[str], interfaces: Sequence[str]) -> str:
        service = self.random.choice(SERVICES)
        source = self.random.choice(ADDRESSES) if self.random.random() < 0.5 else ""
        dest = self.random.choice(ADDRESSES) if self.random.random() < 0.25 else ""
        version = 6 if "icmpv6" in service or "Neighbor" in service else 4 if "icmp" in service else 0
        if version and NETS.get(source, version) != version:
            source = ""
        if NETS.get(dest, 0) and {NETS[dest]} != {version or NETS[dest], NETS.get(source, NETS[dest])}:
            dest = ""
        words = [self.random.choice(types), service]
        words += [f"-i {self.random.choice(interfaces)}"] if interfaces and self.random.random() < 0.15 else []
        words += [f"-source {source}"] if source else []
        words += [f"-dest {dest}"] if dest else []
        words += [f"-log {self.random.choice(('nolog', 'info', 'warning'))}"] if self.random.random() < 0.2 else []
        return " ".join(words) + "\n"

    def rules(self, most: int, types: Sequence[str], interfaces: Sequence[str], groups: Sequence[str]) -> str:
        lines = []
        for _ in range(self.random.randint(0, most)):
            if groups and self.random.random() < 0.15:
                lines.append(f"GROUP {self.random.choice(groups)}\n")
            else:
                lines.append(self.rule(types, interfaces))
        return "".join(lines)

    def files(self) -> dict[str, str]:
        """Return the files of a configuration by path."""
        pve = "etc/pve"
        cluster = "[OPTIONS]\nenable: 1\n" + self.policy("policy_in") + self.policy("policy_out")
        cluster += "[ALIASES]\nlan 10.0.0.0/16\n[IPSET office]\n10.1.0.0/16\n2001:db8:1::/48\n!10.1.2.3\n[IPSET void]\n"
        cluster += "[IPSET management]\n192.0.2.0/24\n" if self.random.random() < 0.5 else ""
        groups = ("web", "mixed", "empty")
        cluster += "[group empty]\n" + "".join(
            f"[group {name}]\n{self.rules(4, ('IN', 'IN', 'OUT'), (), ())}" for name in groups[:2]
        )
        cluster += f"[RULES]\n{self.rules(8, ('IN', 'IN', 'OUT'), ('vmbr0', 'eth5'), groups)}"
        yes_no, levels = ("0", "1"), ("nolog", "info")
        host = "[OPTIONS]\n" + self.options(
            {
                "tcpflags": yes_no, "nosmurfs": yes_no, "log_level_in": levels, "log_level_out": levels,
                "nf_conntrack_allow_invalid": yes_no, "protection_synflood": yes_no, "ndp": yes_no,
                "tcp_flags_log_level": levels, "smurf_log_level": levels,
            }
        )  # fmt: skip
        host += f"[RULES]\n{self.rules(6, ('IN', 'IN', 'OUT'), ('vmbr0', 'eth5'), groups)}"
        files = {f"{pve}/firewall/cluster.fw": cluster, f"{pve}/local/host.fw": host}
        for vmid in (100, 200):
            options = "[OPTIONS]\nenable: 1\n" + self.policy("policy_in") + self.policy("policy_out")
            options += self.options(
                {
                    "macfilter": yes_no, "dhcp": yes_no, "radv": yes_no, "ndp": yes_no, "ipfilter": yes_no,
                    "ips": yes_no, "log_level_in": levels, "log_level_out": levels,
                }
            )  # fmt: skip
            files[f"{pve}/firewall/{vmid}.fw"] = (
                f"{options}[RULES]\n{self.rules(10, ('IN', 'OUT'), ('net0', 'net1'), groups)}"
            )
        files[f"{pve}/qemu-server/100.conf"] = (
            "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1\n"
            "net1: virtio=BC:24:11:00:00:03,bridge=vmbr1,firewall=1\n"
        )
        files[f"{pve}/lxc/200.conf"] = (
            "net0: name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:02,firewall=1,ip=10.1.0.2/24,type=veth\n"
        )
        files["etc/network/interfaces"] = (
            "iface eth0 inet manual\niface vmbr0 inet static\n\taddress 10.1.0.1/24\n\tbridge-ports eth0\n"
            "iface vmbr1 inet manual\n\tbridge-ports none\niface eth5 inet static\n\taddress 192.0.2.1/24\n"
        )
        return files

    def packet(self) -> PacketSpec:
        """Return a packet whose fields the rules above speak of."""
        zones = ("outside", "host", "vm100", "ct200")
        source, destination = self.random.sample(zones, 2)
        family = self.random.choice((4, 4, 6))
        pools = {
            4: ("10.1.2.3", "10.1.0.9", "10.0.0.1", "10.9.0.1", "192.0.2.5", "198.51.100.1"),
            6: ("2001:db8::1", "2001:db8:1::1", "2001:db9::1"),
        }
        protocol = self.random.choice(("tcp", "tcp", "udp", "icmp" if family == 4 else "icmpv6"))
        ports = protocol in ("tcp", "udp")
        return PacketSpec(
            source,
            destination,
            protocol,
            source_address=self.random.choice(pools[family]) if source == "outside" else None,
            destination_address=self.random.choice(pools[family]) if destination == "outside" else None,
            family=family,
            dport=self.random.choice((22, 53, 80, 99, 137, 445, 8006)) if ports else None,
            sport=self.random.choice((53, 4000)) if ports else None,
            icmp_type=None if ports else "echo-request",
        )


def write(root: Path, files: dict[str, str]) -> Source:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Source(root, NODE, lambda: "10.1.0.0/24")


def findings(source: Source) -> list[tuple[str, str, int]]:
    """Return the advice about a configuration: code, path below the root, line."""
    checked = check_root(source)
    assert not checked.has_errors, checked.diagnostics
    return [
        (one.code, one.span.file.removeprefix(f"{source.root}/"), one.span.line)
        for one in analyse_root(source, checked).diagnostics
        if one.code in ADVICE
    ]


def without(files: dict[str, str], lines: Sequence[tuple[str, int]]) -> dict[str, str]:
    """Return the files with lines emptied, so that all others keep their numbers."""
    left = dict(files)
    for name, number in lines:
        text = left[name].split("\n")
        text[number - 1] = ""
        left[name] = "\n".join(text)
    return left


def fate(ruleset: Named, spec: PacketSpec) -> tuple[str, str | None, list[object]] | None:
    try:
        outcome = simulate(ruleset.model, make_probe(spec, ruleset.topology))
    except UsageError:
        return None
    return outcome.verdict, outcome.kind, [(log.prefix, log.level) for log in outcome.logs]


def check_removal(
    before: Sequence[Named],
    files: dict[str, str],
    lines: Sequence[tuple[str, int]],
    root: Path,
    packets: Sequence[PacketSpec],
) -> None:
    """Take lines out, and prove and probe that nothing changes; ``before`` are both backends' rulesets with them."""
    source = write(root, without(files, lines))
    text = "\n".join(f"--- {name}\n{content}" for name, content in files.items())
    for one, backend in zip(before, BACKENDS, strict=True):
        other = compiled_ruleset(source, backend, "without the line")
        sides = [Side(named.name, named.model, named.topology) for named in (one, other)]
        report = compare(sides[0], sides[1], Options(strict=True))
        assert report.equal, f"{backend} {lines}\n{report_text(report)}\n{text}"
        for spec in packets:
            assert fate(one, spec) == fate(other, spec), f"{backend} {lines} {spec}\n{text}"


def test_lines_reported_without_effect_can_be_removed(tmp_path: Path) -> None:
    tested = dict.fromkeys(ADVICE, 0)
    seed = SEED
    while sum(tested.values()) < FINDINGS:
        make = Maker(seed)
        files = make.files()
        source = write(tmp_path / f"{seed}", files)
        found = findings(source)
        before = [compiled_ruleset(source, backend, "with the line") for backend in BACKENDS]
        packets = [make.packet() for _ in range(PACKETS)]
        for number, (code, name, line) in enumerate(found):
            check_removal(before, files, [(name, line)], tmp_path / f"{seed}-{number}", packets)
            tested[code] += 1
        if len(found) > 1:
            check_removal(before, files, [(name, line) for _, name, line in found], tmp_path / f"{seed}-all", packets)
        seed += 1
    print(f"{tested} in {seed - SEED} configurations")
    assert all(tested.values())
