"""In the guest: a receiver with a real IP stack, where it matters what that makes of a frame."""

from __future__ import annotations

import socket
import subprocess
from typing import TYPE_CHECKING

from .network.build import ENDPOINT_INTERFACE
from .network.namespace import inside
from .wire import send_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .network.plan import Endpoint

SECONDS = 1.0
"""How long a datagram is waited for; it is there before the frame has been sent."""


def received(frames: Sequence[tuple[str, bytes]], receiver: Endpoint, port: int) -> list[bytes]:
    """Send frames (namespace and bytes) while somebody at the receiver listens to a UDP port; return what it heard."""
    with inside(receiver.namespace):
        subprocess.run(["ip", "address", "replace", f"{receiver.v4}/24", "dev", ENDPOINT_INTERFACE], check=True)
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind((str(receiver.v4), port))
        listener.settimeout(SECONDS)
    heard: list[bytes] = []
    try:
        for namespace, data in frames:
            send_frame(namespace, data)
        while True:
            heard.append(listener.recv(65536))
    except TimeoutError:
        return heard
    finally:
        listener.close()
        with inside(receiver.namespace):
            subprocess.run(["ip", "address", "flush", "dev", ENDPOINT_INTERFACE], check=True)
