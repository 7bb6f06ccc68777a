"""Rules that others change while the service runs come back by themselves: within a second where the kernel tells of
it, within five seconds else; and a program that changes them again and again is named, and not fought without end.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("pyroute2")
pytest.importorskip("nftables")

from pvefw_nft.host.watching import watch
from pvefw_nft.host.watching.rule_events import RuleEvents, Transaction, name_of_maker
from pvefw_nft.host.watching.rule_guard import RuleGuard

from .commands import service
from .conftest import need
from .fuse import own_mounts
from .listing import everything
from .network import configure, takes_compiled_nft
from .test_other_hands import legacy_tools, shell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .commands import Command
    from .conftest import Namespace

SLOW = float(os.environ.get("PVEFW_TEST_SLOW", "10"))
"""Seconds that it may take longer on a machine that runs other things; in an emulated one a look takes seconds, and
the next one waits for four times as long."""
MAX_SHARE = 0.3
"""Of a processor's time, so much may the service take while another program keeps changing its rules."""
CHANGES = {
    "iptables": [
        ("iptables -F; ip6tables -F; ebtables -F", 1.0),
        ("nft flush ruleset", 1.0),
        ("ipset flush", 5.0),
    ],
    "legacy": [("iptables -F", 5.0), ("ipset flush", 5.0)],
    "ebtables-legacy": [("ebtables -F", 5.0), ("ebtables -D FORWARD -j PVEFW-FORWARD", 5.0)],
    "nft": [("nft flush ruleset", 1.0), ("nft delete table inet pvefw", 1.0)],
}


@pytest.fixture(params=CHANGES)
def running(request: pytest.FixtureRequest, host: Namespace, tmp_path: Path) -> Iterator[tuple[str, Command]]:
    kind: str = request.param
    need("iptables -L; ip6tables -L; ipset list; ebtables -L; nft add table inet probe; nft delete table inet probe")
    if kind == "nft" and not takes_compiled_nft():
        pytest.skip("this kernel does not take compiled nft rulesets")
    configure(tmp_path)
    (tmp_path / "said").mkdir()
    options = ["--root", str(tmp_path), "--node", "n", "--local-network", "192.0.2.0/24"]
    with contextlib.ExitStack() as stack:
        if kind == "legacy":
            stack.enter_context(legacy_tools(tmp_path / "tools"))
        if kind == "ebtables-legacy":
            stack.enter_context(legacy_ebtables(tmp_path / "alternatives"))
        backend = "nft" if kind == "nft" else "iptables"
        command = stack.enter_context(service(tmp_path / "said", *options, "--backend", backend))
        command.waits_for(lambda: "started:" in command.said(), 120)
        yield kind, command


@contextlib.contextmanager
def legacy_ebtables(folder: Path) -> Iterator[None]:
    """Have this process see ebtables' legacy variant as the one that is chosen (update-alternatives(1)).

    Another PATH will not do: ``ebtables-legacy-save`` runs ``/usr/sbin/ebtables``.
    """
    need("ebtables-legacy -L")
    alternatives = Path("/etc/alternatives")
    folder.mkdir()
    for link in alternatives.iterdir():
        if link.is_symlink():
            (folder / link.name).symlink_to(link.readlink())
    for tool in ("ebtables", "ebtables-save", "ebtables-restore"):
        legacy = Path("/usr/sbin") / tool.replace("ebtables", "ebtables-legacy", 1)
        (folder / tool).unlink()
        (folder / tool).symlink_to(legacy)
    with own_mounts():
        shell(f"mount --bind {folder} {alternatives}")
        yield


def without_records() -> str:
    return json.dumps({key: value for key, value in everything().items() if "ruleset" not in key})


def listed_forward() -> str:
    return subprocess.run(["ebtables", "-L", "FORWARD"], capture_output=True, text=True, check=True).stdout


def has_mended(command: Command, times: int) -> bool:
    return command.said().count("rules changed") >= times


def test_changed_rules_come_back_by_themselves(running: tuple[str, Command]) -> None:
    kind, command = running
    wanted = without_records()
    for number, (script, seconds) in enumerate(CHANGES[kind]):
        shell(script)
        begun = time.monotonic()
        if kind == "ebtables-legacy":  # one chain, whose listing takes no time; the table is replaced as a whole
            command.waits_for(lambda: "-j PVEFW-FORWARD" in listed_forward(), seconds + SLOW)
            took = time.monotonic() - begun
        command.waits_for(lambda: without_records() == wanted, seconds + SLOW)
        if kind != "ebtables-legacy":
            took = time.monotonic() - begun
        print(f"{kind}: {script}: {took:.2f} s")
        assert took < seconds + SLOW
        # until then it reads back what it has loaded, and another change would belong to this one
        command.waits_for(partial(has_mended, command, number + 1), 60 + 3 * SLOW)


def look_at_nothing_else() -> None:
    """Have the service look at rules every minute only, unless the kernel announces a change."""
    setattr(watch, "LOOK_AT_RULES", 600.0)  # noqa: B010 - of this process alone


@pytest.mark.parametrize("backend", ["iptables", "nft"])
def test_announcement_of_the_kernel_wakes_the_service(host: Namespace, tmp_path: Path, backend: str) -> None:
    need("iptables -L; ip6tables -L; ipset list; ebtables -L; nft add table inet probe; nft delete table inet probe")
    if backend == "nft" and not takes_compiled_nft():
        pytest.skip("this kernel does not take compiled nft rulesets")
    configure(tmp_path)
    (tmp_path / "said").mkdir()
    options = ["--root", str(tmp_path), "--node", "n", "--local-network", "192.0.2.0/24", "--backend", backend]
    with service(tmp_path / "said", *options, "--poll", "600", first=look_at_nothing_else) as command:
        command.waits_for(lambda: "started:" in command.said(), 120)
        wanted = without_records()
        for script, _ in CHANGES[backend][:2]:
            shell(script)
            command.waits_for(lambda: without_records() == wanted, 20)  # nothing else looks within a minute


def processor_time(process: int) -> float:
    """Return the seconds of the processors that a process and its children have taken (proc_pid_stat(5))."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ticks = 0
    for number in (process, *children):
        with contextlib.suppress(OSError):  # a tool that has ended: it is counted as one that was waited for
            ticks += sum(map(int, Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


FIGHTS = {"iptables": "iptables -F PVEFW-FORWARD", "nft": "nft delete table inet pvefw"}


@pytest.mark.parametrize("backend", FIGHTS)
def test_program_that_fights_is_named_and_not_answered_each_time(host: Namespace, tmp_path: Path, backend: str) -> None:
    need("iptables -L; ip6tables -L; ipset list; ebtables -L; nft add table inet probe; nft delete table inet probe")
    if backend == "nft" and not takes_compiled_nft():
        pytest.skip("this kernel does not take compiled nft rulesets")
    configure(tmp_path)
    (tmp_path / "said").mkdir()
    options = ["--root", str(tmp_path), "--node", "n", "--local-network", "192.0.2.0/24", "--backend", backend]
    with service(tmp_path / "said", *options) as command:
        command.waits_for(lambda: "started:" in command.said(), 120)
        wanted = without_records()
        begun, spent = time.monotonic(), processor_time(command.pid)
        while time.monotonic() < begun + 12:
            # the table of nft may be gone already
            subprocess.run(FIGHTS[backend].split(), check=backend != "nft", capture_output=True)
            time.sleep(0.2)  # as a loop of another program
        share = (processor_time(command.pid) - spent) / (time.monotonic() - begun)
        print(f"in a fight with {backend} the service takes {share:.0%} of a processor")
        assert share < MAX_SHARE
        assert f"`{FIGHTS[backend].split()[0]}` (process" in command.said()
        assert "keeps changing the rules of pvefw" in command.said()
        assert command.said().count("rules changed") <= 6
        command.waits_for(lambda: without_records() == wanted, 40)


def test_kernel_names_who_changes_rules(host: Namespace) -> None:
    need("nft add table inet probe; nft delete table inet probe")
    events = RuleEvents()
    try:
        shell("nft add table inet mine; nft list ruleset")
        (found,) = events.drain()
        assert found.name == "nft"
        assert found.process > 0
    finally:
        events.close()


def test_repairs_come_ever_more_seldom() -> None:
    now = 1000.0
    guard = RuleGuard(lambda: now)
    waits = []
    for _ in range(10):
        waits.append(guard.wait(()))
        now += waits[-1]
        guard.mended()
    assert waits == [0, 0, 0, 2, 4, 8, 16, 32, 60, 60]
    now += 200
    assert guard.wait(()) == 0


def test_opponent_is_the_program_whose_change_was_repaired_last() -> None:
    guard = RuleGuard(lambda: 1000.0)
    announced = Transaction(0, "nft")
    guard.wait([announced])
    assert guard.maker == guard.opponent == name_of_maker(announced)
    guard.mended()
    assert guard.maker == ""
    assert guard.opponent == name_of_maker(announced)  # until another change is repaired
    guard.mended()
    assert guard.opponent == "another program"  # the kernel announced nothing since


def test_looks_take_a_share_of_the_time() -> None:
    now = 0.0
    guard = RuleGuard(lambda: now)
    with guard.looking():
        now += 0.5
    assert guard.wait(()) == 2.0
