"""Why the ruleset that runs is not the one that the configuration says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.app.desired import known_before, read_notes
from pvefw_nft.host.firewall import applied_backend
from pvefw_nft.host.records.pending import is_held_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pvefw_nft.config.source import Observations
    from pvefw_nft.host.records.record import Desired
    from pvefw_nft.pipeline import Source

_SUBJECTS = {
    "text": "{name} changed",
    "folder": "files came to or left {name}",
    "is folder": "{name} came or went",
    "link": "{name} leads elsewhere",
    "host name": "the host's name changed",
    "network": "the local network changed",
    "interface": "the link {name} came, went or has another name",
    "names": "{name} changed",
    "program": "pvefw itself changed",
}
"""By kind of question: the reason for an apply if its answer changed since the last one (:class:`.Observations`)."""


def why_pending(
    source: Source,
    backend: str | None,
    desired: Desired,
    changed: Callable[[Observations], Iterable[tuple[str, str]]],
) -> list[str]:
    """Return why changes are pending, a sentence each; nothing if no record tells.

    ``changed`` gives the questions that have another answer now: :meth:`.Compiler.changed`.
    """
    applied = applied_backend()
    reasons = []
    if applied is not None and desired.backend != applied:
        reasons.append(f"{applied} runs, and {desired.backend} is wanted (host.fw, `nftables:`, or --backend)")
    if is_held_back(desired):
        reasons.append("it was not confirmed or rolled back: `pvefw update` by hand applies it")
    before = known_before(read_notes(source, backend)).observations
    for kind, name in () if before is None else changed(before):
        reasons.append(_SUBJECTS.get(kind, f"{kind} {name} changed").format(name=name))
    return reasons
