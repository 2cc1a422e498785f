"""Keyed randomness: same key same bits, other key independent, laws as promised."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.noise import BlockNoise, KeyedNoise, OffsetNoise, StepNoise
from unstir.typing import Noise
from unstir.verify.oracles import GivenNoise, kolmogorov

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


# Blocks.


@KINDS
@given(KEYS, st.integers(1, 30), st.data())
def test_a_row_of_a_block_does_not_depend_on_the_others(
    kind: str, key: list[int], count: int, data: st.DataObject
) -> None:
    """Rows i to j of a block are those of any longer block, and of the block that ``rows`` chooses."""
    block = BlockNoise(key=tuple(key), count=count)
    drawn = getattr(block, kind)(torch.zeros(count, 2, 3))
    i = data.draw(st.integers(0, count))
    j = data.draw(st.integers(i, count))
    part = block.rows(slice(i, j))
    assert list(part.keys) == list(range(i, j))
    assert torch.equal(getattr(part, kind)(torch.zeros(j - i, 2, 3)), drawn[i:j])
    longer = BlockNoise(key=tuple(key), count=count + 5)
    assert torch.equal(getattr(longer, kind)(torch.zeros(count + 5, 2, 3))[:count], drawn)
    again = part.rows(slice(None, 1))
    assert torch.equal(getattr(again, kind)(torch.zeros(len(again.keys), 2, 3)), drawn[i:j][:1])


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_block_has_no_state(kind: str, dtype: torch.dtype) -> None:
    """Asking twice gives the same numbers, of the shape and type asked for (C20)."""
    like, block = torch.zeros(3, 4, dtype=dtype), BlockNoise(key=(7, 1), count=3)
    first = getattr(block, kind)(like)
    assert (first.shape, first.dtype) == (like.shape, dtype)
    assert torch.equal(first, getattr(block, kind)(like))
    assert torch.equal(first, getattr(BlockNoise(key=(7,), count=3).at(1), kind)(like))


def test_blocks_and_their_sub_keys_are_independent() -> None:
    """Other keys, other sub-keys and other rows are uncorrelated (4 standard errors) and nowhere equal."""
    root = BlockNoise(key=(1,), count=1)
    blocks = [
        root,
        root.at(0),
        root.at(1),
        root.at(0, 0),
        BlockNoise(key=(2,), count=1),
        BlockNoise(key=(12,), count=1),
    ]
    drawn = [block.normal(torch.zeros(1, 20_000, dtype=torch.float64)) for block in blocks]
    drawn.append(BlockNoise(key=(1,), count=2).normal(torch.zeros(2, 20_000, dtype=torch.float64))[1:])
    correlation = numpy.corrcoef(torch.cat(drawn).numpy())
    assert numpy.abs(correlation[~numpy.eye(len(drawn), dtype=bool)]).max() < 4 / math.sqrt(20_000)
    assert all(not bool((a == b).any()) for i, a in enumerate(drawn) for b in drawn[:i])


@given(KEYS, st.integers(0, 9), st.integers(0, 6))
def test_rows_and_at_of_a_block_commute(key: list[int], sub: int, start: int) -> None:
    """``rows`` picks rows, ``at`` appends to the key, in either order; at(1).at(2) = at(1, 2)."""
    block = BlockNoise(key=tuple(key), count=6)
    assert block.rows(slice(start, None)).at(sub) == block.at(sub).rows(slice(start, None))
    assert block.at(sub).at(3) == block.at(sub, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_have_the_laws_they_promise(dtype: torch.dtype) -> None:
    """Uniform in [0, 1) and standard normal, by Kolmogorov's test."""
    block, like = BlockNoise(key=(3,), count=200), torch.zeros(200, 100, dtype=dtype)
    u = block.at(0).uniform(like)
    assert u.min().item() >= 0
    assert u.max().item() < 1
    assert kolmogorov(u) < LIMIT
    assert kolmogorov(torch.special.ndtr(block.at(1).normal(like).double())) < LIMIT
    coarse = block.uniform(torch.zeros(200, 100, dtype=torch.bfloat16))
    assert coarse.max().item() < 1


@KINDS
def test_a_block_is_for_its_own_rows(kind: str) -> None:
    """ValueError where rows and samples differ in number, and for rows that are not consecutive."""
    block = BlockNoise(key=(1,), count=4)
    with pytest.raises(ValueError, match="for 4 samples, but the batch has 3"):
        getattr(block, kind)(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="consecutive"):
        block.rows(slice(0, 4, 2))


# Offsets.


@pytest.mark.parametrize("strength", [0.0, 0.1, 1.5])
def test_offset_noise_has_its_variances(strength: float) -> None:
    """Of variance 1 + strength^2 in every element, covariance strength^2 within a channel, 0 across channels and
    samples (Guttenberg 2023); 4 standard errors.
    """
    count = 4000
    noise = OffsetNoise(base=KeyedNoise.from_seeds(range(count)), strength=strength)
    drawn = noise.normal(torch.zeros(count, 2, 3, dtype=torch.float64)).flatten(1)
    covariance = torch.cov(drawn.T)
    expected = torch.eye(6, dtype=torch.float64)
    for channel in (slice(0, 3), slice(3, 6)):
        expected[channel, channel] += strength**2
    error = 4 * math.sqrt(2 / count) * (1 + strength**2)
    torch.testing.assert_close(covariance, expected, rtol=0, atol=error)
    assert drawn.mean(0).abs().max().item() < 4 * math.sqrt((1 + strength**2) / count)
    lagged = (drawn[1:, 0] * drawn[:-1, 0]).mean().item()
    assert abs(lagged) < 4 * (1 + strength**2) / math.sqrt(count)


@pytest.mark.parametrize("shape", [(3,), (3, 5)])
def test_numbers_without_sites_are_not_shifted(shape: tuple[int, ...]) -> None:
    """Nothing to spoil as a whole: the base's own numbers; ``uniform`` is the base's always."""
    base = KeyedNoise.from_seeds([1, 2, 3])
    noise = OffsetNoise(base=base, strength=3.0)
    like = torch.zeros(shape)
    assert torch.equal(noise.normal(like), base.normal(like))
    pictures = torch.zeros(3, 2, 4, 4)
    assert torch.equal(noise.uniform(pictures), base.uniform(pictures))
    assert not torch.equal(noise.normal(pictures), base.normal(pictures))


@pytest.mark.parametrize("shape", [(3, 2, 4), (3, 2, 4, 5), (3, 2, 4, 5, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_channel_is_shifted_as_a_whole(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The shift is one number a channel and a sample, whatever the sites, independent of the base's numbers."""
    base: Noise = KeyedNoise.from_seeds([1, 2, 3])
    like = torch.zeros(shape, dtype=dtype)
    drawn = OffsetNoise(base=base, strength=0.5).normal(like)
    assert (drawn.shape, drawn.dtype) == (like.shape, dtype)
    shift = (drawn - base.normal(like)).flatten(2)
    torch.testing.assert_close(shift, shift[..., :1].expand_as(shift), rtol=0, atol=1e-6)
    assert len(set(shift[..., 0].flatten().tolist())) == 6
    ones = OffsetNoise(base=GivenNoise(value=torch.ones(())), strength=0.5)
    torch.testing.assert_close(ones.normal(like), torch.full_like(like, 1.5))


def test_offsets_of_rows_and_sub_keys() -> None:
    """``rows`` and ``at`` reach through to the base: a row's shift is its key's alone."""
    noise = OffsetNoise(base=KeyedNoise.from_seeds([4, 5, 6]), strength=0.7)
    like = torch.zeros(3, 2, 4)
    assert torch.equal(noise.rows(slice(1, 2)).normal(like[1:2]), noise.normal(like)[1:2])
    assert noise.at(3) == OffsetNoise(base=noise.base.at(3), strength=0.7)
    assert noise.at(3).rows(slice(0, 2)) == noise.rows(slice(0, 2)).at(3)


# Brownian paths.

TIMES = st.floats(0, 1)


@given(st.sampled_from(["keyed", "block", "offset"]), TIMES, TIMES, TIMES)
def test_increments_of_a_path_add_up(kind: str, s: float, u: float, t: float) -> None:
    """W(s -> u) + W(u -> t) = W(s -> t), and there and back is nothing, whatever the order of times."""
    keyed = KeyedNoise.from_seeds([1, 2])
    noise = {"keyed": keyed, "block": BlockNoise(key=(3,), count=2), "offset": OffsetNoise(base=keyed)}[kind]
    like = torch.zeros(2, 3, 4, dtype=torch.float64)
    parts = noise.brownian(s, u, like) + noise.brownian(u, t, like)
    torch.testing.assert_close(parts, noise.brownian(s, t, like), rtol=0, atol=1e-13)
    assert torch.equal(noise.brownian(s, t, like), -noise.brownian(t, s, like))


GRIDS = {
    "whole": (0.0, 1.0),
    "uneven": (0.0, 0.1, 0.15, 0.7, 0.93, 1.0),
    "dyadic": (0.0, 0.25, 0.5, 1.0),
    "short": (0.3, 0.3 + 1e-6, 0.3 + 3e-6, 0.3001),
    "near the data": (0.0, 2e-7, 1e-6, 1e-5, 1e-3),
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("seed", [5, 6])
def test_increments_are_independent_with_the_variance_of_their_length(grid: tuple[float, ...], seed: int) -> None:
    """In units of sqrt(t - s), increments are standard normal numbers (Kolmogorov), of variance 1 and uncorrelated (4.5
    standard errors), down to steps of a few times the resolution.
    """
    count = 10_000
    like, noise = torch.zeros(1, count, dtype=torch.float64), KeyedNoise.from_seeds([seed])
    steps = [noise.brownian(s, t, like)[0] / math.sqrt(t - s) for s, t in pairwise(grid)]
    for z in steps:
        assert z.square().mean().item() == pytest.approx(1, abs=4.5 * math.sqrt(2 / count))
        assert kolmogorov(torch.special.ndtr(z)) < LIMIT
    if len(steps) > 1:
        correlation = numpy.corrcoef(torch.stack(steps).numpy())
        assert numpy.abs(correlation[~numpy.eye(len(steps), dtype=bool)]).max() < 4.5 / math.sqrt(count)


def test_every_grid_sees_the_same_path() -> None:
    """W at a time is the same number whether it is reached in one step, in 7 or in 64, in float32 to its rounding."""
    noise, like = KeyedNoise.from_seeds([1, 2]), torch.zeros(2, 5)
    whole = noise.brownian(0.1, 0.8, like)
    for count in (7, 64):
        times = [0.1 + 0.7 * i / count for i in range(count)] + [0.8]
        steps = sum(noise.brownian(s, t, like) for s, t in pairwise(times))
        torch.testing.assert_close(steps, whole, rtol=0, atol=count * 2e-7)


@given(KEYS, st.data())
def test_a_path_depends_on_its_key_alone(seeds: list[int], data: st.DataObject) -> None:
    """Row i of any batch walks the path of key i; sub-keys, other keys and ``normal`` are independent of it."""
    i = data.draw(st.integers(0, len(seeds) - 1))
    noise, like = KeyedNoise.from_seeds(seeds), torch.zeros(len(seeds), 2, 3)
    batch, own = noise.brownian(0.2, 0.9, like), slice(i, i + 1)
    assert torch.equal(batch[own], noise.rows(own).brownian(0.2, 0.9, like[own]))
    assert torch.equal(batch, noise.brownian(0.2, 0.9, like))
    assert not torch.equal(batch, noise.at(0).brownian(0.2, 0.9, like))


def test_paths_of_a_block_are_those_of_its_rows() -> None:
    """Rows 2 and 3 of a block walk the same paths alone."""
    block, like = BlockNoise(key=(1,), count=5), torch.zeros(5, 3)
    assert torch.equal(block.brownian(0.1, 0.6, like)[2:4], block.rows(slice(2, 4)).brownian(0.1, 0.6, like[2:4]))


def test_a_path_is_no_other_noise() -> None:
    """Increments are uncorrelated with ``normal`` and with the paths of sub-keys (4 standard errors)."""
    count = 20_000
    like, noise = torch.zeros(1, count, dtype=torch.float64), KeyedNoise.from_seeds([9])
    drawn = [noise.brownian(0.0, 1.0, like), noise.normal(like), noise.at(1).brownian(0.0, 1.0, like)]
    correlation = numpy.corrcoef(torch.cat(drawn).numpy())
    assert numpy.abs(correlation[~numpy.eye(3, dtype=bool)]).max() < 4 / math.sqrt(count)


def test_offsets_walk_a_path_as_well() -> None:
    """An increment over t - s has the variance (1 + strength^2)(t - s), every channel shifted as a whole."""
    base, like = BlockNoise(key=(4,), count=2000), torch.zeros(2000, 1, 2, dtype=torch.float64)
    drawn = OffsetNoise(base=base, strength=0.7).brownian(0.2, 0.6, like)
    assert drawn.var().item() == pytest.approx(0.4 * 1.49, rel=4 * math.sqrt(2 / 2000))
    shift = (drawn - base.brownian(0.2, 0.6, like))[:, 0]
    torch.testing.assert_close(shift[:, 0], shift[:, 1])


@pytest.mark.parametrize(("s", "t"), [(-0.1, 0.5), (0.5, 1.1), (0.0, math.nan)])
def test_a_path_ends(s: float, t: float) -> None:
    """ValueError outside [0, 1]; and where keys and samples differ in number."""
    with pytest.raises(ValueError, match="from t = 0 to 1"):
        KeyedNoise.from_seeds([1]).brownian(s, t, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="1 keys"):
        KeyedNoise.from_seeds([1]).brownian(0.1, 0.2, torch.zeros(2, 2))


def test_given_noise_has_its_value_in_units_of_any_step() -> None:
    """(W(t) - W(s))/sqrt(t - s) is the value; backwards its negative."""
    noise, like = GivenNoise(value=torch.tensor(1.5)), torch.zeros(2, 3)
    torch.testing.assert_close(noise.brownian(0.2, 0.6, like) / math.sqrt(0.4), torch.full_like(like, 1.5))
    torch.testing.assert_close(noise.brownian(0.6, 0.2, like) / math.sqrt(0.4), torch.full_like(like, -1.5))


# Steps.


@given(KEYS, st.integers(0, 9), st.integers(0, 9))
def test_a_step_draws_its_own_numbers_and_walks_the_path_of_the_run(seeds: list[int], step: int, sub: int) -> None:
    """normal, uniform, at and rows are those of ``run.at(step)``; brownian is that of the run, for sub-keys too."""
    run, like = KeyedNoise.from_seeds(seeds), torch.zeros(len(seeds), 3)
    noise = StepNoise(run=run, key=(step,))
    assert torch.equal(noise.normal(like), run.at(step).normal(like))
    assert torch.equal(noise.uniform(like), run.at(step).uniform(like))
    assert torch.equal(noise.at(sub).normal(like), run.at(step, sub).normal(like))
    assert torch.equal(noise.brownian(0.1, 0.7, like), run.brownian(0.1, 0.7, like))
    assert torch.equal(noise.at(sub).brownian(0.1, 0.7, like), run.brownian(0.1, 0.7, like))
    first = noise.rows(slice(0, 1))
    assert torch.equal(first.normal(like[:1]), noise.normal(like)[:1])
    assert torch.equal(first.brownian(0.1, 0.7, like[:1]), run.brownian(0.1, 0.7, like)[:1])
