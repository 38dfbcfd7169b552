"""Freed memory goes back to the system."""

import ctypes
import sys

import psutil
import pytest

from gateway.memory import find_trim

BLOCK = 60_000  # below what the C library asks the system for by itself
COUNT = 2_000


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries know no trimming")
def test_what_is_freed_is_given_back() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(BLOCK) for _ in range(COUNT)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    last = libc.malloc(BLOCK)  # keeps the end of the heap where it is
    full = psutil.Process().memory_info().rss
    for block in blocks:
        libc.free(block)
    find_trim()()
    assert full - psutil.Process().memory_info().rss > BLOCK * COUNT / 2
    libc.free(last)
