"""Keep the filtered NICs plugged while the service runs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from pvefw_nft.app.nics import FilteredNics
from pvefw_nft.app.plug_nics import plug_or_drop, plugged_lines, unplugged_lines
from pvefw_nft.errors import PvefwError
from pvefw_nft.host.bridges.arrivals import ArrivalWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pvefw_nft.app.plug_nics import PlugOptions
    from pvefw_nft.app.service_messages import Messages
    from pvefw_nft.host.bridges.firewall_bridge import Nic
    from pvefw_nft.host.bridges.keep import Plugged
    from pvefw_nft.host.bridges.unplugged import Unplugged

_OWNER_PLUGS_WITHIN = 5.0  # seconds


class NicService:
    """Keep the filtered NICs plugged while the service runs, and report each change."""

    def __init__(self, read: Callable[[], FilteredNics], options: PlugOptions, messages: Messages) -> None:
        """``read`` returns the filtered NICs of the configuration."""
        self._read = read
        self._options = options
        self._messages = messages
        self._found = FilteredNics(())
        self._by_name: dict[str, Nic] = {}
        self._in_no_bridge: dict[str, float] = {}  # interface → time of the monotonic clock, in seconds

    def watch_arrivals(self) -> None:
        """Start to plug NICs as they appear."""
        if self._options.plug:
            ArrivalWatch(lambda: self._by_name, self._report_arrival).start()

    def refresh(self, backend: str, *, changed: bool) -> None:
        """Plug the NICs that are not plugged. ``changed``: read the NICs of the configuration again first.

        A NIC in no bridge is plugged after some seconds: until then the program that made the NIC may be about to
        plug it.
        """
        try:
            if changed:
                self._found = self._read()
                self._by_name = {nic.interface: nic for nic in self._found.nics}
            result = plug_or_drop(self._found, backend, self._options, only_bridged=True)
            if self._options.plug and self._has_waited_long(result.left):
                result = plug_or_drop(self._found, backend, self._options)
        except PvefwError as error:
            self._messages.state(f"warning: the guests' NICs could not be examined: {error.message}")
            return
        waiting = self._in_no_bridge if self._options.plug else {}
        settled = replace(result, left=tuple(one for one in result.left if one.interface not in waiting))
        for line in plugged_lines(settled):
            self._messages.state(line)

    def _has_waited_long(self, left: Sequence[Unplugged]) -> bool:
        """Record which NICs are in no bridge. Tell whether the owner of one of them had enough time to plug it."""
        now = time.monotonic()
        names = [one.interface for one in left if one.bridge is None and one.reason is None]
        self._in_no_bridge = {name: self._in_no_bridge.get(name, now) for name in names}
        return any(now - since >= _OWNER_PLUGS_WITHIN for since in self._in_no_bridge.values())

    def _report_arrival(self, result: Plugged | PvefwError, seconds: float) -> None:
        if isinstance(result, PvefwError):
            self._messages.state(f"warning: a NIC that appeared could not be plugged: {result.message}")
            return
        for interface in result.plugged:
            self._messages.event(f"{interface}: plugged {seconds * 1000:.0f} ms after it appeared")
        for line in unplugged_lines(result.left, dropped=False):
            self._messages.state(line)
