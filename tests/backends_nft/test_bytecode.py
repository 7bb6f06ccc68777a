"""nft makes the same of the text as of the JSON: the same instructions for the kernel, whatever this kernel can do.

The lab compares the rulesets in a kernel that has all modules (tests/kernel/test_nft_accepts.py).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.backends.nft import NftBackend
from pvefw_nft.pipeline import Source, check_root
from tests.kernel import cases, configurations

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.configurations import Configuration

SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
KNOWN = [*configurations.examples(), *configurations.golden(), *map(configurations.of_case, cases.names())]
NUMBERED = re.compile(r"__(set|map)[0-9]+")
"""Sets without a name are numbered in the order in which nft meets them."""


def instructions(options: list[str], file: Path) -> list[str]:
    """Return the messages that nft would send to the kernel, in order; parts that this kernel lacks are skipped."""
    command = ["unshare", "-n", "nft", *options, "--debug=netlink", "-c", "-f", str(file)]
    environment = {**os.environ, "PATH": SYSTEM_PATH}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return sorted(NUMBERED.sub(r"__\1", done.stdout).splitlines())


@pytest.mark.parametrize("one", KNOWN, ids=lambda one: one.name)
def test_text_and_json_are_the_same_instructions(one: Configuration, tmp_path: Path) -> None:
    if os.geteuid() or shutil.which("nft", path=SYSTEM_PATH) is None:
        pytest.skip("a network namespace needs root, and the test nft")
    ruleset = check_root(Source(one.root, one.node, lambda: one.local_network)).ruleset
    artefact = NftBackend().lower(ruleset)
    (tmp_path / "ruleset.json").write_text("".join(artefact.json()))
    (tmp_path / "ruleset.nft").write_text("".join(artefact.text()))
    from_json = instructions(["-j"], tmp_path / "ruleset.json")
    assert (len(from_json) > 100) is ruleset.enabled
    assert instructions([], tmp_path / "ruleset.nft") == from_json
