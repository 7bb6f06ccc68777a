"""What hostile guests send, under the kernel of the other supported Debian release: 6.12 on 12, 6.1 on 13.

In short form: the nft ruleset alone, and the suites that depend on the kernel most. With ``PVEFW_TEST_OTHER_KERNEL=1``
all suites go through both rulesets.
"""

from __future__ import annotations

import os
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
def other_lab() -> Iterator[Lab]:
    """A lab in a guest of its own. Where it cannot be had tests are skipped, but in CI (``CI=true``) they fail."""
    try:
        booted = Guest(kernel=other_release())
    except LabUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"the kernel lab must run in CI: {error}")
        pytest.skip(f"no kernel lab: {error}")
    with booted:
        yield Lab(booted)


@pytest.mark.parametrize("backend", configurations.backends() if WHOLE else [NFT])
@pytest.mark.parametrize("name", evasion.names() if WHOLE else ["companion", "frames", "sequences"])
def test_attempts(name: str, backend: str, other_lab: Lab) -> None:
    attempt(name, backend, other_lab)
