"""Nothing is read or written where it is certain that nothing changed; whatever changed is seen."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.app import desired as desired_ruleset
from pvefw_nft.cli import main
from pvefw_nft.errors import HostError
from pvefw_nft.host import sysctl, tools
from pvefw_nft.host.apply import apply_iptables, apply_nft, iptables_plan
from pvefw_nft.host.netfilter import nf_tables, stamp
from pvefw_nft.host.records import bases, record
from pvefw_nft.host.tools import use_runner
from tests.support import VM

from .here import control, engine, firewall
from .rulesets import iptables, nft, pieces
from .runners import Editing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pvefw_nft.host.records.record import Desired
    from tests.support import MakeRoot

    from .conftest import Namespace

pytest.importorskip("nftables")


def ruleset(backend: str, port: int = 80) -> Desired:
    if backend == "nft":
        return record.desired("nft", pieces(nft(ports=(port,))), enabled=True)
    artefact = iptables()
    artefact["iptables"]["filter"]["tap100i0-IN"] = [f"-A tap100i0-IN -p tcp --dport {port} -j ACCEPT"]
    return record.desired("iptables", pieces(artefact), enabled=True)


def shell(script: str) -> str:
    return subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def real(host: Namespace) -> Namespace:
    """A host on which both backends' tools work, and the kernel can tell whether rules changed."""
    try:
        shell("iptables -A INPUT -s 192.0.2.1 -j DROP; ebtables -L; ipset list; nft add table bridge probe")
        if sysctl.read("net/bridge/bridge-nf-call-iptables") is None:
            tools.run(["modprobe", "br_netfilter"])
    except (HostError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the tools are not usable here: {error}")
    if apply_iptables.take_stamp() is None:
        pytest.skip("this kernel does not tell namespaces apart, or iptables is the legacy variant")
    return host


@pytest.fixture
def commands() -> Iterator[list[str]]:
    """The commands that are run, as they come."""
    found: list[str] = []

    def note(command: Sequence[str], text: str | None) -> str | None:
        found.append(" ".join(command))
        return text

    with use_runner(Editing(note)):
        yield found


def is_in_force(backend: str) -> bool:
    return engine(backend).unchanged(record.read_memory())


BACKENDS = pytest.mark.parametrize("backend", ["iptables", "nft"])


@BACKENDS
def test_nothing_changed(real: Namespace, commands: list[str], backend: str) -> None:
    desired = ruleset(backend)
    control.apply(desired)
    number = nf_tables.generation()
    commands.clear()
    assert control.apply(desired)[0].changes == ()
    assert nf_tables.generation() == number
    if backend == "iptables":
        assert set(commands) == {"ipset save"}
    found = firewall.status(desired)
    assert (found.changes, found.drifted, found.backends) == ((), (), (backend,))


@BACKENDS
def test_ruleset_in_force_whose_base_is_damaged_is_recorded_again(
    real: Namespace, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr(bases, "MIN_BASE", 1)
    desired = ruleset(backend)
    control.apply(desired)
    for name in bases.names():
        bases.path_of(name).unlink()
    monkeypatch.setattr(record, "_last", None)  # as in another process
    assert record.load_if_sound(record.running_path()) is None
    control.apply(desired)
    monkeypatch.setattr(record, "_last", None)
    assert record.load(record.running_path()) == record.load(record.confirmed_path()) == desired
    assert is_in_force(backend)


BY_HAND = [
    ("iptables", "iptables -A PVEFW-HOST-IN -j ACCEPT"),
    ("iptables", "iptables -R tap100i0-IN 1 -p tcp --dport 81 -j ACCEPT"),
    ("iptables", "ip6tables -F PVEFW-INPUT"),
    ("iptables", "iptables -D INPUT -j PVEFW-INPUT"),
    ("iptables", "iptables -t raw -F PVEFW-PREROUTING"),
    ("iptables", "ip6tables -F INPUT"),
    ("iptables", "ebtables -F FORWARD"),
    ("iptables", "ebtables -F tap100i0-OUT"),
    ("iptables", "ipset add PVEFW-0-management-v4 192.0.2.0/24"),
    ("iptables", "ipset flush PVEFW-0-management-v4"),
    ("iptables", "ipset create other hash:net family inet maxelem 64; ipset swap other PVEFW-0-management-v4"),
    ("nft", "nft add rule bridge pvefw tap100i0-OUT accept"),
    ("nft", "nft flush chain bridge pvefw tap100i0-OUT"),
    ("nft", "nft add element bridge pvefw friends '{ 192.0.2.0/24 }'"),
    ("nft", "nft delete table inet pvefw"),
]


@pytest.mark.parametrize(("backend", "script"), BY_HAND)
def test_changed_by_hand(real: Namespace, backend: str, script: str) -> None:
    desired = ruleset(backend)
    control.apply(desired)
    before = shell("iptables-save; ip6tables-save; ipset save; nft list ruleset | grep -v handle")
    assert is_in_force(backend)
    shell(script)
    assert not is_in_force(backend)
    assert firewall.status(desired).changes
    assert control.apply(desired)[0].changes
    assert firewall.status(desired).changes == ()
    assert is_in_force(backend)
    shell("ipset destroy other 2>/dev/null || true")
    assert comparable(shell("iptables-save; ip6tables-save; ipset save; nft list ruleset")) == comparable(before)


def comparable(text: str) -> list[str]:
    lines = (line.split(" initval")[0].partition(" [")[0] for line in text.splitlines())
    kept = (line.strip() for line in lines if not line.startswith("#") and "packets" not in line)
    return sorted(line for line in kept if "pvefw-digest" not in line and line)


@BACKENDS
def test_foreign_rules_changed(real: Namespace, commands: list[str], backend: str) -> None:
    desired = ruleset(backend)
    control.apply(desired)
    shell("iptables -A INPUT -s 192.0.2.2 -j DROP; nft add table inet mine")
    assert not is_in_force(backend)
    assert firewall.status(desired).drifted == ()
    commands.clear()
    assert control.apply(desired)[0].changes == ()
    assert not any("restore" in command for command in commands)
    assert is_in_force(backend)


def test_kernel_setting_changed_by_hand(real: Namespace) -> None:
    key = "net/bridge/bridge-nf-call-iptables"
    desired = ruleset("iptables")
    control.apply(desired)
    sysctl.write(key, "0")
    assert firewall.status(desired).drifted == (f"setting {key}",)
    outcome, _ = control.apply(desired)
    assert any(key in problem for problem in outcome.problems)
    assert sysctl.read(key) == "1"
    assert firewall.status(desired).drifted == ()


@BACKENDS
def test_started_never_noted(real: Namespace, backend: str) -> None:
    desired = ruleset(backend)
    control.apply(desired)
    record.memory_path().unlink()
    control.apply(desired)
    assert is_in_force(backend)


@BACKENDS
def test_note_of_another_ruleset_on_record(real: Namespace, backend: str) -> None:
    desired = ruleset(backend)
    control.apply(desired)
    record.prepare(record.running_path(), ruleset(backend, 81)).commit()  # and killed before it was applied
    assert record.read_memory() is None
    control.apply(desired)
    applied = record.load(record.running_path())
    assert applied is not None
    assert applied.identity == desired.identity


def test_changed_chain_is_read_back_alone(real: Namespace, commands: list[str]) -> None:
    control.apply(ruleset("iptables"))
    commands.clear()
    outcome, _ = control.apply(ruleset("iptables", 81))
    assert [str(change) for change in outcome.changes] == ["change iptables filter tap100i0-IN"]
    assert "iptables -w 10 -t filter -S tap100i0-IN" in commands
    assert not any("-save" in command for command in commands)
    assert is_in_force("iptables")
    memory = record.read_memory()
    assert memory is not None
    assert apply_iptables.drifted(apply_iptables.look(ebtables=True).state, memory.chains) == []


def test_another_program_changes_rules_while_a_chain_is_replaced(
    real: Namespace, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    control.apply(ruleset("iptables"))
    execute = apply_iptables.execute

    def disturbed(planned: iptables_plan.Plan) -> list[str]:
        left = execute(planned)
        shell("iptables -A PVEFW-HOST-IN -j ACCEPT")
        return left

    monkeypatch.setattr(apply_iptables, "execute", disturbed)
    commands.clear()
    with pytest.raises(HostError, match="PVEFW-HOST-IN has 5 rules, not 4"):
        control.apply(ruleset("iptables", 81))
    assert any("iptables-save" in command for command in commands)


def test_changed_chain_that_lost_a_rule(real: Namespace) -> None:
    control.apply(ruleset("iptables"))

    def losing(_: Sequence[str], text: str | None) -> str | None:
        return None if text is None else text.replace("-A tap100i0-IN -p tcp --dport 81 -j ACCEPT\n", "")

    with use_runner(Editing(losing)), pytest.raises(HostError, match="tap100i0-IN has 0 rules, not 1"):
        control.apply(ruleset("iptables", 81))
    assert "--dport 80 -j ACCEPT" in shell("iptables-save")


def test_stamp_of_another_namespace(real: Namespace, other: Namespace) -> None:
    here = stamp.take_stamp()
    with other.entered():
        there = stamp.take_stamp()
    assert here is not None
    assert there is not None
    assert here.namespace != there.namespace
    assert stamp.RulesetStamp.of_json(json.loads(json.dumps(here.as_json()))) == here


# --- others at work at the same time -------------------------------------------------------------------------


def once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, script: str, *, first: bool = True) -> None:  # noqa: ANN401
    """Run a script of another program before (or after) the next call of a function."""
    function = getattr(owner, name)

    def disturbed(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        monkeypatch.setattr(owner, name, function)
        if first:
            shell(script)
        result = function(*arguments, **options)
        if not first:
            shell(script)
        return result

    monkeypatch.setattr(owner, name, disturbed)


def is_mended(desired: Desired) -> bool:
    """Tell whether the next apply finds the mistake, and mends it."""
    return (
        bool(control.apply(desired)[0].changes)
        and firewall.status(desired).changes == ()
        and is_in_force(desired.backend)
    )


@pytest.mark.parametrize("script", ["nft flush ruleset", "nft delete table bridge pvefw"])
def test_tables_removed_while_a_plan_is_made(real: Namespace, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    desired = ruleset("nft")
    control.apply(desired)
    shell("nft add table inet mine")
    once(monkeypatch, apply_nft, "drift", script)
    control.apply(desired)
    assert firewall.status(desired).changes == ()
    assert is_in_force("nft") or is_mended(desired)


@pytest.mark.parametrize("script", ["nft flush ruleset", "nft delete table bridge pvefw"])
def test_tables_removed_before_a_plan_is_made(real: Namespace, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    desired = ruleset("nft")
    control.apply(desired)
    shell("nft add table inet mine")
    once(monkeypatch, apply_nft, "plan", script)
    control.apply(desired)
    assert not is_in_force("nft")
    assert is_mended(desired)


@pytest.mark.parametrize(
    ("script", "first"),
    [("nft add rule inet pvefw input accept", True), ("nft flush chain bridge pvefw tap100i0-OUT", False)],
    ids=["rule added before the transaction", "chain flushed before noting"],
)
def test_changed_around_a_transaction(
    real: Namespace, monkeypatch: pytest.MonkeyPatch, script: str, first: bool
) -> None:
    control.apply(ruleset("nft"))
    once(monkeypatch, apply_nft, "execute", script, first=first)
    desired = ruleset("nft", 81)
    control.apply(desired)
    assert not is_in_force("nft")
    assert is_mended(desired)


def test_rule_replaced_between_plan_and_restore(real: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    control.apply(ruleset("iptables"))
    once(monkeypatch, apply_iptables, "execute", "iptables -R PVEFW-HOST-IN 1 -s 192.0.2.9 -j ACCEPT")
    desired = ruleset("iptables", 81)
    control.apply(desired)
    assert firewall.status(desired).drifted == ("iptables filter PVEFW-HOST-IN",)
    assert is_mended(desired)


@pytest.mark.parametrize(
    ("backend", "script"),
    [
        ("nft", "nft flush chain bridge pvefw tap100i0-OUT"),
        ("iptables", "iptables -R PVEFW-HOST-IN 1 -s 192.0.2.9 -j ACCEPT"),
    ],
)
def test_changed_by_hand_and_no_record(real: Namespace, backend: str, script: str) -> None:
    desired = ruleset(backend)
    control.apply(desired)
    record.memory_path().unlink()
    shell(script)
    assert is_mended(desired)


@pytest.mark.parametrize("family", ["bridge", "inet"])
def test_dormant_table_is_remade(real: Namespace, family: str) -> None:
    desired = ruleset("nft")
    control.apply(desired)
    shell(f"nft 'add table {family} pvefw {{ flags dormant; }}'")
    assert firewall.status(desired).changes
    assert is_mended(desired)
    assert nf_tables.dormant() == set()


@pytest.mark.parametrize("family", ["ip", "ip6", "bridge"])
def test_dormant_table_of_iptables_is_refused(real: Namespace, family: str) -> None:
    desired = ruleset("iptables")
    control.apply(desired)
    shell(f"nft 'add table {family} filter {{ flags dormant; }}'")
    with pytest.raises(HostError, match=f"{family} filter has the flag `dormant`") as refused:
        control.apply(desired)
    assert refused.value.hint is not None
    shell(refused.value.hint.removeprefix("wake it: "))
    assert nf_tables.dormant() == set()
    control.apply(desired)
    assert is_in_force("iptables")


def test_error_of_netlink_is_no_absence(real: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    control.apply(ruleset("nft"))

    def failing(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("pvefw_nft.host.netfilter.nf_tables.socket.socket", failing)
    with pytest.raises(HostError, match="Too many open files"):
        engine("nft").present()


# --- running tools ------------------------------------------------------------------------------------------


def test_tools_run_side_by_side(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # a writer waits for a reader
    written = tools.run_all(
        [("sh", "-c", f"echo a > {tmp_path}/pipe; echo b"), ("cat", f"{tmp_path}/pipe")], timeout=60
    )
    assert written == ["b\n", "a\n"]
    assert tools.run(["cat"], "text\n") == "text\n"


def test_tool_that_does_not_end() -> None:
    with pytest.raises(HostError, match="sleep did not end within"):
        tools.run(["sleep", "60"], timeout=0.1)


def test_one_of_several_tools_fails() -> None:
    with pytest.raises(HostError, match="sh -c echo no >&2; exit 3 failed: no"):
        tools.run_all([("true",), ("sh", "-c", "echo no >&2; exit 3"), ("sleep", "0.1")])


# --- what nf_tables says ------------------------------------------------------------------------------------


def test_packets_refused_by_nft_rules(real: Namespace) -> None:
    shell(
        "ip link set lo up; nft add table inet t; nft 'add chain inet t c { type filter hook output priority 0; }';"
        "nft add chain inet t empty;"
        "nft add rule inet t c udp dport 1 counter drop; nft add rule inet t c udp dport 2 counter reject;"
        "nft add rule inet t c udp dport 3 counter accept; nft add rule inet t c udp dport 4 drop;"
        "nft add rule inet t c udp dport 5 counter goto empty comment '\"some words\"'"
    )
    for port in (1, 1, 2, 3, 4, 5):
        subprocess.run(["bash", "-c", f"echo > /dev/udp/127.0.0.1/{port}"], capture_output=True, check=False)
    assert nf_tables.refused("inet", "t") == {"c": 3}
    assert [rule.comment for rule in nf_tables.rules("inet", "t", "c")] == ["", "", "", "", "some words"]
    assert nf_tables.rules("inet", "t", "empty") == []
    assert nf_tables.rules("inet", "other") == []
    assert nf_tables.tables("t") == {"inet"}


# --- the commands -------------------------------------------------------------------------------------------


def pvefw(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_commands_compile_only_what_changed(
    real: Namespace, make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_root({"cluster": "[OPTIONS]\nenable: 1\n[RULES]\nFORWARD DROP\n", "100.conf": VM, "100.fw": ""})
    options = ["--root", str(root), "--node", "n1", "--local-network", "10.0.0.0/24", "--backend", "iptables"]
    assert pvefw("start", *options) == 0
    told = capsys.readouterr().err
    assert "FORWARD rules are not carried out" in told

    def compiling(*_: object) -> None:
        raise _Compiled

    monkeypatch.setattr(desired_ruleset, "compile_root", compiling)
    assert pvefw("update", *options) == 0
    again = capsys.readouterr()
    assert again.err == told  # mistakes in the configuration are reported each time
    assert again.out == "nothing changed\n"
    assert pvefw("status", *options) == 0
    (root / "etc/pve/firewall/100.fw").write_text("[OPTIONS]\nenable: 1\n")
    assert pvefw("update", *options) == 1
    assert "the compiler's process ended" in capsys.readouterr().err  # it was asked
    monkeypatch.undo()
    assert pvefw("update", *options) == 0
    assert "tap100i0-IN" in shell("iptables-save")


class _Compiled(BaseException):  # says that something was compiled
    pass


def test_unreadable_enable_does_not_switch_a_firewall_off(real: Namespace, make_root: MakeRoot) -> None:
    root = make_root({"cluster": "[OPTIONS]\nenable: ture\n", "100.conf": VM, "100.fw": "[OPTIONS]\nenable: yes\n"})
    options = ["--root", str(root), "--node", "n1", "--local-network", "10.0.0.0/24", "--backend", "iptables"]
    assert pvefw("start", *options) == 1
    assert "PVEFW" not in shell("iptables-save")
    assert pvefw("start", "--skip-invalid", *options) == 1
    assert "-A PVEFW-INPUT -j PVEFW-HOST-IN" in shell("iptables-save")
    assert "-A PVEFW-FWBR-IN -m physdev --physdev-out tap100i0 --physdev-is-bridged" in shell("iptables-save")
