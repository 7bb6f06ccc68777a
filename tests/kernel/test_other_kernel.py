"""Packets of hostile guests, under the kernel of the other supported Debian release: 6.12 on 12, 6.1 on 13.

In short form: the nft ruleset alone, and the suites that depend on the kernel most. With ``PVEFW_TEST_OTHER_KERNEL=1``
all suites go through both rulesets, and so does what NAT and live migration need.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.kernel import configurations, evasion
from tests.kernel.artefact import NFT
from tests.kernel.guest.image import LabUnavailableError, other_release
from tests.kernel.guest.machine import Guest
from tests.kernel.lab import Lab
from tests.kernel.test_evasion import attempt

if TYPE_CHECKING:
    from collections.abc import Iterator

WHOLE = bool(os.environ.get("PVEFW_TEST_OTHER_KERNEL"))


@pytest.fixture(scope="module")
def other_guest() -> Iterator[Guest]:
    """A guest with that kernel. Where it cannot be had tests are skipped, but in CI (``CI=true``) they fail."""
    try:
        booted = Guest(kernel=other_release())
    except LabUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"the kernel lab must run in CI: {error}")
        pytest.skip(f"no kernel lab: {error}")
    with booted:
        yield booted


@pytest.fixture(scope="module")
def other_lab(other_guest: Guest) -> Lab:
    return Lab(other_guest)


@pytest.mark.parametrize("backend", configurations.backends() if WHOLE else [NFT])
@pytest.mark.parametrize("name", evasion.names() if WHOLE else ["companion", "frames", "sequences"])
def test_attempts(name: str, backend: str, other_lab: Lab) -> None:
    attempt(name, backend, other_lab)


@pytest.mark.skipif(not WHOLE, reason="a quarter of an hour: PVEFW_TEST_OTHER_KERNEL=1")
@pytest.mark.parametrize("file", ["test_nat.py", "test_nat_variants.py", "test_migration.py", "test_zone_change.py"])
def test_connections(other_guest: Guest, file: str) -> None:
    """NAT, live migration and changes of zones, as the guest with the usual kernel tries them."""
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-s", "-rs", "-p", "no:cacheprovider"]
    command = ["env", "PVEFW_TEST_NAT=1", *pytest_command, f"tests/host/{file}"]
    status, output = other_guest.run(command, seconds=3600)
    print(output.decode(errors="replace"))
    assert status == 0
    assert b"skipped" not in output
