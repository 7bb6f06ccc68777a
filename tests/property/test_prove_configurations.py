"""Random configurations are proved equal through both backends: no false alarm, and nothing left open.

``PVEFW_PROVED_CONFIGURATIONS`` is how many are proved; 120 are a long run.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pvefw_nft.cli.rulesets import configuration_rulesets
from pvefw_nft.pipeline import Source
from pvefw_nft.verify.prove.compare import compare
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.render import report_text
from pvefw_nft.verify.prove.report import Answer
from tests.property.test_advice import NODE, Maker

if TYPE_CHECKING:
    from pathlib import Path

MORE_RULES = (
    "ACCEPT -p icmp -icmp-type any", "DROP -p icmp -icmp-type any", "ACCEPT -p icmp -icmp-type echo-reply",
    "FTP(ACCEPT)", "REJECT -p tcp", "DROP -p sctp -dport 5060", "ACCEPT -p 47", "DROP -p udplite -sport 1000:2000",
    "ACCEPT -p tcp -dport 20:25,80,443 -sport 1024:65535",
)  # fmt: skip
"""Rules whose packets may come in fragments or without ports, or bring related ones."""
HOST_OPTIONS = ("nf_conntrack_helpers: ftp,tftp\n", "nf_conntrack_allow_invalid: 1\n", "protection_synflood: 1\n", "")
CONFIGURATIONS = int(os.environ.get("PVEFW_PROVED_CONFIGURATIONS", "40"))
FIRST_SEED = 5000


class WiderMaker(Maker):
    """Also makes guests in VLANs, conntrack helpers, and rules about packets without ports."""

    def files(self) -> dict[str, str]:
        files = super().files()
        more = [f"{self.random.choice(('IN', 'OUT'))} {self.random.choice(MORE_RULES)}\n" for _ in range(4)]
        for name in ("100.fw", "200.fw"):
            files[f"etc/pve/firewall/{name}"] += "".join(self.random.sample(more, 2))
        host = files["etc/pve/local/host.fw"]
        options = self.random.choice(HOST_OPTIONS)
        if options.partition(":")[0] not in host:
            host = host.replace("[OPTIONS]\n", f"[OPTIONS]\n{options}")
        files["etc/pve/local/host.fw"] = host + self.random.choice(more)
        if self.random.random() < 0.5:
            config = files["etc/pve/qemu-server/100.conf"]
            files["etc/pve/qemu-server/100.conf"] = config.replace("bridge=vmbr0", "bridge=vmbr0,tag=5")
        return files


def test_random_configurations_are_the_same_through_both_backends(tmp_path: Path) -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + CONFIGURATIONS):
        root = tmp_path / str(seed)
        for name, text in WiderMaker(seed).files().items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        before, after = configuration_rulesets(Source(root, NODE, lambda: "10.1.0.0/24"), "both")
        report = compare(
            Side(before.name, before.model, before.topology), Side(after.name, after.model, after.topology)
        )
        assert report.answer is Answer.EQUAL, f"seed {seed}: {report_text(report)}"
