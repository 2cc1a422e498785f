"""RePaint: the conditional law of what is painted, known pixels, and what is done how often."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import pytest
import torch

from unstir.diffusion.noise import BlockNoise, KeyedNoise
from unstir.diffusion.process import BinomialProcess, Estimate, GaussianProcess
from unstir.diffusion.samplers import DDIM, Ancestral, DPMSolverMultistep, RePaint, sample
from unstir.diffusion.schedule import Cosine, Level
from unstir.diffusion.spacing import trailing
from unstir.typing import Noise
from unstir.verify.oracles import GaussianOracle

ORACLE = GaussianOracle(mean=torch.tensor(0.5), variance=torch.tensor(0.25))
CORRELATION = 0.9


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def correlated(x_t: torch.Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
    """The exact denoiser of pairs of unit variance and correlation 0.9: each of sum and difference by itself."""
    beliefs = []
    for sign in (1, -1):
        part, variance = (x_t[:, 0] + sign * x_t[:, 1]) / math.sqrt(2), 1 + sign * CORRELATION
        beliefs.append(level.alpha * variance / (level.alpha**2 * variance + level.sigma**2) * part)
    return Estimate(x0=torch.stack([beliefs[0] + beliefs[1], beliefs[0] - beliefs[1]], 1) / math.sqrt(2))


def painted(resamplings: int, known: float, count: int, num_steps: int) -> torch.Tensor:
    """The first number of pairs whose second is known."""
    process, noise = GaussianProcess(schedule=Cosine()), BlockNoise(key=(7,), count=count)
    data = torch.tensor([[0.0, known]], dtype=torch.float64).expand(count, 2)
    sampler: RePaint[None] = RePaint(
        inner=Ancestral(), known=data, mask=torch.tensor([1.0, 0.0]), resamplings=resamplings
    )
    start = process.prior(data).sample(noise.at(99))
    *_, last = sample(sampler, correlated, process, start, trailing(process.schedule, num_steps), noise)
    return last.x[:, 0]


def test_resampling_finds_the_conditional_law() -> None:
    """Of pairs with correlation 0.9 and the second known to be 1.5, the first is N(1.35, 0.19). Replacement alone
    misses its mean by more than ten standard errors; ten resamplings miss it by less than a third of that.
    """
    known, count = 1.5, 3000
    mean, variance = CORRELATION * known, 1 - CORRELATION**2
    error = math.sqrt(variance / count)
    once, often = (painted(resamplings, known, count, 20) for resamplings in (1, 10))
    off = [abs(each.mean().item() - mean) for each in (once, often)]
    assert off[0] > 10 * error, off
    assert off[1] < off[0] / 3 + 4 * error, off
    assert abs(often.var().item() - variance) < abs(once.var().item() - variance) + 4 * variance * math.sqrt(2 / count)


def test_known_pixels_have_the_marginal(process: GaussianProcess) -> None:
    """Where the mask is 0, x_s is a draw from q(x_s | known); where it is 1, the inner sampler's step."""
    t, s = (process.schedule.at(scalar(value)) for value in (0.7, 0.4))
    x, noise = torch.linspace(-2, 2, 6, dtype=torch.float64).view(2, 3), KeyedNoise.from_seeds([1, 2])
    known, mask = torch.full((2, 3), 0.3, dtype=torch.float64), torch.tensor([1.0, 0.0, 1.0])
    sampler: RePaint[None] = RePaint(inner=DDIM(), known=known, mask=mask, resamplings=1)
    got, _ = sampler.step(ORACLE, process, x, t, s, None, noise)
    inner = DDIM().step(ORACLE, process, x, t, s, None, noise)[0]
    assert torch.equal(got[:, ::2], inner[:, ::2])
    expected = s.alpha * 0.3 + s.sigma * noise.at(0, 1).normal(x)
    torch.testing.assert_close(got[:, 1], expected[:, 1], rtol=1e-12, atol=1e-12)


def test_each_repetition_starts_above_with_the_memory_of_before() -> None:
    """U resamplings are U inner steps, all from t and with the memory of before the step; the last one's is kept."""
    process = GaussianProcess(schedule=Cosine())
    levels = process.schedule.at(torch.tensor([0.9, 0.7, 0.4], dtype=torch.float64))
    asked: list[float] = []

    def denoise(x_t: torch.Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        asked.append(level.t.item())
        return ORACLE(x_t, level)

    known, x, noise = torch.zeros(1, 3), torch.ones(1, 3), KeyedNoise.from_seeds([1])
    sampler: RePaint[Any] = RePaint(inner=DPMSolverMultistep(), known=known, mask=torch.ones(3), resamplings=3)
    memory = sampler.start()
    for i in range(2):
        x, memory = sampler.step(denoise, process, x, levels[i], levels[i + 1], memory, noise.at(i))
    assert asked == pytest.approx([0.9] * 3 + [0.7] * 3)
    assert [each.level.t.item() for each in memory] == pytest.approx([0.7])
    assert sampler.order == 0


@dataclass(frozen=True)
class Recorder(Noise):
    """Notes the sub-key of every draw."""

    drawn: list[tuple[int, ...]]
    key: tuple[int, ...] = ()

    def at(self, *key: int) -> Self:
        return replace(self, key=(*self.key, *key))

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        self.drawn.append(self.key)
        return torch.zeros_like(like)


def test_no_draw_is_used_twice() -> None:
    """The inner step, the known pixels and the way back up have a sub-key each, in every repetition."""
    process, recorder = GaussianProcess(schedule=Cosine()), Recorder(drawn=[])
    t, s = (process.schedule.at(scalar(value)) for value in (0.7, 0.4))
    x = torch.zeros(1, 3)
    sampler: RePaint[None] = RePaint(inner=Ancestral(), known=x, mask=torch.ones(3), resamplings=3)
    sampler.step(ORACLE, process, x, t, s, None, recorder)
    assert len(recorder.drawn) == len(set(recorder.drawn)) == 3 * 3 - 1


def test_it_serves_bits_as_well() -> None:
    """Known and painted bits are 0 or 1, and known ones end as they are where the belief says so."""
    process, known = BinomialProcess(schedule=Cosine()), torch.tensor([[0.0, 1.0, 1.0, 0.0]])

    def certain(x_t: torch.Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        assert set(x_t.unique().tolist()) <= {0.0, 1.0}
        return Estimate(x0=known)

    sampler: RePaint[None] = RePaint(
        inner=Ancestral(), known=known, mask=torch.tensor([1.0, 1.0, 0.0, 0.0]), resamplings=2
    )
    times, noise = trailing(process.schedule, 5), KeyedNoise.from_seeds([1])
    *_, last = sample(sampler, certain, process, torch.ones(1, 4), times, noise)
    assert torch.equal(last.x, known)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"resamplings": 0}, "at least once"),
        ({"mask": torch.tensor([0.5, 1.0, 0.0])}, "1 where to paint"),
        ({"mask": torch.tensor([math.nan, 1.0, 0.0])}, "1 where to paint"),
        ({"mask": torch.ones(2)}, "does not fit"),
    ],
    ids=["never", "grey", "nan", "shape"],
)
def test_refuses_what_paints_nothing(settings: dict[str, Any], match: str) -> None:
    """ValueError for no step at all, a mask that is not of 0 and 1, and one of another shape."""
    with pytest.raises(ValueError, match=match):
        RePaint(**{"inner": Ancestral(), "known": torch.zeros(2, 3), "mask": torch.ones(3), **settings})
