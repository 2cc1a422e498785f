"""Digits, told by a small model: how many bits they cost by the chain's bound, along its flow, and by Parzen windows.

Knows: the baselines that a number of bits is to be held against, and what Parzen windows were once used for.
Does not know: how the model is trained, or a bound is summed.

Both bounds encode a picture as x_1, its first spoiling, and decode it from there; they differ in how x_1 is told: by
the chain's steps, which cost the bound's diffusion and prior terms, or along the probability flow, whose log p(x_1) is
exact up to the solver. The first step's own noise, not uniform noise, makes grey levels continuous for the flow: it is
the only noise on them that the model knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.likelihood import Bound, bits_per_dim, flow_log_prob
from unstir.diffusion.noise import BlockNoise
from unstir.diffusion.objective import VariationalBound
from unstir.diffusion.parameterization import LearnedRange, PredictV
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import Ancestral
from unstir.diffusion.times import LossAwareTimes
from unstir.evaluation.parzen import ParzenLogLikelihood, choose_parzen_std, parzen_log_likelihood
from unstir.reproduce import on_digits
from unstir.reproduce.report import Advance, Report, one_thread, plots, save_plot, table, told

PAPER_PARZEN = (317.0, 2.7)
"""Bits a picture of MNIST, by Parzen windows around samples of the model, and their error.

Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Table 2.
"""

WIDTHS = tuple(0.02 * 1.15**i for i in range(24))
"""Of Parzen windows, in units where black is 0 and white is 1: from 0.02 to 0.5."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FlowBits:
    """Bits/dim of each picture along the flow.

    Args:
        encoded: log q(x_1 | x_0) - log p(x_1), the price of x_1.
        reconstruction: -log p(x_0 | x_1), as in the chain's bound.
        trace_error: standard error of the estimated trace, of each picture.
        solver_error: the change against half as many steps, of each picture.
    """

    encoded: Tensor
    reconstruction: Tensor
    trace_error: Tensor
    solver_error: Tensor

    @property
    def total(self) -> Tensor:
        """The bound."""
        return self.encoded + self.reconstruction


@one_thread()
def digits(*, seed: int, advance: Advance, effort: float = 1.0) -> Report:
    """Train on 1,297 digits; tell 300 others by the bound, by the flow, by baselines, and by Parzen windows.

    Args:
        seed: of the model and all noise.
        advance: called often.
        effort: of training and drawing, for tests.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Table 2 (Parzen); Theis et al. 2016, arXiv:1511.01844, Sec. 3
        (what Parzen windows are worth).
    """
    process = on_digits.chain(num_steps=on_digits.NUM_STEPS if effort == 1 else 20)
    steps = on_digits.steps_of(process)
    denoise = on_digits.learn(
        process,
        LearnedRange(mean=PredictV()),
        VariationalBound(num_steps=steps, times=LossAwareTimes(num_steps=steps)),
        steps=on_digits.shorter(5000, effort),
        seed=seed,
        build=on_digits.convolutions,
        advance=advance,
    )
    parts = on_digits.data()
    chain = on_digits.bits(denoise, process, parts.test.pictures, noise=(seed, 1), advance=advance)
    known = on_digits.bits(denoise, process, parts.train.pictures[:300], noise=(seed, 2), draws=min(100, steps - 1))
    advance("flow", 0, 1)
    flow = flow_bits(
        denoise,
        process,
        parts.test.pictures[: on_digits.shorter(300, effort)],
        noise=BlockNoise(key=(seed, 3), count=on_digits.shorter(300, effort)),
        steps=on_digits.shorter(40, effort, least=4),
        probes=4 if effort == 1 else 2,
    )
    advance("flow", 1, 1)
    count = on_digits.shorter(5000, effort, least=20)
    drawn = on_digits.pictures_of(
        Ancestral(), denoise, process, count=count, num_steps=min(100, steps), noise=(seed, 4), advance=advance
    )
    limit = continuous_diffusion(denoise, process, parts.test.pictures, BlockNoise(key=(seed, 6), count=300))
    return _report(chain, known, flow, drawn, limit)


def flow_bits(
    denoise: Denoiser, process: GaussianProcess, pictures: Tensor, *, noise: BlockNoise, steps: int, probes: int | None
) -> FlowBits:
    """Bits/dim with log p(x_1) along the flow: -log p(x_0 | x_1) + log q(x_1 | x_0) - log p(x_1), x_1 ~ q(x_1 | x_0).

    Its expectation is an upper bound on the bits of x_0 under "draw x_1 by the flow, then decode it".

    Args:
        denoise: what is believed.
        process: a chain made by ``on_digits.chain``.
        pictures: on its grey levels.
        noise: of x_1 and the probes.
        steps: of the solver.
        probes: for the trace; None is the exact one.

    Source: Song et al. 2021, arXiv:2011.13456, Eq. 39; Ho et al. 2019, arXiv:1902.00275, Eq. 12 (dequantisation by a
        noise that is not uniform).
    """
    length = on_digits.steps_of(process)
    first, above = process.schedule.at(torch.tensor([1 / length, 2 / length], dtype=torch.float64))
    encoder = process.marginal(pictures, first)
    x = encoder.sample(noise.at(0))
    with torch.no_grad():
        decoded = process.decode_log_prob(pictures, x, first, denoise(x, first), above).flatten(1).sum(1)
    told_by_flow = flow_log_prob(
        denoise,
        replace(process, levels=None),
        x / first.alpha.item(),
        steps=steps,
        noise=noise.at(1),
        probes=probes,
        log_snr=(first.log_snr.item(), -math.inf),
    )
    size = told_by_flow.size
    log_p = told_by_flow.log_prob - size * first.alpha.log().item()
    spread_out = encoder.log_prob(x).flatten(1).sum(1)
    unit = 1 / (size * math.log(2))
    return FlowBits(
        encoded=(spread_out - log_p) * unit,
        reconstruction=-decoded * unit,
        trace_error=told_by_flow.trace_error * unit,
        solver_error=told_by_flow.solver_error * unit,
    )


def continuous_diffusion(denoise: Denoiser, process: GaussianProcess, pictures: Tensor, noise: BlockNoise) -> Tensor:
    """The diffusion part of the bound from the chain's first level on, in infinitely many steps, in bits/dim."""
    first = process.schedule.at(torch.tensor(1 / on_digits.steps_of(process), dtype=torch.float64))
    limit = bits_per_dim(denoise, process, pictures, steps=None, noise=noise, first_log_snr=first.log_snr.item())
    return limit.diffusion


def histogram_bits(train: Tensor, test: Tensor) -> Tensor:
    """Bits/dim of each picture if every pixel followed its own histogram (half a count added to every grey level)."""
    seen, asked = (((x.flatten(1) + 1) * 8).round().long() for x in (train, test))
    counts = torch.nn.functional.one_hot(seen, on_digits.LEVELS).sum(0).double() + 0.5
    log_share = (counts / counts.sum(1, keepdim=True)).log2()
    return -log_share[torch.arange(seen.shape[1]), asked].mean(1)


def gaussian_bits(train: Tensor, test: Tensor, noise: BlockNoise) -> Tensor:
    """Bits/dim of each picture under one Gaussian with a full covariance, fitted to uniformly dequantised digits."""
    seen, asked = ((x.flatten(1).double() + 1) * 8 for x in (train, test))
    covariance = torch.cov(seen.T) + torch.eye(seen.shape[1], dtype=torch.float64) / 12
    law = torch.distributions.MultivariateNormal(seen.mean(0), covariance)
    densities: list[Tensor] = [law.log_prob(asked + noise.at(i).uniform(asked) - 0.5) for i in range(32)]
    return -torch.stack(densities).mean(0) / (seen.shape[1] * math.log(2))


def parzen_bits(samples: Tensor) -> tuple[ParzenLogLikelihood, float]:
    """Parzen log-likelihood of the test digits in nats (pictures in [0, 1]), and the width that validation chose."""
    parts = on_digits.data()
    from_zero, validation, test = (
        (x.flatten(1) + 1) / 2 for x in (samples, parts.validation.pictures, parts.test.pictures)
    )
    std = choose_parzen_std(from_zero, validation, WIDTHS)
    return parzen_log_likelihood(from_zero, test, std), std


def _report(chain: Bound, known: Bound, flow: FlowBits, drawn: Tensor, limit: Tensor) -> Report:
    parts = on_digits.data()
    baselines = {
        "uniform, log2 17": torch.full((300,), math.log2(on_digits.LEVELS), dtype=torch.float64),
        "one Gaussian, dequantised": gaussian_bits(
            parts.train.pictures, parts.test.pictures, BlockNoise(key=(0, 5), count=300)
        ),
        "histograms of pixels": histogram_bits(parts.train.pictures, parts.test.pictures),
    }
    rows = [_row(name, values) for name, values in baselines.items()]
    rows += [
        _row("flow (ODE)", flow.total, prior_and_diffusion=flow.encoded, reconstruction=flow.reconstruction),
        _row(
            "chain, bound",
            chain.total,
            prior=chain.prior,
            diffusion=chain.diffusion,
            prior_and_diffusion=chain.prior + chain.diffusion,
            reconstruction=chain.reconstruction,
        ),
        _row("chain, on digits it was trained on", known.total),
    ]
    difference = flow.total - chain.total[: len(flow.total)]
    windows, std = parzen_bits(drawn)
    around_data, std_data = parzen_bits(parts.train.pictures)
    centres, _ = parzen_bits(_centres(parts.train.pictures, 100))
    nats_to_bits = 1 / math.log(2)
    parzen = {
        name: {"bits": found.nats * nats_to_bits, "error": found.standard_error * nats_to_bits}
        for name, found in (("model", windows), ("training_digits", around_data), ("centres", centres))
    }
    trace = flow.trace_error.square().mean().sqrt().item() / math.sqrt(len(difference))
    solver = flow.solver_error.mean().item()
    is_apart = abs(difference.mean().item()) > on_digits.APART * _error(difference) + solver
    as_density = 64 * (math.log2(on_digits.LEVELS - 1) - chain.mean)
    return Report(
        figures={
            "rows": rows,
            "continuous_diffusion": limit.mean().item(),
            "continuous_diffusion_error": _error(limit),
            "flow_less_chain": difference.mean().item(),
            "flow_less_chain_error": _error(difference),
            "flow_trace_error": trace,
            "flow_solver_error": solver,
            "paper_parzen_bits": PAPER_PARZEN[0],
            "paper_parzen_error": PAPER_PARZEN[1],
            "parzen_bits": parzen,
            "parzen_width": std,
            "bound_as_parzen_bits": as_density,
            "bound_as_parzen_bits_error": 64 * chain.standard_error,
            "best_possible": None,
        },
        lines=(
            *table(
                ("300 digits held out", "bits/dim", "prior + diffusion", "reconstruction"),
                [
                    (
                        row["row"],
                        told(row["bits_per_dim"], row["bits_per_dim_error"]),
                        _told_mean(row, "prior_and_diffusion"),
                        _told_mean(row, "reconstruction"),
                    )
                    for row in rows
                ],
            ),
            f"of the chain's bits the prior takes {chain.prior.mean().item():.2g}, the diffusion "
            f"{told(chain.diffusion.mean().item(), _error(chain.diffusion))} in {chain.steps.shape[1] + 1} steps and "
            f"{told(limit.mean().item(), _error(limit))} in continuous time; the best possible total is not known",
            f"flow less chain, on the same pictures: {told(difference.mean().item(), _error(difference))} bits/dim, "
            f"which errors {'separate' if is_apart else 'do not separate'} from 0; its trace is known to {trace:.1g}, "
            f"its solver is off by at most {solver:.1g}",
            f"Parzen windows, bits a picture: {_told_parzen(parzen['model'])} around {len(drawn):,} samples (width "
            f"{std:.3f}); {_told_parzen(parzen['training_digits'])} around the 1,297 training digits (width "
            f"{std_data:.3f}); {_told_parzen(parzen['centres'])} around 100 centres of clusters; paper, MNIST: "
            f"{PAPER_PARZEN[0]:.0f} +- {PAPER_PARZEN[1]}",
            f"the bound as such a density: {told(as_density, 64 * chain.standard_error)} bits a picture",
        ),
        notes=(
            "8x8 digits in 17 grey levels, not MNIST of 28x28 in 256: neither bits/dim nor Parzen bits are comparable "
            "with the paper's 317, and the paper has no bound for MNIST",
            "a Parzen figure is the logarithm of a density on [0, 1]^64, high is good; the bound is such a figure too, "
            "of pictures spread evenly over their grey levels, each 1/16 wide: 64 (log2 16 - bits/dim)",
            "Parzen windows say little about a model: in many dimensions they stay far below its likelihood for any "
            "number of samples that can be drawn, and the centres of a few clusters, which are no model of digits, do "
            "about as well (Theis et al. 2016, arXiv:1511.01844)",
            "T = 1000, samples in 100 of the steps; a convolutional network of 23,000 weights, trained by the bound",
        ),
        draw=lambda path: _picture(rows, chain, drawn, path),
        failures=tuple(
            text
            for text, failed in (
                ("the bound is not below the histograms' bits", chain.mean >= rows[2]["bits_per_dim"]),
                ("the flow's solver did not converge", solver > 0.01),
            )
            if failed
        ),
    )


def _row(name: str, bits: Tensor, **parts: Tensor) -> dict[str, Any]:
    row: dict[str, Any] = {"row": name, "bits_per_dim": bits.mean().item(), "bits_per_dim_error": _error(bits)}
    for part, values in parts.items():
        row |= {part: values.mean().item(), f"{part}_error": _error(values)}
    return row


def _error(values: Tensor) -> float:
    return 0.0 if bool((values == values[0]).all()) else values.double().std().item() / math.sqrt(len(values))


def _told_mean(row: dict[str, Any], part: str) -> str:
    return told(row[part], row[f"{part}_error"]) if part in row else ""


def _told_parzen(found: dict[str, float]) -> str:
    return told(found["bits"], found["error"])


def _centres(pictures: Tensor, count: int) -> Tensor:
    """Means of clusters, by 30 rounds of Lloyd's algorithm from the first pictures."""
    points = pictures.flatten(1)
    centres = points[:count].clone()
    for _ in range(30):
        nearest = torch.cdist(points, centres).argmin(1)
        members = torch.nn.functional.one_hot(nearest, count).to(points)
        full = members.sum(0) > 0
        centres[full] = (members.T @ points)[full] / members.sum(0)[full, None]
    return centres.view(count, *pictures.shape[1:])


def _picture(rows: list[dict[str, Any]], chain: Bound, drawn: Tensor, path: Path) -> None:
    pyplot = plots()
    figure = pyplot.figure(figsize=(11, 5.5), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.2, 1))
    bars, steps, pictures = (figure.add_subplot(place) for place in (grid[0, 0], grid[1, 0], grid[:, 1]))
    for place, row in enumerate(rows):
        decoder = row.get("reconstruction", 0.0)
        bars.barh(place, row["bits_per_dim"] - decoder, color="C0")
        bars.barh(place, decoder, left=row["bits_per_dim"] - decoder, color="C1")
        bars.text(row["bits_per_dim"], place, " " + told(row["bits_per_dim"], row["bits_per_dim_error"]), va="center")
    bars.set(yticks=range(len(rows)), xlabel="bits/dim (orange: reconstruction)", xlim=(0, 5))
    bars.set_yticklabels([row["row"] for row in rows], fontsize=8)
    bars.invert_yaxis()
    steps.plot(chain.times[0].numpy(), chain.steps.mean(0).numpy() * (chain.steps.shape[1] + 1))
    steps.set(xlabel="t", ylabel="bits/dim, per unit of t", title="where the bits of the diffusion lie")
    on_digits.show(pictures, drawn[:144], columns=12, title="samples of the chain")
    save_plot(figure, path)
