"""Close the guests on which a stage fails, so that a bug costs one guest its traffic and no host its rules."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from pvefw_nft.config.findings import Findings
from pvefw_nft.errors import InternalError, PvefwError
from pvefw_nft.pipeline.roots import open_configuration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pvefw_nft.config.source import Source

_T = TypeVar("_T")

Closed: TypeAlias = "Mapping[int, Exception]"
"""Guests that are closed (no packet passes their filtered NICs), by VMID, each with its failure."""

CLOSED_CODES = frozenset(("guest-closed", "vnet-closed"))
"""Codes of errors that closed something, instead of leaving a line out."""

NONE_CLOSED: Closed = MappingProxyType({})


def closing_failures(source: Source, attempt: Callable[[Closed], _T]) -> _T:
    """Call ``attempt`` until it succeeds, closing the guests on which it fails, and return its result.

    A failure is a bug of pvefw, but a tenant may find the input that triggers it. Only the tenant's own guest may
    suffer then. ``attempt`` gets the guests to close: none at first. Its error is raised if closing guests does not
    help; errors of the configuration (any :class:`PvefwError` but InternalError) are raised at once.
    """
    try:
        return attempt(NONE_CLOSED)
    except InternalError as error:
        failure: Exception = error
    except PvefwError:
        raise
    except Exception as error:
        failure = error
    vmids = [guest.vmid for guest in open_configuration(source, Findings()).guests(rules=False)]
    return attempt(guests_to_close(vmids, failure, attempt))


def guests_to_close(vmids: Sequence[int], failure: Exception, attempt: Callable[[Closed], object]) -> Closed:
    """Find by bisection the guests to close so that ``attempt`` succeeds, each with its failure.

    ``attempt`` gets the guests to close, and raises if the others cannot be compiled. For each guest that has to be
    closed it is called about 2·log₂ n times, n being the number of guests. Raises ``failure`` if ``attempt`` fails
    with all guests closed: then no guest is the cause.
    """
    open_guests: set[int] = set()
    failures: dict[int, Exception] = {}

    def closed_but(tried: Iterable[int]) -> dict[int, Exception]:
        left_open = open_guests.union(tried)
        return {vmid: failures.get(vmid, failure) for vmid in vmids if vmid not in left_open}

    def open_up(tried: Sequence[int]) -> None:
        try:
            attempt(closed_but(tried))
        except Exception as error:
            if len(tried) == 1:
                failures[tried[0]] = error
                return
            middle = len(tried) // 2
            open_up(tried[:middle])
            open_up(tried[middle:])
        else:
            open_guests.update(tried)

    try:
        attempt(closed_but(()))
    except Exception:
        raise failure from None
    open_up(vmids)
    return closed_but(())
