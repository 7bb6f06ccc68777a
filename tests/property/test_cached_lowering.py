"""After any edits in any order, a ruleset compiled with a service's cache equals a cold compile."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from pvefw_nft.backends.nft import NftBackend
from pvefw_nft.cache import NO_CACHE, Cache
from pvefw_nft.host.apply.nftables_state import Reader
from pvefw_nft.pipeline import Source, compile_root
from tests.support import NODE, file_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.pipeline import Compiled

# Few names and few rules, so that edits meet: a lowered chain depends on the groups and sets that it names.
GROUPS = ("g1", "g2", "g3")
SETS = ("s1", "s2")
VMIDS = (100, 101, 102)

ENTRIES = st.lists(
    st.sampled_from(["10.0.0.0/24", "!10.0.0.8/29", "10.0.0.9", "2001:db8::/64", "!2001:db8::1", "192.0.2.1"]),
    max_size=3,
    unique=True,
)
MATCHES = st.sampled_from(
    [
        "",
        "-p tcp -dport 22",
        "-p tcp -dport 80",
        "-p udp -dport 53",
        "-source 10.0.0.1",
        "-source 10.0.0.2",
        "-dest 2001:db8::2",
        "-dest alias1",
        *(f"-source +{name}" for name in SETS),
        *(f"-dest +{name} -p tcp" for name in SETS),
        "-p icmp -log info",
        "-source +own",
    ]
)
RULES = st.one_of(
    st.builds(
        "{} {} {}".format, st.sampled_from(["IN", "OUT"]), st.sampled_from(["ACCEPT", "DROP", "REJECT"]), MATCHES
    ),
    st.builds("{} SSH(ACCEPT) {}".format, st.sampled_from(["IN", "OUT"]), st.sampled_from(["", "-source 10.0.0.3"])),
)
FORWARDED = st.builds(
    "FORWARD {} {}".format,
    st.sampled_from(["ACCEPT", "DROP", "REJECT"]),
    st.sampled_from(["", "-p tcp -dport 22", "-source +s1", "-dest 10.0.0.1"]),
)
CALLS = st.builds("GROUP {}{}".format, st.sampled_from(GROUPS), st.sampled_from(["", " -i net0"]))
POLICIES = st.sampled_from(["ACCEPT", "DROP", "REJECT"])
FORWARD_POLICIES = st.sampled_from(["ACCEPT", "DROP"])


def options(**choices: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return the section of options, each of which may be left out."""
    return st.fixed_dictionaries({}, optional=dict(choices)).map(
        lambda chosen: "".join(["[OPTIONS]\n", *(f"{key}: {value}\n" for key, value in chosen.items())])
    )


def flag() -> st.SearchStrategy[str]:
    return st.sampled_from(["0", "1"])


def rules(*kinds: st.SearchStrategy[str], most: int = 5) -> st.SearchStrategy[str]:
    return st.lists(st.one_of(*kinds), max_size=most).map("\n".join)


ENABLED = st.sampled_from(["1", "1", "1", "1", "0"])
CLUSTER: dict[str, st.SearchStrategy[str]] = {
    "[OPTIONS]": st.tuples(
        ENABLED,
        options(
            ebtables=flag(), policy_in=POLICIES, policy_out=POLICIES, policy_forward=FORWARD_POLICIES,
            log_ratelimit=st.sampled_from(["enable=0", "enable=1,rate=9/second,burst=3"]),
        ),
    ).map(lambda drawn: f"{drawn[1].partition(chr(10))[2]}enable: {drawn[0]}"),
    "[ALIASES]": st.sampled_from(["2001:db8::5", "2001:db8::6", "10.0.0.5"]).map("alias1 {}".format),
    **{f"[IPSET {name}]": ENTRIES.map("\n".join) for name in SETS},
    **{f"[group {name}]": rules(RULES, FORWARDED, most=3) for name in GROUPS},
    "[RULES]": rules(RULES, FORWARDED, CALLS, most=3),
}  # fmt: skip
"""The sections of cluster.fw."""
HOST = st.builds(
    "{}[RULES]\n{}\n".format,
    options(
        enable=flag(), nf_conntrack_allow_invalid=flag(), protection_synflood=flag(), ndp=flag(), tcpflags=flag(),
        nf_conntrack_helpers=st.sampled_from(["ftp", "ftp,tftp"]), log_level_in=st.sampled_from(["info", "nolog"]),
        log_nf_conntrack=flag(), smurf_log_level=st.sampled_from(["info", "nolog"]),
    ),
    rules(RULES, FORWARDED, CALLS, most=3),
)  # fmt: skip
GUEST = st.builds(
    "{}enable: {}\n[IPSET own]\n{}\n[RULES]\n{}\n".format,
    options(
        dhcp=flag(), ndp=flag(), radv=flag(), macfilter=flag(), ipfilter=flag(), ips=flag(),
        layer2_protocols=st.sampled_from(["ARP", "ARP,IPX"]), policy_in=POLICIES, policy_out=POLICIES,
        log_level_in=st.sampled_from(["info", "nolog"]), log_level_out=st.sampled_from(["info", "nolog"]),
    ),
    ENABLED,
    ENTRIES.map("\n".join),
    rules(RULES, CALLS, CALLS),
)  # fmt: skip
NICS = st.lists(
    st.builds(
        "net{}: virtio=BC:24:11:00:00:0{},bridge=vmbr0,firewall={}".format,
        st.integers(0, 1), st.integers(1, 3), st.sampled_from(["1", "1", "1", "0"]),
    ),
    min_size=1, max_size=2, unique_by=lambda line: line.split(":")[0],
).map("\n".join)  # fmt: skip
VNET = st.builds(
    "{}enable: 1\n[RULES]\n{}\n".format, options(policy_forward=FORWARD_POLICIES), rules(FORWARDED, CALLS, most=3)
)

EDITS = st.one_of(
    *(st.tuples(st.just(section), content) for section, content in CLUSTER.items()),
    st.tuples(st.sampled_from([section for section in CLUSTER if " " in section]), st.none()),
    st.tuples(st.just("host"), HOST),
    st.tuples(st.sampled_from([f"{vmid}.fw" for vmid in VMIDS]), st.one_of(GUEST, GUEST, st.none())),
    st.tuples(st.sampled_from([f"{vmid}.conf" for vmid in VMIDS]), st.one_of(NICS, NICS, st.none())),
    st.tuples(st.sampled_from(["vnet1.vnet", "vnet2.vnet"]), st.one_of(VNET, st.none())),
)
"""A file or a section of cluster.fw, and its new content; None: it is removed."""


def start() -> st.SearchStrategy[dict[str, str]]:
    """Return a configuration to begin with."""
    guests = {f"{vmid}.fw": GUEST for vmid in VMIDS} | {f"{vmid}.conf": NICS for vmid in VMIDS}
    return st.fixed_dictionaries({**CLUSTER, "host": HOST, "vnet1.vnet": VNET, **guests})


@settings(max_examples=20, deadline=None)
@given(start(), st.lists(EDITS, min_size=4, max_size=12))
def test_cached_lowering(files: dict[str, str], edits: list[tuple[str, str | None]]) -> None:
    with TemporaryDirectory() as folder:
        root = Root(Path(folder), files)
        cache, lines, reader = Cache(), Cache(), Reader()
        for name, text in [("host", files["host"]), *edits]:
            root.edit(name, text)
            cached, afresh = root.compiled(cache), root.compiled()
            pieces = list(afresh.artefact.loadable())
            assert list(cached.artefact.loadable()) == pieces
            assert list(NftBackend().lower(afresh.checked.ruleset, lines).loadable()) == pieces
            assert "".join(cached.artefact.json()) == "".join(afresh.artefact.json())
            assert reader.wanted(pieces) == Reader().wanted(pieces)


class Root:
    """A configuration in a folder."""

    def __init__(self, folder: Path, files: Mapping[str, str]) -> None:
        self._folder = folder
        self._cluster: dict[str, str | None] = {}
        for name, text in files.items():
            self.edit(name, text)

    def edit(self, name: str, text: str | None) -> None:
        if name in CLUSTER:
            self._cluster[name] = text
            name = "cluster"
            text = "".join(f"{section}\n{body}\n" for section, body in self._cluster.items() if body is not None)
        path = self._folder / file_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(text)

    def compiled(self, cache: Cache = NO_CACHE) -> Compiled:
        return compile_root(Source(self._folder, NODE, lambda: "10.0.0.0/24"), "nft", cache)
