"""The binary heartbeat of 2015: sequences of 20 bits with a 1 every five, told by a binomial diffusion.

Knows: the paper's chain (T = 2000, beta_t = 1/(T - t + 1), prior rate 0.2), its figure K and what could best be had.
Does not know: how bits are spoiled or a bound is summed.

K is the paper's bound: the last reverse step is tied to the forward kernel, so that its term is minus the entropy
H_q(X_1 | X_0), a constant, and there is no decoder. The network is a general MLP on 20 bits and t; neither it, nor its
features, nor its start know of periods.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unstir.condition import Condition
from unstir.data.toy import HeartBeat
from unstir.diffusion.denoiser import NetworkDenoiser
from unstir.diffusion.likelihood import bits_per_dim
from unstir.diffusion.noise import BlockNoise
from unstir.diffusion.objective import VariationalBound
from unstir.diffusion.parameterization import PredictBit
from unstir.diffusion.process import BinomialProcess
from unstir.diffusion.samplers import Ancestral, sample
from unstir.diffusion.schedule import Tabulated, reciprocal_betas
from unstir.nn.mlp import MLP, MLPConfig
from unstir.reproduce.fit import Fit, fit, in_chunks, seeded
from unstir.reproduce.report import Advance, Report, mean_over_samples, one_thread, plots, save_plot, told

LENGTH, PERIOD, NUM_STEPS, RATE = 20, 5, 2000, 0.2
PAPER = -2.414
BEST = -2.3659
"""K of the best reverse chain whose bits are drawn independently: the exact posterior over the five sequences (computed
for this project by Monte Carlo, standard error 0.005; facts of the project). ``bound`` has the truth, log2(1/5), for
its best."""


@one_thread()
def heartbeat(*, seed: int, advance: Advance, effort: float = 1.0) -> Report:
    """Train, bound, draw: K of the paper beside ours.

    Args:
        seed: of data, weights and noise.
        advance: told how far it is.
        effort: share of the training, of the rows of the bound and of the samples; less than 1 is for tests.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Table 1 and Appendix D.1.2.
    """
    law = HeartBeat(length=LENGTH, period=PERIOD)
    process = BinomialProcess(schedule=Tabulated.from_betas(reciprocal_betas(NUM_STEPS)), rate=RATE)
    denoiser: NetworkDenoiser[Condition] = NetworkDenoiser(
        seeded(seed, lambda: MLP(MLPConfig(sites=LENGTH, width=256, depth=3))), process, PredictBit()
    )
    trained = fit(
        denoiser,
        VariationalBound(num_steps=NUM_STEPS),
        law.draw,
        Fit(steps=round(4000 * effort), batch=512, seed=seed),
        advance=advance,
    )
    denoise = in_chunks(trained)

    data = law.sequences.double().repeat(max(2, round(320 * effort)), 1)
    noise = BlockNoise(key=(seed, 1, 0xB17), count=len(data))
    bound = bits_per_dim(
        denoise, process, data, steps=NUM_STEPS, noise=noise, progress=lambda done, total: advance("bound", done, total)
    )
    ours = -LENGTH * bound.diffusion - first_step_entropy(law.sequences, process)
    mean, error = mean_over_samples(ours)

    count = round(1000 * effort)
    drawn = _draw(denoise, process, BlockNoise(key=(seed, 2, 0xB17), count=count), advance)
    valid = law.is_valid(drawn)
    phases = [int((law.phase(drawn[valid]) == phase).sum()) for phase in range(PERIOD)]
    invalid = int((~valid).sum())
    figures = {
        "ours": mean,
        "standard_error": error,
        "bound": -LENGTH * bound.mean,
        "paper": PAPER,
        "best_possible": BEST,
        "truth": -math.log2(PERIOD),
    }
    return Report(
        figures=figures,
        lines=(
            f"K, bits a sequence: {told(figures['ours'], error)} (paper {PAPER}, best possible {BEST})",
            f"bound with a decoder: {told(figures['bound'], LENGTH * bound.standard_error)} "
            f"(truth {figures['truth']:.4f} = log2 1/5, which is its best)",
            f"{count:,} samples: {invalid} invalid, phases {phases}",
        ),
        notes=(
            "the chain, K and the prior are the paper's (its 12.024 bits above a null model confirm the rate 0.2; its "
            "Table App. 1 says 0.5); the network is not: ours predicts the clean bits, is larger, and sees fresh "
            "sequences",
        ),
        draw=lambda path: _picture(drawn, bound.times[0], bound.steps.mean(0), path),
        failures=tuple(
            text
            for text, failed in (
                (f"{invalid} of {count:,} samples are no heartbeat (at most 2 may be)", invalid > 2),
                (f"not all five phases among the samples: {phases}", min(phases) == 0),
            )
            if failed
        ),
    )


def first_step_entropy(sequences: Tensor, process: BinomialProcess) -> float:
    """H_q(X_1 | X_0) of the chain's first step, in bits a sequence, mean over the sequences."""
    first = process.schedule.at(torch.tensor(1 / NUM_STEPS, dtype=torch.float64))
    p = process.marginal(sequences.double(), first).probability
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).sum(1).mean().item() / math.log(2)


def _draw(denoise: Any, process: BinomialProcess, noise: BlockNoise, advance: Advance) -> Tensor:
    start = process.prior(torch.zeros(noise.count, LENGTH)).sample(noise.at(0))
    times = [i / NUM_STEPS for i in range(NUM_STEPS, -1, -1)]
    x = start
    for step in sample(Ancestral(), denoise, process, start, times, noise.at(1)):
        x = step.x
        advance("samples", step.index, NUM_STEPS)
    return (x > 0.5).to(x)  # the last step is the belief; it is all but certain


def _picture(drawn: Tensor, times: Tensor, steps: Tensor, path: Path) -> None:
    pyplot = plots()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4), width_ratios=(1, 1.4), layout="constrained")
    left.imshow(drawn[:50].numpy(), cmap="gray_r", interpolation="nearest", aspect="auto")
    left.set(title="50 samples", xlabel="place", ylabel="sample")
    right.plot(times.numpy(), LENGTH * NUM_STEPS * steps.numpy(), linewidth=0.5)
    right.set(title="where the bits of the bound lie", xlabel="t", ylabel="bits a sequence, per unit of t")
    save_plot(figure, path)
