"""Whatever stands in a configuration: no crash, and no line of output that is not one rule of ours.

A strict reader reads each compiled ruleset back; in addition, the distinct rules of all examples are loaded with the
real tools, since a rule that a tool refuses would make an apply fail half way.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvefw_nft.cli import main
from tests.support import complaints

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = int(os.environ.get("PVEFW_TEST_EXAMPLES", "600"))
REPEATABLE = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
"""The same examples in each run, however long one takes."""
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


# --- configurations, mostly sensible, with what should not be there -----------------------------------------

EVIL = [
    *(
        "'",
        '"',
        "\\",
        "`id`",
        "$(id)",
        "${IFS}",
        ";",
        "&&",
        "|",
        "#",
        "!",
        "*",
        "-",
        "--",
        "-j",
        "-A",
        "%s",
        "~",
    ),
    *("-j ACCEPT", '" -j ACCEPT', "COMMIT", "-F INPUT", "--dport", "0", "-1", "+5", "1_000", "0x50", "022"),
    *("\x1b[31m", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r", "\t", "\ufeff", "\u00a0"),
    *(
        "\u0661\u0662",
        "\uff12\uff12",
        "\u202e",
        "\ud7ff",
        "99999999999999999999",
        "1" * 300,
        "a" * 70,
        "../../etc",
    ),
    *("10.0.0.0/33", "10.0.0.1/24", "010.0.0.1", "10.0.0", "1.2.3.4/", "::/129", "::1%eth0", "fe80::%1/64"),
    *(
        "::ffff:10.0.0.1",
        "1:2:3:4:5:6:7:8:9",
        "10.0.0.9-10.0.0.1",
        "10.0.0.1-::1",
        "+",
        "+dc/",
        "dc/",
        "guest/x",
    ),
    *(
        "80:",
        ":80",
        "90:80",
        "65536",
        "1,,2",
        ",",
        "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
        "any",
        "all",
        "ip",
    ),
]

ADDRESSES = [
    "10.0.0.1",
    "10.0.0.0/8",
    "10.1.0.0/16,10.2.0.0/16",
    "10.0.0.1-10.0.0.9",
    "2001:db8::/32",
    "fe80::1",
]
ADDRESSES += [
    "lan",
    "dc/lan",
    "LAN",
    "guest/box",
    "+net",
    "+dc/net",
    "+guest/own",
    "+management",
    "0.0.0.0/0",
    "::/0",
]
PORTS = ["22", "80,443", "1024:65535", "ssh", "http,https", "0", "53", "domain", "1:2,3,4", "echo-request"]
PROTOCOLS = [
    "tcp",
    "udp",
    "icmp",
    "icmpv6",
    "ipv6-icmp",
    "sctp",
    "gre",
    "6",
    "17",
    "58",
    "esp",
    "0",
    "255",
    "udplite",
]
TRANSPORTS = ["tcp", "udp", "6", "sctp", "udplite", "17"]
ICMP_TYPES = [
    "echo-request",
    "any",
    "redirect",
    "no-route",
    "TOS-host-redirect",
    "neighbour-solicitation",
    "8",
]
ACTIONS = [
    "ACCEPT",
    "DROP",
    "REJECT",
    "SSH(ACCEPT)",
    "ping(DROP)",
    "DHCPv6(ACCEPT)",
    "SMB(REJECT)",
    "Ceph(ACCEPT)",
]
LEVELS = ["info", "nolog", "emerg", "debug", "warning"]
INTERFACES = ["net0", "net1", "vmbr0", "eth0", "eth0.5", "lo", "net31", "verylonginterface"]
OPTIONS = [
    *("enable: 1", "enable: 0", "policy_in: REJECT", "policy_out: DROP", "log_level_in: info", "ipfilter: 1"),
    *(
        "macfilter: 0",
        "radv: 1",
        "dhcp: 0",
        "ndp: 0",
        "ips: 1",
        "ips_queues: 2:4",
        "layer2_protocols: ARP,IPv4",
    ),
    *(
        "tcpflags: 1",
        "nosmurfs: 0",
        "ebtables: 0",
        "log_ratelimit: enable=1,rate=5/minute,burst=3",
        "nftables: 1",
    ),
    *(
        "nf_conntrack_helpers: ftp,sip",
        "protection_synflood: 1",
        "protection_synflood_rate: 10",
        "protection_synflood_rate: 2000000",
        "LOG_RATELIMIT: rate=20000/second,burst=0",
        "Policy_In: reject # why",
        "no_such: 1",
    ),
    *("nf_conntrack_max: 5", "log_nf_conntrack: 1", "policy_forward: DROP", "smurf_log_level: err"),
]


TEXT = st.text(st.characters(exclude_characters="\0\n"), max_size=12)
BAD = st.sampled_from(EVIL) | TEXT


def now_and_then(
    rarely: st.SearchStrategy[str], mostly: st.SearchStrategy[str], *, once_in: int
) -> st.SearchStrategy[str]:
    """Draw from one strategy once in so many times, else from the other."""
    return st.sampled_from([rarely, *[mostly] * (once_in - 1)]).flatmap(lambda strategy: strategy)


def or_evil(words: list[str]) -> st.SearchStrategy[str]:
    """Draw one of the words, now and then spoiled or replaced by what should not be there."""
    good = st.sampled_from(words)
    spoiled = st.tuples(good, BAD, st.booleans()).map(lambda t: t[0] + t[1] if t[2] else t[1] + t[0])
    return now_and_then(BAD | spoiled, good, once_in=16)


def option(names: list[str], values: list[str]) -> st.SearchStrategy[str]:
    return st.tuples(st.sampled_from(names), or_evil(values)).map(" ".join)


ARGUMENT = now_and_then(
    st.sampled_from(["# note", "#", "-x y"]) | BAD,
    st.one_of(
        option(["-source", "--source"], ADDRESSES),
        option(["-dest"], ADDRESSES),
        option(["-log"], LEVELS),
        option(["-i"], INTERFACES),
    ),
    once_in=16,
)
SERVICE = st.one_of(
    st.tuples(option(["-p"], TRANSPORTS), option(["-dport"], PORTS), option(["-sport"], PORTS)).map(" ".join),
    st.tuples(option(["-p", "--proto"], TRANSPORTS), option(["-dport", "-sport"], PORTS)).map(" ".join),
    st.tuples(option(["-proto"], ["icmp", "icmpv6", "ipv6-icmp"]), option(["-icmp-type"], ICMP_TYPES)).map(" ".join),
    option(["-p"], PROTOCOLS),
    st.just(""),
)
NAMED = st.tuples(
    st.sampled_from(["IN", "OUT", "in", "IN", "OUT", "|IN", "FORWARD"]),
    or_evil(ACTIONS),
    SERVICE,
    st.lists(ARGUMENT, max_size=3).map(" ".join),
).map(" ".join)
POSITIONAL = st.tuples(
    st.sampled_from(["IN", "OUT"]),
    or_evil(["ACCEPT", "DROP", "REJECT"]),
    or_evil(["-", "net0", "vmbr0"]),
    or_evil(["-", *ADDRESSES]),
    or_evil(["-", "-", *ADDRESSES]),
    or_evil(TRANSPORTS),
    or_evil(["-", *PORTS]),
    or_evil(["-", "-", *PORTS]),
).map(" ".join)
GROUP = st.tuples(st.just("GROUP"), or_evil(["web", "empty"]), st.sampled_from(["", "-i net0", "net0"])).map(" ".join)
RULE = st.one_of(NAMED, POSITIONAL, NAMED, GROUP)
ENTRY = st.tuples(st.sampled_from(["", "!"]), or_evil([*ADDRESSES[:8], "10.0.0.128/25", "0.0.0.0/1"])).map("".join)


def section(header: str, line: st.SearchStrategy[str], size: int) -> st.SearchStrategy[list[str]]:
    """Draw a section: now and then its header is spoiled, or a line in it has nothing to do there."""
    lines = st.lists(now_and_then(RULE | ENTRY | BAD | or_evil(OPTIONS), line, once_in=16), max_size=size)
    return st.tuples(or_evil([header]), lines).map(lambda t: [t[0], *t[1]])


SECTION = st.sampled_from(
    [
        *[section("[RULES]", RULE, 8)] * 4,
        section("[OPTIONS]", or_evil(OPTIONS), 4),
        section("[IPSET own]", ENTRY, 5),
        section("[IPSET ipfilter-net0]", ENTRY, 5),
        section("[group web]", NAMED, 4),
        section("[ALIASES]", st.tuples(or_evil(["box", "lan"]), or_evil(ADDRESSES)).map(" ".join), 2),
    ]
).flatmap(lambda strategy: strategy)


def text_of(*head: str) -> st.SearchStrategy[bytes]:
    """Draw the text of a file that starts with these lines."""
    sections = st.lists(SECTION, min_size=1, max_size=4).map(lambda parts: [line for part in parts for line in part])
    ends = st.sampled_from(["\n", "\n", "\n", "\r\n"])
    text = st.tuples(sections, ends).map(lambda t: t[1].join([*head, *t[0]]) + t[1])
    return text.map(lambda t: t.encode("utf-8", "surrogatepass"))


GUEST_CONF = st.tuples(
    st.sampled_from(["net0: ", "net0:", "net1: ", ""]),
    or_evil(["virtio=BC:24:11:00:00:01", "e1000=bc:24:11:0:0:1", "virtio=BC:24:11:00:00", "name=eth0"]),
    or_evil([",bridge=vmbr0", ",bridge=vmbr0,tag=5", ",bridge="]),
    st.sampled_from([",firewall=1", ",firewall=1", ",firewall=0", ""]),
).map("".join)

CLUSTER_HEAD = (
    "[OPTIONS]",
    "enable: 1",
    "[ALIASES]",
    "lan 10.0.0.0/24",
    "[IPSET net]",
    "10.3.0.0/16",
    "!10.3.1.0/24",
)
GROUPS = ("[group web]", "IN HTTP(ACCEPT)", "[group empty]")


@dataclass(frozen=True)
class Files:
    """The files of one configuration, beside a guest config that has a good NIC."""

    cluster: bytes
    host: bytes
    guest: bytes
    conf: str

    def write(self, root: Path) -> None:
        pve = root / "etc/pve"
        for folder in ("firewall", "local", "qemu-server", "lxc"):
            (pve / folder).mkdir(parents=True, exist_ok=True)
        (pve / "firewall/cluster.fw").write_bytes(self.cluster)
        (pve / "local/host.fw").write_bytes(self.host)
        for vmid in (100, 101, 200):
            (pve / f"firewall/{vmid}.fw").write_bytes(self.guest)
        (pve / "qemu-server/100.conf").write_text("net0: virtio=BC:24:11:00:00:02,bridge=vmbr0,firewall=1\n")
        (pve / "qemu-server/101.conf").write_text(self.conf + "\n", errors="surrogatepass")
        (pve / "lxc/200.conf").write_text(
            "net0: name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:03,firewall=1,ip=10.0.0.9/24,type=veth\n"
        )


FILES = st.builds(
    Files,
    cluster=text_of(*CLUSTER_HEAD, "[RULES]", "IN SSH(ACCEPT)", *GROUPS),
    host=text_of("[OPTIONS]", "enable: 1"),
    guest=text_of("[OPTIONS]", "enable: 1", "[ALIASES]", "box 10.0.0.7", "[IPSET own]", "10.4.0.0/16"),
    conf=GUEST_CONF,
)


# --- permitted output ---------------------------------------------------------------------------------------

CHAIN = r"[A-Za-z][A-Za-z0-9_-]{0,27}"
SET = r"PVEFW-[A-Za-z0-9_-]{1,24}"
V4 = r"\d{1,3}(?:\.\d{1,3}){3}(?:/\d{1,2})?"
V6 = r"[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(?:/\d{1,3})?"
ADDRESS = rf"(?:{V4}|{V6})"
PORT = r"[A-Za-z0-9._-]+(?::\d+)?"
FLAGS = r"(?:NONE|(?:FIN|SYN|RST|PSH|ACK|URG)(?:,(?:FIN|SYN|RST|PSH|ACK|URG))*)"
NIC = r"(?:tap|veth)\d+i\d+|fwln\+"

MATCH = "|".join(
    [
        r"-[io] [A-Za-z0-9_][A-Za-z0-9_.:-]{0,14}",
        rf"-[sd] {ADDRESS}(?:,{ADDRESS})*",
        rf"-m iprange --(?:src|dst)-range {ADDRESS}-{ADDRESS}",
        rf"-m set (?:! )?--match-set {SET} (?:src|dst)",
        r"-m addrtype --(?:src|dst)-type [A-Z]+",
        r"-p [A-Za-z0-9._-]+",
        r"-m (?:icmp|icmpv6|ipv6-icmp) --icmp(?:v6)?-type [A-Za-z0-9-]+",
        r"--icmpv6-type [a-z-]+",
        rf"--[sd]port {PORT}",
        rf"--match multiport --[sd]ports {PORT}(?:,{PORT})*",
        rf"-m tcp(?: --sport 0)? (?:! )?--tcp-flags {FLAGS} {FLAGS}",
        r"-m (?:tcp|udp)(?= --dport)",
        r"-m mac ! --mac-source [0-9A-Fa-f:]{17}",
        r"-m conntrack --ctstate [A-Z]+(?:,[A-Z]+)*",
        r"-m mark --mark 0x80000000/0x80000000",
        rf"-m physdev --physdev-is-bridged --physdev-(?:in|out) (?:{NIC})",
        rf"-m physdev --physdev-out (?:{NIC}) --physdev-is-bridged",
        r"-m limit --limit \d+/[a-z]+(?: --limit-burst \d+)?",
        r"-m hashlimit(?: --hashlimit-[a-z-]+ [a-z0-9/]+)+",
    ]
)
ACTION = "|".join(
    [
        r'-j NFLOG --nflog-prefix ":\d+:[0-7]:' + CHAIN + r': [A-Za-z0-9():, -]*"',
        r"-j MARK --set-mark 0x[08]0000000/0x80000000",
        r"-j CONNMARK --set-mark \d+",
        r"-j NFQUEUE(?: --queue-(?:num \d+|balance \d+:\d+))?(?: --queue-bypass)?",
        r"-j REJECT --reject-with [a-z0-9-]+",
        r"-j CT --helper [a-z-]+",
        rf"-[jg] {CHAIN}",
    ]
)
RULE_LINE = re.compile(rf"-A ({CHAIN}) ?(?: (?:{MATCH}))*(?: (?:{ACTION}))")
SET_LINE = re.compile(
    rf"create {SET} hash:net family inet6? hashsize \d+ maxelem \d+ bucketsize 12"
    rf"|add {SET} {ADDRESS}(?: nomatch)?"
)
EBTABLES_LINE = re.compile(
    rf"-A {CHAIN}(?: -[io] (?:{NIC})| -p [A-Za-z0-9_-]+| -s ! [0-9a-f:]+| --arp-ip-src {V4})* -j {CHAIN}"
)
TEXT_LINE = re.compile(rf"### [a-z0-9 -]+(?: -T [a-z]+ -n)?|\*(?:filter|raw)|:{CHAIN} .*|-F {CHAIN}|COMMIT|")
SIGNATURE = re.compile(rf'-A {CHAIN} -m comment --comment "PVESIG:[A-Za-z0-9+/]{{27}}"')
HOOK = re.compile(r"-A (?:INPUT|OUTPUT|FORWARD|PREROUTING) -j PVEFW-[A-Z]+")
REFUSED = re.compile(
    r".* -p (?:udplite|136) .*--[sd]port "
    r"|.*limit-burst (?:0|[0-9]{5,}) |.*--limit [0-9]{5,}/|.*--hashlimit-above (?:0|[0-9]{7,})/"
)
"""Rules of the reference that iptables refuses: single ports of UDP-Lite, and numbers beyond its limits."""

CHARACTERS = re.compile(r"[\x20-\x7e]*")


def check_rules(ruleset: dict[str, dict[str, dict[str, list[str]]]]) -> None:
    """Raise unless each line of each chain is one rule of that chain, and each set line one of that set."""
    for tool in ("iptables", "ip6tables"):
        for chains in ruleset[tool].values():
            for chain, rules in chains.items():
                for rule in rules:
                    match = RULE_LINE.fullmatch(rule)
                    assert match is not None, rule
                    assert match[1] == chain, rule


def check_lines(sets: dict[str, list[str]], chains: dict[str, list[str]]) -> None:
    for name, lines in sets.items():
        for line in lines:
            assert SET_LINE.fullmatch(line), line
            assert line.split()[1] == name, line
    for chain, rules in chains.items():
        for rule in rules:
            assert EBTABLES_LINE.fullmatch(rule), rule
            assert rule.split()[1] == chain, rule


def check_text(text: str) -> None:
    """Raise unless each line of restore text is a heading, a rule of ours, or what frames them."""
    for line in text.split("\n"):
        assert CHARACTERS.fullmatch(line), line
        known = (TEXT_LINE, RULE_LINE, SIGNATURE, HOOK, SET_LINE, EBTABLES_LINE)
        assert any(pattern.fullmatch(line) for pattern in known), line


# --- running ------------------------------------------------------------------------------------------------


def compile_in_process(root: Path, output: str) -> tuple[int, str, str]:
    """Run ``pvefw compile`` within this process; return exit code, standard output and standard error."""
    stdout, stderr = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    arguments = [
        "pvefw",
        "compile",
        "--backend",
        "iptables",
        "--root",
        str(root),
        "--node",
        "n1",
        "--local-network",
        "10.0.0.0/24",
    ]
    argv, sys.argv = sys.argv, [*arguments, "--format", output]
    code: object = 0
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = argv
    texts = []
    for stream in (stdout, stderr):
        stream.flush()
        stream.seek(0)
        texts.append(stream.read())
    assert isinstance(code, int | None)
    return code or 0, texts[0], texts[1]


@dataclass
class Seen:
    """Totals of the examples: distinct rules by tool and table, distinct set lines, the end of each run."""

    rules: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)
    chains: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)
    sets: dict[str, None] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)

    def add(self, code: int, ruleset: dict[str, dict[str, dict[str, list[str]]]]) -> None:
        self.ends[code] = self.ends.get(code, 0) + 1
        tables = {(tool, table): ruleset[tool][table] for tool in ("iptables", "ip6tables") for table in ruleset[tool]}
        tables["ebtables", "filter"] = dict(ruleset["ebtables"])  # type: ignore[arg-type]  # one level less deep
        for key, chains in tables.items():
            self.chains.setdefault(key, {}).update(dict.fromkeys(chains))
            self.rules.setdefault(key, {}).update(dict.fromkeys(rule for rules in chains.values() for rule in rules))
        self.sets.update(dict.fromkeys(line for lines in ruleset["ipset"].values() for line in lines))


def test_every_line_of_output_is_one_rule_of_pvefw(tmp_path: Path) -> None:
    seen = Seen()

    @settings(REPEATABLE, max_examples=EXAMPLES)
    @given(FILES)
    def compile_one(files: Files) -> None:
        files.write(tmp_path)
        code, stdout, stderr = compile_in_process(tmp_path, "json")
        assert code in (0, 1), stderr
        assert ("error" in stderr) == bool(code), stderr
        assert re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f]*", stderr), "control characters on the terminal"
        if not stdout:
            return
        ruleset = json.loads(stdout)
        check_rules(ruleset)
        check_lines(ruleset["ipset"], ruleset["ebtables"])
        seen.add(code, ruleset)
        if sum(seen.ends.values()) % 5 == 0:
            check_text(compile_in_process(tmp_path, "text")[1])

    compile_one()
    assert sum(seen.ends.values()) > EXAMPLES // 2, "too few examples came to a ruleset"
    assert len(seen.rules["iptables", "filter"]) > EXAMPLES // 4, "too few distinct rules"
    load(seen, tmp_path)


def load(seen: Seen, folder: Path) -> None:
    """Load all that was seen with the real tools, in a network namespace; fail when one line is refused."""
    tools = ("unshare", "ipset", "iptables-restore", "ip6tables-restore", "ebtables-restore")
    if os.geteuid() or any(shutil.which(tool, path=SYSTEM_PATH) is None for tool in tools):
        pytest.skip("compiled and read back, but not loaded: that needs root, ipset, iptables and ebtables")
    create = [re.sub(r"(hashsize|maxelem) \d+", r"\1 65536", line) for line in seen.sets if line.startswith("create")]
    sets = [*dict.fromkeys(create), *(line for line in seen.sets if line.startswith("add"))]
    (folder / "ipset").write_text("\n".join(sets) + "\n")
    script = ["set -e", "ipset -exist restore < ipset"]
    for (tool, table), rules in seen.rules.items():
        policy = "ACCEPT" if tool == "ebtables" else "- [0:0]"
        end = [] if tool == "ebtables" else ["COMMIT"]
        lines = [
            f"*{table}",
            *(f":{chain} {policy}" for chain in seen.chains[tool, table]),
            *(rule for rule in rules if not REFUSED.match(rule)),
            *end,
        ]
        (folder / f"{tool}-{table}").write_text("\n".join(lines) + "\n")
        script.append(f"{tool}-restore {'' if tool == 'ebtables' else '-n'} < {tool}-{table}")
    run = subprocess.run(
        ["unshare", "-n", "sh", "-c", "\n".join(script)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PATH": SYSTEM_PATH},
        check=False,
    )
    assert (run.returncode, complaints(run.stderr)) == (0, [])
