"""Plumbing as plans: worked out from links that are only described."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pvefw_nft.errors import HostError, UsageError
from pvefw_nft.host.bridges.firewall_bridge import (
    ALIAS,
    Naming,
    Nic,
    guest_nic,
    parse_trunks,
    plan_plug,
    plan_unplug,
    port_vlans,
)
from pvefw_nft.host.links import BridgeSettings, Link, Links, VlanRange, coalesce

SETTINGS = BridgeSettings(30000, 0, 32768, 0, 200, 2000, 1, 0)
NIC = Nic("tap100i0", "vmbr0", 100, 0)
SHUT = {"disable_ipv6": "1", "arp_ignore": "8", "rp_filter": "1", "forwarding": "0"}


def bridge(name: str = "vmbr0", **fields: object) -> Link:
    link = Link(name, 1, "bridge", 1500, up=True, bridge=SETTINGS, default_pvid=1)
    return replace(link, **fields)  # type: ignore[arg-type]  # the fields of Link, chosen by the tests


def nic(master: str | None = "vmbr0", name: str = "tap100i0") -> Link:
    return Link(name, 2, "tun", 1500, up=True, master=master)


def uplink(name: str = "eno1", master: str = "vmbr0") -> Link:
    return Link(name, 3, None, 1500, up=True, master=master)


def shut(key: str) -> str | None:
    """All links have the settings they should have."""
    return SHUT.get(key.rsplit("/", 1)[-1])


def open_(key: str) -> str | None:
    return "0"


def plugged(*more: Link) -> Links:
    links = Links([bridge(), nic(), uplink(), *more])
    plan_plug(NIC, links, setting=open_)
    return links


def test_first_plug_moves_the_nic_last() -> None:
    steps = [str(step) for step in plan_plug(NIC, Links([bridge(), nic()]), setting=open_)]
    assert steps[0].startswith("ip link add fwbr100i0 mtu 1500 type bridge ageing_time 30000 stp_state 0")
    assert steps[-1] == "ip link set tap100i0 master fwbr100i0"
    assert "ip link set fwpr100p0 master vmbr0" in steps
    assert "ip link set fwln100i0 master fwbr100i0" in steps
    for link in ("fwbr100i0", "fwln100i0", "fwpr100p0", "tap100i0"):
        assert f"sysctl -w net/ipv6/conf/{link}/disable_ipv6=1" in steps
        assert f"sysctl -w net/ipv4/conf/{link}/arp_ignore=8" in steps
    # shut before it can carry anything
    assert steps.index("sysctl -w net/ipv4/conf/fwbr100i0/rp_filter=1") < steps.index("ip link set fwbr100i0 up")


def test_plugged_nic_needs_nothing() -> None:
    assert plan_plug(NIC, plugged(), setting=shut) == []


def test_plan_is_completed_from_every_state_it_passes() -> None:
    whole = plan_plug(NIC, Links([bridge(), nic()]), setting=open_)
    for count in range(len(whole) + 1):
        links = Links([bridge(), nic()])
        from pvefw_nft.host.bridges.linksteps import apply_to_model

        for step in whole[:count]:
            apply_to_model(step, links)
        plan_plug(NIC, links, setting=shut)
        assert links.ports("fwbr100i0") == ["fwln100i0", "tap100i0"]
        assert links.ports("vmbr0") == ["fwpr100p0"]
        assert all(link.up for link in links)


def test_bridge_settings_follow_the_guests_bridge() -> None:
    links = plugged()
    links.change("vmbr0", bridge=replace(SETTINGS, ageing_time=0, multicast_snooping=0))
    steps = plan_plug(NIC, links, setting=shut)
    (step,) = map(str, steps)
    assert step == (
        "ip link set fwbr100i0 type bridge ageing_time 0 stp_state 0 priority 32768 forward_delay 0 "
        "hello_time 200 max_age 2000 mcast_snooping 0 mcast_querier 0"
    )


def test_mtu_follows_the_guests_bridge() -> None:
    links = plugged()
    links.change("vmbr0", mtu=9000)
    steps = [str(step) for step in plan_plug(NIC, links, setting=shut)]
    assert steps == [f"ip link set {n} mtu 9000" for n in ("fwbr100i0", "fwln100i0", "fwpr100p0", "tap100i0")]


def test_mtu_of_the_nic_may_be_smaller_but_not_larger() -> None:
    small = [str(s) for s in plan_plug(replace(NIC, mtu=1400), plugged(), setting=shut)]
    # the bridge would take the smaller one
    assert small == ["ip link set tap100i0 mtu 1400", "ip link set fwbr100i0 mtu 1500"]
    with pytest.raises(HostError, match="MTU of 9000 is larger than the 1500 of vmbr0"):
        plan_plug(replace(NIC, mtu=9000), plugged(), setting=shut)


def test_settings_opened_by_hand_are_shut_again() -> None:
    def one_open(key: str) -> str | None:
        return "0" if key == "net/ipv4/conf/fwbr100i0/arp_ignore" else shut(key)

    steps = [str(step) for step in plan_plug(NIC, plugged(), setting=one_open)]
    assert steps == ["sysctl -w net/ipv4/conf/fwbr100i0/arp_ignore=8"]


def test_kernel_without_ipv6() -> None:
    def no_ipv6(key: str) -> str | None:
        return None if "/ipv6/" in key else "0"

    steps = [str(step) for step in plan_plug(NIC, Links([bridge(), nic()]), setting=no_ipv6)]
    assert not any("ipv6" in step for step in steps)
    assert "sysctl -w net/ipv4/conf/fwbr100i0/arp_ignore=8" in steps


@pytest.mark.parametrize(
    ("link", "message"),
    [
        (
            Link("fwbr100i0", 9, "dummy", 1500, up=True),
            "fwbr100i0 is not part of .* a dummy link, not a bridge",
        ),
        (
            Link("fwln100i0", 9, "veth", 1500, up=True, lower="other"),
            "fwln100i0 .* not paired with fwpr100p0",
        ),
        (Link("fwpr100p0", 9, "dummy", 1500, up=True), "fwpr100p0 .* a dummy link"),
    ],
)
def test_foreign_links_with_our_names_are_refused(link: Link, message: str) -> None:
    for plan in (plan_plug, plan_unplug):
        with pytest.raises(HostError, match=message):
            plan(NIC, Links([bridge(), nic(), link]))


def test_foreign_port_in_the_firewall_bridge_is_refused() -> None:
    links = plugged()
    links.put(Link("eth9", 9, None, 1500, up=True, master="fwbr100i0"))
    for plan in (plan_plug, plan_unplug):
        with pytest.raises(HostError, match="it has other ports: eth9"):
            plan(NIC, links)


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ([nic(None)], "there is no bridge vmbr0"),
        ([bridge()], "there is no link tap100i0"),
        (
            [nic(None), Link("vmbr0", 1, "openvswitch", 1500, up=True)],
            "not a Linux bridge but a openvswitch link",
        ),
    ],
)
def test_missing_links(links: list[Link], message: str) -> None:
    with pytest.raises(HostError, match=message):
        plan_plug(NIC, Links(links))


def test_older_names() -> None:
    links = Links([bridge(), nic()])
    plan_plug(NIC, links, Naming.OLDER, setting=open_)
    assert links.ports("fwbr100i0") == ["link100i0", "tap100i0"]
    assert links.ports("vmbr0") == ["link100i0p"]


def test_other_naming_replaces_the_pair_without_a_loop() -> None:
    links = Links([bridge(), nic()])
    plan_plug(NIC, links, Naming.OLDER, setting=open_)
    steps = [str(step) for step in plan_plug(NIC, links, setting=shut)]
    assert steps.index("ip link delete link100i0") < steps.index("ip link set fwpr100p0 master vmbr0")
    assert links.ports("fwbr100i0") == ["fwln100i0", "tap100i0"]
    assert links.get("link100i0p") is None


def test_unplug_leaves_the_bridge_as_it_was_and_the_nic_in_none() -> None:
    links = plugged()
    steps = [str(step) for step in plan_unplug(NIC, links)]
    assert steps == [
        "ip link set tap100i0 nomaster",
        "ip link delete fwln100i0",
        "ip link delete fwbr100i0",
    ]
    assert links.ports("vmbr0") == ["eno1"]
    assert plan_unplug(NIC, links) == []


def test_tag_on_a_plain_bridge_makes_the_vlans_bridge() -> None:
    links = Links([bridge(), nic(), uplink()])
    steps = [str(step) for step in plan_plug(replace(NIC, tag=5), links, setting=open_)]
    assert "ip link add link eno1 name eno1.5 type vlan id 5" in steps
    assert links.ports("vmbr0v5") == ["eno1.5", "fwpr100p0"]
    second = Nic("veth200i1", "vmbr0", 200, 1, tag=5)
    links.put(nic(name="veth200i1"))
    assert not any("type vlan" in str(step) for step in plan_plug(second, links, setting=open_))
    assert links.ports("vmbr0v5") == ["eno1.5", "fwpr100p0", "fwpr200p1"]
    assert not any("vmbr0v5" in str(step) for step in plan_unplug(replace(NIC, tag=5), links))
    last = [str(step) for step in plan_unplug(second, links)]
    assert last[-2:] == ["ip link delete eno1.5", "ip link delete vmbr0v5"]


def test_vlan_bridge_of_the_administrator_stays() -> None:
    existing = [Link("vmbr0v5", 8, "bridge", 1500, up=True, bridge=SETTINGS)]
    existing += [Link("v5", 9, "vlan", 1500, up=True, lower="eno1", vlan=5, master="vmbr0v5")]
    links = Links([bridge(), nic(), uplink(), *existing])
    steps = [str(step) for step in plan_plug(replace(NIC, tag=5), links, setting=open_)]
    assert not any("/vmbr0v5/" in step for step in steps)  # it may hold addresses of the host
    assert links.ports("vmbr0v5") == ["fwpr100p0", "v5"]
    plan_unplug(replace(NIC, tag=5), links)
    assert links.ports("vmbr0v5") == ["v5"]


def test_vlan_in_another_bridge_is_refused() -> None:
    taken = Link("eno1.5", 9, "vlan", 1500, up=True, lower="eno1", vlan=5, master="br5")
    links = Links([bridge(), bridge("br5"), nic(), uplink(), taken])
    with pytest.raises(HostError, match="is in br5 already"):
        plan_plug(replace(NIC, tag=5), links, setting=open_)


def test_tag_without_an_uplink() -> None:
    guest = Link("tap101i0", 9, "tun", 1500, up=True, master="vmbr0")
    with pytest.raises(HostError, match="no way to the outside that could carry VLAN 5"):
        plan_plug(replace(NIC, tag=5), Links([bridge(), nic(), guest]), setting=open_)


def test_vlan_name_too_long() -> None:
    links = Links([bridge(), nic(), uplink("enp129s0f1np1")])
    with pytest.raises(HostError, match=r"enp129s0f1np1\.500 is longer"):
        plan_plug(replace(NIC, tag=500), links, setting=open_)


def test_trunks_need_a_vlan_aware_bridge() -> None:
    with pytest.raises(HostError, match="vmbr0 does not know VLANs"):
        plan_plug(replace(NIC, trunks=(VlanRange(5, 9),)), Links([bridge(), nic()]), setting=open_)


def test_vlans_of_the_port_on_a_vlan_aware_bridge() -> None:
    links = Links([bridge(vlan_aware=True), nic()])
    tagged = replace(NIC, tag=5, trunks=parse_trunks("10-12;7"))
    steps = [str(step) for step in plan_plug(tagged, links, setting=open_)]
    assert (
        "bridge vlan del dev fwpr100p0 vid 1; bridge vlan add dev fwpr100p0 vid 5 pvid untagged; "
        "bridge vlan add dev fwpr100p0 vid 7; bridge vlan add dev fwpr100p0 vid 10-12"
    ) in steps
    assert plan_plug(tagged, links, setting=shut) == []
    # the tag changes while the guest runs: what stays is not touched
    changed = [str(step) for step in plan_plug(replace(tagged, tag=6), links, setting=shut)]
    assert changed == ["bridge vlan del dev fwpr100p0 vid 5; bridge vlan add dev fwpr100p0 vid 6 pvid untagged"]


@pytest.mark.parametrize(
    ("tag", "trunks", "default", "expected"),
    [
        (None, "", 1, "1 pvid untagged, 2-4094"),
        (None, "", 0, "1-4094"),
        (None, "5", 1, "1 pvid untagged, 5"),
        (5, "", 1, "5 pvid untagged"),
        (5, "1-10", 1, "1-4, 5 pvid untagged, 6-10"),
        (5, "5", 1, "5 pvid untagged"),
        (None, "8-20;10-30", 1, "1 pvid untagged, 8-30"),
    ],
)
def test_port_vlans(tag: int | None, trunks: str, default: int, expected: str) -> None:
    wanted = replace(NIC, tag=tag, trunks=parse_trunks(trunks) if trunks else ())
    assert ", ".join(str(vlan) for vlan in port_vlans(wanted, default)) == expected


def test_coalesce() -> None:
    assert coalesce([VlanRange(4, 4), VlanRange(2, 3), VlanRange(7, 7)]) == (VlanRange(2, 4), VlanRange(7, 7))


@pytest.mark.parametrize("text", ["", "x", "5;;6", "1-2-3", "-5"])
def test_bad_trunks(text: str) -> None:
    with pytest.raises(UsageError):
        parse_trunks(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"interface": "../../x"},
        {"interface": ""},
        {"bridge": "a b"},
        {"bridge": "abcdefghijklmnop"},
        {"tag": 4095},
        {"tag": 0},
        {"trunks": (VlanRange(9, 5),)},
        {"vmid": 999999999, "index": 31},
    ],
)
def test_bad_nics(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(NIC, **fields)  # type: ignore[arg-type]  # wrong values on purpose


def test_names_of_guest_nics() -> None:
    assert guest_nic("tap100i0") == (100, 0)
    assert guest_nic("veth2000i12") == (2000, 12)
    assert guest_nic("eth0") is None
    assert guest_nic("tap100i0x") is None


def test_alias_marks_links_that_may_be_removed() -> None:
    links = Links([bridge(), nic(), uplink()])
    plan_plug(replace(NIC, tag=5), links, setting=open_)
    made = {link.name for link in links if link.alias == ALIAS}
    assert made == {"vmbr0v5", "eno1.5"}
