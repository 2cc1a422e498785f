"""What becomes of memory that is freed.

Knows: the C library's allocator.
Does not know: who allocates.
"""

from __future__ import annotations

import ctypes

from unstir.speedups import is_on

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # of mallopt(3)
_MIB = 2**20
_KEPT = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 64 * _MIB))
_OWN = ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 32 * _MIB), (_TRIM_THRESHOLD, 64 * _MIB), (_TOP_PAD, 128 * 1024))
"""What glibc comes to by itself where large tensors are freed."""

_is_kept = False


def keep_memory() -> bool:
    """Let freed memory stay with this process where ``kept_memory`` is on, and go where it is off.

    By default glibc takes every large block from the kernel and gives it back, and the kernel clears what it hands out,
    page by page: 200,000 page faults a step of a DiT-S/2, a twentieth of its time. The price is that a process stays as
    large as it ever was.

    Returns:
        Whether that changed anything: not where it was so before, nor where there is no glibc.

    Source: mallopt(3), malloc_trim(3).
    """
    global _is_kept
    if is_on("kept_memory") == _is_kept:
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # macOS and musl have allocators of their own
        return False
    if not all(library.mallopt(*option) == 1 for option in (_OWN if _is_kept else _KEPT)):
        return False
    if _is_kept:
        library.malloc_trim(0)
    _is_kept = not _is_kept
    return True
