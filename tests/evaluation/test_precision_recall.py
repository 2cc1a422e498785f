"""Precision and recall against their definition by loops and sets whose answer is known; the class score's two ends."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unstir.evaluation import precision_recall as module
from unstir.evaluation.precision_recall import class_score, precision_recall


def draws(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(of: Tensor, manifold: Tensor, k: int) -> float:
    """Kynkäänniemi et al. 2019, Eqs. 1 and 2, by loops."""

    def is_covered(point: Tensor) -> bool:
        for i, centre in enumerate(manifold):
            others = sorted(math.dist(centre, other) for j, other in enumerate(manifold) if j != i)
            if math.dist(point, centre) <= others[k - 1]:
                return True
        return False

    return sum(map(is_covered, of)) / len(of)


@given(seed=st.integers(0, 10**6), real=st.integers(4, 12), fake=st.integers(4, 12), k=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_both_are_their_definition(seed: int, real: int, fake: int, k: int) -> None:
    x, y = draws(real, 3, seed), draws(fake, 3, seed + 1) + 0.5
    found = precision_recall(x, y, k)
    assert found.precision == pytest.approx(by_definition(y, x, k))
    assert found.recall == pytest.approx(by_definition(x, y, k))


def test_the_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draws(50, 4, 0), draws(61, 4, 1) + 0.8
    whole = precision_recall(x, y)
    assert 0 < whole.precision < 1
    assert 0 < whole.recall < 1
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert precision_recall(x, y) == whole


def test_a_set_covers_itself_even_where_vectors_repeat() -> None:
    """Where more than k vectors are equal the balls have no size, and hold just their centre."""
    x = 1e3 + torch.cat([draws(20, 5, 0), draws(1, 5, 1).expand(6, 5)])
    found = precision_recall(x, x.clone())
    assert (found.precision, found.recall) == (1, 1)
    assert (found.precision_error, found.recall_error) == (0, 0)


def test_what_is_close_far_from_the_origin_is_still_told_apart() -> None:
    """Squares of numbers near a million lose what is less than a thousandth; differences do not."""
    centre = 1e6 + draws(1, 30, 0)
    found = precision_recall(centre.expand(40, 30), centre + 1e-4 * draws(40, 30, 1))
    assert found.precision == 0


def test_sets_far_apart_cover_nothing_of_each_other() -> None:
    found = precision_recall(draws(30, 2, 0), draws(30, 2, 1) + 1000)
    assert (found.precision, found.recall) == (0, 0)


@pytest.mark.parametrize("modes", [1, 2, 3])
def test_some_of_four_modes_are_all_precise_and_recall_their_share(modes: int) -> None:
    """Real: four far clusters of ten. Fake: the same vectors of some of the clusters."""
    clusters = [draws(10, 2, i) + 1000 * i for i in range(4)]
    found = precision_recall(torch.cat(clusters), torch.cat(clusters[:modes]))
    assert found.precision == 1
    assert found.recall == modes / 4
    assert found.recall_error == pytest.approx(math.sqrt(modes / 4 * (1 - modes / 4) / 40))


def test_inventions_cost_precision_alone() -> None:
    real = torch.cat([draws(10, 2, 0), draws(10, 2, 1) + 1000])
    fake = torch.cat([real, draws(20, 2, 2) - 5000])
    found = precision_recall(real, fake)
    assert (found.precision, found.recall) == (0.5, 1)


def test_a_ball_is_as_large_as_the_kth_neighbour_is_far() -> None:
    """On a line at 0, 1, 3: with k = 1 the ball around 3 ends at 1, with k = 2 that around 0 ends at -3."""
    real = torch.tensor([[0.0], [1.0], [3.0]])
    points = torch.tensor([[-3.0], [-1.0], [5.0], [6.01]])
    assert precision_recall(real, points, k=1).precision == 2 / 4
    assert precision_recall(real, points, k=2).precision == 3 / 4


@pytest.mark.parametrize(
    ("real", "fake", "k", "message"),
    [
        ((5, 2), (5, 3), 3, "same features, got 2 and 3"),
        ((3, 2), (9, 2), 3, "more than k vectors in both sets, got 3 and 9"),
        ((9, 2), (3, 2), 3, "got 9 and 3"),
        ((9, 2), (9, 2), 0, "k of at least 1"),
    ],
)
def test_sets_that_have_no_answer_are_refused(
    real: tuple[int, int], fake: tuple[int, int], k: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        precision_recall(torch.zeros(real), torch.zeros(fake), k)


@pytest.mark.parametrize("bad", [0, 1])
def test_numbers_that_are_none_are_refused(bad: int) -> None:
    sets = [draws(5, 2, 0), draws(5, 2, 1)]
    sets[bad][2, 1] = math.nan
    with pytest.raises(ValueError, match="finite"):
        precision_recall(*sets)


def test_the_score_of_who_is_sure_is_the_number_of_classes() -> None:
    sure = torch.eye(4).repeat(3, 1).log()
    assert class_score(sure) == pytest.approx(4)


def test_the_score_of_who_always_says_the_same_is_one() -> None:
    same = torch.tensor([[0.1, 0.2, 0.7]]).log().expand(5, 3)
    assert class_score(same) == pytest.approx(1, abs=1e-6)
    assert class_score(torch.eye(4)[:1].expand(9, 4).log()) == pytest.approx(1)


def test_the_score_is_its_definition() -> None:
    p = draws(7, 5, 0).softmax(1)
    mean = p.mean(0)
    expected = math.exp(sum(float((row * (row / mean).log()).sum()) for row in p) / 7)
    assert class_score(p.log()) == pytest.approx(expected)


def test_the_score_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        class_score(torch.zeros(0, 3))
