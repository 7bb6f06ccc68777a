"""The host side on the guest's kernel: what this machine's own kernel may lack (bridge conntrack, VLAN filtering)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.kernel.guest.machine import Guest

pytest.importorskip("pyroute2")


@pytest.mark.parametrize("file", ["test_plumbing_kernel.py", "test_traffic.py"])
def test_host_side(guest: Guest, file: str) -> None:
    # each update takes seconds there
    few = ["env", "PVEFW_TEST_UPDATES=5", "PVEFW_TEST_SWITCHES=2"]
    command = [*few, sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", f"tests/host/{file}"]
    status, output = guest.run(command, seconds=900)
    assert status == 0, output.decode(errors="replace")
    # there, every test can run
    assert b"skipped" not in output, output.decode(errors="replace")
