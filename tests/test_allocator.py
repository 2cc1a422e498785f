import subprocess
import sys
import textwrap

import pytest

from unstir.allocator import keep_memory
from unstir.speedups import without

PROGRAM = textwrap.dedent(
    """
    import resource, sys
    from unstir.allocator import keep_memory
    from unstir.speedups import without
    with without(*sys.argv[1:]):
        kept = keep_memory()
    import torch
    torch.set_num_threads(1)
    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):  # until the heap has found its shape
        torch.ones(2**24)  # 64 MiB
    before = faults()
    for _ in range(5):
        torch.ones(2**24)
    print(int(kept), faults() - before)
    """
)


def _faults(*off: str) -> tuple[bool, int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *off], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == "1", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's allocator can be told")
def test_memory_that_is_kept_is_not_cleared_again():
    kept, faults = _faults()
    _, others = _faults("kept_memory")
    if not kept:
        pytest.skip("this C library's allocator cannot be told")
    assert faults < 100 < others  # 64 MiB are 16,384 pages, or 32 huge ones


def test_a_speedup_that_is_off_does_nothing():
    with without("kept_memory"):
        assert not keep_memory()
