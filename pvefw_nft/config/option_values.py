"""The types of options' values. They lie below the model, because the declarations of options need them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pvefw_nft.config.values import RateLimit

NOLOG = None
"""No log level: nothing is logged."""

LOG_LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
"""The log levels by number, as in syslog(3)."""


class Policy(Enum):
    """The verdict on packets that no rule matches."""

    ACCEPT = "ACCEPT"
    DROP = "DROP"
    REJECT = "REJECT"


@dataclass(frozen=True, slots=True)
class LogRatelimit:
    """The cluster option ``log_ratelimit``; ``limit`` None: no limit at all."""

    limit: RateLimit | None


@dataclass(frozen=True, slots=True)
class EtherType:
    """An Ethernet protocol by number, with the name the user wrote."""

    number: int
    spelling: str


@dataclass(frozen=True, slots=True)
class Queues:
    """NFQUEUE numbers: one, or with ``last`` a range to balance over."""

    first: int
    last: int | None


class Layer2(Enum):
    """Which frames without IP a guest may send."""

    OPEN = "open"
    """what Proxmox's own options let through"""
    STRICT = "strict"
    """ARP, and the protocols of the option ``layer2_protocols``"""
