"""For any configuration, nft's text has the same rules as the JSON, or there is no text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings

from pvefw_nft.errors import ConfigurationError
from pvefw_nft.pipeline import Source, compile_root
from pvefw_nft.verify.readers.files import Text, read_ruleset
from tests.property.test_untrusted_input import FILES, REPEATABLE, Files

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = 150


def test_text_and_json_mean_the_same(tmp_path: Path) -> None:
    compared = 0

    @settings(REPEATABLE, max_examples=EXAMPLES)
    @given(FILES)
    def compile_one(files: Files) -> None:
        nonlocal compared
        files.write(tmp_path)
        try:
            artefact = compile_root(Source(tmp_path, "n1", lambda: "10.0.0.0/24"), "nft").artefact
        except ConfigurationError:
            return
        text, document = "".join(artefact.text()), "".join(artefact.json())
        assert text.replace("\n", "").replace("\t", "").isprintable()
        assert text.isascii()
        assert read_ruleset([Text("text", text)]) == read_ruleset([Text("json", document)])
        compared += 1

    compile_one()
    assert compared > EXAMPLES // 2
