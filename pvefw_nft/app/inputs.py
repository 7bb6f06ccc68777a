"""Files that the command line names beside a configuration: saved rulesets, packets to test, expected differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.config.files import read_bytes
from pvefw_nft.errors import HostError, UnusableFileError

if TYPE_CHECKING:
    from pathlib import Path

MAX_INPUT = 256 * 2**20
"""Largest saved ruleset that is read, in bytes: ten times the ruleset of 1,000 guests."""

MAX_TOML = 4 * 2**20
"""Largest file of packets or of expected differences that is read, in bytes."""


def read_input(path: Path, limit: int = MAX_INPUT) -> str:
    """Return the text of a file; bytes that are not UTF-8 become surrogates (PEP 383).

    Raises HostError if it cannot be read, is larger than ``limit`` bytes, or is not a regular file: a device may have
    no end, and a FIFO may have no writer.
    """
    try:
        return read_bytes(path, limit).decode("utf-8", "surrogateescape")
    except UnusableFileError as error:
        raise HostError(
            error.message, "name a regular file; save the output of another program to a file first"
        ) from None
    except OSError as error:
        raise HostError(f"{path}: cannot be read: {error.strerror}", "check its name and permissions") from None
