"""Plans for iptables, ipset and ebtables, and carrying them out with the real tools in a namespace."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.backends.signature import signature
from pvefw_nft.errors import HostError, InternalError
from pvefw_nft.host import tools
from pvefw_nft.host.apply import apply_iptables, iptables_plan, xtables
from pvefw_nft.host.apply.xtables import State, Table, parse_ebtables, parse_sets, parse_table, read_state, wanted
from pvefw_nft.host.tools import use_runner

from . import runners
from .rulesets import iptables
from .runners import Editing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .conftest import Namespace

EMPTY = State()


def shell(script: str) -> str:
    return subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=True).stdout


def saved() -> list[str]:
    text = shell("iptables-save; ip6tables-save; ipset save; ebtables-save")
    # the seed of a set's hash is random
    return [re.sub(r" initval \S+", "", line) for line in text.splitlines() if not line.startswith("#")]


def ours(lines: list[str]) -> list[str]:
    return [line for line in lines if "PVEFW" in line or "tap100i0" in line]


def foreign(lines: list[str]) -> list[str]:
    return [line for line in lines if line not in ours(lines)]


def bring(target: State, memory: Any = None, **options: bool) -> None:  # noqa: ANN401
    apply_iptables.apply(apply_iptables.plan(read_state(), target, memory or {}, **options))  # type: ignore[arg-type]  # flags


def apply(artefact: dict[str, Any], **options: bool) -> None:
    bring(wanted(artefact), **options)


def changed(artefact: dict[str, Any]) -> list[str]:
    target = wanted(artefact)
    current = read_state()
    memory = apply_iptables.memory_of(current, apply_iptables.plan(current, target))
    return [str(change) for change in apply_iptables.plan(current, target, memory).changes]


USERS = """
iptables -N MINE; iptables -A MINE -s 192.0.2.1 -j DROP; iptables -A INPUT -j MINE
iptables -N GROUP-office-IN; iptables -A GROUP-office-IN -j RETURN
ip6tables -A FORWARD -p tcp --dport 25 -j REJECT; iptables -t raw -A PREROUTING -s 192.0.2.9 -j DROP
iptables -t nat -A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE
ipset create mine hash:ip; ipset add mine 192.0.2.1
ebtables -N mine; ebtables -A mine -p ARP -j DROP; ebtables -A FORWARD -j mine
"""


# --- plans --------------------------------------------------------------------------------------------------


def test_start_on_an_empty_host_feeds_the_output_of_compile() -> None:
    text = str(apply_iptables.plan(EMPTY, wanted(iptables())))
    parts = [line for line in text.splitlines() if line.startswith("###")]
    assert parts == [
        "### ipset restore",
        "### iptables-restore -T filter -n",
        "### iptables-restore -T raw -n",
        "### ip6tables-restore -T filter -n",
        "### ebtables-restore",
    ]
    sign = signature(["-A PVEFW-INPUT -j PVEFW-HOST-IN"])
    expected = f'-F PVEFW-INPUT\n-A PVEFW-INPUT -j PVEFW-HOST-IN\n-A PVEFW-INPUT -m comment --comment "PVESIG:{sign}"\n'
    assert expected in text
    assert text.endswith("-A tap100i0-OUT -j ACCEPT\n-A FORWARD -j PVEFW-FORWARD\n")


def test_only_changed_chains_are_replaced() -> None:
    target = wanted(iptables())
    other = iptables()
    other["iptables"]["filter"]["tap100i0-IN"] = ["-A tap100i0-IN -j ACCEPT"]
    plan = apply_iptables.plan(target, wanted(other))
    sign = signature(["-A tap100i0-IN -j ACCEPT"])
    assert plan.parts[0].text == (
        "*filter\n-F tap100i0-IN\n-A tap100i0-IN -j ACCEPT\n"
        f'-A tap100i0-IN -m comment --comment "PVESIG:{sign}"\nCOMMIT\n'
    )
    assert len(plan.parts) == 1


def test_update_empties_the_chains_that_the_kernels_chains_jump_to() -> None:
    other = iptables()
    other["iptables"]["raw"] = {}
    del other["iptables"]["filter"]["tap100i0-IN"]
    (filter_part, raw_part) = apply_iptables.plan(wanted(iptables()), wanted(other)).parts
    assert filter_part.text == "*filter\n-F tap100i0-IN\n-X tap100i0-IN\nCOMMIT\n"
    assert raw_part.text == "*raw\n-F PVEFW-PREROUTING\nCOMMIT\n"


def test_sets_are_filled_beside_and_swapped_before_the_rules() -> None:
    other = iptables()
    other["ipset"]["PVEFW-0-management-v4"][1] = "add PVEFW-0-management-v4 10.1.0.0/24"
    other["iptables"]["filter"]["tap100i0-IN"] = []
    del other["ipset"]["PVEFW-0-management-v6"]
    first, rules, last = apply_iptables.plan(wanted(iptables()), wanted(other)).parts
    assert first.text.splitlines() == [
        "create PVEFW-0-management-v4_swap hash:net family inet hashsize 64 maxelem 64",
        "add PVEFW-0-management-v4_swap 10.1.0.0/24",
        "add PVEFW-0-management-v4_swap 10.0.0.7 nomatch",
        "swap PVEFW-0-management-v4_swap PVEFW-0-management-v4",
        "destroy PVEFW-0-management-v4_swap",
    ]
    assert rules.title.startswith("iptables-restore")
    assert last.text == "destroy PVEFW-0-management-v6\n"


def test_set_left_by_a_killed_run_is_destroyed_first() -> None:
    target = wanted(iptables())
    left = xtables.AddressSet("hash:net family inet", ())
    current = State(target.tables, target.ebtables, {**target.sets, "PVEFW-0-management-v4_swap": left})
    (part,) = apply_iptables.plan(current, target).parts
    assert part.text == "destroy PVEFW-0-management-v4_swap\n"


def test_hash_size_of_a_set_is_the_kernels_business() -> None:
    one = xtables.AddressSet("hash:net family inet hashsize 64 maxelem 64 bucketsize 12", ("10.0.0.0/8",))
    other = xtables.AddressSet("hash:net family inet hashsize 128 maxelem 64 initval 0x1", ("10.0.0.0/8",))
    assert one.same_as(other)
    assert not one.same_as(xtables.AddressSet("hash:net family inet maxelem 65536", ("10.0.0.0/8",)))
    assert not one.same_as(xtables.AddressSet("hash:net family inet maxelem 64", ("10.0.0.0/9",)))


def test_signature_is_the_references() -> None:
    # chain PVEFW-DropBroadcast of the reference ruleset
    rules = [
        f"-A PVEFW-DropBroadcast -m addrtype --dst-type {k} -j DROP" for k in ("BROADCAST", "MULTICAST", "ANYCAST")
    ]
    rules.append("-A PVEFW-DropBroadcast -d 224.0.0.0/4 -j DROP")
    assert signature(rules) == "NyjHNAtFbkH7WGLamPpdVnxHy4w"


@pytest.mark.parametrize(
    "line",
    [
        "-A tap100i0-IN -j ACCEPT\n-F INPUT",
        "-A OTHER -j ACCEPT",
        "COMMIT",
        7,
    ],
)
def test_lines_that_are_not_one_rule_of_their_chain_are_refused(line: Any) -> None:  # noqa: ANN401
    artefact = iptables()
    artefact["iptables"]["filter"]["tap100i0-IN"] = [line]
    with pytest.raises(InternalError):
        wanted(artefact)


@pytest.mark.parametrize("name", ["a b", "", "x" * 40, "a\nb"])
def test_names_that_would_break_a_line_are_refused(name: str) -> None:
    artefact = iptables()
    artefact["iptables"]["filter"][name] = []
    with pytest.raises(InternalError):
        wanted(artefact)


def test_foreign_chain_with_a_wanted_name_is_refused() -> None:
    current = State(tables={("iptables", "filter"): Table(foreign=frozenset({"tap100i0-IN"}))})
    with pytest.raises(HostError, match="a chain tap100i0-IN is there that pvefw did not make"):
        apply_iptables.plan(current, wanted(iptables()))


# --- reading ------------------------------------------------------------------------------------------------


def test_listing_is_split_into_own_and_foreign_rules() -> None:
    lines = [
        ":INPUT ACCEPT [0:0]",
        ":PVEFW-INPUT - [0:0]",
        ":GROUP-a-IN - [0:0]",
        ":GROUP-b-IN - [0:0]",
        "-A INPUT -j PVEFW-INPUT",
        "-A INPUT -s 192.0.2.1/32 -j PVEFW-INPUT",
        "-A GROUP-a-IN -j RETURN",
        '-A GROUP-a-IN -m comment --comment "PVESIG:abc+/1"',
        "-A GROUP-b-IN -j RETURN",
    ]
    table = parse_table(lines, {"INPUT": "PVEFW-INPUT"})
    assert set(table.chains) == {"PVEFW-INPUT", "GROUP-a-IN"}
    assert table.chains["GROUP-a-IN"].signature == "abc+/1"
    assert table.chains["GROUP-a-IN"].rules == ("-A GROUP-a-IN -j RETURN",)
    assert table.foreign == {"INPUT", "GROUP-b-IN"}
    assert table.hooked == {"INPUT"}
    assert table.referenced == {"PVEFW-INPUT"}


def test_comment_of_a_user_that_looks_like_a_signature_is_a_rule() -> None:
    lines = [":MINE - [0:0]", '-A MINE -m comment --comment "PVESIG:abc" -j DROP']
    assert parse_table(lines, {}).chains == {}


def test_ebtables_chains_are_known_by_name() -> None:
    text = "*filter\n:FORWARD ACCEPT\n:mine ACCEPT\n:tap100i0-OUT-ARP ACCEPT\n-A tap100i0-OUT-ARP -j DROP \n"
    table = parse_ebtables(text)
    assert table.chains["tap100i0-OUT-ARP"].rules == ("-A tap100i0-OUT-ARP -j DROP",)
    assert table.foreign == {"FORWARD", "mine"}


def test_foreign_sets_are_not_read() -> None:
    assert parse_sets("create mine hash:ip family inet\nadd mine 192.0.2.1\n") == {}


# --- the real tools -----------------------------------------------------------------------------------------


@pytest.fixture
def real(host: Namespace) -> Namespace:
    for tool in ("iptables", "ip6tables", "ipset", "ebtables"):
        try:
            tools.find(tool)
            shell(f"{tool} -L" if tool != "ipset" else "ipset list")
        except (HostError, subprocess.CalledProcessError) as error:
            pytest.skip(f"{tool} is not usable here: {error}")
    return host


def test_apply_twice_and_remove(real: Namespace) -> None:
    shell(USERS)
    before = saved()
    apply(iptables())
    assert len(ours(saved())) > 20
    assert changed(iptables()) == []
    assert foreign(saved()) == before
    bring(EMPTY, removing=True)
    assert saved() == before


def test_twenty_updates_leave_the_users_rules_alone(real: Namespace) -> None:
    shell(USERS)
    before = saved()
    for number in range(20):
        artefact = iptables()
        artefact["iptables"]["filter"]["tap100i0-IN"] = [f"-A tap100i0-IN -p tcp --dport {number + 1} -j ACCEPT"]
        artefact["ipset"]["PVEFW-0-management-v4"][1] = f"add PVEFW-0-management-v4 10.{number}.0.0/24"
        if number % 2:
            artefact["ebtables"]["tap100i0-OUT"] = ["-A tap100i0-OUT -j ACCEPT"]
        apply(artefact)
        assert foreign(saved()) == before
    bring(EMPTY, removing=True)
    assert saved() == before


def test_rules_changed_by_hand_are_seen_and_mended(real: Namespace) -> None:
    target = wanted(iptables())
    bring(target)
    memory = apply_iptables.memory_of(read_state(), apply_iptables.plan(read_state(), target))
    # the number of rules stays: neither signature nor count tell
    shell("iptables -R tap100i0-IN 1 -p tcp --dport 81 -j ACCEPT; ebtables -D tap100i0-OUT 1; ebtables -I tap100i0-OUT")
    drifted = apply_iptables.drifted(read_state(), memory)
    assert drifted == ["iptables filter tap100i0-IN", "ebtables filter tap100i0-OUT"]
    bring(target, memory)
    assert apply_iptables.drifted(read_state(), memory) == []


def test_lost_jump_is_put_back(real: Namespace) -> None:
    apply(iptables())
    shell("iptables -D INPUT -j PVEFW-INPUT")
    apply(iptables())
    assert "-A INPUT -j PVEFW-INPUT" in saved()


def test_chain_that_a_users_rule_jumps_to_stays_empty(real: Namespace) -> None:
    apply(iptables())
    shell("iptables -A FORWARD -s 192.0.2.1 -j tap100i0-IN")
    bring(EMPTY, removing=True)
    assert [line for line in ours(saved()) if "PVESIG" not in line] == [
        ":tap100i0-IN - [0:0]",
        "-A FORWARD -s 192.0.2.1/32 -j tap100i0-IN",
    ]
    apply(iptables())
    assert "-A tap100i0-IN -j DROP" in saved()


def test_failure_half_way_restores_the_rules_before(real: Namespace) -> None:
    shell(USERS)
    apply(iptables())
    before = sorted(saved())
    broken = iptables()
    broken["ipset"]["PVEFW-0-management-v4"][1] = "add PVEFW-0-management-v4 10.1.0.0/24"
    broken["ipset"]["PVEFW-1-new-v4"] = ["create PVEFW-1-new-v4 hash:net family inet"]
    broken["iptables"]["filter"]["tap101i0-IN"] = ["-A tap101i0-IN -j DROP"]
    broken["ip6tables"]["filter"]["PVEFW-INPUT"] = ["-A PVEFW-INPUT -p nonsense -j DROP"]
    with pytest.raises(HostError) as caught:
        apply(broken)
    assert "of its input: -A PVEFW-INPUT -p nonsense -j DROP" in caught.value.message
    assert "the ruleset that ran before is in place" in caught.value.message
    assert sorted(saved()) == before


def test_rules_read_back_must_equal_the_loaded_ones(real: Namespace) -> None:
    apply(iptables())
    before = sorted(saved())

    def losing(_: Sequence[str], text: str | None) -> str | None:
        return None if text is None else text.replace("-A PVEFW-new -j DROP\n", "")

    artefact = iptables()
    artefact["iptables"]["filter"]["PVEFW-new"] = ["-A PVEFW-new -j DROP"]
    with use_runner(Editing(losing)), pytest.raises(HostError, match="PVEFW-new has 0 rules, not 1"):
        apply(artefact)
    assert sorted(saved()) == before


class _Killed(BaseException):
    """In place of SIGKILL: nothing of the program runs after it."""


def test_killed_at_every_step_then_started(real: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = iptables(), iptables()
    new["ipset"]["PVEFW-0-management-v4"][1] = "add PVEFW-0-management-v4 10.1.0.0/24"
    del new["ipset"]["PVEFW-0-management-v6"]
    new["iptables"]["filter"]["tap101i0-IN"] = ["-A tap101i0-IN -j DROP"]
    new["iptables"]["raw"] = {}
    new["ip6tables"]["filter"]["PVEFW-INPUT"] = []
    new["ebtables"]["tap100i0-OUT"] = ["-A tap100i0-OUT -j ACCEPT"]
    apply(old)
    apply(new)
    undisturbed = sorted(saved())
    steps = len(apply_iptables.plan(wanted(old), wanted(new)).parts)
    assert steps == 6
    for step in range(steps):
        apply(old, reload_all=True)
        count = iter(range(steps))

        def dying(_: iptables_plan.Part, count: Any = count, step: int = step) -> None:  # noqa: ANN401
            if next(count) == step:
                raise _Killed

        planned = apply_iptables.plan(read_state(), wanted(new))
        with pytest.raises(_Killed):
            apply_iptables.execute(planned, dying)
        # wherever it died, the chain that filters the guest is there and the host's chains are entered
        assert "-A tap100i0-IN -j DROP" in saved()
        assert "-A INPUT -j PVEFW-INPUT" in saved()
        apply(new)
        assert sorted(saved()) == undisturbed


def test_missing_tool(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with (
        use_runner(runners.NONE),
        pytest.raises(HostError, match="the program iptables-save is not installed") as caught,
    ):
        apply(iptables())
    assert caught.value.hint == "apt-get install iptables"


def test_no_privileges(real: Namespace, as_nobody: Callable[[Callable[[], object]], str]) -> None:
    message = as_nobody(lambda: apply(iptables()))
    assert "ermission denied" in message
    assert ours(saved()) == []
