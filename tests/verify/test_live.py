"""Read the rules that a kernel runs, in a network namespace of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HOMELAB = str(REPOSITORY / "examples" / "homelab")


def pvefw(*arguments: str, before: str) -> str:
    if os.geteuid() or not all(shutil.which(tool) for tool in ("unshare", "iptables", "nft")):
        pytest.skip("needs root, iptables and nft")
    command = [sys.executable, "-m", "pvefw_nft.cli", *arguments, "--root", HOMELAB]
    done = subprocess.run(
        ["unshare", "-n", "sh", "-ec", f'{before}; exec "$@"', "sh", *command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=120,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_rules_of_all_tools_hold_together() -> None:
    before = (
        "iptables -A INPUT -p tcp --dport 23 -j REJECT; nft add table inet t; "
        "nft add chain inet t in '{ type filter hook input priority 5; }'; nft add rule inet t in tcp dport 24 drop"
    )
    packet = ("simulate", "--ruleset", "live", "--from", "outside")
    assert pvefw(*packet, "--to", "host:23", before=before).startswith("REJECT (port-unreachable)")
    assert pvefw(*packet, "--to", "host:24", before=before).startswith("DROP")
    assert pvefw(*packet, "--to", "host:25", before=before).startswith("ACCEPT")


def test_live_reads_only_rules_of_the_named_tool() -> None:
    before = "iptables -A INPUT -p tcp --dport 23 -j REJECT"
    arguments = ("simulate", "--ruleset", "live:nft", "--from", "outside", "--to", "host:23")
    assert pvefw(*arguments, before=before).startswith("ACCEPT")
    assert pvefw(*arguments[:2], "live:iptables", *arguments[3:], before=before).startswith("REJECT")


def test_the_running_ruleset_is_compared_with_the_configuration() -> None:
    assert "differ" in pvefw("compare", "live:iptables", "iptables:" + HOMELAB, before="true")
