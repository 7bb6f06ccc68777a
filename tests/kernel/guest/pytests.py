"""Runs pytest in the guest without starting it each time, which takes 20 seconds of a processor there."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def run(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[int, bytes]:
    """Run pytest in a process of its own, and return its exit status and output.

    The agent's process keeps the imported modules from one call to the next. Modules of tests are read by the new
    process, since some read the environment.
    """
    import hypothesis  # noqa: F401 - deferred: the guest imports this module
    import pyroute2  # noqa: F401
    import pytest

    from tests.host.commands import import_commands

    import_commands()

    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for descriptor in (1, 2):
                    os.dup2(output.fileno(), descriptor)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.environ.update(environment, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
                # its compiled files stay for the next run, in the guest's memory
                os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
                sys.dont_write_bytecode = False
                status = int(pytest.main(list(arguments)))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(ended), output.read()
