"""A kernel with bridge connection tracking takes every golden configuration, example and case, as JSON and as text.

The loaded rulesets are equal: nft lists both alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.backends.nft import NftBackend
from pvefw_nft.pipeline import Source, check_root
from tests.kernel import cases, configurations

if TYPE_CHECKING:
    from tests.kernel.guest.machine import Guest

MODULES = ("nf_conntrack_bridge", "nft_meta_bridge", "nft_reject_bridge")

SCRIPT = """
for json in "$0"/*.json; do
    name=${json%.json}
    unshare -n sh -c 'nft -j -f "$0.json" && nft list ruleset' "$name" >"$name.from-json" || echo "JSON refused: $name"
    unshare -n sh -c 'nft -f "$0.nft" && nft list ruleset' "$name" >"$name.from-text" || echo "text refused: $name"
    [ -s "$name.from-json" ] || echo "nothing loaded: $name"
    cmp "$name.from-json" "$name.from-text" || diff "$name.from-json" "$name.from-text" | head -n 20
done
"""
PATIENCE = 1800.0
"""Seconds for all of them, in an emulated machine that may share its processors."""


def test_the_kernel_takes_every_configuration_and_holds_the_same_from_json_and_text(guest: Guest) -> None:
    folder = guest.share / "artefacts"
    folder.mkdir()
    known = [
        *configurations.examples(),
        *configurations.golden(),
        *(configurations.of_case(name) for name in cases.names()),
    ]
    for one in known:
        source = Source(one.root, one.node, lambda one=one: one.local_network)  # type: ignore[misc]  # bound at once
        artefact = NftBackend().lower(check_root(source).ruleset)
        name = one.name.replace("/", "-")
        (folder / f"{name}.json").write_text("".join(artefact.json()))
        (folder / f"{name}.nft").write_text("".join(artefact.text()))
    status, output = guest.run(["modprobe", "-a", *MODULES])
    assert status == 0, output.decode()
    status, output = guest.run(["sh", "-c", SCRIPT, str(folder)], seconds=PATIENCE)
    assert (status, output.decode()) == (0, "")
