"""Speed-ups: which there are, and which are on.

Knows: a name for each, and that all are on unless somebody says otherwise.
Does not know: what they do; that is written where each is used.

Each is switched by one value that names it: ``UNSTIR_WITHOUT=plain_attention,joined_average unstir train ...`` runs
without two of them, ``with without("plain_attention"):`` in Python without one. What comes out differs by rounding only
(``bf16`` and ``dropout_masks`` excepted, whose entries say what changes); tests hold them to that.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

SPEEDUPS: dict[str, str] = {
    "bf16": "bf16 inside networks where the processor multiplies it natively, weights and results in float32; "
    "asked for by name (--precision bf16) it is on in any case",
    "plain_attention": "attention as two batched products where these beat the fused kernel: bf16 on a CPU",
    "routed_products": "float32 products through oneDNN where they are as exact there, and faster",
    "dropout_masks": "masks of dropout hashed from a seed of each sample, two to a word; off: torch's own, "
    "which no seed of a sample decides",
    "fused_optimizer": "one kernel for all moments and weights of the optimizer",
    "kept_memory": "freed memory stays with the process, instead of being cleared by the kernel for its next use; "
    "of the command line, from its first moment",
    "joined_average": "the average of the weights moved by one call for all of them",
    "compiled_networks": "training networks through torch.compile, with words of one length; CUDA only",
    "channels_last": "weights of convolutions laid out with their channels last, where a probe finds that faster; "
    "CUDA only",
    "pinned_prefetch": "the next batches and their noise prepared by threads, and copied from pinned memory; CUDA only",
    "resident_pictures": "all pictures kept on the device as bytes, where they take a quarter of what is free at most; "
    "not on a CPU",
    "replayed_graphs": "calls of a network that draws recorded as CUDA graphs, and replayed; CUDA only",
}
"""What each speed-up is, by its name."""

OF_PROCESS = ("kept_memory",)
"""Those that the whole process has: who is measured beside ours in one process does without."""

VARIABLE = "UNSTIR_WITHOUT"
"""What the command line reads names from."""

_off: set[str] = set()


def is_on(name: str) -> bool:
    """Whether a speed-up is on.

    Raises:
        KeyError: if there is none of this name: a mistake in the code.
    """
    SPEEDUPS[name]
    return name not in _off


@contextmanager
def without(*names: str) -> Generator[None]:
    """Some speed-ups off while this lasts.

    Raises:
        ValueError: if there is none of a name.
    """
    for name in names:
        if name not in SPEEDUPS:
            raise ValueError(f"no speed-up {name!r}; there are {', '.join(SPEEDUPS)}")
    off = set(names) - _off
    _off.update(off)
    try:
        yield
    finally:
        _off.difference_update(off)


def named(text: str) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(name for part in text.split(",") if (name := part.strip()))
