"""Run a file of nft's text by libnftables, as one transaction.

    python -I -S nft_text_program.py FILE PARENT

It is a program of its own for :mod:`.nft_text`, and imports nothing but the standard library. PARENT is the number of
the process that started it. It prints the errors of libnftables, and ends with 1 if there are any.
"""

from __future__ import annotations

import ctypes
import os
import sys

_LIBRARY = "libnftables.so.1"
"""As in the bindings."""
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, include/uapi/linux/prctl.h
_SIGKILL = 9  # the module signal takes a megabyte


def run_file(path: str) -> str:
    """Run a file, and return the errors; none: it went through. Raises OSError where there is no library."""
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


def main(path: str, parent: str) -> int:
    """Run the file, unless the process that wanted it has ended: then another one may be at work on the rules."""
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, _SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        return 1
    problem = run_file(path)
    with os.fdopen(1, "w", encoding="utf-8") as answer:
        answer.write(problem)
    return 1 if problem else 0


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))  # at once: there is nothing to tidy up
