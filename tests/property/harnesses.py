"""One function for each reader of untrusted input, for hypothesis (CI) and atheris (``scripts/fuzz_readers.py``).

A harness takes bytes, feeds them to one reader, and raises where the reader breaks its promise: diagnostics or an error
of our own, never another exception, no InternalError, and for a tenant's files never fewer restrictions than asked for.
``SEEDS`` holds sound input for each, which both drivers change.
"""

from __future__ import annotations

import contextlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvefw_nft.app.compile_messages import checked, decode, error_of_json, nics_of_json, result_of_json
from pvefw_nft.app.desired import Result
from pvefw_nft.app.nics import FilteredNics
from pvefw_nft.cache import Cache
from pvefw_nft.config import grammar, resolve
from pvefw_nft.config.files import Files
from pvefw_nft.config.findings import Findings
from pvefw_nft.config.load import read_nics
from pvefw_nft.config.model import GuestKind
from pvefw_nft.config.options import ClusterHardening, GuestHardening, HostHardening
from pvefw_nft.config.rule_fields import COLUMNS
from pvefw_nft.config.rules import Names
from pvefw_nft.config.sdn import read_sdn
from pvefw_nft.config.steady import is_cut_off
from pvefw_nft.errors import CompilerError, HostError, InternalError, PvefwError
from pvefw_nft.host import settings
from pvefw_nft.host.apply import xtables
from pvefw_nft.host.apply.nftables_state import Reader
from pvefw_nft.host.records import record, state
from pvefw_nft.host.records.pending import is_held_back, pending
from pvefw_nft.pipeline import Source, compile_root
from pvefw_nft.verify.network.interfaces import read_interfaces
from pvefw_nft.verify.prove.expected_differences import read_known
from pvefw_nft.verify.readers.files import Text, read_ruleset

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.pipeline import Compiled

CLUSTER = (
    "[OPTIONS]\nenable: 1\npolicy_in: DROP\nebtables: 1\nlog_ratelimit: enable=1,rate=5/minute,burst=3\n"
    "[ALIASES]\nadmin 10.0.0.7\nsix 2001:db8::/32\n[IPSET friends]\n10.1.0.0/16\n!10.1.2.3\nadmin\n"
    "[RULES]\nIN SSH(ACCEPT) -source +friends -log info\nIN ACCEPT -p tcp -dport 80,443 -i vmbr0\n"
    "[group web]\nIN HTTP(ACCEPT)\nOUT REJECT -p icmp -icmp-type echo-request\n"
)
HOST = "[OPTIONS]\nprotection_synflood: 1\nnf_conntrack_max: 262144\n[RULES]\nIN ACCEPT -p udp -dport 53\n"
GUEST = (
    "[OPTIONS]\nenable: 1\nmacfilter: 1\nipfilter: 1\npolicy_out: DROP\nlayer2_protocols: ARP,IPv4\n"
    "[ALIASES]\nbox 10.0.0.7\n[IPSET ipfilter-net0]\n10.0.0.9\n[IPSET own]\n10.4.0.0/16\n!10.4.0.1\n"
    "[RULES]\nGROUP web -i net0\nIN ACCEPT -source +own -p tcp -dport 22:23 -log warning # note\n"
    "|OUT DROP -dest dc/admin\nIN ACCEPT net0 10.0.0.1 - tcp 80 -\nOUT Ceph(ACCEPT) -dest box\n"
)
CONFIG = (
    "name: a\nnet0: virtio=BC:24:11:00:00:02,bridge=vmbr0,firewall=1,tag=5,trunks=1;5-9\nnet1: e1000,bridge=vmbr1\n"
)
NIC = "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1\n"
COROSYNC = "totem {\n version: 2\n}\nnodelist {\n node {\n  name: n\n  nodeid: 1\n  ring0_addr: 10.0.0.1\n }\n}\n"
SDN = '{"zones":{"ids":{"z":{"type":"simple"}}},"vnets":{"ids":{"v":{"zone":"z","tag":5}}},"subnets":{"ids":{}}}'
SAVED = (
    "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [1:60]\n:X - [0:0]\n-A INPUT -i lo -j ACCEPT\n"
    "-A INPUT -p tcp -m multiport --dports 22,80 -m conntrack --ctstate NEW -j X\n-A X -s 10.0.0.0/8 -j RETURN\n"
    "-A X -m set --match-set s src -m limit --limit 5/min -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n"
)
IPSET = "create s hash:net family inet hashsize 64 maxelem 64\nadd s 10.0.0.0/8\nadd s 10.1.0.0/16 nomatch\n"
EBTABLES = (
    "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:X ACCEPT\n-A FORWARD -i tap+ -p ARP --arp-ip-src 10.0.0.1 -j X\n"
    "-A X -s ! 0:1:2:3:4:5 -j DROP\n-A X -p IPv4 --ip-proto 17 --ip-dport 67:68 -j ACCEPT\n"
)
NFT = (
    "table bridge t {\n set s {\n type ipv4_addr\n flags interval\n elements = { 10.0.0.0/8 }\n }\n"
    ' map d {\n type ifname : verdict\n elements = { "tap1" : goto c }\n }\n'
    ' chain c {\n ip saddr @s tcp dport { 22, 80-90 } ct state new limit rate 5/second log prefix "x" drop\n }\n'
    " chain p {\n type filter hook prerouting priority 0; policy accept;\n iifname vmap @d\n mark set 1\n }\n}\n"
)
KNOWN = '[[difference]]\nreason = "x"\nfrom = ["vm100"]\nto = ["outside"]\nprotocol = "tcp"\ndport = "22-25"\n'
RULESET = (
    '{"backend": "nft", "enabled": true, "conntrack": [1, 2, 3], "hardening": "", "pieces": [0, -1], "answers": '
    '[["text", "/x", "d"]], "diagnostics": [["error", "c", ["f", 1, 1, 2, "t"], "m", null]]}\n{"x": 1}'
)
NICS = '{"nics": [["tap1i0", "vmbr0", 1, 0, 5, [[2, 9]], null]], "misconfigured": [["tap2i0", "fwbr2i0", "x", null]]}'
INTERFACES = "auto vmbr0\niface vmbr0 inet static\n address 10.0.0.1/24\n bridge-ports eth0\n bridge-vlan-aware yes\n"


class _MemoryFiles(Files):
    """A configuration in memory."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts

    def text(self, path: Path | str) -> str | None:
        return self.texts.get(str(path))

    def listed(self, folder: Path) -> list[str]:
        start = f"{folder}/"
        return sorted({path[len(start) :].split("/")[0] for path in self.texts if path.startswith(start)})

    def is_folder(self, path: Path) -> bool:
        return bool(self.listed(path)) or str(path) == "/r"

    def link(self, path: Path) -> str | None:  # noqa: ARG002 - there are no links
        return None

    def host_name(self) -> str:
        return "n"


class _Node:
    """A node with a good guest 100, and the guest 101 of a hostile tenant."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.cache = Cache()
        self.sound = self.compile(GUEST, CONFIG)
        self.good = self.parts(self.sound)
        self.others_lines = len(self.sound.checked.diagnostics)

    def compile(self, guest: str, config: str) -> Compiled:
        pve = "/r/etc/pve"
        files = _MemoryFiles(
            {
                f"{pve}/firewall/cluster.fw": CLUSTER,
                f"{pve}/nodes/n/host.fw": HOST,
                f"{pve}/nodes/n/qemu-server/100.conf": NIC,
                f"{pve}/firewall/100.fw": GUEST,
                f"{pve}/nodes/n/qemu-server/101.conf": config,
                f"{pve}/firewall/101.fw": guest,
            }
        )
        source = Source(Path("/r"), "n", lambda: "10.0.0.0/8", observed_files=files, cautious=True)
        return compile_root(source, self.backend, self.cache)

    def parts(self, compiled: Compiled) -> object:
        """Return the good guest's and the host's part of the ruleset."""
        chains = compiled.checked.ruleset.chains
        own = ("tap101", "fwln101")
        return {
            (layer, name): chain
            for layer, made in chains.items()
            for name, chain in made.items()
            if name.startswith(("tap100", "PVEFW-HOST", "PVEFW-Drop", "PVEFW-reject")) and not name.startswith(own)
        }


@cache
def _node(backend: str) -> _Node:
    return _Node(backend)


def _text(data: bytes) -> str:
    """Decode as :func:`pvefw_nft.config.files.read_text` does; a NUL byte never gets past it."""
    return data.replace(b"\0", b"").decode("utf-8", "replace")


def _tenant(backend: str, guest: str, config: str) -> None:
    node = _node(backend)
    compiled = node.compile(guest, config)
    assert compiled.checked.ruleset.enabled, "a guest's file switched the firewall off"
    assert node.parts(compiled) == node.good, "a guest's file changed the rules of others"
    document = "".join(compiled.artefact.loadable())
    if backend == "iptables":
        xtables.wanted(json.loads(document))  # each line is one of ours, or this raises
    else:
        Reader().wanted(compiled.artefact.loadable())


def guest_file_iptables(data: bytes) -> None:
    """Compile a tenant's firewall file beside a good guest, to iptables."""
    _tenant("iptables", _text(data), CONFIG)


def guest_file_nft(data: bytes) -> None:
    """The same, to nft."""
    _tenant("nft", _text(data), CONFIG)


def guest_config_compiled(data: bytes) -> None:
    """Compile a guest config beside a good guest."""
    _tenant("nft", GUEST, _text(data))


def guest_config(data: bytes) -> None:
    """Read a guest config: a NIC that says firewall=1 is filtered, whatever else stands in its line."""
    text = _text(data)
    for kind in GuestKind:
        read_nics(101, kind, "101.conf", text)


def lines(data: bytes) -> None:
    """Read lines of each kind."""
    sections, outside = grammar.read_sections("x.fw", _text(data))
    for line in [*outside, *(line for section in sections for line in section.lines)]:
        for read in (
            grammar.read_setting,
            grammar.read_alias,
            grammar.read_entry,
            lambda line: grammar.read_rule(line, COLUMNS),
        ):
            with contextlib.suppress(grammar.SyntaxProblem):
                read(line)


def firewall_files(data: bytes) -> None:
    """Read cluster.fw, host.fw, a guest's and a VNet's file, and the companions."""
    text, findings = _text(data), Findings(cautious=True)
    names = Names(0)
    cluster = resolve.read_cluster("cluster.fw", text, findings, names, lambda: 0.0)
    resolve.read_host("host.fw", text, findings, cluster, names)
    resolve.read_guest("100.fw", text, findings, cluster, names, 100)
    resolve.read_vnet("v.fw", text, findings, cluster, names, "v")
    resolve.read_companion(ClusterHardening, "x.pvefw", text, findings)
    resolve.read_companion(GuestHardening, "x.pvefw", text, findings)
    resolve.read_companion(HostHardening, "x.pvefw", text, findings)
    for one in findings.diagnostics:
        assert 0 <= one.span.line <= text.count("\n") + 1 + text.count("\r"), one
        assert len(one.message) < 2_000, one


def corosync(data: bytes) -> None:
    """Read corosync.conf."""
    with contextlib.suppress(grammar.SyntaxProblem):
        grammar.read_corosync("corosync.conf", _text(data))


def sdn(data: bytes) -> None:
    """Read the state files of the SDN."""
    text = _text(data)
    read_sdn(Path("/etc/pve"), (text, text, text), Findings())


def _saved(name: str, data: bytes) -> None:
    try:
        read_ruleset([Text(name, _text(data), saved=True)])
    except InternalError:
        raise
    except PvefwError:
        return


def saved_iptables(data: bytes) -> None:
    """Read the output of iptables-save."""
    _saved("rules.v4", data)


def saved_ip6tables(data: bytes) -> None:
    """Read the output of ip6tables-save."""
    _saved("rules.v6", data)


def saved_ipset(data: bytes) -> None:
    """Read the output of ``ipset save``."""
    _saved("ipset.save", data)


def saved_ebtables(data: bytes) -> None:
    """Read the output of ebtables-save."""
    _saved("ebtables.save", data)


def saved_nft(data: bytes) -> None:
    """Read the output of ``nft list ruleset``, as text or JSON."""
    _saved("ruleset.nft", data)


def known(data: bytes) -> None:
    """Read a file of expected differences."""
    with contextlib.suppress(PvefwError):
        read_known(_text(data), "known.toml")


def interfaces(data: bytes) -> None:
    """Read /etc/network/interfaces."""
    read_interfaces(_text(data))


def records(data: bytes) -> None:
    """Read the records of the host side, each from the same bytes: they are damaged, or sound, or not there."""
    folder = state.state_directory()
    assert folder.parts[1] in ("tmp", "dev"), folder  # never the machine's own
    folder.mkdir(parents=True, exist_ok=True)
    state.run_directory().mkdir(parents=True, exist_ok=True)
    reads: dict[Path, Callable[[], object]] = {
        record.running_path(): lambda: record.load(record.running_path()),
        record.memory_path(): record.read_memory,
        record.pending_path(): pending,
        record.held_path(): lambda: is_held_back(_ruleset()),
        state.run_directory() / "conntrack.json": settings.read_remembered,
    }
    for path, read in reads.items():
        path.write_bytes(data)
        path.chmod(0o600)
        with contextlib.suppress(HostError):
            read()
    state.take_warnings()


@cache
def _ruleset() -> record.Desired:
    return record.desired("nft", ["{}"], enabled=True)


def listed_iptables(data: bytes) -> None:
    """Read the kernel's rules as the host's tools list them."""
    text = _text(data)
    for read in (xtables.parse_ebtables, xtables.parse_sets):
        with contextlib.suppress(HostError):
            read(text)
    with contextlib.suppress(HostError):
        xtables.parse_table(text.splitlines(), {})


def artefact(data: bytes) -> None:
    """Read an artefact as the applier does, from a compiler that may say anything: ours, or InternalError."""
    text = _text(data)
    with contextlib.suppress(InternalError):
        Reader().wanted([text])
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return
    with contextlib.suppress(InternalError):
        xtables.wanted(value)


def compiler_says(data: bytes) -> None:
    """Read any output of the compiler's process: it is a message, or CompilerError."""
    head, _, pieces = data.partition(b"\n")
    with contextlib.suppress(CompilerError):
        message = decode(head)
        checked(lambda: error_of_json(message.get("error")))
    with contextlib.suppress(CompilerError):
        found = checked(lambda: result_of_json(decode(head), pieces, _ruleset(), None))
        assert isinstance(found, Result)
    with contextlib.suppress(CompilerError):
        assert isinstance(checked(lambda: nics_of_json(decode(head))), FilteredNics)


def saving(data: bytes) -> None:
    """Tell whether a file was cut off."""
    text = _text(data)
    middle = len(text) // 2
    assert is_cut_off(text[:middle], text) or not text.strip() or middle == len(text)


HARNESSES: dict[str, tuple[Callable[[bytes], None], tuple[str, ...]]] = {
    "lines": (lines, (CLUSTER, GUEST, HOST)),
    "firewall-files": (firewall_files, (CLUSTER, GUEST, HOST, "[OPTIONS]\nl2: strict\nharden: 1\n")),
    "guest-config": (
        guest_config,
        (CONFIG, NIC, "net0: name=eth0,hwaddr=BC:24:11:00:00:03,ip=10.0.0.9/24,type=veth\n"),
    ),
    "guest-config-compiled": (guest_config_compiled, (CONFIG, NIC)),
    "guest-file-iptables": (guest_file_iptables, (GUEST,)),
    "guest-file-nft": (guest_file_nft, (GUEST,)),
    "corosync": (corosync, (COROSYNC,)),
    "sdn": (sdn, (SDN,)),
    "saved-iptables": (saved_iptables, (SAVED,)),
    "saved-ip6tables": (saved_ip6tables, (SAVED,)),
    "saved-ipset": (saved_ipset, (IPSET,)),
    "saved-ebtables": (saved_ebtables, (EBTABLES,)),
    "saved-nft": (saved_nft, (NFT,)),
    "known": (known, (KNOWN,)),
    "interfaces": (interfaces, (INTERFACES,)),
    "records": (records, ('{"token": "a", "deadline": 5.5, "was_running": true}', '{"fingerprint": "x"}')),
    "listed": (listed_iptables, (SAVED, EBTABLES, IPSET)),
    "artefact": (artefact, ('{"add": {"table": {"family": "bridge", "name": "pvefw"}}}',)),
    "compiler": (compiler_says, (RULESET, NICS)),
    "saving": (saving, (GUEST,)),
}
"""By name: the harness, and texts to start from."""
