"""The declarations of fields, and the tables derived from them."""

from __future__ import annotations

import pickle

from pvefw_nft.verify import model as m
from pvefw_nft.verify.prove.facts import known_fields
from pvefw_nft.verify.prove.program import CAST, SOMETIMES_ABSENT, Case, rank
from pvefw_nft.verify.simulate.packet import make_probe
from pvefw_nft.verify.simulate.spec import PacketSpec
from tests.verify.test_prove import TOPOLOGY


def test_every_level_has_one_field() -> None:
    levels = [known.level for known in m.DECLARED.values() if known.level is not None]
    assert len(set(levels)) == len(levels)
    assert m.ON_DEMAND not in levels


def test_fields_made_on_demand_come_before_marks_alone() -> None:
    order = sorted((m.MARK[0], m.CT_MARK[31], m.label_field(5), m.SKGID, CAST, m.ETHER_SRC), key=rank)
    assert order == [m.ETHER_SRC, CAST, m.SKGID, m.label_field(5), m.MARK[0], m.CT_MARK[31]]


def test_a_field_is_declared_behind_those_that_it_requires() -> None:
    order = [*m.DECLARED]
    for on, known in m.DECLARED.items():
        for needed, values in known.requires:
            assert order.index(needed) < order.index(on)
            assert values
            assert not values - needed.everything
        assert known.default is None or known.default in on.everything


def test_declared_fields_are_interned_and_can_be_pickled() -> None:
    for on in m.DECLARED:
        assert pickle.loads(pickle.dumps(on)) is on
        assert m.field_named(on.name) is on


def test_protocols_of_a_field_follow_from_all_that_it_requires() -> None:
    arp, v4, v6 = (m.Test(m.PROTOCOL, m.protocols_of(on)) for on in (m.ARP_OP, m.SADDR4, m.ND_TARGET))
    assert [test.values for test in (arp, v4, v6)] == [
        m.equals(m.PROTOCOL, number).values for number in (m.ARP, m.IPV4, m.IPV6)
    ]
    assert m.protocols_of(m.SPORT) is m.protocols_of(m.TH_SOURCE) is m.protocols_of(m.TTL)
    assert m.protocols_of(m.PKTTYPE) is m.PROTOCOL.everything


def test_packets_have_the_declared_defaults() -> None:
    for spec in (
        PacketSpec("vm100", "host"),
        PacketSpec("vm100", "host", family=6),
        PacketSpec("vm100", "host", protocol="arp"),
        PacketSpec("vm100", "host", ether_type="0x8100"),
    ):
        packet = make_probe(spec, TOPOLOGY).fields
        expected = {on: value for on, value in m.DEFAULTS.items() if m.has_field(packet, on)}
        apart = {on for on, value in expected.items() if packet[on] != value}
        assert apart <= {m.L4PROTO, m.PKTTYPE}


def test_transport_headers_are_absent_from_other_protocols() -> None:
    path = make_probe(PacketSpec("vm100", "outside", protocol="arp"), TOPOLOGY).path
    for stage in path.stages:
        known = known_fields(stage, Case(m.ARP, tagged=False))
        assert all(known.get(on, 0) is None for on in SOMETIMES_ABSENT - {m.SKUID, m.SKGID})
