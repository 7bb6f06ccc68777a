"""Two configurations whose guests are plugged differently are never alike, whichever comes first."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pvefw_nft.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]
HOMELAB = REPOSITORY / "examples/homelab"


def changed(tmp_path: Path, change: str) -> Path:
    copy = tmp_path / "changed"
    shutil.copytree(HOMELAB, copy)
    config = copy / "etc/pve/qemu-server/101.conf"
    if change == "gone":
        config.unlink()
    else:
        config.write_text(re.sub(r",firewall=1", "", config.read_text()))
    return copy


@pytest.mark.parametrize("change", ["unfiltered", "gone"])
@pytest.mark.parametrize("turned", [False, True], ids=["first", "second"])
def test_guest_that_changed_on_one_side_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, turned: bool
) -> None:
    sides = [f"iptables:{HOMELAB}", f"nft:{changed(tmp_path, change)}"]
    with pytest.raises(SystemExit) as ended:
        main(["compare", *(sides[::-1] if turned else sides), "--node", "n1"])
    printed = capsys.readouterr().out
    assert ended.value.code == 1
    assert "vm101" in printed
