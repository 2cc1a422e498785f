"""Dead leaves, of 2015: bits a pixel of a diffusion, beside a Gaussian and a causal mixture (MCGSM).

Knows: the three models, how bits/dim become a log-likelihood of z-scored data, the paper's two figures.
Does not know: how pictures are spoiled or a bound is summed.

In the paper the diffusion beats the causal mixture; here the causal mixture wins, given enough components. These leaves
have no grain: four pixels in five are exact copies of one beside or above, which one term of a mixture says at once.

The paper tells log-likelihoods of real-valued, z-scored pictures in bits a pixel; here pictures have 256 grey levels. A
model that gives grey level k the probability P(k) is the density P(k)/w on the interval of width w that k owns, which
in units of the data's standard deviation d is P(k) d/w:

    log-likelihood of z-scored data = log2(d/w) - bits/dim,   log2(d/w) = 6.2075 for grey levels that are uniform.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.data.toy import DeadLeaves
from unstir.diffusion.denoiser import Denoiser, NetworkDenoiser
from unstir.diffusion.likelihood import bits_per_dim
from unstir.diffusion.noise import BlockNoise
from unstir.diffusion.objective import VariationalBound
from unstir.diffusion.parameterization import Affine, Parameterization, PredictEDM
from unstir.diffusion.process import Estimate, GaussianProcess
from unstir.diffusion.samplers import Ancestral, sample
from unstir.diffusion.schedule import Level, LogLinear, spread
from unstir.nn.convnet import ConvNet, ConvNetConfig
from unstir.reproduce.fit import Fit, fit, in_chunks, seeded
from unstir.reproduce.report import Advance, Report, mean_over_samples, one_thread, plots, save_plot, table, told
from unstir.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from unstir.typing import Picture, X, integers

PAPER = {"diffusion": 1.489, "autoregressive": 1.244, "white_noise": -2.047}
"""Log-likelihoods in bits a pixel; that of white noise from K - L_null = 3.536."""

LEVELS = 256
WIDTH = 2 / (LEVELS - 1)
DEVIATION = math.sqrt((LEVELS**2 - 1) / 12) * WIDTH
"""The standard deviation of a grey level that is uniform, as those of the leaves are."""

STEPS, BATCH = 1200, 64
HIGH, LOW = 13.3, -6.0
"""Log-SNRs: the noise of t_1 is a sixth of the interval of a grey level."""

CAUSAL_STEPS, CAUSAL_BATCH = 3000, 16
_SMALLEST = 1e-6  # probability kept aside for all levels alike


_CLEARLY = 3.0  # bits/pixel that any knowledge of leaves is worth over the covariance
_WINDOW = 4  # levels to each side of a belief that it may mean
_SHARPEST, _WIDEST = 0.05, 0.8  # standard deviations of a belief, in intervals of a level: beyond, levels do not matter


@dataclass(frozen=True, kw_only=True)
class OnLevels(Parameterization):
    """Beliefs that know of grey levels: a Gaussian belief N(m, v) about x0, restricted to the levels g.

    x0 = sum over g of g softmax_g(-(m - g)^2 / 2v),   v = (sigma/alpha)^2 exp(G)

    Twice the channels: the first half says m, the second G. Where v is wide beside the levels x0 is m itself.

    Args:
        mean: what the first half means.
    """

    mean: Affine

    def encode(self, x_t: X, level: Level) -> tuple[X, Float[Tensor, "b"]]:
        """As ``mean`` does."""
        return self.mean.encode(x_t, level)

    def decode(self, output: Tensor, x_t: X, level: Level) -> Estimate:
        """The mean of the restricted belief."""
        first, log_share = output.chunk(2, 1)
        place = (self.mean.decode(first, x_t, level).x0 + 1) / WIDTH  # in levels, from 0
        std = spread(level.sigma / level.alpha / WIDTH, x_t) * torch.exp(log_share.clamp(-10, 10) / 2)
        std = std.clamp(_SHARPEST, _WIDEST)
        nearest = place.detach().round()
        levels = torch.stack([nearest + step for step in range(-_WINDOW, _WINDOW + 1)])
        share = torch.softmax(-((place - levels) / std).square() / 2, 0)
        return Estimate(x0=(share * levels).sum(0) * WIDTH - 1)

    def target(self, x0: X, x_t: X, level: Level) -> Tensor:
        """What the first half should be; no sample tells what the second should."""
        return self.mean.target(x0, x_t, level)


@one_thread()
def dead_leaves(*, seed: int, advance: Advance, effort: float = 1.0) -> Report:
    """Train both models, bound one and compute the others, on the same held-out pictures.

    Args:
        seed: of data, initial weights and noise.
        advance: hears of the work done.
        effort: share of the steps of training and sampling, and of the pictures; 1 for the figures.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Table 2; Theis et al. 2012, arXiv:1109.4389 (MCGSM).
    """
    law = DeadLeaves()
    process = GaussianProcess(schedule=LogLinear(high=HIGH, low=LOW), levels=LEVELS)
    denoise = in_chunks(teach_diffusion(law, process, seed, math.ceil(STEPS * effort), advance), 500)
    causal = teach_causal(law, seed, math.ceil(CAUSAL_STEPS * effort), advance)

    count = math.ceil(1000 * effort)
    data = law.draw(BlockNoise(key=(seed, 1, 0xDEAD), count=count))
    bound = bits_per_dim(
        denoise,
        process,
        data.double(),
        steps=None,
        noise=BlockNoise(key=(seed, 2, 0xDEAD), count=count),
        draws=40,
        progress=lambda done, total: advance("bound", done, total),
    )
    bits = {
        "diffusion": bound.total,
        "autoregressive": causal.bits_per_dim(data),
        "gaussian": gaussian_bits_per_dim(law, data),
    }
    found = {name: mean_over_samples(values) for name, values in bits.items()}
    ahead, ahead_error = mean_over_samples(bits["autoregressive"] - bits["diffusion"])
    start = BlockNoise(key=(seed, 3, 0xDEAD), count=36)
    drawn = _draw(denoise, process, law, start, max(10, round(150 * effort)), advance)
    ours, error = z_scored(found["diffusion"][0]), found["diffusion"][1]
    return Report(
        figures={
            "ours": ours,
            "standard_error": error,
            "paper": PAPER["diffusion"],
            "best_possible": None,
            "autoregressive": z_scored(found["autoregressive"][0]),
            "autoregressive_standard_error": found["autoregressive"][1],
            "paper_autoregressive": PAPER["autoregressive"],
            "gaussian": z_scored(found["gaussian"][0]),
            "gaussian_standard_error": found["gaussian"][1],
            "ours_over_autoregressive": ahead,
            "ours_over_autoregressive_standard_error": ahead_error,
            "paper_over_autoregressive": PAPER["diffusion"] - PAPER["autoregressive"],
            "bits_per_dim": {name: mean for name, (mean, _) in found.items()},
        },
        lines=(
            *table(
                ("model", "bits/dim", "z-scored, bits/pixel", "paper"),
                [
                    (label, told(*found[name]), told(z_scored(found[name][0]), found[name][1]), PAPER.get(name, ""))
                    for name, label in (
                        ("diffusion", "diffusion (bound)"),
                        ("autoregressive", "causal mixture (MCGSM)"),
                        ("gaussian", "Gaussian of the exact covariance"),
                    )
                ]
                + [("independent grey levels", 8, f"{z_scored(8):.3f}", ""), ("white noise", "", "", -2.047)],
            ),
            f"diffusion over causal mixture: {told(ahead, ahead_error)} bits/pixel (paper +0.245): "
            + ("the paper's order" if ahead > 0 else "NOT the paper's order: here the causal mixture is better"),
        ),
        notes=(
            "levels cannot be compared with the paper, which does not give its generator's radii, grey levels or "
            "noise; the order of the two models can",
            "our leaves are of one grey level out of 256, without grain: a model that copies a neighbour exactly gains "
            "much, and a causal mixture can; for real numbers without grain it would gain without bound",
            "that values lie on 256 levels is told to all but the Gaussian: to the diffusion in its beliefs and its "
            "decoder, to the causal mixture in its intervals",
            "the best possible is unknown: nobody has the entropy of this law",
            "the order depends on how large the causal mixture is, which the paper does not say of its own: with 12 "
            "components in the place of 24, of radius 3, it needed 2.620 bits/dim after 43 CPU-seconds and 2.524 after "
            "185, where this diffusion needed 2.532 after 213 (seed 0)",
            "standard errors are over the held-out pictures, of one training",
        ),
        draw=lambda path: _picture(process, data, drawn, found, path),
        failures=()
        if found["diffusion"][0] < found["gaussian"][0] - _CLEARLY
        else (f"the diffusion is not {_CLEARLY} bits/pixel better than a Gaussian",),
    )


def z_scored(bits: float) -> float:
    """The log-likelihood of z-scored data, bits a pixel, of a model that needs so many bits/dim for grey levels."""
    return math.log2(DEVIATION / WIDTH) - bits


def gaussian_bits_per_dim(law: DeadLeaves, data: Picture) -> Float[Tensor, "b"]:
    """Of the Gaussian with the law's exact mean and covariance, mean over uniform dequantisation: an upper bound.

    With S = d^2 same_leaf(distance) + w^2/12 I, and the mean over the dequantisation taken in closed form,
    (x' S^-1 x + w^2/12 tr S^-1 + log det(2 pi S)) / 2 nats for a picture, less log w for every pixel.
    """
    rows, columns = torch.meshgrid(torch.arange(law.height), torch.arange(law.width), indexing="ij")
    place = torch.stack([rows, columns], 2).view(-1, 2)
    squares = (place[:, None] - place).square().sum(2)
    known = torch.zeros(int(squares.max()) + 1, dtype=torch.float64)
    for square in set(integers(squares.flatten())):
        known[square] = law.same_leaf(math.sqrt(square))
    size = len(place)
    covariance = DEVIATION**2 * known[squares] + WIDTH**2 / 12 * torch.eye(size, dtype=torch.float64)
    factor = cast(Tensor, torch.linalg.cholesky(covariance))
    inverse = torch.cholesky_inverse(factor)
    x = data.double().flatten(1)
    quadratic = ((x @ inverse) * x).sum(1) + WIDTH**2 / 12 * inverse.trace()
    nats = (quadratic + size * math.log(2 * math.pi)) / 2 + factor.diagonal().log().sum() - size * math.log(WIDTH)
    return nats / (size * math.log(2))


class CausalMixture(nn.Module):
    """P(grey level | the pixels above and to the left): a mixture of conditional Gaussian scale mixtures, on a grid.

    P(k | h) = sum over c, s of p(c, s | h) N(level k; a_c h, std_cs^2)
    p(c, s | h) ~ exp(eta_cs - exp(scale_cs) |B_c h|^2 / 2)

    where h holds the pixels of the neighbourhood, which of them lie outside of the picture, and 1; and N(level; ...) is
    the mass on the interval of a level, the first and the last reaching out to infinity.

    Args:
        radius: rows above, and pixels to the left and to the right, that are seen.
        components: c.
        scales: s, of a component.
        rank: rows of B_c.

    Source: Theis et al. 2012, arXiv:1109.4389 (there for densities, and with B_c of full rank).
    """

    def __init__(self, *, radius: int = 2, components: int = 24, scales: int = 3, rank: int = 8) -> None:
        super().__init__()
        self.radius, self.components, self.rank = radius, components, rank
        self.seen = radius * (2 * radius + 1) + radius  # pixels of the neighbourhood
        self.mean = nn.Linear(2 * self.seen, components)
        self.form = nn.Linear(2 * self.seen, components * rank)
        self.eta = nn.Parameter(torch.zeros(components, scales))
        self.scale = nn.Parameter(torch.linspace(-0.5, 5.5, scales).repeat(components, 1))
        self.log_std = nn.Parameter(torch.linspace(-0.5, -5.5, scales).repeat(components, 1))

    def neighbourhood(self, x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "n d"]:
        """Each pixel's neighbourhood, 0 outside of the picture, and 1 where it is outside."""
        r = self.radius
        around = (r, r, r, 0)
        both = torch.cat([F.pad(x, around), 1 - F.pad(torch.ones_like(x), around)], 1)
        windows = F.unfold(both, (r + 1, 2 * r + 1)).view(len(x), 2, (r + 1) * (2 * r + 1), -1)[:, :, : self.seen]
        return windows.permute(0, 3, 1, 2).reshape(-1, 2 * self.seen)

    def forward(self, x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b n"]:
        """The log-probability of every pixel given those before it, in nats."""
        h, pixel = self.neighbourhood(x), x.reshape(-1, 1, 1)
        energy = self.form(h).unflatten(1, (self.components, self.rank)).square().sum(2)  # n c
        gate = (self.eta - self.scale.exp() * energy[:, :, None] / 2).flatten(1).log_softmax(1)  # n (c s)
        off, width = pixel - self.mean(h)[:, :, None], math.sqrt(2) * self.log_std.exp()
        high = torch.where(pixel > 1 - WIDTH / 2, torch.inf, (off + WIDTH / 2) / width).clamp(max=20)
        low = torch.where(pixel < -1 + WIDTH / 2, -torch.inf, (off - WIDTH / 2) / width).clamp(min=-20)
        mass = (torch.erf(high) - torch.erf(low)) / 2
        mass = (1 - _SMALLEST) * mass + _SMALLEST / LEVELS  # erf has no tails in float32
        return torch.logsumexp(gate + mass.flatten(1).log(), 1).view(len(x), -1)

    def bits_per_dim(self, data: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b"]:
        """Of each picture, exactly."""
        with torch.no_grad():
            logs = torch.cat([self(data[start : start + 50].float()) for start in range(0, len(data), 50)])
        return -logs.double().mean(1) / math.log(2)


def teach_diffusion(
    law: DeadLeaves, process: GaussianProcess, seed: int, steps: int, advance: Advance
) -> NetworkDenoiser[Condition]:
    """The diffusion, trained on its bound."""
    network = seeded(seed, lambda: ConvNet(ConvNetConfig(out_factor=2, width=32, depth=4, heads=3, reach=2)))
    config = Fit(
        steps=steps,
        batch=BATCH,
        seed=seed,
        optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.0, warmup_images=50 * BATCH, anneal=0.6),
    )
    parameterization = OnLevels(mean=PredictEDM(sigma_data=DEVIATION))
    denoiser: NetworkDenoiser[Condition] = NetworkDenoiser(network, process, parameterization)
    return fit(denoiser, VariationalBound(num_steps=None), law.draw, config, advance=advance)


def teach_causal(law: DeadLeaves, seed: int, steps: int, advance: Advance) -> CausalMixture:
    """The causal mixture, trained on its log-likelihood."""
    model: CausalMixture = seeded(seed, CausalMixture)
    config = OptimizerConfig(learning_rate=5e-3, weight_decay=0.0, warmup_images=0, anneal=0.5)
    optimizer = make_optimizer(model, config)
    for step in range(steps):
        loss = -model(law.draw(BlockNoise(key=(seed, step, 0xCA), count=CAUSAL_BATCH))).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, steps)
        optimizer.step()
        optimizer.zero_grad()
        advance("causal mixture", step + 1, steps)
    return model.eval()


def _draw(
    denoise: Denoiser, process: GaussianProcess, law: DeadLeaves, noise: BlockNoise, steps: int, advance: Advance
) -> Tensor:
    x = process.prior(torch.zeros(noise.count, 1, law.height, law.width)).sample(noise.at(0))
    for step in sample(Ancestral(), denoise, process, x, [i / steps for i in range(steps, -1, -1)], noise.at(1)):
        x = step.x
        advance("samples", step.index, steps)
    return x


def _picture(
    process: GaussianProcess, data: Tensor, drawn: Tensor, found: dict[str, tuple[float, float]], path: Path
) -> None:
    pyplot = plots()
    figure, axes = pyplot.subplots(1, 4, figsize=(16, 4.2), layout="constrained")
    few = data[:36]
    level = process.schedule.at(process.schedule.time_of(torch.tensor(3.0, dtype=torch.float64)))
    spoiled = process.marginal(few, level).sample(BlockNoise(key=(0,), count=len(few)))
    sheets = (("data", few), ("samples", drawn), ("spoiled, log-SNR 3", spoiled))
    for axis, (title, pictures) in zip(axes, sheets, strict=False):
        axis.imshow(_sheet(pictures).numpy(), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axis.set(title=title, xticks=[], yticks=[])
    names = ("gaussian", "autoregressive", "diffusion")
    axes[3].bar(names, [z_scored(found[name][0]) for name in names], yerr=[found[name][1] for name in names], capsize=4)
    for name, colour in (("autoregressive", "C1"), ("diffusion", "C3")):
        axes[3].axhline(PAPER[name], color=colour, linestyle=":", label=f"paper, {name} (other pictures)")
    axes[3].set(title="log-likelihood of z-scored pictures", ylabel="bits a pixel")
    axes[3].legend(fontsize=8)
    save_plot(figure, path, dpi=110)


def _sheet(pictures: Picture) -> Tensor:
    """A square of pictures with a white line between them."""
    framed = F.pad(pictures[:, 0].float(), (0, 1, 0, 1), value=1.0)
    side = math.isqrt(len(framed))
    rows = framed[: side * side].view(side, side, *framed.shape[1:])  # row column h w
    return rows.transpose(1, 2).reshape(side * framed.shape[1], -1)
