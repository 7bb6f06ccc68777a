"""Values of options that Proxmox takes in several forms, and values that cannot be read."""

from __future__ import annotations

import inspect
import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.config.option_readers import is_enabled, read_flag
from pvefw_nft.config.option_values import Policy
from pvefw_nft.config.options import YES, Option, declared_options, option
from pvefw_nft.config.values import RateLimit
from pvefw_nft.errors import Severity
from pvefw_nft.host.settings import Conntrack
from pvefw_nft.ir.nodes import Drop, Layer
from pvefw_nft.pipeline import Source, check_root, compile_root
from tests.support import NODE, VM, check, complaints
from tests.test_examples import SYSTEM_PATH, needs_root_and_tools, parts_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"


@dataclass(frozen=True, slots=True)
class PlainField:
    enable: bool = False


@dataclass(frozen=True, slots=True)
class WithoutValues:
    enable: bool = option(False, read_flag, "", "Filter.")


@dataclass(frozen=True, slots=True)
class WithoutEffect:
    enable: bool = option(False, read_flag, YES, "")


@dataclass(frozen=True, slots=True)
class Strict:
    enable: bool = option(False, read_flag, YES, "Filter.", strict=False)


@dataclass(frozen=True, slots=True)
class Complete:
    enable: bool = option(False, read_flag, YES, "Filter.")


@pytest.mark.parametrize(
    ("options", "is_companion", "message"),
    [
        (PlainField, False, "PlainField.enable is not declared by option()"),
        (WithoutValues, False, "WithoutValues.enable has no text for the manual"),
        (WithoutEffect, False, "WithoutEffect.enable has no text for the manual"),
        (Complete, True, "Complete.enable: options of companion files, and only they, have `strict`"),
        (Strict, False, "Strict.enable: options of companion files, and only they, have `strict`"),
    ],
)
def test_an_incomplete_declaration_is_refused(options: type, is_companion: bool, message: str) -> None:
    with pytest.raises(TypeError) as raised:
        declared_options(options, is_companion=is_companion)
    assert str(raised.value) == message


def test_a_declaration_gives_field_reader_and_help() -> None:
    assert Complete().enable is False
    assert declared_options(Complete, is_companion=False) == {
        "enable": Option("enable", False, read_flag, YES, "Filter.", None)
    }
    parts = inspect.signature(option).parameters.values()
    assert [part.name for part in parts if part.default is part.empty] == ["default", "read", "takes", "effect"]


@pytest.mark.parametrize(
    ("policy_in", "policy_out"),
    [
        ("DROPP", "DROPP"),
        ("ACCEPT # open", "DROP # closed"),
        ("ACCEPT # open", "REJECT # closed"),
        ("", ""),
        ("ACCEPT DROP", "ACCEPT ACCEPT"),
    ],
)
def test_a_policy_that_cannot_be_read_counts_as_drop(make_root: MakeRoot, policy_in: str, policy_out: str) -> None:
    text = f"policy_in: {policy_in}\npolicy_out: {policy_out}\n"
    checked = check(make_root({"cluster": ON + text, "100.conf": VM, "100.fw": ON + text}))
    assert checked.has_errors
    options = checked.node.cluster.options
    assert (options.policy_in, options.policy_out) == (Policy.DROP, Policy.DROP)
    for chain in ("tap100i0-IN", "tap100i0-OUT"):
        assert checked.ruleset.chains[Layer.FILTER][chain].rules[-1].action == Drop()


def test_a_comment_behind_the_default_policy_changes_nothing(make_root: MakeRoot) -> None:
    checked = check(make_root({"cluster": ON + "policy_out: accept # open\n"}))
    assert checked.node.cluster.options.policy_out is Policy.ACCEPT
    assert [problem.severity for problem in checked.diagnostics] == [Severity.WARNING]


@pytest.mark.parametrize(
    ("text", "cautious", "enabled", "severity"),
    [
        ("enable: 1 # on", False, False, Severity.ERROR),
        ("enable: 1 # on", True, True, Severity.WARNING),
        ("enable: 0 # off", False, False, Severity.WARNING),
        ("enable: 0 # off", True, False, Severity.WARNING),
        ("enable: yes", False, False, Severity.ERROR),
        ("enable: yes", True, True, Severity.ERROR),
        ("enable: yes # on", True, True, Severity.ERROR),
    ],
)
def test_an_unreadable_enable_counts_as_1_when_a_ruleset_is_applied(
    make_root: MakeRoot, text: str, cautious: bool, enabled: bool, severity: Severity
) -> None:
    root = make_root({"cluster": f"[OPTIONS]\n{text}\n"})
    checked = check_root(Source(root, NODE, lambda: None, cautious=cautious))
    assert checked.ruleset.enabled is enabled
    assert [problem.severity for problem in checked.diagnostics] == [severity]


@pytest.mark.parametrize(("now", "enabled"), [(-61, False), (-60, True), (0, True), (59, True), (60, False)])
def test_enable_as_a_time_counts_from_a_minute_before_it_to_a_minute_after_it(now: int, enabled: bool) -> None:
    assert is_enabled(1700000000, lambda: 1700000000 + now) is enabled


@pytest.mark.parametrize(
    ("limit", "loaded"),
    [
        (RateLimit(1, "second", None, "1/sec"), (1, None)),
        (RateLimit(20000, "second", 5, ""), (10000, 5)),
        (RateLimit(1, "second", 0, ""), (1, 1)),
        (RateLimit(1, "second", 20000, ""), (1, 10000)),
        (RateLimit(1, "day", None, ""), (1, 1)),
        (RateLimit(1, "hour", 100, ""), (1, 24)),
        (RateLimit(24, "day", 24, ""), (24, 24)),
    ],
)
def test_the_limit_that_is_loaded_is_the_nearest_that_the_kernel_counts(
    limit: RateLimit, loaded: tuple[int, int | None]
) -> None:
    made = limit.loadable()
    assert (made.number, made.burst) == loaded
    assert made.loadable() == made


def test_odd_numbers_are_in_the_reference_form_but_not_in_the_loaded_rules(make_root: MakeRoot) -> None:
    host = (
        "[OPTIONS]\nlog_level_in: info\nprotection_synflood: 1\nprotection_synflood_rate: 2000000\n"
        "protection_synflood_burst: 0\nnf_conntrack_tcp_timeout_syn_recv: 0\n"
    )
    root = make_root({"cluster": ON + "log_ratelimit: rate=20000/second,burst=0\n", "host": host})
    compiled = compile_root(Source(root, NODE, lambda: None), "iptables")
    assert {problem.severity for problem in compiled.checked.diagnostics} == {Severity.WARNING}
    reference = "".join(compiled.artefact.json())
    assert "--limit 20000/second --limit-burst 0 " in reference
    assert "--hashlimit-above 2000000/sec --hashlimit-burst 0 " in reference
    text = "".join(compiled.artefact.text())
    assert "--limit 10000/second --limit-burst 1 " in text
    assert "--hashlimit-above 1000000/sec --hashlimit-burst 1 " in text
    assert "--hashlimit-htable-expire 1000\n" not in reference
    assert text.count("--hashlimit-htable-expire 1000") == 2
    nft = json.dumps(json.loads("".join(compile_root(Source(root, NODE, lambda: None), "nft").artefact.json())))
    assert '{"limit": {"rate": 10000, "per": "second", "burst": 1}}' in nft
    assert '{"limit": {"rate": 1000000, "per": "second", "burst": 1}}' in nft


def test_odd_numbers_load(make_root: MakeRoot, tmp_path: Path) -> None:
    needs_root_and_tools()
    for number, limit in enumerate(["rate=20000/second,burst=0", "rate=1/day", "rate=1/hour,burst=20000"]):
        host = (
            "[OPTIONS]\nlog_level_in: info\nprotection_synflood: 1\nprotection_synflood_rate: 0\n"
            "protection_synflood_burst: 2000000\nnf_conntrack_tcp_timeout_syn_recv: 99999999\n"
        )
        root = make_root({"cluster": f"{ON}log_ratelimit: {limit}\n", "host": host})
        compiled = compile_root(Source(root, NODE, lambda: None), "iptables")
        script = ["set -e"]
        for part, (command, body) in enumerate(parts_of("".join(compiled.artefact.text()))):
            (tmp_path / f"{number}.{part}").write_text(body)
            script.append(f"{command} < {number}.{part}")
        run = subprocess.run(
            ["unshare", "-n", "sh", "-c", "\n".join(script)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PATH": SYSTEM_PATH},
            check=False,
        )
        assert (run.returncode, complaints(run.stderr)) == (0, [])


def test_settings_that_the_kernel_would_refuse_become_the_nearest_that_it_takes() -> None:
    assert set(Conntrack(10**12, 10**12, 10**12).settings().values()) == {"536868864", "2147475456", "2147483647"}
    assert Conntrack(0, 0, 0).settings()["net/netfilter/nf_conntrack_max"] == "8192"


def test_two_spellings_of_a_nic_that_is_not_filtered(make_root: MakeRoot) -> None:
    def filtered(value: str) -> bool:
        root: Path = make_root({"100.conf": VM.replace("firewall=1", f"firewall={value}"), "100.fw": ON})
        checked = check(root)
        assert checked.diagnostics == ()
        return bool(checked.ruleset.nics)

    assert [value for value in ("1", "on", "yes", "true", "Yes", "0", "off", "no", "false") if not filtered(value)] == [
        "0",
        "off",
        "no",
        "false",
    ]
