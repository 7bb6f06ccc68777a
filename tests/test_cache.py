"""The cache between compiles: a ruleset compiled with it equals a cold compile."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.cache import NO_CACHE, Cache
from pvefw_nft.config import resolve
from pvefw_nft.errors import ConfigurationError
from pvefw_nft.pipeline import Observations, Source, compile_root
from tests.support import CONTAINER, VM, file_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pvefw_nft.ir.nodes import Chain
    from pvefw_nft.pipeline import Compiled
    from tests.support import MakeRoot

CLUSTER = """[OPTIONS]
enable: 1
[ALIASES]
web 10.0.0.80
[IPSET admins]
10.0.0.0/28
[group web]
IN ACCEPT -dest web -p tcp -dport 80
OUT DROP -p udp -dport 53
[group mail]
IN ACCEPT -p tcp -dport 25
"""

FILES: dict[str, str | bytes] = {
    "cluster": CLUSTER,
    "host": "[OPTIONS]\nenable: 1\n",
    "100.fw": "[OPTIONS]\nenable: 1\nipfilter: 1\n[RULES]\nGROUP web\nIN ACCEPT -source +admins -log info\n",
    "100.conf": VM,
    "101.fw": "[OPTIONS]\nenable: 1\nips: 1\nlayer2_protocols: ARP\n[RULES]\nGROUP mail\nnonsense\n",
    "101.conf": VM,
    "200.fw": "[OPTIONS]\nenable: 1\n[IPSET own]\n10.0.0.1\n[RULES]\nIN DROP -source +own\nOUT ACCEPT -p udplite\n",
    "200.ct": CONTAINER,
}

EDITS: list[tuple[str, str, str | None]] = [
    ("nothing", "100.conf", VM),
    ("rule of a guest", "100.fw", "[OPTIONS]\nenable: 1\n[RULES]\nGROUP mail\n"),
    ("error in a guest's file", "100.fw", "[OPTIONS]\nenable: 1\n[RULES]\nIN ACCEPT -source +nowhere\n"),
    ("error mended", "100.fw", "[OPTIONS]\nenable: 1\n[RULES]\nIN ACCEPT\n"),
    ("MAC address", "101.conf", VM.replace("01,", "07,")),
    ("second NIC", "200.ct", CONTAINER + CONTAINER.replace("net0", "net1").replace("02,", "03,")),
    ("guest switched off", "101.fw", "[OPTIONS]\nenable: 0\n"),
    ("guest gone", "101.conf", None),
    ("guest back", "101.conf", VM),
    ("new guest", "102.conf", VM),
    ("its rules", "102.fw", "[OPTIONS]\nenable: 1\n[RULES]\nGROUP web -i net0\n"),
    ("VM becomes a container", "100.conf", None),
    ("", "100.ct", CONTAINER),
    ("group", "cluster", CLUSTER.replace("-dport 25", "-dport 26")),
    ("group gone", "cluster", CLUSTER.partition("[group mail]")[0]),
    ("alias", "cluster", CLUSTER.replace("10.0.0.80", "10.0.0.81")),
    ("ipset of the cluster gone", "cluster", CLUSTER.replace("admins", "others")),
    ("alias of the same name in another spelling", "cluster", CLUSTER.replace("10.0.0.80", "10.0.0.80/32")),
    ("alias becomes an ipset", "cluster", CLUSTER.replace("[IPSET admins]", "admins 10.0.0.9\n[IPSET web]")),
    ("group moved", "cluster", CLUSTER.replace("mail", "post")),
    ("ipset moved", "cluster", CLUSTER.replace("[IPSET admins]\n10.0.0.0/28\n", "") + "[IPSET admins]\n10.0.0.3\n"),
    (
        "guest names an alias",
        "100.fw",
        "[OPTIONS]\nenable: 1\n[RULES]\nIN ACCEPT -source dc/web\nOUT DROP -dest webb\n",
    ),
    ("it changes", "cluster", CLUSTER.replace("10.0.0.80", "10.0.0.82")),
    ("a name like the unknown one", "cluster", CLUSTER.replace("web 10.0.0.80", "web 10.0.0.82\nwebb 10.0.0.1")),
    ("it goes", "cluster", CLUSTER.replace("web 10.0.0.80\n", "").replace("IN ACCEPT -dest web", "IN ACCEPT")),
    ("log limit", "cluster", CLUSTER.replace("enable: 1", "enable: 1\nlog_ratelimit: enable=1,rate=9/second,burst=3")),
    ("layer 2 off", "cluster", CLUSTER.replace("enable: 1", "enable: 1\nebtables: 0")),
    ("off", "cluster", CLUSTER.replace("enable: 1", "enable: 0")),
    ("on again", "cluster", CLUSTER),
    ("host", "host", "[OPTIONS]\nenable: 0\nnf_conntrack_allow_invalid: 1\n"),
]


def edit(root: Path, name: str, content: str | None) -> None:
    """Write a file of a configuration, or remove it."""
    path = root / file_path(name)
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(content)


@pytest.mark.parametrize("backend", ["iptables", "nft"])
def test_edits(make_root: MakeRoot, backend: str) -> None:
    root = make_root(FILES)
    cache = Cache()
    text = written(compiled(root, backend, cache))
    for what, name, content in EDITS:
        edit(root, name, content)
        with_cache, afresh = compiled(root, backend, cache), compiled(root, backend)
        assert written(with_cache) == written(afresh), what
        assert with_cache.checked.diagnostics == afresh.checked.diagnostics, what
        assert with_cache.checked.ruleset == afresh.checked.ruleset, what
        text = written(with_cache)
    assert text


def test_unchanged_parts_come_from_the_cache(make_root: MakeRoot) -> None:
    root = make_root(FILES)
    cache = Cache()
    before = {chain.name: chain for chain in chains(compiled(root, "iptables", cache))}
    (root / file_path("100.fw")).write_text("[OPTIONS]\nenable: 1\n")
    after = {chain.name: chain for chain in chains(compiled(root, "iptables", cache))}
    assert after["tap101i0-IN"] is before["tap101i0-IN"]
    assert after["tap100i0-IN"] is not before["tap100i0-IN"]


def test_guest_that_comes_out_as_it_was_keeps_its_chains(make_root: MakeRoot) -> None:
    root = make_root(FILES)
    cache = Cache()
    before = {chain.name: chain for chain in chains(compiled(root, "nft", cache))}
    # guest 101 is read again: a line of its file is wrong, and the diagnostic may depend on any name
    (root / file_path("cluster")).write_text(CLUSTER.replace("web 10", "wob 10"))
    after = {chain.name: chain for chain in chains(compiled(root, "nft", cache))}
    assert after["tap101i0-IN"] is before["tap101i0-IN"]


@pytest.mark.parametrize(
    ("change", "read"),
    [
        (("IN ACCEPT -dest web", "IN DROP -dest web"), set()),
        (("[OPTIONS]\n", "[OPTIONS]\npolicy_in: REJECT\n"), set()),
        (("10.0.0.0/28", "10.0.0.0/27"), set()),
        (("web 10.0.0.80", "web 10.0.0.80\nmore 10.0.0.90"), {101}),  # in which a line is wrong
        (("admins", "others"), {100, 101}),
        (("group mail", "group post"), {101}),
    ],
)
def test_change_of_the_cluster_reads_the_guests_that_it_concerns(
    make_root: MakeRoot, spy: Callable[[object, str], list[Any]], change: tuple[str, str], read: set[int]
) -> None:
    root = make_root(FILES)
    cache = Cache()
    compiled(root, "nft", cache)
    calls = spy(resolve, "read_guest")
    (root / file_path("cluster")).write_text(CLUSTER.replace(*change))
    compiled(root, "nft", cache)
    assert {vmid for *_, vmid in calls} == read


def test_result_is_made_again_only_where_a_dependency_changes() -> None:
    cache = Cache()
    made: list[object] = []

    def get(dependency: object) -> str:
        def make() -> str:
            made.append(dependency)
            return "result"

        return cache.get("stage", "key", lambda: dependency, make)

    assert [get(1), get(1), get(2), get((3, "x")), get((3, "x"))] == ["result"] * 5
    assert made == [1, 2, (3, "x")]
    assert cache.get("other stage", "key", lambda: 1, lambda: "other") == "other"


def test_result_that_equals_the_former_one_is_the_same_object() -> None:
    cache = Cache()
    first = cache.get("stage", "key", lambda: 1, lambda: ["line"])
    assert cache.get("stage", "key", lambda: 2, lambda: ["line"]) is first
    assert cache.same("stage", "key", ["line"]) is first
    assert cache.same("stage", "key", ["other line"]) == ["other line"]


def test_result_that_does_not_hold_is_made_again() -> None:
    cache = Cache()
    for expected in (1, 2):
        assert cache.get("stage", "key", lambda: 0, partial(int, expected), lambda _: False) == expected


def test_failure_is_not_cached() -> None:
    cache = Cache()

    def fail() -> str:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - the one above
        cache.get("stage", "key", lambda: 1, fail)
    assert cache.get("stage", "key", lambda: 1, lambda: "result") == "result"


def test_entry_that_a_generation_does_not_use_is_forgotten() -> None:
    cache = Cache()
    for generation in range(4):
        used = cache.get("stage", "used", lambda: 1, partial(int, generation))
        assert used == 0
        if generation in (0, 3):
            unused = cache.get("stage", "unused", lambda: 1, partial(int, generation))
            assert unused == generation
        cache.begin()


def test_without_a_cache_no_dependency_is_asked_for() -> None:
    asked: list[int] = []
    for expected in (1, 2):
        assert NO_CACHE.get("stage", "key", partial(asked.append, 1), partial(int, expected)) == expected
    assert NO_CACHE.same("stage", "key", 3) == 3
    assert not asked


def test_configuration_that_cannot_be_read_costs_no_entries(make_root: MakeRoot) -> None:
    root = make_root(FILES)
    cache = Cache()
    before = {chain.name: chain for chain in chains(compiled(root, "nft", cache))}
    (root / file_path("cluster")).write_bytes(b"\0")
    for _ in range(3):
        with pytest.raises(ConfigurationError):
            compiled(root, "nft", cache)
    (root / file_path("cluster")).write_text(CLUSTER)
    after = {chain.name: chain for chain in chains(compiled(root, "nft", cache))}
    assert all(after[name] is chain for name, chain in before.items())


def compiled(root: Path, backend: str, cache: Cache = NO_CACHE) -> Compiled:
    return compile_root(Source(root, "n1", lambda: "10.0.0.0/24"), backend, cache)


def written(made: Compiled) -> str:
    return "".join(made.artefact.loadable())


def chains(made: Compiled) -> list[Chain]:
    written(made)
    return [chain for layer in made.checked.ruleset.chains.values() for chain in layer.values()]


@pytest.mark.usefixtures("names_unread")
def test_host_renumbers_a_service(make_root: MakeRoot, tmp_path: Path, use_etc: Callable[[Path], None]) -> None:
    etc = tmp_path / "names"
    etc.mkdir()
    use_etc(etc)
    rule = "[OPTIONS]\nenable: 1\n[RULES]\nIN ACCEPT -p tcp -dport ownservice\n"
    source = Source(make_root({"100.conf": VM, "100.fw": rule}), "n1", lambda: "10.0.0.0/24")
    cache = Cache()
    for port in (5000, 6000):
        (etc / "services").write_text(f"ownservice {port}/tcp\n")
        notes = Observations()
        made = compile_root(notes.observed(source), "nft", cache)
        notes.finish()
        assert notes.still_hold(source)
        assert f'"right":{port}' in "".join(made.artefact.loadable())
