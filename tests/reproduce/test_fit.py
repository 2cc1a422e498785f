"""Training for experiments: it learns, it repeats itself exactly, and chunks change nothing."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.diffusion.denoiser import NetworkDenoiser
from unstir.diffusion.noise import BlockNoise
from unstir.diffusion.objective import Loss, Simple, weight_x0
from unstir.diffusion.parameterization import LearnedRange, PredictX0
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.schedule import Cosine
from unstir.diffusion.times import UniformTimes
from unstir.nn.mlp import MLP, MLPConfig
from unstir.reproduce.fit import Fit, fit, in_chunks, seeded, unconditional
from unstir.verify.oracles import GaussianOracle

LAW = GaussianOracle(mean=torch.tensor([0.5, -0.3]), variance=torch.tensor([0.2, 0.6]))
PROCESS = GaussianProcess(schedule=Cosine(), levels=None)
OBJECTIVE = Simple(weight=weight_x0, times=UniformTimes())


def draw(noise: BlockNoise) -> Tensor:
    return LAW.draw(torch.zeros(noise.count, 2), noise)


def fresh(seed: int = 0, outputs: int = 1) -> NetworkDenoiser[Condition]:
    network = seeded(seed, lambda: MLP(MLPConfig(sites=2, width=32, depth=1, out_factor=outputs)))
    return NetworkDenoiser(network, PROCESS, PredictX0() if outputs == 1 else LearnedRange(mean=PredictX0()))


def weights(denoiser: NetworkDenoiser[Condition]) -> list[Tensor]:
    return [weight.detach().clone() for weight in cast(nn.Module, denoiser.network).parameters()]


def test_it_learns_the_posterior_mean() -> None:
    """After 300 steps the belief is near E[x0 | x_t], which is far from where it started (0)."""
    trained = fit(fresh(), OBJECTIVE, draw, Fit(steps=300, batch=256))
    level = PROCESS.schedule.at(torch.tensor(0.5, dtype=torch.float64))
    x_t = PROCESS.marginal(draw(BlockNoise(key=(9,), count=500)), level).sample(BlockNoise(key=(10,), count=500))
    with torch.no_grad():
        error = (trained(x_t, level, unconditional(500)).x0 - LAW(x_t, level).x0).square().mean().item()
    assert error < 0.01
    assert LAW(x_t, level).x0.square().mean().item() > 0.2


def test_a_seed_says_everything() -> None:
    """The same seed gives the same weights, another one others; torch's own generator is not moved."""
    state = torch.random.get_rng_state()
    runs = [weights(fit(fresh(seed), OBJECTIVE, draw, Fit(steps=3, batch=8, seed=seed))) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_progress_is_told() -> None:
    """Every step of the stage, up to the last."""
    seen: list[tuple[str, int, int]] = []
    fit(fresh(), OBJECTIVE, draw, Fit(steps=3, batch=8), advance=lambda *news: seen.append(news), stage="s")
    assert seen == [("s", 1, 3), ("s", 2, 3), ("s", 3, 3)]


def test_a_loss_that_is_no_number_stops_it() -> None:
    """ArithmeticError naming the step, not a network of NaN."""

    def broken(*arguments: Any) -> Loss:
        loss = OBJECTIVE(*arguments)
        return Loss(per_sample=loss.per_sample * float("nan"), parts=loss.parts)

    with pytest.raises(ArithmeticError, match="step 0"):
        fit(fresh(), broken, draw, Fit(steps=2, batch=8))


@pytest.mark.parametrize("outputs", [1, 2])
def test_chunks_are_rows(outputs: int) -> None:
    """Beliefs of 10 rows in chunks of 4 are those of one call, level by sample or shared, learned variance or not."""
    denoiser = fresh(outputs=outputs)
    for weight in cast(nn.Module, denoiser.network).parameters():
        nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(0))
    x = draw(BlockNoise(key=(1,), count=10))
    for t in (torch.tensor(0.4, dtype=torch.float64), torch.linspace(0.1, 0.9, 10, dtype=torch.float64)):
        level = PROCESS.schedule.at(t)
        with torch.no_grad():
            whole, parts = denoiser(x, level, unconditional(10)), in_chunks(denoiser, 4)(x, level)
        torch.testing.assert_close(parts.x0, whole.x0, rtol=1e-5, atol=1e-6)
        if outputs == 2:
            torch.testing.assert_close(parts.variance_fraction, whole.variance_fraction, rtol=1e-5, atol=1e-6)
