"""The table of peers: its statements about pvefw are true, and the manual has the script's output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pvefw_nft.config.codes import declared
from pvefw_nft.errors import Severity
from pvefw_nft.pipeline import Source, check_root
from tests.config.peers import ROWS, Peers, table
from tests.support import NODE, file_path

REPOSITORY = Path(__file__).resolve().parents[2]
NOW = 1700000000.0


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.construct[:40])
def test_pvefw_behaves_as_the_row_says(tmp_path: Path, row: Peers) -> None:
    for name, text in {"cluster": "[OPTIONS]\nenable: 1\n", **row.files}.items():
        path = tmp_path / (name if name.startswith("etc/") else file_path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    checked = check_root(Source(tmp_path, NODE, lambda: "10.0.0.0/24", now=lambda: NOW))
    assert tuple(problem.code for problem in checked.diagnostics) == row.codes
    assert row.holds(checked)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.construct[:40])
def test_a_row_calls_an_error_and_a_warning_by_these_names(row: Peers) -> None:
    severities = {declared()[code].severity for code in row.codes}
    assert (Severity.ERROR in severities) is ("error" in row.pvefw)
    assert (Severity.WARNING in severities) is ("warning" in row.pvefw)


def test_the_manual_has_the_table_that_the_script_prints() -> None:
    script = [sys.executable, str(REPOSITORY / "scripts" / "peer_table.py")]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert printed == table()
    assert printed in (REPOSITORY / "docs" / "language.md").read_text("utf-8"), "run scripts/peer_table.py --write"
