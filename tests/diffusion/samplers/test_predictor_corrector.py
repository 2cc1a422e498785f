"""Predictor and corrector: the corrector's step by hand, what it makes good, and what it must not see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from unstir.diffusion.noise import BlockNoise, KeyedNoise
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import DDIM, SAMPLERS, Ancestral, DPMSolverMultistep, PredictorCorrector
from unstir.diffusion.schedule import Cosine
from unstir.verify.oracles import GaussianOracle, GivenNoise

ORACLE = GaussianOracle(mean=torch.tensor(0.5), variance=torch.tensor(0.25))


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_a_correction_is_the_papers(process: GaussianProcess) -> None:
    """x + e score + sqrt(2 e) z with e = 2 (r |z|/|score|)^2 of each row, score the gradient of log q(x_s) (Algorithm
    4).
    """
    t, s = (process.schedule.at(scalar(value)) for value in (0.7, 0.4))
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).view(2, 2, 3)
    z = torch.linspace(1.1, -0.7, 12, dtype=torch.float64).view(2, 2, 3)
    noise, sampler = GivenNoise(value=z), PredictorCorrector(predictor=DDIM(), corrections=2, ratio=0.1)
    expected = DDIM().step(ORACLE, process, x, t, s, None, noise)[0]
    for _ in range(2):
        variance = s.alpha**2 * 0.25 + s.sigma**2
        score = -(expected - s.alpha * 0.5) / variance
        rows = []
        for row, gradient, drawn in zip(expected, score, z, strict=True):
            length = min(2 * (0.1 * drawn.norm() / gradient.norm()).item() ** 2, s.sigma.item() ** 2)
            rows.append(row + length * gradient + math.sqrt(2 * length) * drawn)
        expected = torch.stack(rows)
    got = sampler.step(ORACLE, process, x, t, s, None, noise)[0]
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_without_corrections_it_is_the_predictor(process: GaussianProcess) -> None:
    """corrections = 0 is the predictor with the noise of a sub-key, its memory and its order."""
    t, s = (process.schedule.at(scalar(value)) for value in (0.7, 0.4))
    x, noise = torch.ones(2, 3, dtype=torch.float64), KeyedNoise.from_seeds([1, 2])
    inner: DPMSolverMultistep = DPMSolverMultistep()
    sampler = PredictorCorrector(predictor=inner, corrections=0)
    got, memory = sampler.step(ORACLE, process, x, t, s, sampler.start(), noise)
    expected, known = inner.step(ORACLE, process, x, t, s, inner.start(), noise.at(0))
    assert torch.equal(got, expected)
    assert len(memory) == len(known)
    assert (sampler.order, PredictorCorrector(predictor=inner).order) == (inner.order, 0)


@dataclass(frozen=True, kw_only=True)
class Watching(Ancestral):
    """Notes the noise that it is given."""

    seen: list[Any]

    def step(self, *arguments: Any, **named: Any) -> Any:
        self.seen.append(arguments[-1])
        return super().step(*arguments, **named)


def test_predictor_and_corrections_draw_independently() -> None:
    """No two of them are given the same numbers: the sum of three steps' noises has no part twice."""
    process, noise = GaussianProcess(schedule=Cosine()), KeyedNoise.from_seeds([1])
    t, s = (process.schedule.at(scalar(value)) for value in (0.7, 0.4))
    watching = Watching(seen=[])
    like = torch.zeros(1, 4)
    PredictorCorrector(predictor=watching, corrections=2).step(ORACLE, process, like, t, s, None, noise)
    drawn = [each.normal(like) for each in (*watching.seen, noise.at(1), noise.at(2))]
    assert len({tuple(each[0].tolist()) for each in drawn}) == 3


def test_the_corrector_brings_the_law_nearer() -> None:
    """Few long DDIM steps leave too little spread; corrections at the last level bring the variance of 64 000 numbers
    nearer to the truth, by far more than 4 standard errors, and the mean no further away.
    """
    process, count, sites = GaussianProcess(schedule=Cosine()), 1000, 64
    times = (1.0, 0.8, 0.5)
    levels = process.schedule.at(torch.tensor(times, dtype=torch.float64))
    true = (levels.alpha[-1] ** 2 * 0.25 + levels.sigma[-1] ** 2).item()
    noise = BlockNoise(key=(3,), count=count)
    error = math.sqrt(2 / (count * sites)) * true

    def off(sampler: Any) -> float:
        x = process.prior(torch.zeros(count, sites, dtype=torch.float64)).sample(noise.at(99))
        memory = sampler.start()
        for i in range(len(times) - 1):
            x, memory = sampler.step(ORACLE, process, x, levels[i], levels[i + 1], memory, noise.at(i))
        assert x.mean().item() == pytest.approx(0.5 * levels.alpha[-1].item(), abs=0.03)
        return abs(x.var().item() - true)

    alone, corrected = off(DDIM()), off(PredictorCorrector(predictor=DDIM(), corrections=8))
    assert alone > 10 * error
    assert corrected < alone / 2 - 4 * error
    ancestral = off(Ancestral())
    assert off(SAMPLERS["predictor_corrector"]()) < ancestral - 4 * error


def test_the_corrector_does_not_see_its_neighbours() -> None:
    """A sample's step length is its own: the same alone and in a batch with a huge neighbour."""
    process = GaussianProcess(schedule=Cosine())
    t, s = (process.schedule.at(scalar(value)) for value in (0.7, 0.4))
    sampler, noise = PredictorCorrector(predictor=Ancestral()), KeyedNoise.from_seeds([1, 2])
    x = torch.tensor([[0.3, -0.4], [300.0, -500.0]], dtype=torch.float64)
    both = sampler.step(ORACLE, process, x, t, s, None, noise)[0]
    alone = sampler.step(ORACLE, process, x[:1], t, s, None, noise.rows(slice(0, 1)))[0]
    assert torch.equal(both[:1], alone)


def test_a_vanishing_score_is_no_infinite_step() -> None:
    """Where the score is 0 the step is as long as sigma^2, not infinitely long."""
    process = GaussianProcess(schedule=Cosine())
    s = process.schedule.at(scalar(0.4))
    x = (s.alpha * 0.5).view(1, 1)

    @dataclass(frozen=True, kw_only=True)
    class Stays(Ancestral):
        def step(self, *arguments: Any, **named: Any) -> Any:
            return arguments[2], None

    got = PredictorCorrector(predictor=Stays()).step(ORACLE, process, x, s, s, None, GivenNoise(value=scalar(1.0)))[0]
    torch.testing.assert_close(got, x + math.sqrt(2) * s.sigma, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("corrections", "ratio"), [(-1, 0.1), (1, 0.0), (1, -1.0), (1, math.nan), (1, math.inf)])
def test_refuses_steps_that_are_none(corrections: int, ratio: float) -> None:
    """ValueError for a negative number of corrections, or a ratio that is not positive and finite."""
    with pytest.raises(ValueError, match="corrector"):
        PredictorCorrector(predictor=Ancestral(), corrections=corrections, ratio=ratio)
