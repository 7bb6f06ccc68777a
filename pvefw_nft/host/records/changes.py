"""The changes of an apply, in words, for either backend."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """One chain or set that differs.

    ``what`` is ``add``, ``change`` or ``remove``; ``where`` for example ``iptables filter``; ``detail`` lists the
    entries that come (+) and go (-) of a set.
    """

    what: str
    where: str
    name: str
    detail: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.what} {self.where} {self.name}" + "".join(f"\n    {line}" for line in self.detail)


@dataclass(frozen=True, slots=True)
class AppliedChain:
    """A chain or set as it was applied: the digest of its compiled form, and the digest of the kernel's listing."""

    signature: str
    listing: str
