"""Run nft's text by libnftables from a file in memory.

The Python bindings run text from a buffer only. Then libnftables copies it twice, and its errors do not say the line
(``erec_print`` in its erec.c).
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterable

_LIBRARY = "libnftables.so.1"
"""As in the bindings."""


def run(lines: Iterable[str]) -> str:
    """Run lines of nft's text as one transaction, and return libnftables' errors; none: it went through.

    Raises :class:`HostError` if there is no memory for them, or no library.
    """
    try:
        descriptor = os.memfd_create("pvefw", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "w", encoding="ascii", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            return _run_file(f"/proc/self/fd/{descriptor}")
    except OSError as error:
        raise HostError(f"libnftables cannot be given the ruleset: {error}") from error


def _run_file(path: str) -> str:
    library = ctypes.CDLL(_LIBRARY)
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    context = ctypes.c_void_p(library.nft_ctx_new(0))
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        if library.nft_run_cmd_from_filename(context, path.encode()) == 0:
            return ""
        problem: bytes = library.nft_ctx_get_error_buffer(context)
        return problem.decode(errors="replace") or "no reason given"
    finally:
        library.nft_ctx_free(context)
