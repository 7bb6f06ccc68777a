"""The tests of ``dask_cases.py``, in a process of their own: Dask leaves threads, and other tests fork."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("distributed")

CASES = Path(__file__).with_name("dask_cases.py")


def test_jobs_on_a_dask_cluster() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CASES)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=CASES.parents[2])
    assert run.returncode == 0, run.stdout[-8000:]
