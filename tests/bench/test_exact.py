"""Problems: laws as they are described, the same for a seed; the reference against flows known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from unstir.bench.exact import (
    CHAINS,
    COMPONENTS,
    DATA_RMS,
    FINEST,
    NARROWEST,
    TUNING,
    WIDEST,
    draw_mixture,
    draw_starts,
    flow,
    linear,
    pose,
    require_whole,
    rms_each,
    shape_of,
)
from unstir.diffusion.schedule import Tabulated
from unstir.verify.oracles import GaussianOracle, MixtureOracle
from unstir.verify.target import level_of

CLEAN = level_of(torch.tensor(1.0), torch.tensor(FINEST))


@pytest.mark.parametrize("chain", CHAINS)
def test_the_reference_of_a_gaussian_is_its_flow(chain: str) -> None:
    schedule = CHAINS[chain]()
    law = GaussianOracle(mean=torch.tensor([0.3, -0.2]).double(), variance=torch.tensor([0.2, 0.01]).double())
    x = draw_starts(2, 0, 5)
    level = schedule.at(torch.tensor(1.0, dtype=torch.float64))
    expected = law.flow(x, level, level_of(torch.tensor(1.0), torch.tensor(0.0)))
    torch.testing.assert_close(flow(law, schedule, x, 400), expected, rtol=0, atol=2e-6)


def test_the_reference_of_a_mixture_on_a_line_is_its_flow() -> None:
    law = MixtureOracle(
        means=torch.tensor([[-0.7], [0.1], [0.8]]).double(),
        variances=torch.tensor([0.01, 0.04, 0.02]).double(),
        weights=torch.tensor([0.3, 0.3, 0.4]).double(),
    )
    x, level = draw_starts(1, 0, 8), linear().at(torch.tensor(1.0, dtype=torch.float64))
    expected = law.flow(x, level, CLEAN)
    torch.testing.assert_close(flow(law, linear(), x, 500), expected, rtol=0, atol=1e-6)


def test_the_reference_is_of_fourth_order() -> None:
    law, x = draw_mixture(2, 0), draw_starts(2, 0, 8)
    best = flow(law, linear(), x, 800)
    coarse, fine = (rms_each(flow(law, linear(), x, steps) - best).median().item() for steps in (100, 200))
    assert 3.3 < math.log2(coarse / fine) < 5


@pytest.mark.parametrize("dimension", [1, 2, 16, 48, 3072])
def test_a_law_is_as_described(dimension: int) -> None:
    law = draw_mixture(dimension, 3)
    assert law.means.shape == (COMPONENTS, *shape_of(dimension))
    power = (law.weights * (rms_each(law.means).square() + law.variances)).sum()
    assert power.sqrt().item() == pytest.approx(DATA_RMS, rel=1e-12)
    std = law.variances.sqrt()
    assert NARROWEST <= std.min().item() < std.max().item() <= WIDEST
    assert torch.equal(law.means, draw_mixture(dimension, 3).means)
    assert not torch.equal(law.means, draw_mixture(dimension, 4).means)
    assert len({weight for weight in law.weights.tolist()}) == COMPONENTS


def test_starts_are_of_the_seed_and_their_place_alone() -> None:
    assert torch.equal(draw_starts(2, 0, 3), draw_starts(2, 0, 5)[:3])
    assert not torch.equal(draw_starts(2, 0, 3), draw_starts(2, 1, 3))
    assert not torch.equal(draw_starts(2, 0, 3), draw_starts(2, 0, 3, tuning=True))
    many = draw_starts(2, 0, 500)
    assert abs(many.mean().item()) < 0.15
    assert many.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("dimension", "shape"), [(1, (1,)), (2, (2,)), (3, (3,)), (12, (3, 2, 2)), (768, (3, 16, 16)), (3072, (3, 32, 32))]
)
def test_pictures_have_the_shape_of_pictures(dimension: int, shape: tuple[int, ...]) -> None:
    assert shape_of(dimension) == shape


def test_chains_are_those_of_diffusers() -> None:
    pytest.importorskip("diffusers")
    from diffusers import DDIMScheduler

    from unstir.bench import theirs

    assert list(theirs.CHAINS) == list(CHAINS)
    for name, chain in CHAINS.items():
        scheduler = DDIMScheduler(**theirs.CHAINS[name])
        table = torch.tensor(chain().table)
        torch.testing.assert_close(scheduler.alphas_cumprod, table.float(), rtol=2e-5, atol=1e-9)


def test_a_problem_tells_the_error_of_its_solution() -> None:
    told: list[tuple[int, int]] = []
    problem = pose(2, linear(), seed=0, starts=6, steps=120, advance=lambda done, total: told.append((done, total)))
    finer = flow(problem.law, linear(), problem.starts, 480)
    real = problem.errors(finer)
    assert 0 < real.square().mean().sqrt().item() < problem.reference_rms < problem.reference_worst < 1e-2
    assert problem.dimension == 2
    assert problem.steps == 120
    assert problem.tuning.shape == (TUNING, 2)
    assert not torch.equal(problem.tuning[:6], problem.starts)
    assert told == [(i + 1, 180) for i in range(180)]
    assert problem.errors(problem.ends).tolist() == [0.0] * 6
    assert problem.errors(problem.ends + 0.5).tolist() == pytest.approx([0.5] * 6)


@pytest.mark.parametrize(
    ("dimension", "starts", "steps", "words"), [(0, 1, 2, "dimensions"), (2, 0, 2, "starts"), (2, 1, 1, "reference")]
)
def test_what_is_no_problem_is_refused(dimension: int, starts: int, steps: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pose(dimension, linear(), seed=0, starts=starts, steps=steps)


def test_a_reference_needs_a_step() -> None:
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        flow(draw_mixture(2, 0), Tabulated(table=(0.5,)), draw_starts(2, 0, 1), 0)


def test_whole_numbers_are_told_with_their_span() -> None:
    require_whole("calls", [1, 5], 1, 5)
    with pytest.raises(ValueError, match="calls must be whole numbers from 1 to 5, got 1, 6"):
        require_whole("calls", [1, 6], 1, 5)
    with pytest.raises(ValueError, match="of at least 1, got none"):
        require_whole("calls", [], 1)
