"""Names of services, protocols, Ethernet protocols and ICMP types."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.config import netdb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    _forget()
    yield
    _forget()


def _forget() -> None:
    netdb._services.cache_clear()
    netdb._protocols.cache_clear()
    netdb._ethertypes.cache_clear()


@pytest.fixture
def etc(tmp_path: Path, use_etc: Callable[[Path], None]) -> Path:
    """Give a folder, empty at first, in place of /etc."""
    use_etc(tmp_path)
    return tmp_path


def test_a_service_is_known_for_its_protocols(etc: Path) -> None:
    (etc / "services").write_text("ssh 22/tcp secure # comment\nntp\t123/udp\n")
    assert netdb.port("ssh", "tcp") == 22
    assert netdb.port("secure", "tcp") == 22
    assert netdb.port("ssh", "udp") is None
    assert netdb.port("ssh", None) == 22
    assert netdb.port("SSH", "tcp") is None
    assert netdb.port("comment", None) is None
    assert netdb.service_protocols("ssh") == ("tcp",)
    assert netdb.service_protocols("telnet") == ()
    assert netdb.service_names() == ("ssh", "secure", "ntp")


def test_the_first_entry_of_a_name_counts(etc: Path) -> None:
    (etc / "services").write_text("radio 1/tcp\nradio 2/tcp\nradio 3/udp\n")
    assert netdb.port("radio", "tcp") == netdb.port("radio", None) == 1
    assert netdb.port("radio", "udp") == 3
    assert netdb.service_protocols("radio") == ("tcp", "udp")


@pytest.mark.parametrize("line", ["x", "x y/tcp", "x 70000/tcp", "x -1/tcp", "x 5", "# x 5/tcp", "\xff\xfe"])
def test_a_malformed_line_is_not_an_entry(etc: Path, line: str) -> None:
    (etc / "services").write_bytes(line.encode("latin-1") + b"\nssh 22/tcp\n")
    assert netdb.service_names() == ("ssh",)


def test_protocols_and_their_aliases(etc: Path) -> None:
    (etc / "protocols").write_text("tcp 6 TCP\nodd 256\n")
    assert netdb.protocol("tcp") == netdb.protocol("TCP") == 6
    assert netdb.protocol("Tcp") is None
    assert netdb.protocol("odd") is None
    assert netdb.protocol_name(6) == "tcp"
    assert netdb.protocol_name(7) is None


def test_icmpv6_is_known_on_any_host(etc: Path) -> None:
    (etc / "protocols").write_text("")
    assert netdb.protocol("icmpv6") == netdb.protocol("ipv6-icmp") == 58
    assert netdb.protocol_name(58) == "ipv6-icmp"
    assert netdb.protocol_names() == ("ipv6-icmp", "icmpv6")


def test_ethertypes_are_hexadecimal_and_without_case(etc: Path) -> None:
    (etc / "ethertypes").write_text("802_1Q 8100 dot1q\nBAD xyz\n")
    assert netdb.ethertype("802_1q") == netdb.ethertype("DOT1Q") == 0x8100
    assert netdb.ethertype("BAD") is None
    assert "802_1Q" in netdb.ethertype_names()


def test_without_the_hosts_files_the_packaged_ones_serve(etc: Path) -> None:
    assert not list(etc.iterdir())
    assert netdb.port("https", "udp") == 443
    assert netdb.port("www", "tcp") == 80
    assert netdb.protocol("gre") == 47
    assert netdb.protocol("udplite") == 136
    assert netdb.ethertype("ARP") == 0x0806


def test_a_folder_in_place_of_the_file_is_no_file(etc: Path) -> None:
    (etc / "services").mkdir()
    assert netdb.port("ssh", "tcp") == 22


@pytest.mark.skipif(not Path("/etc/services").exists(), reason="the host has no /etc/services")
def test_services_equal_the_c_library() -> None:
    for name in netdb.service_names():
        for protocol in netdb.service_protocols(name):
            assert netdb.port(name, protocol) == socket.getservbyname(name, protocol), (name, protocol)


@pytest.mark.skipif(not Path("/etc/protocols").exists(), reason="the host has no /etc/protocols")
def test_protocols_equal_the_c_library() -> None:
    for name in netdb.protocol_names():
        if name != "icmpv6":
            assert netdb.protocol(name) == socket.getprotobyname(name), name


# --- ICMP types, against the tools that know them -----------------------------------------------------------

TOOLS = {4: ("iptables", "icmp"), 6: ("ip6tables", "icmpv6")}


def _tool(version: int) -> tuple[str, str]:
    tool, match = TOOLS[version]
    path = shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if path is None:
        pytest.skip(f"{tool} is not installed")
    return path, match


@pytest.mark.parametrize(("version", "count"), [(4, 37), (6, 25)])
def test_icmp_types_equal_the_tools_lists(version: int, count: int) -> None:
    tool, match = _tool(version)
    listing = subprocess.run([tool, "-p", match, "-h"], capture_output=True, text=True, check=True).stdout
    listed: set[str] = set()
    for line in listing.partition("Types:\n")[2].splitlines():
        listed |= set(re.findall(r"[\w-]+", line))
    # The tools know more than the .fw language does: three short aliases, and since iptables 1.8.11 MLD's types.
    unknown = {"ping", "pong", "ttl-exceeded"}
    unknown |= {f"mld-listener-{what}" for what in ("query", "report", "done", "reduction")}
    assert set(netdb.icmp_type_names(version)) == listed - unknown
    assert len(netdb.icmp_type_names(version)) == count


@pytest.mark.parametrize("version", [4, 6])
def test_icmp_numbers_equal_the_tools_output(version: int) -> None:
    tool, match = _tool(version)
    names = netdb.icmp_type_names(version)
    option = f"--{match}-type"
    rules = "".join(f"-A INPUT -p {match} -m {match} {option} {name}\n" for name in names)
    script = f"{tool}-restore && {tool} -S INPUT"
    run = subprocess.run(
        ["unshare", "-n", "sh", "-c", script],
        input=f"*filter\n{rules}COMMIT\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode and "unshare" in run.stderr:
        pytest.skip(f"no network namespace: {run.stderr.strip()}")
    assert run.returncode == 0, run.stderr
    emitted = [line.partition(option)[2].strip() for line in run.stdout.splitlines() if line.startswith("-A")]
    assert len(emitted) == len(names)
    for name, spelled in zip(names, emitted, strict=True):
        number, code = netdb.icmp_type(version, name) or ("unknown", None)
        expected = "any" if number is None else f"{number}" if code is None else f"{number}/{code}"
        assert spelled == expected, name


def test_unknown_icmp_types_are_none() -> None:
    assert netdb.icmp_type(4, "no-route") is None
    assert netdb.icmp_type(6, "any") is None
    assert netdb.icmp_type(4, "8") is None


def test_names_that_only_this_machine_knows_are_told(etc: Path) -> None:
    (etc / "services").write_text("mine 4711/tcp\nssh 22/tcp\nhttp 8080/tcp\n")
    netdb.forget()
    for name in ("mine", "ssh", "http", "nobody"):
        netdb.port(name, "tcp")
    netdb.protocol("tcp")
    assert netdb.own_names() == ("http", "mine")
    netdb.forget()
    assert netdb.own_names() == ()
