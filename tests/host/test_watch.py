"""The files, links and settings by which the service sees that a configuration changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pvefw_nft.config.sdn import STATE_FILES
from pvefw_nft.host.watching.watch import folders_of, snapshot

if TYPE_CHECKING:
    from pathlib import Path

WATCHED = (
    "etc/hosts",
    "etc/pve/firewall/cluster.fw",
    "etc/pve/nodes/n1/host.fw",
    "etc/pve/nodes/n1/qemu-server/100.conf",
    *(f"etc/pve/{name}" for name in STATE_FILES),
)


@pytest.mark.parametrize("name", WATCHED)
def test_a_change_of_a_file_that_a_compile_reads_is_seen(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    before = snapshot(folders_of(tmp_path, "n1"))
    file.write_text("")
    created = snapshot(folders_of(tmp_path, "n1"))
    file.write_text("changed")
    assert before != created
    assert created != snapshot(folders_of(tmp_path, "n1"))
