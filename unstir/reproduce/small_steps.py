"""Why many small steps: how far true reverse kernels are from Gaussians, and what few steps make of a law.

Knows: a mixture on a line, its reverse kernels and their best Gaussians, how a chain of such kernels carries a density.
Does not know: networks, samples; every number is an integral.

A reverse step over beta = 1 - alpha_bar_t/alpha_bar_s has p(x_s | x_t) ~ p_s(x_s) N(x_t; sqrt(1 - beta) x_s, beta). As
beta falls the second factor narrows, until log p_s is a parabola across it: Gaussian in the limit (Feller). What is
left at a small beta is the third derivative: the skewness is (log p_t)''' beta^(3/2), and a skewness g costs g^2/12
nats,

    E KL(p(x_s | x_t) || Gaussian of its mean and variance) = beta^3 E[(log p_t)'''^2] / 12,

but with a variance that is fixed beforehand, beta or beta_tilde, the variance itself is off by a share of order beta:

    E KL = beta^2 E[((log p_t)'' + c)^2] / 4,   c = 1 for beta, 1/sigma_t^2 for beta_tilde.

There are T steps of size about 1/T, so that a chain loses T^-2 or T^-1 bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from unstir.diffusion.distribution import Normal
from unstir.diffusion.process import Estimate, GaussianProcess
from unstir.diffusion.schedule import Level, LinearBeta
from unstir.reproduce.report import Advance, Report, one_thread, plots, save_plot, table
from unstir.verify.oracles import Mixture, MixtureOracle

Kind = Literal["matched", "beta", "beta_tilde"]
"""The variance of a Gaussian reverse step: that of the true kernel, or one of the two that need no knowledge of it."""

KINDS: tuple[Kind, ...] = ("matched", "beta", "beta_tilde")
STEPS = tuple(0.5 / 2**i for i in range(10))
CHAINS = (1, 2, 5, 10, 20, 50, 100)
_ANSWERED = (1, 2, 10, 100)
_REACH, _POINTS = 5.0, 1201  # of the grid that carries densities
_NODES = 48  # of Gauss-Hermite, a component


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """What T Gaussian reverse steps make of noise.

    Args:
        kl_bits: KL(truth || law of x_0); None for a law with a step without variance.
        total_variation: between the two, from 0 to 1.
        lost_bits: the bound on -log p(x_0) less the entropy, in the mean: an upper bound on ``kl_bits``. None likewise.
        density: of x_0 on the grid of ``grid``; None likewise.
    """

    kl_bits: float | None
    total_variation: float
    lost_bits: float | None
    density: Tensor | None


@one_thread()
def small_steps(*, seed: int, advance: Advance) -> Report:
    """Distances of reverse kernels from Gaussians against the size of a step; what T = 1, 2, 10, 100 steps draw.

    Nothing is drawn, so the seed changes nothing.

    Source: Feller 1949, "On the theory of stochastic processes, with particular reference to applications" (the
        reversal of a diffusion is one); Sohl-Dickstein et al. 2015, arXiv:1503.03585, Sec. 2.2; Xiao et al. 2022,
        arXiv:2112.07804, Fig. 2 (the multimodal kernels of large steps).
    """
    law, process = three_hills(), GaussianProcess(schedule=LinearBeta(), levels=None)
    t = process.schedule.at(process.schedule.time_of(torch.tensor(0.0, dtype=torch.float64)))  # half signal, half noise
    limits = predicted(law, t)
    rows: list[dict[str, Any]] = []
    for i, beta in enumerate(STEPS):
        s = level_before(process, t, beta)
        rows.append({"step": beta, **{kind: step_kl_bits(law, process, t, s, kind) for kind in KINDS}})
        advance("kernels", i + 1, len(STEPS))
    powers: dict[Kind, float] = {kind: math.log2(rows[-2][kind] / rows[-1][kind]) for kind in KINDS}
    ratios: dict[Kind, float] = {kind: rows[-1][kind] / (limits[kind] * STEPS[-1] ** order(kind)) for kind in KINDS}
    chains: dict[int, dict[Kind, Chain]] = {}
    for steps in CHAINS:
        chains[steps] = {kind: run_chain(law, process, steps, kind) for kind in KINDS}
        advance("chains", sum(CHAINS[: len(chains)]), sum(CHAINS))
    return Report(
        figures={
            **{f"power_{kind}": powers[kind] for kind in KINDS},
            **{f"power_{kind}_theory": order(kind) for kind in KINDS},
            **{f"measured_over_theory_{kind}": ratios[kind] for kind in KINDS},
            "kernels": rows,
            "chains": [_row(steps, chains[steps]) for steps in CHAINS],
        },
        lines=(
            "KL of the true reverse kernel from a Gaussian, bits, mean over x_t, at alpha_bar_t = 1/2:",
            *table(
                ("step beta", *(f"variance {kind}" for kind in KINDS)),
                [(f"{row['step']:.3g}", *(_scientific(row[kind]) for kind in KINDS)) for row in rows],
            ),
            *table(
                ("in the limit", *KINDS),
                (
                    ("power of beta, measured", *(f"{powers[kind]:.3f}" for kind in KINDS)),
                    ("power of beta, theory", *(order(kind) for kind in KINDS)),
                    ("measured over theory", *(f"{ratios[kind]:.3f}" for kind in KINDS)),
                ),
            ),
            "law of x_0 after T reverse steps with the exact mean: total variation from the truth (KL, bits):",
            *table(("T", *KINDS), [(steps, *(_cell(chains[steps][kind]) for kind in KINDS)) for steps in CHAINS]),
            *(
                f"bits lost in the bound, {kind}: "
                + ", ".join(f"T = {steps}: {chains[steps][kind].lost_bits:.2g}" for steps in CHAINS)
                for kind in KINDS[:2]
            ),
        ),
        notes=(
            "the papers print no number for this; the law is ours: three hills of standard deviation 0.2 before it is "
            "scaled to unit variance",
            "beta_tilde of the last step is 0, so that x_0 is the belief itself: its law has a total variation, but no "
            "KL worth a number",
        ),
        draw=lambda path: _picture(law, process, t, rows, chains, path),
        failures=_failures(powers, ratios, chains),
    )


def three_hills() -> MixtureOracle:
    """A law on the line with three hills, of mean 0 and variance 1."""
    weights = torch.tensor([0.4, 0.25, 0.35], dtype=torch.float64)
    means = torch.tensor([-1.4, 0.1, 1.2], dtype=torch.float64)
    means = means - weights @ means
    scale = (weights @ means.square() + 0.04).sqrt()
    return MixtureOracle(
        means=(means / scale)[:, None],
        variances=torch.full((3,), 0.04, dtype=torch.float64) / scale**2,
        weights=weights,
    )


def order(kind: Kind) -> int:
    """The power of beta with which the KL of a reverse kernel from a Gaussian vanishes."""
    return 3 if kind == "matched" else 2


def predicted(law: MixtureOracle, t: Level) -> dict[Kind, float]:
    """What the KL of a step is divided by beta^3 (matched) or beta^2, in the limit of small steps, in bits."""
    x, weight = nodes(law, t)
    with torch.enable_grad():
        x = x.requires_grad_()
        slopes: list[Tensor] = [law.log_density(x, t)]
        for _ in range(3):
            slopes.append(torch.autograd.grad(slopes[-1].sum(), x, create_graph=True)[0])
    second, third = (slope.detach()[:, 0] for slope in slopes[2:])
    skew = (weight * third.square()).sum().item() / 12
    off = {"beta": 1.0, "beta_tilde": 1 / t.sigma.item() ** 2}
    return {
        "matched": skew / math.log(2),
        "beta": (weight * (second + off["beta"]).square()).sum().item() / 4 / math.log(2),
        "beta_tilde": (weight * (second + off["beta_tilde"]).square()).sum().item() / 4 / math.log(2),
    }


def level_before(process: GaussianProcess, t: Level, beta: float) -> Level:
    """The level s from which a step of the forward chain to t adds the variance beta; the data if that is all of it."""
    alpha_bar = t.alpha**2 / (1 - beta)
    if alpha_bar > 1 - 1e-9:
        return process.schedule.at(torch.zeros_like(t.t))
    return process.schedule.at(process.schedule.time_of(torch.logit(alpha_bar)))


def nodes(law: MixtureOracle, t: Level) -> tuple[Tensor, Tensor]:
    """Nodes x_t (n 1) and weights (n) of the mean over p_t: Gauss-Hermite in each component."""
    z, share = (torch.from_numpy(array) for array in numpy.polynomial.hermite_e.hermegauss(_NODES))
    std = (t.alpha**2 * law.variances + t.sigma**2).sqrt()
    x = t.alpha * law.means + std[:, None] * z  # k n
    return x.flatten()[:, None], (law.weights[:, None] * share / share.sum()).flatten()


def step_kl_bits(law: MixtureOracle, process: GaussianProcess, t: Level, s: Level, kind: Kind) -> float | None:
    """E KL(p(x_s | x_t) || Gaussian of the same mean) over x_t ~ p_t, in bits; None where its variance is 0."""
    if s.sigma == 0 and kind == "beta_tilde":
        return None
    x_t, weight = nodes(law, t)
    truth = law.reverse(x_t, t, s)
    gauss = gaussian(law, process, x_t, t, s, kind)
    spread = torch.maximum(truth.variance.sqrt(), gauss.std.expand_as(x_t))
    z = torch.linspace(-12, 12, 1601, dtype=torch.float64)
    x_s = truth.mean + spread * z  # n m
    log_p, log_g = _log_prob(truth, x_s), gauss.log_prob(x_s)
    p, g = log_p.exp(), log_g.exp()
    integrand = p * (log_p - log_g) - p + g  # the last two cancel in the integral, and rounding with them
    kl = integrand.sum(1) * spread[:, 0] * (z[1] - z[0])
    return (weight * kl).sum().item() / math.log(2)


def gaussian(law: MixtureOracle, process: GaussianProcess, x_t: Tensor, t: Level, s: Level, kind: Kind) -> Normal:
    """The Gaussian reverse step with the exact mean and a variance of this kind."""
    belief = Estimate(x0=law(x_t, t).x0, variance_fraction=1.0 if kind == "beta" else None)
    step = process.reverse(x_t, t, s, belief)
    if kind == "matched":
        return Normal(mean=step.mean, std=law.reverse(x_t, t, s).variance.sqrt())
    return step


def grid() -> Tensor:
    """Where densities are kept (n 1); sums over it times its spacing are integrals."""
    return torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)[:, None]


def run_chain(law: MixtureOracle, process: GaussianProcess, steps: int, kind: Kind) -> Chain:
    """The law of x_0 of T reverse steps from the prior, each N(exact mean, variance of this kind), by quadrature."""
    x = grid()
    width = 2 * _REACH / (_POINTS - 1)
    levels = [process.schedule.at(torch.tensor(i / steps, dtype=torch.float64)) for i in range(steps, -1, -1)]
    density = process.prior(x).log_prob(x)[:, 0].exp()
    lost = 0.0
    for t, s in itertools.pairwise(levels):
        bits = step_kl_bits(law, process, t, s, kind)
        if bits is None:
            break
        kernel = gaussian(law, process, x, t, s, kind).log_prob(x.T).exp()  # x_t down, x_s across
        density = (density @ kernel) * width
        lost += bits
    truth = law.log_density(x, levels[-1])
    if kind == "beta_tilde":
        return Chain(
            kl_bits=None,
            total_variation=_total_variation_of_belief(law, density, levels[-2]),
            lost_bits=None,
            density=None,
        )
    smallest = torch.finfo(density.dtype).tiny
    kl = (truth.exp() * (truth - density.clamp(min=smallest).log())).sum().item() * width
    start = (process.marginal(x, levels[0]).kl(process.prior(x))[:, 0] * truth.exp()).sum().item() * width
    return Chain(
        kl_bits=kl / math.log(2),
        total_variation=(truth.exp() - density).abs().sum().item() * width / 2,
        lost_bits=lost + start / math.log(2),
        density=density,
    )


def _total_variation_of_belief(law: MixtureOracle, density: Tensor, t: Level) -> float:
    """Between the truth and the law of D(x_t), x_t of this density on the grid.

    D rises, dD/dx = alpha var(x0 | x)/sigma^2. Both laws are carried to x_t, where no point mass is too narrow for the
    grid; truth that no belief on the grid reaches is missed as a whole.
    """
    x = grid()
    width = 2 * _REACH / (_POINTS - 1)
    data = Level(t=t.t * 0, alpha=t.alpha * 0 + 1, sigma=t.sigma * 0, dalpha=t.dalpha * 0, dsigma=t.dsigma * 0)
    posterior = law.reverse(x, t, data)
    slope = (t.alpha / t.sigma**2 * posterior.variance)[:, 0]
    truth = law.log_density(posterior.mean, data).exp() * slope
    inside = truth.sum().item() * width
    return ((truth - density).abs().sum().item() * width + max(0.0, 1 - inside)) / 2


def _log_prob(law: Mixture, x: Tensor) -> Tensor:
    """The log-density of each row's mixture at each of the row's points (n m)."""
    offset = x[:, :, None] - law.means[:, None, :, 0]
    logs = -0.5 * (offset.square() / law.variances[:, None] + torch.log(2 * math.pi * law.variances)[:, None])
    return torch.logsumexp(law.log_weights[:, None] + logs, 2)


def _row(steps: int, chains: dict[Kind, Chain]) -> dict[str, float | int | None]:
    row: dict[str, float | int | None] = {"T": steps}
    for kind in KINDS:
        row[f"total_variation_{kind}"] = chains[kind].total_variation
    for kind in KINDS[:2]:
        row[f"kl_bits_{kind}"], row[f"lost_bits_{kind}"] = chains[kind].kl_bits, chains[kind].lost_bits
    return row


def _scientific(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.2e}"


def _cell(chain: Chain) -> str:
    kl = "" if chain.kl_bits is None else f" ({chain.kl_bits:.2g})"
    return f"{chain.total_variation:.2g}{kl}"


def _failures(
    powers: dict[Kind, float], ratios: dict[Kind, float], chains: dict[int, dict[Kind, Chain]]
) -> tuple[str, ...]:
    found: list[str] = []
    for kind in KINDS:
        if abs(powers[kind] - order(kind)) > 0.05 or abs(ratios[kind] - 1) > 0.05:
            found.append(
                f"the KL of a step ({kind}) falls with the power {powers[kind]:.3f} of its size, {ratios[kind]:.3f} "
                f"times what theory says, not {order(kind)} and 1"
            )
        distances = [chains[steps][kind].total_variation for steps in _ANSWERED]
        if not all(more > less for more, less in itertools.pairwise(distances)):
            found.append(f"more steps ({kind}) do not draw a nearer law: {distances}")
    for steps, kind in itertools.product(CHAINS, KINDS[:2]):
        chain = chains[steps][kind]
        if not (chain.kl_bits or 0) <= (chain.lost_bits or 0) + 1e-9:
            found.append(f"T = {steps} ({kind}) is further from the truth than its bound allows")
    return tuple(found)


def _picture(
    law: MixtureOracle,
    process: GaussianProcess,
    t: Level,
    rows: Sequence[dict[str, Any]],
    chains: dict[int, dict[Kind, Chain]],
    path: Path,
) -> None:
    pyplot = plots()
    figure, axes = pyplot.subplots(2, 4, figsize=(15, 7), layout="constrained")
    _draw_kernels(law, process, t, axes[0])
    x = grid()[:, 0].numpy()
    step = [row["step"] for row in rows]
    for kind in KINDS:
        bits = [math.nan if row[kind] is None else row[kind] for row in rows]
        (line,) = axes[1, 0].loglog(step, bits, "o-", markersize=3, label=f"variance {kind}")
        limit = [rows[-1][kind] * (beta / step[-1]) ** order(kind) for beta in step]
        axes[1, 0].loglog(step, limit, ":", color=line.get_color(), label=f"slope {order(kind)}")
        distance = [chains[steps][kind].total_variation for steps in CHAINS]
        axes[1, 1].loglog(CHAINS, distance, "o-", markersize=3, label=f"variance {kind}")
    axes[1, 0].set(title="KL of the true kernel from a Gaussian", xlabel="size of the step, beta", ylabel="bits")
    axes[1, 1].set(title="law of x_0 after T steps", xlabel="T", ylabel="total variation from the truth")
    truth = law.log_density(grid(), process.schedule.at(torch.zeros((), dtype=torch.float64))).exp()
    for axis, kind in zip(axes[1, 2:], KINDS, strict=False):
        axis.fill_between(x, truth.numpy(), color="0.85", label="truth")
        for steps in _ANSWERED:
            density = chains[steps][kind].density
            if density is not None:
                axis.plot(x, density.numpy(), linewidth=1, label=f"T = {steps}")
        axis.set(title=f"densities of x_0, variance {kind}", xlabel="x_0", xlim=(-2.5, 2.5))
    for axis in axes[1]:
        axis.legend(fontsize=8)
    save_plot(figure, path, dpi=110)


def _draw_kernels(law: MixtureOracle, process: GaussianProcess, t: Level, axes: Any) -> None:
    """True reverse kernels between two hills, and their best Gaussians, over steps from all the way to a small one."""
    between = t.alpha * (law.means[1] + law.means[2])[None] / 2  # 1 1
    for axis, beta in zip(axes, (0.5, 0.45, 0.3, 0.03), strict=True):
        s = level_before(process, t, beta)
        truth, best = law.reverse(between, t, s), gaussian(law, process, between, t, s, "matched")
        x_s = truth.mean + truth.variance.sqrt() * torch.linspace(-4, 4, 400, dtype=torch.float64)
        axis.plot(x_s[0].numpy(), _log_prob(truth, x_s).exp()[0].numpy(), label="true p(x_s | x_t)")
        axis.plot(x_s[0].numpy(), best.log_prob(x_s).exp()[0].numpy(), "--", label="best Gaussian")
        axis.set(title=f"beta = {beta:.3g}" + (" (to the data)" if s.sigma == 0 else ""), xlabel="x_s")
    axes[0].legend(fontsize=8)
