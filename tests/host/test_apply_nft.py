"""Plans for nftables, and carrying them out through libnftables in a namespace."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.errors import HostError, InternalError
from pvefw_nft.host.apply import apply_nft
from pvefw_nft.host.apply.nftables_state import Command, Nftables, Noted, Reader, read_kernel
from pvefw_nft.host.netfilter import nf_tables
from pvefw_nft.host.netfilter.nf_tables import generation

from .rulesets import nft, pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pvefw_nft.host.apply.nftables_state import Kernel, Wanted

    from .conftest import Namespace

pytest.importorskip("nftables")


def wanted(artefact: dict[str, Any]) -> dict[str, Wanted]:
    return Reader().wanted(pieces(artefact))


def noted(artefact: dict[str, Any]) -> Kernel:
    """Return the kernel's rules after an apply of the artefact."""
    return {
        family: {key: Noted(item.digests, number) for number, (key, item) in enumerate(table.objects.items())}
        for family, table in wanted(artefact).items()
    }


def plan(before: dict[str, Any], after: dict[str, Any], *, known: bool = True) -> apply_nft.Plan:
    return apply_nft.plan(noted(before), wanted(after), lambda: wanted(before) if known else {})


def verbs(planned: apply_nft.Plan) -> list[str]:
    """Return the commands in short form: verb and object, a dash between transactions."""
    short = []
    for command in [command for commands in planned.transactions for command in (*commands, None)][:-1]:
        if command is None:
            short.append("-")
            continue
        ((verb, argument),) = command.items()
        ((kind, body),) = argument.items()
        short.append(f"{verb} {kind} {body.get('name', body.get('chain'))}")
    return short


# --- plans --------------------------------------------------------------------------------------------------


def test_first_plan_makes_both_tables() -> None:
    planned = apply_nft.plan({}, wanted(nft()))
    assert [str(change) for change in planned.changes] == ["add nft table bridge pvefw", "add nft table inet pvefw"]
    assert "delete table pvefw" not in verbs(planned)


def test_nothing_changed_means_no_commands() -> None:
    assert plan(nft(), nft()).commands == ()


def test_changed_chain_is_flushed_and_filled_and_no_other() -> None:
    planned = plan(nft((100, 101)), {"nftables": [*nft((100, 101))["nftables"], extra_rule("tap101i0-OUT")]})
    assert verbs(planned) == [
        "flush chain tap101i0-OUT",
        *["add rule tap101i0-OUT"] * 4,
        "delete rule digests",
        "add rule digests",
    ]


def extra_rule(chain: str) -> dict[str, Any]:
    return {"add": {"rule": {"family": "bridge", "table": "pvefw", "chain": chain, "expr": [{"drop": None}]}}}


def test_new_guest_is_an_element_of_the_map() -> None:
    planned = plan(nft((100,)), nft((100, 101)))
    assert verbs(planned) == [
        "add chain tap101i0-OUT",
        *["add rule tap101i0-OUT"] * 3,
        "add rule digests",
        "add element nics",
        "delete rule digests",
        "add rule digests",
    ]
    assert [str(change) for change in planned.changes] == [
        "add nft bridge chain tap101i0-OUT",
        'change nft bridge map nics\n    + ["tap101i0", {"goto": {"target": "tap101i0-OUT"}}]',
    ]


def test_gone_guest_leaves_the_map_before_its_chain_goes() -> None:
    short = verbs(plan(nft((100, 101)), nft((100,))))
    assert short.index("flush chain tap101i0-OUT") < short.index("delete chain tap101i0-OUT")
    assert short.index("delete element nics") < short.index("-") < short.index("delete chain tap101i0-OUT")


def dispatching(chain: str) -> dict[str, Any]:
    """Return an artefact whose map leads to a chain of that name."""
    return json.loads(json.dumps(nft()).replace("tap100i0-OUT", chain))  # type: ignore[no-any-return]  # JSON


def test_chain_that_a_map_is_to_lead_to_is_there_before_and_the_other_one_afterwards() -> None:
    short = verbs(plan(dispatching("old"), dispatching("new")))
    first, second = (index for index, verb in enumerate(short) if verb == "-")
    assert {"add chain new", "add rule new"} <= set(short[:first])
    assert {"delete element nics", "add element nics"} <= set(short[first:second])
    assert short[second:] == ["-", "flush chain old", "delete chain old", "delete rule digests"]


def test_new_base_chain_is_there_before_other_chains_change() -> None:
    base = {"type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept"}
    added = {"add": {"chain": {"family": "bridge", "table": "pvefw", "name": "early", **base}}}
    other = {"nftables": [*nft()["nftables"], added, extra_rule("early"), extra_rule("tap100i0-OUT")]}
    short = verbs(plan(nft(), other))
    assert short.index("add rule early") < short.index("-") < short.index("flush chain tap100i0-OUT")
    back = verbs(plan(other, nft()))
    assert back.index("flush chain tap100i0-OUT") < back.index("-") < back.index("delete chain early")


def sharing(chains: tuple[str, ...]) -> dict[str, Any]:
    """Return an artefact whose chains look into one set of ports and one map, which are there if a chain is."""
    table = {"family": "bridge", "table": "pvefw"}
    port = {"payload": {"protocol": "tcp", "field": "dport"}}
    names = {"set": {**table, "name": "ports-22_80", "type": "inet_service", "size": 2, "elem": [22, 80]}}
    pairs = [[443, {"goto": {"target": "prerouting-end"}}], [25, {"drop": None}]]
    verdicts = {"name": "verdicts-1", "type": "inet_service", "map": "verdict", "size": 2, "elem": pairs}
    shared = [{"add": names}, {"add": {"map": {**table, **verdicts}}}] if chains else []
    looking = [
        {"match": {"op": "==", "left": port, "right": "@ports-22_80"}},
        {"vmap": {"key": port, "data": "@verdicts-1"}},
    ]
    rules = [
        {"add": {"rule": {**table, "chain": chain, "expr": [expression]}}} for chain in chains for expression in looking
    ]
    end = [{"add": {"chain": {**table, "name": "prerouting-end"}}}] if chains else []
    return {"nftables": [*nft((100, 101))["nftables"], *end, *shared, *rules]}


def test_a_shared_set_comes_before_its_first_user_and_goes_after_the_last() -> None:
    one, both = sharing(("tap100i0-OUT",)), sharing(("tap100i0-OUT", "tap101i0-OUT"))
    assert not [verb for verb in verbs(plan(one, both)) if "ports-22_80" in verb or "verdicts-1" in verb]
    assert not [verb for verb in verbs(plan(both, one)) if "ports-22_80" in verb or "verdicts-1" in verb]
    come, go = verbs(plan(sharing(()), one)), verbs(plan(one, sharing(())))
    assert come.index("add set ports-22_80") < come.index("add rule tap100i0-OUT")
    assert go.index("flush chain tap100i0-OUT") < go.index("-") < go.index("delete set ports-22_80")
    assert go.index("delete map verdicts-1") < go.index("delete chain prerouting-end")


def test_only_differing_elements_are_touched() -> None:
    planned = plan(nft(networks=("10.0.0.0/24", "10.1.0.0/24")), nft(networks=("10.0.0.0/24", "10.2.0.0/24")))
    assert verbs(planned)[:2] == ["delete element friends", "add element friends"]
    gone, come, *_ = planned.commands
    assert len(gone["delete"]["element"]["elem"]) == len(come["add"]["element"]["elem"]) == 1


def test_table_with_a_set_whose_elements_are_not_known_is_replaced() -> None:
    planned = plan(nft(), nft(networks=("10.2.0.0/24",)), known=False)
    assert str(planned.changes[0]) == "change nft table bridge pvefw (as a whole)"


def test_object_with_another_definition_replaces_the_table() -> None:
    other = json.loads(json.dumps(nft()).replace('"prio": -150', '"prio": -140'))
    planned = plan(nft(), other)
    short = verbs(planned)
    twin, table, end = (list(part) for dash, part in itertools.groupby(short, "-".__eq__) if not dash)
    assert {verb for verb in twin if "delete" in verb or "table" in verb} == {
        "add table pvefw-twin",
        "delete table pvefw-twin",
    }
    assert table[:3] == ["add table pvefw", "delete table pvefw", "add table pvefw"]
    assert end == ["add table pvefw-twin", "delete table pvefw-twin"] * 2


def test_table_without_notes_is_replaced() -> None:
    planned = apply_nft.plan({"bridge": {}, "inet": {}}, wanted(nft()))
    assert verbs(planned).count("delete table pvefw") == 2


def test_nothing_wanted_deletes_both_tables() -> None:
    assert verbs(apply_nft.plan(noted(nft()), {})) == ["delete table pvefw", "delete table pvefw"]


def test_commands_that_make_way_for_our_own_tables_do_not_matter() -> None:
    start = [{"delete": {"table": {"family": "bridge", "name": "pvefw"}}}, {"metainfo": {"json_schema_version": 1}}]
    assert wanted({"nftables": [*start, *nft()["nftables"]]}) == wanted(nft())


def test_empty_table_is_none() -> None:
    assert wanted({"nftables": nft()["nftables"][:2]}) == {}


@pytest.mark.parametrize(
    "command",
    [
        {"flush": {"ruleset": None}},
        {"delete": {"chain": {"family": "bridge", "table": "pvefw", "name": "x"}}},
        {"add": {"table": {"family": "ip", "name": "filter"}}},
        {"add": {"rule": {"family": "inet", "table": "filter", "chain": "input", "expr": []}}},
        {"add": {"chain": {"family": "bridge", "table": "pvefw", "name": "digests"}}},
        "add",
    ],
)
def test_artefact_may_only_add_to_our_tables(command: Any) -> None:  # noqa: ANN401
    with pytest.raises(InternalError):
        wanted({"nftables": [*nft()["nftables"], command]})


# --- the kernel ---------------------------------------------------------------------------------------------

USERS = """
add table inet filter
add chain inet filter input { type filter hook input priority 0; policy accept; }
add rule inet filter input tcp dport 22 counter accept comment "mine"
add table bridge mine
add set bridge mine s { type ether_addr; }
add element bridge mine s { 02:00:00:00:00:01 }
"""


@pytest.fixture
def kernel(host: Namespace) -> Nftables:
    try:
        library = Nftables()
        table = {"table": {"family": "bridge", "name": "probe"}}
        library.run([{"add": table}, {"delete": table}])
    except HostError as error:
        pytest.skip(f"no nftables of family bridge here: {error.message}")
    return library


def listed() -> str:
    return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


def users() -> str:
    return "".join(
        subprocess.run(["nft", "list", "table", *table], capture_output=True, text=True, check=True).stdout
        for table in (("inet", "filter"), ("bridge", "mine"))
    )


def apply(library: Nftables, artefact: dict[str, Any], previous: dict[str, Wanted] | None = None) -> dict[str, Wanted]:
    target = wanted(artefact)
    apply_nft.execute(apply_nft.plan(read_kernel(), target, lambda: previous or {}), library)
    assert apply_nft.plan(read_kernel(), target, lambda: target).commands == ()
    return target


def test_updates_leave_other_tables_alone(kernel: Nftables) -> None:
    subprocess.run(["nft", "-f", "-"], input=USERS, text=True, check=True)
    before = users()
    whole = listed()
    target = apply(kernel, nft())
    for number in range(20):
        guests = tuple(range(100, 100 + number % 5))
        target = apply(kernel, nft(guests, (f"10.{number}.0.0/16",), ports=(number + 1,)), target)
        assert users() == before
    apply_nft.execute(apply_nft.plan(read_kernel(), {}), kernel)
    assert listed() == whole


def test_counters_and_dynamic_sets_of_the_rest_survive(kernel: Nftables) -> None:
    target = apply(kernel, nft((100, 101)))
    subprocess.run(["nft", "add", "element", "inet", "pvefw", "flooders", "{ 192.0.2.1 }"], check=True)
    handle = "handle" + listing_with_handles("tap100i0-OUT")
    apply(kernel, nft((100, 102)), target)
    assert "192.0.2.1" in listed()
    assert "handle" + listing_with_handles("tap100i0-OUT") == handle


def listing_with_handles(chain: str) -> str:
    command = ["nft", "-a", "list", "chain", "bridge", "pvefw", chain]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_emptied_and_refilled_sets(kernel: Nftables) -> None:
    target = apply(kernel, nft(networks=("10.0.0.0/24",)))
    target = apply(kernel, nft(networks=()), target)
    target = apply(kernel, nft(networks=("10.0.0.0/25", "10.0.0.128/25")), target)
    apply(kernel, nft(networks=("10.0.0.0/24",)))  # the old elements are not known: the new ones overlap them
    assert "10.0.0.0/24" in listed()


def test_shared_sets_follow_their_users(kernel: Nftables) -> None:
    target = apply(kernel, sharing(()))
    for chains in (("tap100i0-OUT",), ("tap100i0-OUT", "tap101i0-OUT"), ("tap101i0-OUT",), (), ("tap101i0-OUT",)):
        target = apply(kernel, sharing(chains), target)
        assert listed().count("@ports-22_80") == listed().count("@verdicts-1") == len(chains)
        assert listed().count("\tset ports-22_80 {") == listed().count("\tmap verdicts-1 {") == bool(chains)


def test_refused_ruleset_changes_nothing(kernel: Nftables) -> None:
    apply(kernel, nft())
    before = listed()
    jump = extra_rule("prerouting")
    jump["add"]["rule"]["expr"] = [{"jump": {"target": "nowhere"}}]
    with pytest.raises(HostError, match="libnftables refused the ruleset"):
        apply(kernel, {"nftables": [*nft(ports=(1, 2))["nftables"], jump]})
    assert listed() == before


def test_error_names_the_command_that_is_malformed(kernel: Nftables) -> None:
    with pytest.raises(HostError, match=r'in the command \{"add": \{"rule": .*"drp"'):
        kernel.run([{"add": {"rule": {"family": "bridge", "table": "pvefw", "chain": "c", "expr": [{"drp": None}]}}}])


def test_changes_by_hand_are_seen_and_mended(kernel: Nftables) -> None:
    target = apply(kernel, nft())
    memory = apply_nft.memory_of(target)
    assert apply_nft.drift(read_kernel(), memory).names == []
    subprocess.run(["nft", "add", "rule", "bridge", "pvefw", "tap100i0-OUT", "accept"], check=True)
    subprocess.run(["nft", "add", "element", "bridge", "pvefw", "friends", "{ 192.0.2.0/24 }"], check=True)
    drifted = apply_nft.drift(read_kernel(), memory).names
    assert sorted(drifted) == ["bridge chain tap100i0-OUT", "bridge set friends"]
    planned = apply_nft.plan(read_kernel(), target, lambda: target, drifted)
    apply_nft.execute(planned, kernel)
    assert apply_nft.drift(read_kernel(), memory).names == []


BY_HAND = {
    "rule gone": ("delete rule bridge pvefw tap100i0-OUT handle {last}", "chain tap100i0-OUT"),
    "rule at another place": (
        (
            "delete rule bridge pvefw tap100i0-OUT handle {last}; "
            "insert rule bridge pvefw tap100i0-OUT tcp dport {{1, 2}} drop"
        ),
        "chain tap100i0-OUT",
    ),
    "another value in a rule's own set": (
        "replace rule bridge pvefw tap100i0-OUT handle {last} tcp dport {{1, 3}} drop",
        "chain tap100i0-OUT",
    ),
    "another verdict in a rule's own map": (
        "replace rule bridge pvefw tap101i0-OUT handle {map} tcp dport vmap {{1 : accept, 2 : accept}}",
        "chain tap101i0-OUT",
    ),
    "policy": ("chain bridge pvefw prerouting {{ policy drop; }}", "chain prerouting"),
    "element of a map": ("delete element bridge pvefw nics {{tap100i0}}", "map nics"),
    "verdict of an element": (
        "delete element bridge pvefw nics {{tap100i0}}; add element bridge pvefw nics {{tap100i0 : goto tap101i0-OUT}}",
        "map nics",
    ),
    "element of a set": ("add element bridge pvefw friends {{192.0.2.1}}", "set friends"),
}


@pytest.mark.parametrize("what", BY_HAND)
def test_each_change_by_hand_is_seen(kernel: Nftables, what: str) -> None:
    target = apply(kernel, nft((100, 101)))
    feed("add rule bridge pvefw tap100i0-OUT tcp dport {1, 2} drop")
    feed("add rule bridge pvefw tap101i0-OUT tcp dport vmap {1 : accept, 2 : drop}")
    memory = apply_nft.memory_of(target)
    last, own_map = (nf_tables.rules("bridge", "pvefw", chain)[-1].handle for chain in ("tap100i0-OUT", "tap101i0-OUT"))
    commands, thing = BY_HAND[what]
    feed(commands.format(last=last, map=own_map))
    assert apply_nft.drift(read_kernel(), memory).names == [f"bridge {thing}"]


def noted_comments() -> list[str]:
    return sorted(rule.comment for rule in nf_tables.rules("bridge", "pvefw", "digests"))


NO_NOTES = {
    "without a comment": "counter",
    "of one word": 'counter comment "words"',
    "of another kind": 'counter comment "rule x y"',
    "of an object twice": 'counter comment "chain tap100i0-OUT 1.2"',
    "without digests": 'counter comment "chain tap100i0-OUT"',
}


@pytest.mark.parametrize("what", NO_NOTES)
def test_rule_among_the_notes_that_is_none_is_mended(kernel: Nftables, what: str) -> None:
    target = apply(kernel, nft())
    memory, before = apply_nft.memory_of(target), noted_comments()
    feed(f"add rule bridge pvefw digests {NO_NOTES[what]}")
    apply_nft.execute(apply_nft.plan(read_kernel(), target, lambda: target), kernel)
    assert noted_comments() == before
    assert apply_nft.drift(read_kernel(), memory).names == []
    assert apply_nft.plan(read_kernel(), target, lambda: target).commands == ()


def test_object_remade_unchanged_is_no_change(kernel: Nftables) -> None:
    target = apply(kernel, nft((100, 101), ("10.0.0.0/24", "10.7.0.0/16")))
    own_set = "add rule bridge pvefw tap100i0-OUT tcp dport {1, 2} counter drop"
    feed(own_set)
    memory = apply_nft.memory_of(target)
    handle = nf_tables.rules("bridge", "pvefw", "tap100i0-OUT")[-1].handle
    feed(f"add rule bridge pvefw tap101i0-OUT tcp dport {{5, 6}} drop; {own_set}")
    feed(f"delete rule bridge pvefw tap100i0-OUT handle {handle}; add element inet pvefw flooders {{192.0.2.1}}")
    feed("delete element bridge pvefw friends {10.7.0.0/16}; add element bridge pvefw friends {10.7.0.0/16}")
    assert apply_nft.drift(read_kernel(), memory).names == ["bridge chain tap101i0-OUT"]


def test_counters_are_no_change(kernel: Nftables) -> None:
    target = apply(kernel, nft())
    feed("add rule inet pvefw input counter")
    memory = apply_nft.memory_of(target)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"counted", ("127.0.0.1", 9))
    assert "counter packets 0 bytes 0" not in listed().partition("chain input")[2].partition("}")[0]
    assert apply_nft.drift(read_kernel(), memory).names == []


def feed(commands: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=commands, text=True, check=True)


def test_memory_of_a_part_is_that_of_the_whole(kernel: Nftables) -> None:
    target = apply(kernel, nft((100, 101)))
    memory = apply_nft.memory_of(target)
    target = apply(kernel, nft((100, 102), ("10.7.0.0/16",)), target)
    assert apply_nft.memory_of(target, memory) == apply_nft.memory_of(target)


def test_generation_grows_with_each_change(kernel: Nftables) -> None:
    before = generation()
    assert before is not None
    assert generation() == before
    subprocess.run(["nft", "add", "table", "inet", "mine"], check=True)
    assert generation() == before + 1


class _Losing(Nftables):
    """Loads all rules but one."""

    def run(self, commands: Iterable[Command]) -> list[Command]:
        return super().run([c for c in commands if c.get("add", {}).get("rule", {}).get("comment") != "100.fw:1"])


def test_chain_emptied_behind_our_back_is_noticed_on_apply(kernel: Nftables) -> None:
    with pytest.raises(apply_nft.NotAsLoadedError, match="tap100i0-OUT has 2 rules, not 3"):
        apply(_Losing(), nft())


def test_no_privileges(kernel: Nftables, as_nobody: Callable[[Callable[[], object]], str]) -> None:
    assert "not permitted" in as_nobody(lambda: Nftables().run([{"list": {"tables": None}}, *nft()["nftables"]]))
