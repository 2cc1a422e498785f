"""Who is in the next network call."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unstir.server.turns import DRAFT, PATIENCE, Waiting, length_of, next_call


def waits(
    key: int, *, length: int = 2, rows: int = 2, kind: str = "a", passed: int = 0, order: int | None = None
) -> Waiting:
    return Waiting(
        key=key, kind=kind, length=length, order=(key if order is None else order, 0), rows=rows, passed=passed
    )


def keys(chosen: list[Waiting]) -> list[int]:
    return [each.key for each in chosen]


def test_equals_are_taken_in_order_of_arrival_until_the_call_is_full() -> None:
    assert keys(next_call([waits(key) for key in (4, 2, 9, 1, 3)], most=6)) == [1, 2, 3]


def test_long_work_has_at_most_as_much_of_a_call_as_short_work() -> None:
    long = [waits(key, length=5) for key in range(10)]
    assert keys(next_call([*long, waits(20, length=2)], most=32)) == [20, 0]
    assert keys(next_call([*long, waits(20), waits(21), waits(22)], most=32)) == [20, 21, 22, 0, 1, 2]
    assert keys(next_call(long, most=32)) == list(range(10))


def test_a_draft_goes_first() -> None:
    assert keys(next_call([waits(1), waits(2, length=DRAFT)], most=2)) == [2]


def test_kinds_do_not_mix() -> None:
    assert keys(next_call([waits(1, kind="a"), waits(2, kind="b"), waits(3, kind="a")], most=8)) == [1, 3]


def test_one_that_is_too_large_is_alone_and_one_that_does_not_fit_is_left_out() -> None:
    assert keys(next_call([waits(1, rows=40), waits(2)], most=32)) == [1]
    assert keys(next_call([waits(1, rows=4), waits(2, rows=4), waits(3, rows=2)], most=6)) == [1, 3]


def test_nobody_waits_for_ever() -> None:
    """Short work that never ends to come, of another kind: the long one has its turn all the same."""
    passed, turns = 0, []
    for turn in range(200):
        chosen = keys(next_call([waits(turn + 10, length=1, kind="b"), waits(1, length=9, passed=passed)], most=8))
        passed = 0 if 1 in chosen else passed + 1
        turns += [turn] if 1 in chosen else []
    assert turns[0] == PATIENCE
    assert len(turns) == 200 // (PATIENCE + 1)


def test_lengths_are_powers_of_four() -> None:
    assert [length_of(work) for work in (0.5, 1, 3.9, 4, 15, 16, 64, 256, 1024)] == [0, 0, 0, 1, 1, 2, 3, 4, 5]


waiting = st.builds(
    Waiting,
    key=st.integers(0, 10**6),
    kind=st.sampled_from("ab"),
    length=st.integers(-1, 4),
    order=st.tuples(st.integers(0, 50), st.integers(0, 3)),
    rows=st.integers(1, 9),
    passed=st.integers(0, 2 * PATIENCE),
)


@given(st.lists(waiting, min_size=1, max_size=20, unique_by=lambda each: each.key), st.integers(1, 40))
def test_a_call_is_of_one_kind_fits_and_names_nobody_twice(them: list[Waiting], most: int) -> None:
    chosen = next_call(them, most)
    assert len({each.key for each in chosen}) == len(chosen) >= 1
    assert len({each.kind for each in chosen}) == 1
    assert len(chosen) == 1 or sum(each.rows for each in chosen) <= most
    shortest = chosen[0].length
    own = sum(each.rows for each in chosen if each.length <= shortest)
    assert sum(each.rows for each in chosen if each.length > shortest) <= own
