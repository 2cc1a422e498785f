"""The order in which an epoch goes through more rows than anybody wants to shuffle at once.

Knows: groups of rows that lie together on a disk, and which showing of an epoch is which row of which group.
Does not know: what the rows are, where they lie, how they are read.

Groups are permuted and laid end to end, and the rows within each are permuted. The result is cut into lanes of one
length, and samples are dealt from the lanes in turn: each lane has one group open, so that what follows each other is
from as many groups as there are lanes, and no more are open at once. The permutations are functions of (seed, epoch,
group): what is kept is a few numbers a group, and any place is reached at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Int32, Int64

from unstir.data.recent import Recent
from unstir.diffusion.noise import KeyedNoise

ORDER = -1
"""Sub-key of orders of epochs: it stands where the index of a sample does, which is never negative."""

MOST_LANES = 64
"""More groups than these are never open at once."""

_ROWS: Recent[Int32[np.ndarray, "rows"]] = Recent()


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupOrder:
    """Orders of epochs over groups of rows.

    Args:
        sizes: rows of each group, as often as an epoch shows them; some may be 0.
        lanes: number of places that an epoch goes on from in turn, 1 to 64.

    Raises:
        ValueError: if a size is negative, or the number of lanes is another.
    """

    sizes: Int64[np.ndarray, "groups"]
    lanes: int

    def __post_init__(self) -> None:
        """Refuse what no epoch can go through."""
        if not 1 <= self.lanes <= MOST_LANES or (len(self.sizes) and int(self.sizes.min()) < 0):
            raise ValueError(f"an order needs 1 to {MOST_LANES} lanes and no negative sizes, got {self.lanes} lanes")

    @cached_property
    def total(self) -> int:
        """Rows of an epoch."""
        return int(self.sizes.sum())

    @cached_property
    def most_bytes(self) -> int:
        """What the permutations of open groups take: one a lane, and two more where lanes go on to the next."""
        return 4 * (self.lanes + 2) * int(self.sizes.max(initial=0))

    def places(self, seed: int, index: Sequence[int]) -> list[tuple[int, int]]:
        """Which row the samples ``index`` of a run are: (group, number within it), each in 0, 1, ..., size - 1.

        Every epoch of ``total`` consecutive samples has every row of every group once.
        """
        return [self._place(seed, *divmod(i, self.total)) for i in index]

    def _place(self, seed: int, epoch: int, position: int) -> tuple[int, int]:
        turn, lane = divmod(position, self.lanes)
        length, longer = divmod(self.total, self.lanes)  # the first few lanes have one row more
        place = lane * length + min(lane, longer) + turn
        order, ends = _order_of_groups(self, seed, epoch)
        slot = int(np.searchsorted(ends, place, side="right"))
        group = int(order[slot])
        number = place - int(ends[slot]) + int(self.sizes[group])
        return group, int(_order_of_rows(self, seed, epoch, group)[number])


def shuffled(count: int, *key: int) -> Int64[np.ndarray, "count"]:
    """A permutation of 0, 1, ..., count - 1 that is a function of the key."""
    draws = KeyedNoise(keys=(key,)).uniform(torch.zeros(1, count, dtype=torch.float64))
    return draws[0].argsort(stable=True).numpy()


@lru_cache(maxsize=2)
def _order_of_groups(
    order: GroupOrder, seed: int, epoch: int
) -> tuple[Int64[np.ndarray, "groups"], Int64[np.ndarray, "groups"]]:
    """The groups in their order, and the place where each of them ends."""
    groups = shuffled(len(order.sizes), seed, ORDER, epoch)
    return groups, np.cumsum(order.sizes[groups])


def _order_of_rows(order: GroupOrder, seed: int, epoch: int, group: int) -> Int32[np.ndarray, "rows"]:
    def load() -> tuple[Int32[np.ndarray, "rows"], int]:
        rows = shuffled(int(order.sizes[group]), seed, ORDER, epoch, group).astype(np.int32)
        return rows, rows.nbytes

    return _ROWS.get((order, seed, epoch, group), load, most_bytes=order.most_bytes)
