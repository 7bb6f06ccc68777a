"""Other programs and people change our rules: each command and the service bring the wanted ruleset back, and stop
removes all of it but what others use.

One table of changes (:data:`HANDS`), each a shell script, and one expected end: the ruleset as an undisturbed start
leaves it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.host.tools import use_runner
from tests.drawn import drawn

from .runners import Editing, first_from

pytest.importorskip("pyroute2")
pytest.importorskip("nftables")

from pvefw_nft.errors import HostError
from pvefw_nft.host import lock
from pvefw_nft.host.records import record

from . import rulesets
from .conftest import need
from .here import control, engine, firewall
from .listing import everything
from .network import compiled, ruleset, start, takes_compiled_nft

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pvefw_nft.host.records.record import Desired

    from .conftest import Namespace

_SET = "PVEFW-0-friends-v4"
IPTABLES_HANDS = {
    "flush filter": "iptables -F; ip6tables -F",
    "flush and delete": "iptables -F; iptables -X; ip6tables -F; ip6tables -X",
    "delete unused chains": "iptables -X || true",
    "flush raw": "iptables -t raw -F; iptables -t raw -X",
    "flush, delete and destroy sets": "iptables -F; iptables -X; ip6tables -F; ip6tables -X; ipset destroy",
    "destroy sets after a flush": "iptables -F; ip6tables -F; ipset destroy",
    "flush sets": "ipset flush",
    "set entry added": "ipset add PVEFW-0-friends-v4 192.0.2.77",
    "set entry removed": "ipset del PVEFW-0-friends-v4 10.0.1.0/24",
    "left of a swap": "ipset create PVEFW-0-friends-v4_swap hash:net",
    **{
        f"set made again as {kind}": f"iptables -F; ip6tables -F; ipset destroy; ipset create {_SET} {kind}; {more}"
        for kind, more in {
            "hash:ip": f"ipset add {_SET} 192.0.2.1",
            "hash:net family inet6": f"ipset add {_SET} 2001:db8::/32",
            "hash:ip,port": f"ipset add {_SET} 192.0.2.1,tcp:80",
            "list:set": "true",
        }.items()
    },
    "ebtables flush": "ebtables -F",
    "ebtables flush and delete": "ebtables -F; ebtables -X",
    "ebtables jump removed": "ebtables -D FORWARD -j PVEFW-FORWARD",
    "ebtables jump twice": "ebtables -A FORWARD -j PVEFW-FORWARD; ebtables -I FORWARD -j PVEFW-FORWARD",
    "one chain flushed": "iptables -F tap100i0-IN",
    "rule deleted": "iptables -D PVEFW-FORWARD 1",
    "rule doubled": "iptables -A PVEFW-HOST-IN -i lo -j ACCEPT",
    "rule accepting all put first": "iptables -I tap100i0-IN -j ACCEPT; ip6tables -I PVEFW-FORWARD -j ACCEPT",
    "rule leading to a chain of theirs": "iptables -N MINE || true; iptables -A tap100i0-IN -j MINE",
    "signature deleted": "iptables -D tap100i0-OUT $(iptables -S tap100i0-OUT | grep -c ^-A)",
    "jump removed": "iptables -D INPUT -j PVEFW-INPUT; ip6tables -D FORWARD -j PVEFW-FORWARD",
    "jump appended again": "iptables -A INPUT -j PVEFW-INPUT; ip6tables -A INPUT -j PVEFW-INPUT",
    "jump put first again, twice": "iptables -I INPUT -j PVEFW-INPUT; iptables -I INPUT -j PVEFW-INPUT",
    "raw jump again": "iptables -t raw -A PREROUTING -j PVEFW-PREROUTING",
    "chain renamed": "iptables -E tap100i0-IN elsewhere",
}
NFT_ONLY = {"everything of nf_tables flushed": "nft flush ruleset"}
NFT_HANDS = {
    **NFT_ONLY,
    "table deleted": "nft delete table bridge pvefw",
    "both tables deleted": "nft delete table bridge pvefw; nft delete table inet pvefw",
    "table flushed": "nft flush table bridge pvefw",
    "notes flushed": "nft flush chain bridge pvefw digests",
    "chain flushed": "nft flush chain bridge pvefw tap100i0-OUT",
    "dispatch flushed": "nft flush chain bridge pvefw @GUESTS@",
    "chain flushed and deleted": (
        "nft flush chain bridge pvefw @GUESTS@; nft flush map bridge pvefw @NICS@; "
        "nft flush chain bridge pvefw tap100i0-OUT; nft delete chain bridge pvefw tap100i0-OUT"
    ),
    "map flushed": "nft flush map bridge pvefw @NICS@",
    "map element deleted": "nft delete element bridge pvefw @NICS@ '{ \"tap100i0\" }'",
    "set flushed": "nft flush set bridge pvefw @FRIENDS@",
    "set element added": "nft add element bridge pvefw @FRIENDS@ '{ 192.0.2.77 }'",
    "rule accepting all put first": "nft insert rule bridge pvefw tap100i0-OUT accept",
    "rule doubled": "nft add rule bridge pvefw tap100i0-OUT counter drop",
    "chain added": "nft add chain bridge pvefw mine; nft add rule bridge pvefw mine goto tap100i0-OUT",
    "base chain added": "nft add chain inet pvefw mine '{ type filter hook input priority -200; policy drop; }'",
    "set added": "nft add set inet pvefw mine '{ type ipv4_addr; }'",
    "table asleep": "nft add table bridge pvefw '{ flags dormant; }'",
}
HANDS = [
    *(("iptables", name) for name in (*IPTABLES_HANDS, *NFT_ONLY)),
    *(("legacy", name) for name in IPTABLES_HANDS if name != "chain renamed"),
    *(("nft", name) for name in NFT_HANDS),
]
SCRIPTS = {
    "iptables": {**IPTABLES_HANDS, **NFT_ONLY},
    "legacy": IPTABLES_HANDS,
    "nft": NFT_HANDS,
}


def shell(script: str) -> None:
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def legacy_tools(folder: Path) -> Iterator[None]:
    """Have the names of iptables' tools lead to the variants that keep their rules outside of nf_tables."""
    folder.mkdir()
    for tool in ("iptables", "ip6tables"):
        for suffix in ("", "-save", "-restore"):
            found = Path(f"/usr/sbin/{tool}-legacy{suffix}")
            if not found.exists():
                pytest.skip(f"the legacy variant of {tool} is not installed")
            (folder / f"{tool}{suffix}").symlink_to(found)
    with pytest.MonkeyPatch.context() as patched, use_runner(first_from(folder)):
        patched.setenv("PATH", str(folder), prepend=":")
        yield


@pytest.fixture
def kind(request: pytest.FixtureRequest, host: Namespace, tmp_path: Path) -> Iterator[str]:
    name: str = request.param
    with legacy_tools(tmp_path / "tools") if name == "legacy" else contextlib.nullcontext():
        if name == "nft":
            need("nft add table bridge probe; nft delete table bridge probe")
        else:
            need("iptables -L; ip6tables -L; ebtables -L; ipset list")
        yield name


def desired_of(kind: str, folder: Path, number: int = 0) -> Desired:
    if kind != "nft":
        return compiled(folder, "iptables", number, other=True)
    if takes_compiled_nft():
        return compiled(folder, "nft", number, other=True)
    return ruleset("nft", rulesets.nft(networks=(f"10.{number}.1.0/24",)))


def script_of(kind: str, name: str) -> str:
    """Return the script with the names of the chain, set and map that this ruleset has."""
    text = SCRIPTS[kind][name]
    if "@" in text:
        listed = json.loads(subprocess.run(["nft", "-j", "list", "table", "bridge", "pvefw"], **_CAPTURED).stdout)
        for mark, what, holds in (("@NICS@", "map", "tap100i0"), ("@FRIENDS@", "set", "10.0.1.0")):
            bodies = [entry[what] for entry in listed["nftables"] if what in entry]
            text = text.replace(mark, next(body["name"] for body in bodies if holds in json.dumps(body.get("elem"))))
        chains = [entry["chain"] for entry in listed["nftables"] if "chain" in entry]
        hooks = {(chain.get("hook"), chain.get("prio")): chain["name"] for chain in chains}
        text = text.replace("@GUESTS@", hooks["prerouting", -150])
    return text


_CAPTURED: dict[str, Any] = {"capture_output": True, "text": True, "check": True}


def as_service(desired: Desired) -> None:
    with lock.hold():
        control.reconcile_from_service(desired)


WAYS: dict[str, Callable[[Desired], object]] = {
    "update": lambda desired: control.apply(desired, only_if_running=True),
    "run": as_service,
}


@pytest.mark.parametrize(("kind", "name"), drawn(HANDS, len(HANDS) // 2, "other hands"), indirect=["kind"])
def test_the_wanted_ruleset_comes_back(kind: str, name: str, tmp_path: Path) -> None:
    desired, other = desired_of(kind, tmp_path / "c"), desired_of(kind, tmp_path / "d", 1)
    start(desired)
    wanted = everything()
    for way in WAYS.values():
        shell(script_of(kind, name))
        assert without_theirs(everything()) != wanted or "unused" in name
        assert firewall.status(desired).running
        way(desired)
        assert without_theirs(everything()) == wanted
        assert firewall.status(desired).changes == ()
    # what changed in the files meanwhile comes with it
    control.apply(other)
    expected = everything()
    control.apply(desired)
    shell(script_of(kind, name))
    control.apply(other)
    assert without_theirs(everything()) == without_theirs(expected)
    # and all of it goes, whatever was done to it
    start(desired)
    shell(script_of(kind, name))
    assert control.stop().running
    assert not firewall.is_running()
    assert not engine(desired.backend).present()
    assert not any("PVEFW" in line or "tap100i0" in line for line in json.dumps(everything()).split(","))


def without_theirs(found: dict[str, Any]) -> dict[str, Any]:
    """Return a listing without a foreign chain that a change has left."""
    return {
        key: {name: lines for name, lines in value.items() if "MINE" not in name} if isinstance(value, dict) else value
        for key, value in found.items()
    }


# --- rules of others that use ours --------------------------------------------------------------------------

USES = {
    "jump to a chain": ("iptables -A INPUT -s 192.0.2.9 -j tap100i0-IN", "-A INPUT -s 192.0.2.9/32 -j tap100i0-IN"),
    "jump to the chain of a hook": (
        "iptables -N MINE; iptables -A MINE -j PVEFW-INPUT; ip6tables -A INPUT -s fe80::9 -j PVEFW-INPUT",
        "-A MINE -j PVEFW-INPUT",
    ),
    "rule with a set": (
        "iptables -A INPUT -m set --match-set PVEFW-0-friends-v4 src -j ACCEPT",
        "-A INPUT -m set --match-set PVEFW-0-friends-v4 src -j ACCEPT",
    ),
    "rule of another table with a set": (
        "iptables -t mangle -A PREROUTING -m set --match-set PVEFW-0-friends-v4 src -j MARK --set-mark 7",
        "iptables -t mangle -A PREROUTING -m set --match-set PVEFW-0-friends-v4 src",
    ),
    "set of sets": ("ipset create mine list:set; ipset add mine PVEFW-0-friends-v4", "your set mine"),
    "jump to a chain of ebtables": (
        "ebtables -A INPUT -s 02:00:00:00:00:09 -j PVEFW-FORWARD",
        "-A INPUT -s 02:00:00:00:00:09 -j PVEFW-FORWARD",
    ),
}


@pytest.mark.parametrize("kind", ["iptables", "legacy"], indirect=True)
@pytest.mark.parametrize("use", USES)
def test_stop_leaves_chains_and_sets_that_foreign_rules_use_and_names_the_rule(
    kind: str, use: str, tmp_path: Path
) -> None:
    script, named = USES[use]
    desired = desired_of(kind, tmp_path)
    start(desired)
    shell(script)
    wanted = everything()
    control.apply(desired)
    assert everything() == wanted
    outcome = control.stop()
    assert outcome.running
    (note,) = [note for note in outcome.notes if "stays" in note and (named in note)]
    assert "stays" in note
    assert not firewall.is_running()
    left = [line for line in json.dumps(everything()).split('", "') if "PVEFW" in line or "tap100i0" in line]
    assert 0 < len(left) <= 12, left
    # not a second time, and nothing is in the way of the next start
    assert control.stop().running is False
    control.apply(desired)
    assert without_order(everything()) == without_order(wanted)


def without_order(found: dict[str, Any]) -> dict[str, Any]:
    """Return a listing in which a jump to ours may stand before or after a rule of others."""
    return {
        key: {name: sorted(lines) for name, lines in value.items()} if key in ("iptables", "ip6tables") else value
        for key, value in found.items()
    }


def test_set_used_out_of_sight_stays_and_stop_removes_the_rest(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule of iptables-legacy uses the set, which iptables-nft does not list: only the kernel knows."""
    need("iptables -L; iptables-legacy -L; ipset list")
    desired = compiled(tmp_path, "iptables")
    start(desired)
    shell("iptables-legacy -A INPUT -m set --match-set PVEFW-0-friends-v4 src -j ACCEPT")
    outcome = control.stop()
    assert [note for note in outcome.notes if "PVEFW-0-friends-v4 stays" in note]
    found = everything()
    assert "PVEFW" not in json.dumps([found[tool] for tool in ("iptables", "ip6tables", "ebtables")])
    assert {line.split()[1] for line in found["ipset"] if line} == {"PVEFW-0-friends-v4"}


@pytest.mark.parametrize("user", ["iptables -A INPUT -m set --match-set PVEFW-0-friends-v4 src -j DROP", "set mine"])
def test_set_of_another_kind_that_a_foreign_rule_uses_is_named_with_it(
    host: Namespace, tmp_path: Path, user: str
) -> None:
    need("iptables -L; ipset list; ebtables -L")
    shell("ipset create PVEFW-0-friends-v4 hash:ip")
    shell("ipset create mine list:set; ipset add mine PVEFW-0-friends-v4" if user == "set mine" else user)
    theirs = everything()
    desired = compiled(tmp_path, "iptables")
    with pytest.raises(HostError, match=r"PVEFW-0-friends-v4 is of another kind .hash:ip .*is used by your") as caught:
        control.apply(desired)
    assert user.removeprefix("iptables ") in caught.value.message
    assert everything() == theirs
    shell("ipset destroy mine" if user == "set mine" else user.replace("-A", "-D"))
    control.apply(desired)
    assert firewall.status(desired).changes == ()


def test_set_of_another_kind_that_our_rule_uses_is_named_with_it(host: Namespace, tmp_path: Path) -> None:
    need("iptables -L; ipset list; ebtables -L")
    desired = compiled(tmp_path, "iptables")
    start(desired)
    wanted = everything()
    document = "".join(desired.pieces)
    assert "create PVEFW-0-friends-v4 hash:net" in document
    kind = "create PVEFW-0-friends-v4 hash:net family "
    other = document.replace(f"{kind}inet ", f"{kind}inet6 ")
    assert other != document
    with pytest.raises(HostError, match="one of pvefw's rules uses it: iptables -t filter -A tap100i0-IN"):
        control.apply(record.desired("iptables", [other], enabled=True))
    assert everything() == wanted


def test_foreign_chain_with_a_name_of_pvefw_stays_foreign(host: Namespace, tmp_path: Path) -> None:
    """It has rules and was never loaded by us, or it is in use: empty or not, it stays as it is."""
    need("iptables -L; ipset list; ebtables -L")
    shell("iptables -N tap999i0-IN; iptables -A tap999i0-IN -s 192.0.2.1 -j DROP")
    shell("iptables -N GROUP-theirs-IN; iptables -A INPUT -j GROUP-theirs-IN")
    theirs = everything()
    control.apply(compiled(tmp_path, "iptables"))
    control.stop()
    assert everything()["iptables"] == {**theirs["iptables"], **_empty_raw(everything()["iptables"])}


def _empty_raw(found: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: lines for name, lines in found.items() if name.startswith("*raw")}


# --- switches that fail -------------------------------------------------------------------------------------


def test_failed_switch_names_the_loaded_and_recorded_rulesets(host: Namespace, tmp_path: Path) -> None:
    need("iptables -L; ipset list; ebtables -L; nft add table bridge probe; nft delete table bridge probe")
    control.apply(compiled(tmp_path, "iptables"))

    def failing(_: Sequence[str], text: str | None) -> str | None:
        if text is not None and "-X " in text:
            raise HostError("iptables-restore failed: out of memory")
        return text

    small = ruleset("nft", rulesets.nft())
    refused = pytest.raises(HostError, match="nft is loaded and on record, but the one of iptables")
    with use_runner(Editing(failing)), refused as caught:
        control.apply(small)
    assert "packets must pass both" in caught.value.message
    assert "pvefw start" in str(caught.value.hint)
    assert engine("nft").present()
    assert engine("iptables").present()
    applied = record.load(record.running_path())
    assert applied is not None
    assert applied.backend == "nft"
    with contextlib.suppress(AssertionError):
        assert firewall.status(small).backends == ("iptables", "nft")
    assert control.apply(small)[0].switched_from == "iptables"
    assert not engine("iptables").present()
