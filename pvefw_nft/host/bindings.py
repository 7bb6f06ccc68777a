"""The Python bindings of libnftables: Debian's, which its archive signs, or else the ones of this environment."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from types import ModuleType

DEBIAN = Path("/usr/lib/python3/dist-packages/nftables")
"""Where Debian's package python3-nftables has them; they are plain Python, for any version of it."""

LIBRARY = "libnftables.so.1"
"""The library's file, as the bindings name it."""

_NAME = "nftables"


def load() -> ModuleType:
    """Return the bindings. Raises ImportError if there are none, OSError if the library itself is missing."""
    if _NAME not in sys.modules and is_debian():
        file = DEBIAN / "__init__.py"
        spec = importlib.util.spec_from_file_location(_NAME, file, submodule_search_locations=[str(DEBIAN)])
        if spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            sys.modules[_NAME] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[_NAME]
                raise
            return module
    import nftables

    return cast("ModuleType", nftables)


def make_context() -> Any:  # noqa: ANN401 - of a module without types
    """Return a new context of libnftables, an ``nftables.Nftables``. Raises ImportError as :func:`load`, and OSError.

    OSError: the library is missing, or cannot be opened.
    """
    module = load()
    # Opened first: if its constructor cannot, Python later complains that there is nothing for its __del__ to free.
    ctypes.CDLL(LIBRARY)
    return module.Nftables()


def is_debian() -> bool:
    """Tell whether Debian's bindings are installed."""
    return (DEBIAN / "__init__.py").is_file()
