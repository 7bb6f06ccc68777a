"""The host's names for numbers: iptables and ebtables look them up whenever they load a rule that holds one.

The kernel keeps the number of that time, and lists it. So which names it was loaded under must
be remembered, to know whether loading it again would make the same.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ETC = Path("/etc")
_PROTOCOL = re.compile(r"(?:^| )-p (?:! )?[A-Za-z]")
_HOLDS = {
    # numbers, ranges and lists of them have no letter; names may begin with a digit
    "services": re.compile(r"--[ds]ports? (?:! )?\S*[A-Za-z]"),
    "protocols": _PROTOCOL,
    "ethertypes": _PROTOCOL,
}
"""By file (services(5), protocols(5), ethertypes): a pattern of rules that use names of that file."""


def digests() -> dict[str, str]:
    """Return a digest of each file's present content, empty if none can be read."""
    return {name: _digest(ETC / name) for name in _HOLDS}


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def holds_any(rules: Iterable[str], files: Iterable[str]) -> bool:
    """Tell whether rules hold names of these files."""
    patterns = [_HOLDS[name] for name in files]
    return bool(patterns) and any(pattern.search(rule) is not None for rule in rules for pattern in patterns)


def differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the files whose digests differ."""
    return [name for name, digest in now.items() if before.get(name) != digest]
