"""Memory: what a training step keeps for its backward pass, and what is free.

Knows: the bytes of a graph, of a machine and of a GPU.
Does not know: what is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from unstir.device import autocast
from unstir.diffusion.objective import Loss

_SHARE = 0.6  # of what is free; the rest is for what a pass needs for a moment, and for others
_GIB = 2**30


def kept_bytes(loss: Callable[[], Loss], device: torch.device, precision: Literal["float32", "bf16"]) -> int:
    """The bytes that the graph of a loss holds until it is gone backward, each piece of memory counted once."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), autocast(device, precision):
        loss()
    return sum(held.values())


def most_that_fit(count: int, free: int, *, fixed: int, each: int) -> int:
    """How many of ``count`` samples fit at once.

    Args:
        count: of a batch.
        free: bytes.
        fixed: bytes that any number of samples takes.
        each: bytes that each takes.

    Raises:
        MemoryError: if not one does.
    """
    fitting = int((_SHARE * free - fixed) // each)
    if fitting < 1:
        raise MemoryError(
            f"one picture of a step needs {(fixed + each) / _GIB:.1f} GiB, but only {_SHARE * free / _GIB:.1f} GiB are "
            "to spare; take a smaller network or smaller pictures, or free some memory"
        )
    return min(count, fitting)


def free_bytes(device: torch.device) -> int:
    """What may still be used: of the GPU, or of the machine and the group of processes that this one is in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_free_of_machine(Path("/proc/meminfo")), _free_of_group(Path("/sys/fs/cgroup")))


def _free_of_machine(table: Path) -> int:
    if not table.exists():  # no Linux: say half of what most machines have
        return 4 * _GIB
    rows = (line.split() for line in table.read_text("utf-8").splitlines())
    return next((1024 * int(row[1]) for row in rows if row[0] == "MemAvailable:"), 4 * _GIB)


def _free_of_group(group: Path) -> int:
    most, used = group / "memory.max", group / "memory.current"
    if not most.exists() or not used.exists() or most.read_text("utf-8").strip() == "max":
        return 2**63
    return max(int(most.read_text("utf-8")) - int(used.read_text("utf-8")), 0)
