"""Memory that is free again, given back to the system: the C library keeps it for what may come."""

import ctypes
import sys
from collections.abc import Callable


def find_trim() -> Callable[[], None]:
    """Return what gives freed memory back; where the C library has no such thing, it does nothing.

    It takes some milliseconds, for which the loop stands still: call it seldom.
    """
    if sys.platform != "linux":
        return lambda: None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is None:
        return lambda: None
    return lambda: trim(0)
