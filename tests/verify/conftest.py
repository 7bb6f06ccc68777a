"""Fixtures for tests that read a configuration of another host."""

from __future__ import annotations

import pytest

from pvefw_nft.host import localnet


@pytest.fixture(autouse=True)
def no_network_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no local network detected: what a test expects must not depend on the machine that runs it."""
    monkeypatch.setattr(localnet, "detect", lambda: None)
