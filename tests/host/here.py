"""pvefw's firewall on the host of a test, as one command after the other controls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pvefw_nft.host.apply.engines import IptablesEngine, NftEngine, make_engines
from pvefw_nft.host.clock import CLOCK
from pvefw_nft.host.control import Control
from pvefw_nft.host.firewall import Firewall
from pvefw_nft.host.watchdog import start_watchdog_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.host.apply.engines import Engine
    from pvefw_nft.host.apply.nftables_state import Nftables
    from pvefw_nft.host.clock import Clock

firewall = Firewall(make_engines())
# a process also where the tests run under systemd, whose timers would start in another namespace
control = Control(firewall, start_watchdog=start_watchdog_process)


def unguarded(clock: Clock = CLOCK) -> Control:
    """Return a control whose watchdog dies at once."""
    return Control(firewall, clock=clock, start_watchdog=lambda _token, _seconds: None)


def with_engine(backend: str, **methods: Callable[..., Any]) -> Control:
    """Return a control whose engine of this backend has these methods instead of its own."""
    engines = make_engines()
    for one in engines:
        if one.name == backend:
            vars(one).update(methods)
    return Control(Firewall(engines), start_watchdog=start_watchdog_process)


def with_library(library: Callable[[], Nftables]) -> Control:
    """Return a control whose nft engine uses this library."""
    return Control(Firewall((IptablesEngine(), NftEngine(library))), start_watchdog=start_watchdog_process)


def engine(backend: str) -> Engine:
    """Return the engine that :data:`firewall` uses for a backend."""
    return firewall.engine(backend)
