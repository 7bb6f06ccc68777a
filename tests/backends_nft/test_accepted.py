"""A kernel with bridge connection tracking takes the JSON of every golden configuration, example and case."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from backends.nft import NftBackend
from pvefw_nft.pipeline import Source, check_root
from tests.kernel import cases, configurations
from tests.kernel.guest.image import LabUnavailableError
from tests.kernel.guest.machine import Guest

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES = ("nf_conntrack_bridge", "nft_meta_bridge", "nft_reject_bridge")

# Checked as a whole, without loading it, then loaded and listed, which also shows that libnftables can list it.
SCRIPT = (
    'for file in "$0"/*.json; do nft -j -c -f "$file" && nft -j -f "$file" && nft list ruleset >/dev/null '
    '|| echo "refused: $file"; done'
)


@pytest.fixture
def guest() -> Iterator[Guest]:
    try:
        booted = Guest()
    except LabUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"the kernel lab must run in CI: {error}")
        pytest.skip(f"no kernel lab: {error}")
    with booted:
        yield booted


def test_the_kernel_takes_every_configuration(guest: Guest) -> None:
    folder = guest.share / "artefacts"
    folder.mkdir()
    known = [
        *configurations.examples(),
        *configurations.golden(),
        *(configurations.of_case(name) for name in cases.names()),
    ]
    for one in known:
        source = Source(one.root, one.node, lambda one=one: one.local_network)  # type: ignore[misc]  # bound at once
        text = "".join(NftBackend().lower(check_root(source).ruleset).json())
        (folder / f"{one.name.replace('/', '-')}.json").write_text(text)
    status, output = guest.run(["modprobe", "-a", *MODULES])
    assert status == 0, output.decode()
    status, output = guest.run(["sh", "-c", SCRIPT, str(folder)])
    assert (status, output.decode()) == (0, "")
