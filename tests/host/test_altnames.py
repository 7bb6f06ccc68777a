"""Alternative names of links."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pvefw_nft.host.altnames import real_name

NAMES = ("a-name-too-long-for-a-link", "nosuch")
SCRIPT = f"from pvefw_nft.host.altnames import real_name; print(*map(real_name, {NAMES}))"


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")
def test_real_name() -> None:
    commands = f"ip link add br9 type bridge && ip link property add dev br9 altname {NAMES[0]}"
    shell = f'{commands} && exec {sys.executable} -c "{SCRIPT}"'
    done = subprocess.run(["unshare", "-n", "sh", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout == "br9 None\n"


def test_no_such_name() -> None:
    assert real_name("no-link-has-this-name") is None
