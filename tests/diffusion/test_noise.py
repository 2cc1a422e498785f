"""Keyed randomness: same key same bits, other key independent, laws as promised."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.noise import KeyedNoise
from unstir.verify.oracles import kolmogorov

KEYS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4)
KINDS = pytest.mark.parametrize("kind", ["normal", "uniform"])
LIMIT = 1.95  # 99.9 % quantile of Kolmogorov's statistic


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_same_key_same_bits(kind: str, dtype: torch.dtype) -> None:
    """Asking twice, or a second object with the same key, gives the same numbers: no state (C20)."""
    like = torch.zeros(2, 3, 5, dtype=dtype)
    noise = KeyedNoise.from_seeds([7, 8])
    first = getattr(noise, kind)(like)
    assert (first.shape, first.dtype) == (like.shape, dtype)
    assert torch.equal(first, getattr(noise, kind)(like))
    assert torch.equal(first, getattr(KeyedNoise.from_seeds([7, 8]), kind)(like))


@KINDS
@given(KEYS, st.data())
def test_a_row_depends_on_its_key_alone(kind: str, seeds: list[int], data: st.DataObject) -> None:
    """Row i of any batch is the row of a batch of one with key i: composition does not matter (C22, A1111#376)."""
    i = data.draw(st.integers(0, len(seeds) - 1))
    like = torch.zeros(len(seeds), 2, 3)
    batch = getattr(KeyedNoise.from_seeds(seeds), kind)(like)
    alone = getattr(KeyedNoise.from_seeds([seeds[i]]), kind)(like[:1])
    assert torch.equal(batch[i : i + 1], alone)


@given(KEYS, st.integers(0, 1000))
def test_rows_and_at_commute(seeds: list[int], key: int) -> None:
    """``rows`` picks keys, ``at`` appends to them, in either order; at(1).at(2) = at(1, 2)."""
    noise = KeyedNoise.from_seeds(seeds)
    assert noise.rows(slice(1, None)).at(key) == noise.at(key).rows(slice(1, None))
    assert noise.at(key).at(3) == noise.at(key, 3)
    assert noise.at(key) != noise


def test_sub_keys_are_independent_streams() -> None:
    """Different seeds and different sub-keys are uncorrelated (4 standard errors) and nowhere equal."""
    like = torch.zeros(1, 20_000, dtype=torch.float64)
    root = KeyedNoise.from_seeds([1])
    keys = [
        root,
        root.at(0),
        root.at(1),
        root.at(0, 0),
        KeyedNoise.from_seeds([2]),
        KeyedNoise.from_seeds([12]),
        root.at(-1),
    ]
    correlation = numpy.corrcoef(torch.cat([noise.normal(like) for noise in keys]).numpy())
    off_diagonal = correlation[~numpy.eye(len(keys), dtype=bool)]
    assert numpy.abs(off_diagonal).max() < 4 / math.sqrt(20_000)


def test_digits_of_a_key_do_not_run_together() -> None:
    """Keys (1, 23) and (12, 3) and (123,) are three keys."""
    like = torch.zeros(1, 4)
    drawn = {tuple(KeyedNoise(keys=(key,)).normal(like)[0].tolist()) for key in ((1, 23), (12, 3), (123,))}
    assert len(drawn) == 3


def test_neighbouring_keys_give_independent_first_numbers() -> None:
    """The first numbers of seeds 0..4999 are uniform, and uncorrelated from one seed to the next."""
    first = KeyedNoise.from_seeds(range(5000)).uniform(torch.zeros(5000, dtype=torch.float64))
    assert kolmogorov(first) < LIMIT
    lagged = numpy.corrcoef(first[:-1].numpy(), first[1:].numpy())[0, 1]
    assert abs(lagged) < 4 / math.sqrt(5000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers_are_uniform(dtype: torch.dtype) -> None:
    """In [0, 1), and uniform by Kolmogorov's test."""
    u = KeyedNoise.from_seeds([3, 4]).uniform(torch.zeros(2, 20_000, dtype=dtype))
    assert u.min().item() >= 0
    assert u.max().item() < 1
    assert kolmogorov(u) < LIMIT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_uniform_numbers_stay_below_one_in_coarse_types(dtype: torch.dtype) -> None:
    """[0, 1) is promised for every type: rounding must not reach 1."""
    assert KeyedNoise.from_seeds([3]).uniform(torch.zeros(1, 20_000, dtype=dtype)).max().item() < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_numbers_are_normal(dtype: torch.dtype) -> None:
    """Moments 0, 1, 0, 3 within 4 standard errors, and Kolmogorov's test of the whole law."""
    z = KeyedNoise.from_seeds([5, 6]).normal(torch.zeros(2, 20_000, dtype=dtype)).double()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (z**power).mean().item() == pytest.approx(moment, abs=4 * math.sqrt(variance / z.numel()))
    assert kolmogorov(torch.special.ndtr(z)) < LIMIT


def test_the_shape_of_a_sample_does_not_matter() -> None:
    """The numbers of a row are those of the flattened row."""
    noise = KeyedNoise.from_seeds([1, 2])
    assert torch.equal(noise.normal(torch.zeros(2, 3, 4)).flatten(1), noise.normal(torch.zeros(2, 12)))


@KINDS
def test_one_key_a_sample(kind: str) -> None:
    """ValueError where keys and samples differ in number."""
    with pytest.raises(ValueError, match="2 keys"):
        getattr(KeyedNoise.from_seeds([1, 2]), kind)(torch.zeros(3, 4))


def test_an_integer_is_its_value() -> None:
    """A seed from numpy is refused or is the same seed: never silently another picture."""
    like = torch.zeros(1, 4)
    try:
        drawn = KeyedNoise.from_seeds([numpy.int64(3)]).normal(like)
    except Exception as refusal:  # beartype's own, where types are executed
        if isinstance(refusal, TypeError | ValueError) or "Violation" in type(refusal).__name__:
            return
        raise
    assert torch.equal(drawn, KeyedNoise.from_seeds([3]).normal(like))
