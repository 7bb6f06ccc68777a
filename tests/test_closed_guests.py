"""A guest's bad files cannot cost the host or other guests their rules, and cannot open the guest itself."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.app import desired
from pvefw_nft.cache import NO_CACHE, Cache
from pvefw_nft.config import resolve
from pvefw_nft.errors import ConfigurationError, InternalError
from pvefw_nft.ir.nodes import Drop, Layer, Rule
from pvefw_nft.ir.stateless import mac_filter
from pvefw_nft.pipeline import BACKENDS, Source, check_root, compile_root
from pvefw_nft.pipeline.closing import closing_failures, guests_to_close
from tests.support import CONTAINER, VM, check

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from pvefw_nft.config.model import Nic
    from pvefw_nft.errors import Diagnostic
    from pvefw_nft.pipeline import Checked, Compiled
    from pvefw_nft.pipeline.closing import Closed
    from tests.support import MakeRoot

GOOD = "[OPTIONS]\nenable: 1\n[RULES]\nIN SSH(ACCEPT) -source 10.0.0.0/8\nOUT DROP -p tcp -dport 25\n"
HOST = "[RULES]\nIN SSH(ACCEPT) -source 10.1.0.0/16\n"

NUL = b"[OPTIONS]\nenable: 1\n[RULES]\nIN DROP -p tcp\n\0\n"
UTF16 = "[OPTIONS]\nenable: 1\n".encode("utf-16")
BINARY = bytes(range(128, 256)) * 8


def source(root: Path) -> Source:
    return Source(root, "n1", lambda: "10.0.0.0/24")


def ruleset(root: Path, backend: str = "iptables") -> tuple[Any, tuple[Diagnostic, ...]]:
    """Return a ruleset as ``start`` would load it, and the diagnostics of its configuration."""
    found = desired.compiled(source(root), backend)
    pieces = found.desired.pieces
    return json.loads("".join(pieces) if backend == "iptables" else f"[{','.join(pieces)}]"), found.diagnostics


def chains_of(lines: dict[str, Any]) -> dict[str, list[str]]:
    """Return the chains of iptables and, with `link` before their names, the chains of ebtables."""
    return {**lines["iptables"]["filter"]} | {f"link {name}": rules for name, rules in lines["ebtables"].items()}


@pytest.mark.parametrize(
    "content", [NUL, UTF16, BINARY, b"#" * (16 * 2**20 + 1)], ids=["NUL", "UTF-16", "binary", "huge"]
)
def test_unusable_firewall_file_closes_only_its_guest(make_root: MakeRoot, content: bytes) -> None:
    files: dict[str, str | bytes] = {"host": HOST, "100.conf": VM, "101.conf": VM, "101.fw": GOOD, "102.ct": CONTAINER}
    before, _ = ruleset(make_root({**files, "100.fw": GOOD}))
    after, diagnostics = ruleset(make_root({**files, "100.fw": content}))
    (finding,) = diagnostics
    assert finding.code == "guest-closed"
    assert finding.span.file.endswith("/100.fw")
    changed = chains_of(after)
    for chain, rules in chains_of(before).items():
        if "tap100i0" not in chain:
            assert changed[chain] == rules
    assert changed["tap100i0-IN"] == ["-A tap100i0-IN -j DROP"]
    assert changed["tap100i0-OUT"] == ["-A tap100i0-OUT -j DROP"]
    assert changed["link tap100i0-OUT"] == ["-A tap100i0-OUT -j DROP"]
    assert after["ip6tables"]["filter"]["tap100i0-IN"] == ["-A tap100i0-IN -j DROP"]


def test_closed_guest_is_closed_in_nft_too(make_root: MakeRoot) -> None:
    root = make_root({"100.conf": VM, "100.fw": NUL})
    text = "".join(compile_root(source(root), "nft").artefact.json())
    rules = [entry["add"]["rule"] for entry in json.loads(text)["nftables"] if "rule" in entry.get("add", {})]
    verdicts = {rule["chain"]: rule["expr"] for rule in rules if rule["chain"].startswith("tap100i0-")}
    assert verdicts
    assert all({"drop": None} in expressions for expressions in verdicts.values())


def test_unusable_guest_config_closes_every_nic_it_may_have(make_root: MakeRoot) -> None:
    checked = check(make_root({"100.conf": b"net0: \0", "100.fw": GOOD, "101.conf": VM, "101.fw": GOOD}))
    assert {nic.interface for nic in checked.ruleset.nics} == {f"tap100i{n}" for n in range(32)} | {"tap101i0"}
    chains = checked.ruleset.chains[Layer.FILTER]
    assert all(chains[f"tap100i{n}-IN"].rules[0].action == Drop() for n in range(32))


def test_unfiltered_nic_of_a_closed_guest_stays_unfiltered(make_root: MakeRoot) -> None:
    config = VM + "net1: virtio=BC:24:11:00:00:09,bridge=vmbr0\n"
    checked = check(make_root({"100.conf": config, "100.fw": NUL}))
    assert [nic.interface for nic in checked.ruleset.nics] == ["tap100i0"]


@pytest.mark.parametrize("name", ["cluster", "host"])
def test_unusable_file_of_the_node_ends_the_run(make_root: MakeRoot, name: str) -> None:
    with pytest.raises(ConfigurationError):
        check(make_root({name: NUL, "100.conf": VM, "100.fw": GOOD}))


def test_unusable_vnet_file_closes_only_its_vnet(make_root: MakeRoot) -> None:
    on = "[OPTIONS]\nenable: 1\n[RULES]\nFORWARD ACCEPT -p tcp\n"
    checked = check(make_root({"vnet1.vnet": on, "vnet2.vnet": NUL, "100.conf": VM, "100.fw": GOOD}))
    assert [finding.code for finding in checked.diagnostics] == ["vnet-closed"]
    chains = checked.ruleset.chains[Layer.FORWARD]
    assert chains["VNET-vnet2-FORWARD"].rules[-1].action == Drop()
    assert chains["VNET-vnet1-FORWARD"].rules[-1].action != Drop()


@pytest.mark.parametrize(
    "address",
    ["1.2.3.0²", "1.2.3.²", "٣.1.1.1", "1.2.3." + "0" * 4301, "9" * 4301 + ".1.2.3", "01.2.3." + "4" * 4301],
    ids=["superscript", "superscript octet", "Arabic digit", "4301 zeros", "4301 nines", "4301 digits"],
)
def test_digits_that_are_not_numbers_are_reported_at_their_place(make_root: MakeRoot, address: str) -> None:
    places: dict[str, dict[str, str | bytes]] = {
        "rule": {"100.fw": f"{GOOD}IN ACCEPT -source {address}\n"},
        "list": {"100.fw": f"{GOOD}IN ACCEPT -source 10.0.0.1,{address}\n"},
        "range": {"100.fw": f"{GOOD}IN ACCEPT -source 10.0.0.1-{address}\n"},
        "set": {"100.fw": f"{GOOD}[IPSET some]\n{address}\n"},
        "alias": {"100.fw": f"{GOOD}[ALIASES]\nsome {address}\n"},
        "container": {"200.ct": CONTAINER.replace("10.0.0.2/24", f"{address}/24")},
        "corosync": {"corosync": f"nodelist {{\n node {{\n  name: n1\n  ring0_addr: {address}\n }}\n}}\n"},
    }
    for place, files in places.items():
        checked = check(make_root({"100.conf": VM, "100.fw": GOOD, **files}))
        codes = {finding.code for finding in checked.diagnostics}
        assert codes, place
        assert "guest-closed" not in codes, place
        assert checked.ruleset.nics, place


def test_interface_name_of_any_length_is_reported(make_root: MakeRoot) -> None:
    root = make_root({"host": f"[RULES]\nIN ACCEPT -i {'x' * 5000}\n"})

    def refuse(_name: str) -> str | None:
        raise OSError("File name too long")

    checked = check_root(Source(root, "n1", lambda: None, real_interface=refuse))
    assert [finding.code for finding in checked.diagnostics] == ["bad-interface"]


def test_exception_in_a_guests_reader_closes_only_this_guest(
    make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = resolve.read_guest

    def fail(file: str, *rest: object) -> object:
        if file.endswith("/100.fw"):
            raise RecursionError("too deep")
        return read(file, *rest)  # type: ignore[arg-type]  # the arguments are passed on

    monkeypatch.setattr(resolve, "read_guest", fail)
    root = make_root({"100.conf": VM, "100.fw": GOOD, "101.conf": VM, "101.fw": GOOD})
    for cache in (NO_CACHE, Cache()):
        checked = check_root(source(root), cache)
        assert [(finding.code, finding.span.file) for finding in checked.diagnostics] == [
            ("guest-closed", f"{root}/etc/pve/qemu-server/100.conf")
        ]
        chains = checked.ruleset.chains[Layer.FILTER]
        assert len(chains["tap100i0-IN"].rules) == 1
        assert len(chains["tap101i0-IN"].rules) > 1


def test_exception_in_a_guests_build_closes_only_this_guest(
    make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = VM.replace("00:01", "00:02")
    root = make_root({"100.conf": VM, "100.fw": GOOD, "101.conf": other, "101.fw": GOOD})
    whole = check_root(source(root))
    made = mac_filter  # for the last object that a NIC gets: all added before must be removed again

    def fail(nic: Nic) -> Rule:
        if nic.mac_spelling.endswith("00:01"):
            raise KeyError("gone")
        return made(nic)

    monkeypatch.setattr("pvefw_nft.ir.guest.mac_filter", fail)
    cache = Cache()
    for _ in range(2):
        for checked in (check_root(source(root)), check_root(source(root), cache)):
            assert [finding.code for finding in checked.diagnostics] == ["guest-closed"]
            assert [nic.interface for nic in checked.ruleset.nics] == ["tap100i0", "tap101i0"]
            for layer in (Layer.FILTER, Layer.LINK):
                for name, chain in checked.ruleset.chains[layer].items():
                    if name.startswith("tap100i0"):
                        assert [rule.action for rule in chain.rules] == [Drop()]
                    else:
                        assert chain == whole.ruleset.chains[layer][name]


@pytest.mark.parametrize("backend", BACKENDS)
def test_exception_in_a_lowering_closes_the_guests_that_cause_it(
    make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    files: dict[str, str | bytes] = {}
    for vmid in range(100, 110):
        files[f"{vmid}.conf"] = VM
        files[f"{vmid}.fw"] = GOOD.replace("10.0.0.0/8", "10.9.9.9") if vmid in (103, 107) else GOOD
    root = make_root(files)
    whole, _ = ruleset(root, backend)
    of = desired.desired_of

    def fail(compiled: Compiled, *, harden: bool = False) -> object:
        made = of(compiled, harden=harden)
        if "10.9.9.9" in "".join(made.pieces):
            raise ValueError("this address is not liked")
        return made

    monkeypatch.setattr(desired, "desired_of", fail)
    found, diagnostics = ruleset(root, backend)
    assert [(finding.code, finding.span.file.rpartition("/")[2]) for finding in diagnostics] == [
        ("guest-closed", "103.fw"),
        ("guest-closed", "107.fw"),
    ]
    if backend == "iptables":
        assert chains_of(found)["tap104i0-IN"] == chains_of(whole)["tap104i0-IN"]
        assert chains_of(found)["tap103i0-IN"] == ["-A tap103i0-IN -j DROP"]
    assert "10.9.9.9" not in json.dumps(found)


def test_failure_of_the_host_itself_is_raised(make_root: MakeRoot) -> None:
    root = make_root({"100.conf": VM, "100.fw": GOOD})

    def attempt(_closed: Closed) -> Checked:
        raise InternalError("the host's own rules cannot be compiled")

    with pytest.raises(InternalError, match="the host's own rules"):
        closing_failures(source(root), attempt)


@pytest.mark.parametrize("culprits", [set(), {0}, {999}, {3, 500, 501}])
def test_few_attempts_find_the_guests_to_close(culprits: set[int]) -> None:
    attempts = []

    def attempt(closed: Closed) -> None:
        attempts.append(closed)
        if culprits - set(closed):
            raise ValueError(min(culprits - set(closed)))

    found = guests_to_close(range(1000), ValueError(), attempt)
    assert set(found) == culprits
    assert len(attempts) <= 2 + 2 * max(len(culprits), 1) * math.ceil(math.log2(1000))


def test_the_later_of_two_guests_that_fail_only_together_is_closed() -> None:
    def attempt(closed: Closed) -> None:
        if not {3, 7} & set(closed):
            raise ValueError("both")

    assert set(guests_to_close(range(10), ValueError(), attempt)) == {7}


def test_closed_guest_opens_as_soon_as_its_file_is_mended(make_root: MakeRoot) -> None:
    root = make_root({"100.conf": VM, "100.fw": NUL})
    found = desired.compiled(source(root), "iptables")
    asked = replace(source(root), cautious=True)
    assert found.observations.still_hold(asked)
    (root / "etc/pve/firewall/100.fw").write_text(GOOD)
    assert not found.observations.still_hold(asked)


def test_line_errors_keep_start_from_loading_but_closed_guests_do_not(make_root: MakeRoot) -> None:
    closed = desired.compiled(source(make_root({"100.conf": VM, "100.fw": NUL})), "iptables")
    assert (closed.has_errors, closed.may_open) == (True, False)
    left_out = desired.compiled(source(make_root({"100.conf": VM, "100.fw": GOOD + "IN DROP -p nonsense\n"})), None)
    assert (left_out.has_errors, left_out.may_open) == (True, True)
