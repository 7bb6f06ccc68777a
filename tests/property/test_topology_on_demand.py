"""Packets of random configurations: NICs read on demand give the same answers as all NICs read at once."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.config.files import FilesBelow
from pvefw_nft.errors import PvefwError
from pvefw_nft.pipeline import Source, compile_root
from pvefw_nft.pipeline.read_back import read_back
from pvefw_nft.pipeline.topology import topology
from pvefw_nft.verify.network.path import NicsOnDemand
from pvefw_nft.verify.simulate.guesses import simulate_guessing
from pvefw_nft.verify.simulate.packet import make_probe
from pvefw_nft.verify.simulate.report import answer_line, outcome_data, outcome_lines
from pvefw_nft.verify.simulate.spec import PacketSpec

if TYPE_CHECKING:
    from pathlib import Path

    from pvefw_nft.verify.model import RulesetModel
    from pvefw_nft.verify.network.path import Topology

CONFIGURATIONS = 60
PACKETS = 25
BRIDGES = ("vmbr0", "vmbr1", "vmbr2", "bridge", "vnet0", "vmbr0.5", "lan")
ADDRESSES = ("10.0.0.5", "10.0.0.77", "192.168.1.9", "2001:db8::5", "224.0.0.251", "10.0.0.1", "203.0.113.7")
VMIDS = (100, 101, 102, 110, 1000, 9, 123456789)


def nic_line(rng: random.Random) -> str:
    """Return a line of a guest config about a NIC, or one that only looks like it."""
    bridge = rng.choice(BRIDGES)
    extra = "".join(rng.sample([",firewall=1", ",tag=5", ",trunks=6;7", ",ip=10.0.0.77/24", ",link_down=1"], 2))
    mac = f"virtio=BC:24:11:00:00:{rng.randrange(256):02X}"
    return rng.choice(
        (
            f"net{rng.choice((0, 0, 1, 2, 10))}: {mac},bridge={bridge}{extra}",
            f"net0: {mac}{extra},bridge={bridge}",
            f"net1: {mac},firewall=1",
            f"net0: {mac},xbridge=bridge={bridge}{extra}",
            f"net0: {mac},bridge=bridge={bridge}",
            f"net3: {mac};bridge={bridge},firewall=1",
            f"# net0: {mac},bridge={bridge}",
            f"description: bridge={bridge}",
            f"net0 {mac},bridge={bridge}",
        )
    )


def guest_config(rng: random.Random) -> str | bytes:
    """Return a guest config, or a file that is none."""
    if rng.random() < 0.08:
        return rng.choice((b"", b"\0\xff" * 50, b"\xff\xfe\xfd" * 9))
    lines = [nic_line(rng) for _ in range(rng.randrange(4))]
    if rng.random() < 0.4:
        lines.append(f"ipconfig{rng.randrange(2)}: ip={rng.choice(ADDRESSES)}/24")
    if rng.random() < 0.3:
        lines += ["[snapshot]", nic_line(rng)]
    return "\n".join(lines)


def guest_firewall(rng: random.Random) -> str:
    """Return a firewall file of a guest, perhaps with the addresses that it may use, perhaps with a wrong line."""
    sets = f"[IPSET ipfilter-net{rng.randrange(2)}]\n{rng.choice((*ADDRESSES, '10.0.0.0/28', 'dc/site', 'wrong'))}\n"
    rules = rng.choice(("IN ACCEPT -p tcp -dport 80", "IN ACCEPT -source 10.0.0.0/24", "IN WRONG(", "OUT DROP"))
    return f"[OPTIONS]\nenable: 1\nipfilter: {rng.randrange(2)}\n{rng.choice(('', sets))}[RULES]\n{rules}\n"


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def make_configuration(root: Path, rng: random.Random) -> None:
    """Write a cluster of two nodes; some guests are on both, some have files that cannot be used."""
    pve = root / "etc/pve"
    cluster = "[OPTIONS]\nenable: 1\n[ALIASES]\nsite 10.0.0.64/26\n"
    write(pve / "firewall/cluster.fw", cluster)
    for node, chance in (("one", 0.7), ("two", 0.3)):
        (pve / "nodes" / node).mkdir(parents=True)
        for vmid in VMIDS:
            if rng.random() > chance:
                continue
            config = pve / "nodes" / node / rng.choice(("qemu-server", "lxc")) / f"{vmid}.conf"
            if rng.random() < 0.05:
                config.mkdir(parents=True)
            elif rng.random() < 0.05:
                config.parent.mkdir(parents=True, exist_ok=True)
                config.symlink_to("/etc/hostname")
            else:
                write(config, guest_config(rng))
            if rng.random() < 0.7:
                write(pve / f"firewall/{vmid}.fw", guest_firewall(rng))
    if rng.random() < 0.6:
        bridge = rng.choice(BRIDGES[:3])
        ports = rng.choice(("none", "eno1", "eth0 eth1"))
        interfaces = (
            f"iface {bridge} inet static\n address 10.0.0.1/24\n bridge-ports {ports}\niface eno7 inet static\n"
        )
        write(root / "etc/network/interfaces", interfaces + rng.choice(("", " address 192.168.1.1/24\n")))


def zone(rng: random.Random) -> str:
    """Return one end of a packet: a guest that may or may not exist, the host, the outside, a port, an address."""
    vmid = rng.choice((*VMIDS, 555))
    nic = rng.choice(("", "i0", "i1", "i10"))
    guest = rng.choice((f"vm{vmid}", f"ct{vmid}", f"vm{vmid}{nic}", f"tap{vmid}i0", f"veth{vmid}i1", f"vm0{vmid}"))
    place = rng.choice(("host", "outside", rng.choice(BRIDGES), "eth0", "vmbr0/eth0", "vmbr1/eth1", "iface/eno7"))
    more = rng.choice((f"nic/vmbr0/tap{vmid}i0", "port/vmbr1/eth5", "vm", "1" * 5000, "vm\u0661\u0660\u0660"))
    return rng.choice((guest, guest, guest, place, place, rng.choice(ADDRESSES), more))


def packet(rng: random.Random) -> PacketSpec:
    given: dict[str, Any] = {"protocol": rng.choice((None, "tcp", "udp", "icmp", "arp"))}
    if rng.random() < 0.2:
        given["source_address"] = rng.choice(ADDRESSES)
    if rng.random() < 0.1:
        given["vlan"] = 5
    source, destination = zone(rng), zone(rng)
    if any("2001:db8::5" in end for end in (source, destination, given.get("source_address", ""))):
        given["protocol"] = "tcp"  # ARP is of IPv4
    return PacketSpec(source, destination + rng.choice(("", "", ":80")), **given)


def answer(model: RulesetModel, network: Topology, spec: PacketSpec) -> object:
    """Return all that simulate says about a packet: lines, data and the last line; or its error."""
    try:
        outcome = simulate_guessing(model, make_probe(spec, network))
    except PvefwError as error:
        return type(error), error.message, error.hint
    return [*outcome_lines(outcome, verbose=True)], outcome_data(outcome), answer_line(outcome)


@pytest.mark.parametrize("backend", ["iptables", "nft"])
def test_nics_on_demand_change_no_answer(tmp_path: Path, backend: str) -> None:
    answered = 0
    for seed in range(CONFIGURATIONS):
        rng = random.Random(f"{backend} {seed}")
        root = tmp_path / str(seed)
        make_configuration(root, rng)
        source = Source(root, "one", lambda: None)
        call = backend == "iptables"
        whole = replace(topology(source), call_iptables=call)
        some = replace(topology(source, on_demand=True), call_iptables=call)
        assert some.links == whole.links
        model = read_back(compile_root(source, backend), on_demand=True)
        for spec in [packet(rng) for _ in range(PACKETS)]:
            expected = answer(model, whole, spec)
            answered += isinstance(expected, tuple) and isinstance(expected[0], list)
            assert answer(model, some, spec) == expected, spec
        assert isinstance(some.nics, NicsOnDemand)
        assert tuple(some.nics) == whole.nics
        assert tuple(some.elsewhere) == whole.elsewhere
    assert answered > CONFIGURATIONS * PACKETS / 10


def test_a_packet_reads_the_firewall_files_of_its_ends_alone(tmp_path: Path) -> None:
    """A file that would be read, but is not: the one of a guest that the packet does not meet."""
    for vmid in VMIDS:
        write(tmp_path / f"etc/pve/nodes/one/qemu-server/{vmid}.conf", "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0")
        write(tmp_path / f"etc/pve/firewall/{vmid}.fw", "[IPSET ipfilter-net0]\n10.0.0.5\n")
    network = topology(Source(tmp_path, "one", lambda: None), on_demand=True)
    for vmid in VMIDS:
        if vmid != 100:
            (tmp_path / f"etc/pve/firewall/{vmid}.fw").unlink()
    make_probe(PacketSpec("outside", "vm100:80"), network)
    (other,) = [nic for nic in network.nics if nic.vmid == 101]
    assert not other.addresses


@pytest.mark.parametrize("unreadable", ["nodes/one/qemu-server/101.conf", "nodes/two/lxc"])
def test_errors_of_the_file_system_are_not_put_off(tmp_path: Path, unreadable: str) -> None:
    class Failing(FilesBelow):
        def text(self, path: Path | str) -> str | None:
            if str(path).endswith(unreadable):
                raise PvefwError(f"{path}: fails")
            return super().text(path)

        def listed(self, folder: Path) -> list[str]:
            if str(folder).endswith(unreadable):
                raise PvefwError(f"{folder}: fails")
            return super().listed(folder)

    for vmid in VMIDS:
        write(tmp_path / f"etc/pve/nodes/one/qemu-server/{vmid}.conf", "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0")
    write(tmp_path / "etc/pve/nodes/two/lxc/200.conf", "")
    source = Source(tmp_path, "one", lambda: None, observed_files=Failing(tmp_path))
    for on_demand in (False, True):
        with pytest.raises(PvefwError, match="fails"):
            topology(source, on_demand=on_demand)
