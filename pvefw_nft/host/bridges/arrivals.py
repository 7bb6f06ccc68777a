"""Plug NICs that appear while the service runs, as soon as the kernel announces them as ports of a bridge."""

from __future__ import annotations

import errno
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import HostError, PvefwError

from ..links import open_route
from .keep import plug_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .firewall_bridge import Nic
    from .keep import Plugged

_LINK_EVENTS = 0x1  # include/uapi/linux/rtnetlink.h: RTMGRP_LINK
_PAUSE = 1.0  # seconds after events were lost
_REOPEN = 5.0  # seconds until a socket that could not be opened is tried again


class ArrivalWatch:
    """Plug the NICs of a configuration when they become ports of other bridges than their firewall bridges.

    It runs in a thread of its own, so it need not wait for a compile. A NIC in no bridge is left to the program that
    made it, which is about to put it into a bridge.
    """

    def __init__(
        self, nics: Callable[[], Mapping[str, Nic]], report: Callable[[Plugged | PvefwError, float], None]
    ) -> None:
        """Watch the NICs that ``nics`` names, by interface.

        ``report`` gets, in this thread, the plugged NIC or the failure, and the seconds since the event.
        """
        self._nics = nics
        self._report = report

    def start(self) -> None:
        """Begin to watch; the thread ends with the process."""
        try:
            threading.Thread(target=self._watch, name="arrivals", daemon=True).start()
        except RuntimeError as error:  # pthread_create(3): EAGAIN
            message = f"NICs of guests are plugged late: {error}"
            self._report(HostError(message, "raise the limit of processes: TasksMax= of the service"), 0.0)

    def _watch(self) -> None:
        while True:
            try:
                with open_route() as events:  # in this thread: pyroute2 ties a socket to the thread that opens it
                    events.bind(groups=_LINK_EVENTS)
                    while True:
                        self._follow(events)
            except PvefwError as error:
                self._report(error, 0.0)
            except OSError as error:
                self._report(HostError(f"the kernel does not tell of links: {error.strerror or error}"), 0.0)
            time.sleep(_REOPEN)

    def _follow(self, events: Any) -> None:  # noqa: ANN401 (pyroute2 is untyped)
        """Plug the NICs of the next events. Raises OSError if the socket is broken."""
        try:
            messages = list(events.get())
            begun = time.monotonic()
            nics = self._nics()
            names = {message.get_attr("IFLA_IFNAME") for message in messages if _is_misplaced(message)}
            found = [nics[name] for name in names if name in nics]
            if found:
                result = plug_all(found, only_bridged=True)
                if result.plugged or result.left:
                    self._report(result, time.monotonic() - begun)
        except PvefwError as error:
            self._report(error, 0.0)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            time.sleep(_PAUSE)  # more events than the queue held: the next look at all links finds the missed ones


def _is_misplaced(message: Any) -> bool:  # noqa: ANN401 (pyroute2 is untyped)
    """Tell whether a message says that a link is a port of something that is not a firewall bridge."""
    master = message.get_attr("IFLA_MASTER")
    if message["event"] != "RTM_NEWLINK" or not master:
        return False
    try:
        return not socket.if_indextoname(master).startswith("fwbr")
    except OSError:
        return False  # it is gone again
