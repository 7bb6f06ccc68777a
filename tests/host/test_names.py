"""Rules of iptables that hold names of services: loaded again where /etc/services gives a name another number."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.app import desired as desired_ruleset
from pvefw_nft.cli import main
from pvefw_nft.cli.options import make_source
from pvefw_nft.config import netdb
from pvefw_nft.host import lock
from pvefw_nft.host.apply import names
from pvefw_nft.host.netfilter import nf_tables
from pvefw_nft.host.tools import Runner, use_runner
from tests.support import VM

from .conftest import need
from .here import control, firewall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.support import MakeRoot

    from .conftest import Namespace

FILES = ("services", "protocols", "ethertypes")


class Etc(Runner):
    """The host's names, for pvefw and for the tools that it runs."""

    def __init__(self, folder: Path, use_etc: Callable[[Path], None]) -> None:
        super().__init__()
        folder.mkdir()
        self._folder = folder
        for name in FILES:
            shutil.copy(netdb.PACKAGED / name, folder)
        use_etc(folder)

    def run_all(
        self, commands: Sequence[Sequence[str]], text: str | None = None, timeout: float | None = None
    ) -> list[str]:
        return super().run_all([self._command(command) for command in commands], text, timeout)

    def _command(self, command: Sequence[str]) -> Sequence[str]:
        if not command[0].endswith("-restore"):
            return command
        mounts = "".join(f"mount --bind {self._folder}/{name} /etc/{name}; " for name in FILES)
        return ("unshare", "-m", "sh", "-ec", f'{mounts} exec "$@"', "sh", self.find(command[0]), *command[1:])

    def say(self, name: str, port: int) -> None:
        """Give a service a port."""
        (self._folder / "services").write_text(f"other 4711/tcp\n{name} {port}/tcp\n")


@pytest.fixture
def etc(host: Namespace, tmp_path: Path, use_etc: Callable[[Path], None]) -> Iterator[Etc]:
    need("iptables -L; ebtables -L; ipset list; unshare -m mount --bind /etc/hostname /etc/services")
    with use_runner(found := Etc(tmp_path / "etc-names", use_etc)):
        yield found
    netdb.forget()


@pytest.fixture
def options(make_root: MakeRoot) -> list[str]:
    """A configuration with one rule that holds the name of a service."""
    root = make_root(
        {
            "cluster": "[OPTIONS]\nenable: 1\n[RULES]\nIN ACCEPT -p tcp -dport 81\n",
            "100.conf": VM,
            "100.fw": "[OPTIONS]\nenable: 1\n[RULES]\nIN ACCEPT -p tcp -dport mine\n",
        }
    )
    return ["--root", str(root), "--node", "n1", "--local-network", "10.0.0.0/24", "--backend", "iptables"]


def pvefw(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def ports() -> list[str]:
    """Return the ports of the guest's chain."""
    done = subprocess.run(["iptables", "-S", "tap100i0-IN"], check=True, capture_output=True, text=True)
    return [line.split("--dport ")[1].split()[0] for line in done.stdout.splitlines() if "--dport" in line]


CHANGE = "change iptables filter tap100i0-IN"


@pytest.mark.parametrize("verb", ["update", "start"])
def test_service_gets_another_number(
    etc: Etc, options: list[str], capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    etc.say("mine", 7001)
    assert pvefw("start", *options) == 0
    assert "7001" in ports()
    assert pvefw("status", *options) == 0
    etc.say("mine", 7002)
    capsys.readouterr()
    assert pvefw("status", "--diff", *options) == 1
    assert f"  {CHANGE}\n" in capsys.readouterr().out
    assert pvefw(verb, *options) == 0
    # IPv6 has the same rule
    assert capsys.readouterr().out.splitlines() == [CHANGE, CHANGE.replace("iptables", "ip6tables")]
    assert "7002" in ports()
    assert "7001" not in ports()
    number = nf_tables.generation()
    assert pvefw(verb, *options) == 0
    assert capsys.readouterr().out == "nothing changed\n"
    assert nf_tables.generation() == number
    assert pvefw("status", *options) == 0


def test_service_follows(etc: Etc, options: list[str]) -> None:
    etc.say("mine", 7001)
    source = make_source(Path(options[1]), "n1", "10.0.0.0/24")
    for port in (7001, 7002):
        etc.say("mine", port)
        with lock.hold():
            outcome = control.reconcile_from_service(desired_ruleset.compiled(source, "iptables").desired)
        assert outcome is not None
        assert str(port) in ports()


def test_rollback_loads_the_names_of_now(etc: Etc, options: list[str]) -> None:
    etc.say("mine", 7001)
    pvefw("start", *options)
    etc.say("mine", 7002)
    assert pvefw("rollback") == 0
    assert "7002" in ports()


def test_names_change_that_no_rule_holds(etc: Etc, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    guest = Path(options[1]) / "etc/pve/firewall/100.fw"
    guest.write_text(guest.read_text().replace("mine", "22"))
    assert pvefw("start", *options) == 0
    etc.say("mine", 7002)
    number = nf_tables.generation()
    capsys.readouterr()
    for _ in range(2):
        assert pvefw("update", *options) == 0
        assert capsys.readouterr().out == "nothing changed\n"
    assert nf_tables.generation() == number
    assert firewall.status(None).unseen == ()


@pytest.mark.parametrize(
    ("rule", "files"),
    [
        ("-A x -p tcp --dport ssh -j ACCEPT", ["services", "protocols", "ethertypes"]),
        ("-A x -p 6 --sport 3com-tsmux -j ACCEPT", ["services"]),
        ("-A x -p 6 --match multiport --dports 22,80:90,http -j ACCEPT", ["services"]),
        ("-A x -p 6 --match multiport --dports 22,80:90 -j ACCEPT", []),
        ("-A x -p 6 ! --dport ssh -j ACCEPT", ["services"]),
        ("-A x -p gre -j ACCEPT", ["protocols", "ethertypes"]),
        ("-A x -p ! ARP -j DROP", ["protocols", "ethertypes"]),
        ("-A x -s 10.0.0.1 -p 47 -j ACCEPT", []),
    ],
)
def test_rules_that_hold_names(rule: str, files: list[str]) -> None:
    assert [name for name in FILES if names.holds_any([rule], [name])] == files
