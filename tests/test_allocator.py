"""Memory that is freed stays with the process where that speed-up is on, and there alone."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

PROGRAM = textwrap.dedent(
    """
    import json, resource
    from unstir.allocator import keep_memory
    from unstir.speedups import without
    import torch
    torch.set_num_threads(1)

    def faults():
        for _ in range(20):  # until the heap has found its shape
            torch.ones(2**24)  # 64 MiB
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.ones(2**24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with without("kept_memory"):
        told = [(keep_memory(), faults())]
    told += [(keep_memory(), faults()), (keep_memory(), 0)]
    with without("kept_memory"):
        told += [(keep_memory(), 0)]
    print(json.dumps(told))
    """
)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's allocator can be told")
def test_memory_that_is_kept_is_not_cleared_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    (never, own), (kept, few), (again, _), (given, _) = json.loads(done.stdout)
    if not kept:
        pytest.skip("this C library's allocator cannot be told")
    assert (never, again, given) == (False, False, True)
    assert few < 100 < own  # 64 MiB are 16,384 pages, or 32 huge ones
