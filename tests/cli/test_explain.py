"""``pvefw explain``, and the manual's page that it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvefw_nft.cli import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "diagnostics.md"


def explain(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["explain", *arguments])
    assert isinstance(end.value.code, int)
    return (end.value.code, *capsys.readouterr())


def test_the_manuals_page_is_up_to_date(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:
    code, page, _ = explain(capsys, "--format", "markdown")
    if request.config.getoption("--regenerate"):
        PAGE.write_text(page, "utf-8")
    assert code == 0
    assert page == PAGE.read_text("utf-8"), "run `./pvefw explain --format markdown >docs/diagnostics.md`"


def test_one_code_is_explained_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = explain(capsys, "unknown-macro")
    assert code == 0
    assert out.startswith("error[unknown-macro]: an unknown macro\n")
    assert "In Proxmox VE: " in out
    assert "  IN SHS(ACCEPT)\n" in out
    assert "  IN SSH(ACCEPT)\n" in out


def test_without_a_code_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = explain(capsys)
    assert code == 0
    lines = {line.split()[0]: line.split()[1] for line in out.splitlines()}
    assert lines["unknown-macro"] == "error"
    assert lines["redefined"] == "warning"
    assert lines["unused-alias"] == "note"


def test_an_unknown_code_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = explain(capsys, "unknwon-macro")
    assert code == 2
    assert "did you mean `unknown-macro`?" in err
