"""An epoch over groups shows every row once, in an order that is a function of (seed, index) and stays local."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unstir.data.order import GroupOrder, shuffled


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    lanes=st.integers(1, 64),
    epoch=st.integers(0, 3),
)
def test_every_epoch_shows_every_row_once(sizes: list[int], lanes: int, epoch: int) -> None:
    order = GroupOrder(sizes=np.array(sizes), lanes=lanes)
    total = sum(sizes)
    places = order.places(5, range(epoch * total, (epoch + 1) * total))
    assert sorted(places) == [(group, row) for group, size in enumerate(sizes) for row in range(size)]


def test_seeds_and_epochs_differ_and_slices_are_the_whole() -> None:
    order = GroupOrder(sizes=np.full(30, 10), lanes=8)
    whole = order.places(1, range(600))
    assert whole[:300] != whole[300:]
    assert whole != order.places(2, range(600))
    again = GroupOrder(sizes=np.full(30, 10), lanes=8)
    assert [
        place for start in range(0, 600, 7) for place in again.places(1, range(start, min(start + 7, 600)))
    ] == whole


def test_few_groups_are_open_at_once_and_all_of_them_are_mixed() -> None:
    """Of 100 groups, what follows each other is from about 8; while a group is open nothing of it is read twice."""
    order = GroupOrder(sizes=np.full(100, 50), lanes=8)
    groups = [group for group, _ in order.places(3, range(5000))]
    near = [len(set(groups[start : start + 64])) for start in range(0, 4900, 64)]
    assert max(near) <= 16 + 1  # each lane's group, and the one after it
    assert min(near) >= 8
    loads, open_groups = 0, list[int]()
    for group in groups:
        loads += group not in open_groups
        open_groups = [group, *(one for one in open_groups if one != group)][:10]
    assert loads <= 100 + 8  # a group on the border of two lanes is opened twice


def test_the_order_within_a_group_is_uniform() -> None:
    first = [GroupOrder(sizes=np.array([4]), lanes=1).places(seed, [0])[0][1] for seed in range(800)]
    assert sum((first.count(i) - 200) ** 2 / 200 for i in range(4)) < 16.27  # chi-square, 3 degrees, 0.999


def test_a_billion_rows_cost_no_more_than_their_groups() -> None:
    order = GroupOrder(sizes=np.full(1000, 10**6), lanes=4)
    places = order.places(0, [10**9 * 7 + 123_456_789, 5])
    assert places == order.places(0, [10**9 * 7 + 123_456_789, 5])
    assert all(0 <= group < 1000 and 0 <= row < 10**6 for group, row in places)


def test_a_permutation_of_its_key() -> None:
    assert sorted(shuffled(20, 1, 2).tolist()) == list(range(20))
    assert shuffled(20, 1, 2).tolist() != shuffled(20, 1, 3).tolist()


@pytest.mark.parametrize(("sizes", "lanes"), [([1], 0), ([1], 65), ([2, -1], 1)])
def test_no_lanes_and_negative_sizes_are_refused(sizes: list[int], lanes: int) -> None:
    with pytest.raises(ValueError, match="an order needs"):
        GroupOrder(sizes=np.array(sizes), lanes=lanes)
