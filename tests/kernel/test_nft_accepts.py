"""A kernel with bridge connection tracking takes the JSON of every golden configuration, example and case."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.nft import NftBackend
from pvefw_nft.pipeline import Source, check_root
from tests.kernel import cases, configurations

if TYPE_CHECKING:
    from tests.kernel.guest.machine import Guest

MODULES = ("nf_conntrack_bridge", "nft_meta_bridge", "nft_reject_bridge")

SCRIPT = 'for file in "$0"/*.json; do nft -j -c -f "$file" || echo "refused: $file"; done'
PATIENCE = 1200.0
"""Seconds for all of them, in an emulated machine that may share its processors."""


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
    status, output = guest.run(["sh", "-c", SCRIPT, str(folder)], seconds=PATIENCE)
    assert (status, output.decode()) == (0, "")
