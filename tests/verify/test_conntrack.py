"""The states that connection tracking gives to first packets."""

from __future__ import annotations

import pytest

from pvefw_nft.verify.simulate.conntrack import first_state
from tests.verify.probes import packet


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        (0x02, "new"),
        (0xC2, "new"),
        (0x10, "new"),
        (0x18, "new"),
        (0x12, "invalid"),
        (0x04, "invalid"),
        (0x14, "invalid"),
        (0x11, "invalid"),
        (0x06, "invalid"),
        (0x03, "invalid"),
        (0x29, "invalid"),
        (0x00, "invalid"),
    ],
)
def test_tcp(flags: int, state: str) -> None:
    assert first_state(packet(protocol=0x0800, l4proto=6, tcp_flags=flags)) == state


@pytest.mark.parametrize(("kind", "state"), [(8, "new"), (13, "new"), (0, "invalid"), (3, "invalid"), (5, "invalid")])
def test_icmp(kind: int, state: str) -> None:
    assert first_state(packet(protocol=0x0800, l4proto=1, icmp=kind << 8)) == state


@pytest.mark.parametrize(
    ("kind", "state"), [(128, "new"), (129, "invalid"), (1, "invalid"), (135, "untracked"), (137, "invalid")]
)
def test_icmpv6(kind: int, state: str) -> None:
    assert first_state(packet(protocol=0x86DD, l4proto=58, icmpv6=kind << 8)) == state


def test_others() -> None:
    assert first_state(packet(protocol=0x0800, l4proto=17)) == "new"
    assert first_state(packet(protocol=0x0800, l4proto=47)) == "new"
    assert first_state(packet(protocol=0x0806)) == "untracked"
