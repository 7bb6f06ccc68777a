"""The guest and the lab in it: booted once for all tests of a run, and only if one of them asks for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.kernel.guest.image import LabUnavailableError
from tests.kernel.guest.machine import Guest
from tests.kernel.lab import Lab
from tests.kernel.survey import Surveys

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A booted guest. Where it cannot be had tests are skipped, but in CI (``CI=true``) they fail."""
    # rulesets judge packets one by one; only what changes them under traffic needs a second processor
    needs_two = any(item.path.name == "test_host.py" for item in request.session.items)
    try:
        booted = Guest(processors=2 if needs_two else 1)
    except LabUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"the kernel lab must run in CI: {error}")
        pytest.skip(f"no kernel lab: {error}")
    with booted:
        yield booted


@pytest.fixture(scope="session")
def lab(guest: Guest) -> Lab:
    """The lab in the guest. Each test sets up what it needs, because objects of an earlier test may still exist."""
    return Lab(guest)


@pytest.fixture(scope="session")
def surveys(lab: Lab) -> Surveys:
    """The outcomes of the probes of each configuration."""
    return Surveys(lab)
