"""Both backends' rulesets of one configuration are proved equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvefw_nft.cli.rulesets import configuration_rulesets
from pvefw_nft.pipeline import Source
from pvefw_nft.verify.prove.compare import compare
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.render import report_text

ROOT = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(path.parent.parent.parent for path in ROOT.glob("*/etc/pve/firewall"))


def sides(root: Path) -> list[Side]:
    nodes = sorted((root / "etc/pve/nodes").glob("*"))
    node = nodes[0].name if nodes else "node"
    found = configuration_rulesets(Source(root, node, lambda: "192.168.1.0/24"), "both")
    return [Side(one.name, one.model, one.topology) for one in found]


@pytest.mark.parametrize("root", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_the_same_through_both_backends(root: Path) -> None:
    before, after = sides(root)
    report = compare(before, after)
    assert report.equal, report_text(report)
    assert report.counts.diagrams > 0
