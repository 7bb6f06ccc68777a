"""The outcome of a probe follows from the packets that were seen; here without a kernel."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from tests.kernel.cases import CASES
from tests.kernel.lab import flow_rounds
from tests.kernel.network.plan import make_plan
from tests.kernel.outcome import judge, sightings
from tests.kernel.packets import ACK, PSH, RST, Packet, Probe, Proto, backwards, encode_all
from tests.kernel.wire import Seen

if TYPE_CHECKING:
    from tests.kernel.network.plan import Plan


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(CASES / "guest-rules", "pve1", "10.0.0.0/24")


def established() -> Probe:
    first = Packet("vm100", "outside", dport=22, acknowledgement=0)
    later = Packet("vm100", "outside", dport=22, flags=ACK | PSH, sequence=1, acknowledgement=2049)
    return Probe((first, backwards(first, sequence=2048, acknowledgement=1), later))


def reset(probe: Probe, step: int, plan: Plan) -> Seen:
    """Return the reset that answers a packet of the only probe (RFC 9293, section 3.5.2), as its sender gets it."""
    (encoded,) = encode_all([probe], plan, 0, first=5)
    frame = encoded[step].sent[0].data
    sport, dport, sequence, acknowledged, _, flags = struct.unpack_from("!HHIIBB", frame, 34)
    length = len(frame) - 54 + (flags & 2) // 2
    numbers = (acknowledged, 0, RST) if flags & ACK else (0, sequence + length, RST | ACK)
    tcp = struct.pack("!HHIIBBHHH", dport, sport, *numbers[:2], 5 << 4, numbers[2], 0, 0, 0)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + frame[30:34] + frame[26:30]
    return Seen(plan.endpoint("vm100").namespace, frame[6:12] + frame[:6] + frame[12:14] + header + tcp)


@pytest.mark.parametrize(("step", "verdict"), [(0, "DROP"), (1, "DROP"), (2, "REJECT tcp-reset")])
def test_a_reset_rejects_the_packet_that_it_answers(step: int, verdict: str, plan: Plan) -> None:
    """Of a connection whose first packet was rejected, the last one was not rejected for that."""
    probe = established()
    (encoded,) = encode_all([probe], plan, 0, first=5)
    sent = {(5, number): one for number, one in enumerate(encoded)}
    found = list(sightings([reset(probe, step, plan)], sent, 0))
    assert [one.step for one in found] == [step]
    assert str(judge(probe, 5, found, plan)) == verdict


def test_packets_without_ports_between_two_are_one_flow(plan: Plan) -> None:
    """Connection tracking knows them by their addresses alone, so one of them opens a connection for the other."""
    probes = [Probe((Packet(*ends, protocol=112),)) for ends in (("outside", "vm100"), ("vm100", "outside"))]
    probes += [Probe((Packet("outside", "vm100", protocol=protocol, dport=22),)) for protocol in (Proto.TCP, Proto.UDP)]
    assert flow_rounds(encode_all(probes, plan, 0)) == [[0, 2, 3], [1]]
