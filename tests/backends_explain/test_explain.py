"""The policy in English: the text of each kind of rule, and its completeness."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.errors import InternalError
from pvefw_nft.pipeline import Source, compile_root

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support import MakeRoot

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(
    path.parents[1].relative_to(REPOSITORY / "examples").as_posix()
    for path in (REPOSITORY / "examples").rglob("etc/pve")
)


def explained(root: Path) -> str:
    compiled = compile_root(Source(root, "pve1", lambda: "192.168.1.0/24"), "explain")
    return "".join(compiled.artefact.text())


def test_the_homelab_reads_well(golden: Callable[[str], None]) -> None:
    golden(explained(REPOSITORY / "examples" / "homelab"))


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_sentences_contain_every_rule_of_the_files(example: str) -> None:
    source = Source(REPOSITORY / "examples" / example, "pve1", lambda: "192.168.1.0/24")
    text = "".join(compile_root(source, "explain").artefact.text())
    said = {str(origin) for _, origin in compile_root(source, "iptables").artefact.origins() if origin.file}
    assert said
    assert [place for place in said if f"[{place}]" not in text] == []


def test_a_firewall_that_is_off_says_so(make_root: MakeRoot) -> None:
    assert explained(make_root({"cluster": "[OPTIONS]\nenable: 0\n"})) == "The firewall is off: every packet passes.\n"


def test_rules_of_a_guest(make_root: MakeRoot) -> None:
    guest = "[OPTIONS]\nenable: 1\npolicy_in: REJECT\n[RULES]\nIN DROP -source 10.0.0.1-10.0.0.9 -log info\n"
    guest += "IN ACCEPT -p tcp -dport 22,80:90\nIN ACCEPT -source fd00::/8\n"
    config = "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1\n"
    text = explained(make_root({"100.fw": guest, "100.conf": config}))
    assert "    drop packets from 10.0.0.1-10.0.0.9, and log it   [100.fw:5]\n" in text
    assert "    accept TCP to ports 22 or 80-90   [100.fw:6]\n" in text
    assert "    accept packets from fd00::/8   [100.fw:7]\n" in text
    assert "    reject everything else   [100.fw:3 policy_in REJECT]\n" in text


def test_json_has_the_same_sentences() -> None:
    source = Source(REPOSITORY / "examples" / "homelab", "pve1", lambda: "192.168.1.0/24")
    artefact = compile_root(source, "explain").artefact
    text = "".join(artefact.text())
    sections = json.loads("".join(artefact.json()))["sections"]
    assert len(sections) > 10
    assert all(sentence["text"] in text for section in sections for sentence in section["sentences"])


def test_a_host_cannot_load_sentences(make_root: MakeRoot) -> None:
    source = Source(make_root(), "pve1", lambda: "10.0.0.0/24")
    with pytest.raises(InternalError):
        compile_root(source, "explain").artefact.loadable()
    command = [sys.executable, "-m", "pvefw_nft.cli", "start", "--backend", "explain"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 2
