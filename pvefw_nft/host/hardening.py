"""The table that hardens the iptables ruleset: ``bridge pvefw-hardening`` of nft, with a chain ``stateless``.

The iptables ruleset stays the reference's; this only drops, before any of its rules. It is loaded before the ruleset
and removed after it, as a whole.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError, InternalError

from .apply import twin
from .apply.nftables_state import Nftables
from .netfilter import nf_tables
from .netfilter.nf_tables import NO_NFTABLES
from .records.changes import Change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .apply.nftables_state import Command

NAME = "pvefw-hardening"
"""The table's name."""

_FAMILY = "bridge"
_KINDS = ("table", "chain", "rule", "set", "map", "element")


def is_loaded() -> bool:
    """Tell whether the table is there. Raises HostError if the kernel does not tell."""
    try:
        return _FAMILY in nf_tables.tables(NAME)
    except HostError as error:
        if error.hint == NO_NFTABLES:
            return False  # without it there cannot be one
        raise


def change(wanted: str) -> Change | None:
    """Return the change that an apply would make, None if nothing; ``wanted`` is the transaction, empty for no table.

    Raises HostError if the kernel does not tell.
    """
    loaded = is_loaded()
    if not wanted:
        return Change("remove", "nft", f"table {_FAMILY} {NAME}") if loaded else None
    if not loaded:
        return Change("add", "nft", f"table {_FAMILY} {NAME}")
    as_wanted = _comments() == _wanted_comments(wanted) and not twin.families(NAME)
    return None if as_wanted else Change("change", "nft", f"table {_FAMILY} {NAME}")


def load(wanted: str) -> None:
    """Load the table, if there is one to load and it is not there as wanted, and read it back. Raises HostError."""
    if not wanted or change(wanted) is None:
        return
    twin.replace(Nftables(), NAME, _commands(wanted))
    if change(wanted) is not None:
        raise HostError(
            f"table {_FAMILY} {NAME} is not in the kernel as it was loaded", "see that no other program changes it"
        )


def remove() -> None:
    """Remove the table and its twin, if they are there. Raises HostError."""
    if is_loaded():
        library = Nftables()
        library.run([{"delete": {"table": {"family": _FAMILY, "name": NAME}}}])
        twin.remove(library, NAME)


def dropped() -> dict[str, int]:
    """Return packets dropped, by chain."""
    return {f"{NAME} {chain}": number for chain, number in nf_tables.refused(_FAMILY, NAME).items()}


def _comments() -> list[tuple[str, str]]:
    """Return chain and comment of each rule; a chain's first one ends with a digest of all its rules."""
    return sorted((rule.chain, rule.comment) for rule in nf_tables.rules(_FAMILY, NAME))


def _wanted_comments(wanted: str) -> list[tuple[str, str]]:
    rules = [command["add"]["rule"] for command in _commands(wanted) if "rule" in command.get("add", {})]
    return sorted((str(rule["chain"]), str(rule["comment"])) for rule in rules)


def _commands(wanted: str) -> Sequence[Command]:
    """Return the commands of the transaction. Raises InternalError if one is about anything but our table."""
    try:
        commands: Sequence[Command] = json.loads(wanted)["nftables"]
        for command in commands:
            ((verb, argument),) = command.items()
            ((kind, body),) = argument.items()
            place = body["family"], body["name" if kind == "table" else "table"]
            if verb not in ("add", "delete") or kind not in _KINDS or place != (_FAMILY, NAME):
                raise InternalError(f"a hardening with the command {json.dumps(command)[:200]}")
            if kind == "rule" and not {"chain", "comment"} <= body.keys():
                raise InternalError(f"a hardening with the rule {json.dumps(body)[:200]}")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InternalError(f"a hardening that cannot be read: {error!r}"[:300]) from error
    return commands
