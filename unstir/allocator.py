"""What becomes of memory that is freed.

Knows: the C library's allocator.
Does not know: who allocates.
"""

from __future__ import annotations

import ctypes

from unstir.speedups import is_on

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of mallopt(3)
_NEVER = -1
_PAD = 64 * 2**20


def keep_memory() -> bool:
    """Let freed memory stay with this process until it ends; whether that was possible and is on (``kept_memory``).

    By default glibc takes every large block from the kernel and gives it back, and the kernel clears what it hands out,
    page by page: 200,000 page faults a step of a DiT-S/2, a twentieth of its time. The price is that a process stays as
    large as it ever was.

    Source: mallopt(3).
    """
    if not is_on("kept_memory"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it; macOS and musl have allocators of their own
    if mallopt is None:
        return False
    return all(mallopt(*option) == 1 for option in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PAD)))
