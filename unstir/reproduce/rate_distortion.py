"""DDPM as a lossy code, on digits: how wrong the belief about a picture still is after how many bits.

Knows: the ten rows of the paper's Table 4, which share of the bits is spent on what can hardly be seen.
Does not know: how a small model of digits is trained, or a bound is summed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.likelihood import Bound, RatePoint
from unstir.diffusion.likelihood import rate_distortion as rate_points
from unstir.diffusion.objective import Simple, VariationalBound, weight_noise
from unstir.diffusion.parameterization import FixedLarge, LearnedRange, PredictV
from unstir.diffusion.process import Estimate
from unstir.diffusion.schedule import Level
from unstir.diffusion.times import LossAwareTimes, UniformTimes
from unstir.reproduce import on_digits
from unstir.reproduce.report import Advance, Report, mean_and_error, one_thread, plots, save_plot, table, told
from unstir.typing import X

PAPER = {
    1000: (1.77581, 0.95136),
    900: (0.11994, 12.02277),
    800: (0.05415, 18.47482),
    700: (0.02866, 24.43656),
    600: (0.01507, 30.80948),
    500: (0.00716, 38.03236),
    400: (0.00282, 46.12765),
    300: (0.00081, 54.18826),
    200: (0.00013, 60.97170),
    100: (0.00000, 67.60125),
}
"""T - t + 1: rate in bits/dim, distortion as RMSE in grey levels from 0 to 255, of the test pictures of CIFAR-10.

Source: Ho et al. 2020, arXiv:2006.11239, Table 4.
"""

PAPER_ALL_AFTER = (1.77581 - 0.11994 + 1.97) / (1.77581 + 1.97)
"""The share of all bits of the paper's lossless code that come after its row 900; its decoder sends 1.97 bits/dim.

Source: Ho et al. 2020, arXiv:2006.11239, Sec. 4.3.
"""

SEEN = 12.02277
"""The RMSE, from 0 to 255, below which the paper's bits describe what can hardly be seen (its row 900)."""


def share_after(points: Sequence[RatePoint], rmse: float) -> float | None:
    """The share of the rate that is spent after the distortion (in grey levels from 0 to 255) is down to this.

    None if it never gets there. (Of the paper's table: 0.932 for its 12.02.)
    """
    for point in points:
        if 127.5 * point.distortion <= rmse:
            return 1 - point.rate / points[-1].rate
    return None


@one_thread()
def rate_distortion(*, seed: int, advance: Advance, effort: float = 1.0) -> Report:
    """The paper's table beside ours, for a model trained by L_simple as the paper's is, and for one by the bound.

    Args:
        seed: of the first of three models.
        advance: called often.
        effort: of training, for tests.

    Source: Ho et al. 2020, arXiv:2006.11239, Sec. 4.3, Table 4.
    """
    num_steps = on_digits.NUM_STEPS if effort == 1 else 20
    process = on_digits.chain(num_steps=num_steps)
    ways = {
        "L_simple": (FixedLarge(mean=PredictV()), Simple(weight=weight_noise, times=UniformTimes(num_steps=num_steps))),
        "bound": (
            LearnedRange(mean=PredictV()),
            VariationalBound(num_steps=num_steps, times=LossAwareTimes(num_steps=num_steps)),
        ),
    }
    curves: dict[str, list[tuple[RatePoint, ...]]] = {}
    bounds: dict[str, list[Bound]] = {}
    for index, (name, (parameterization, objective)) in enumerate(ways.items()):
        for place, own in enumerate(on_digits.three(seed)):
            tell = on_digits.staged(advance, 3 * index + place, 3 * len(ways))
            trained = on_digits.learn(
                process,
                parameterization,
                objective,
                steps=on_digits.shorter(800, effort),
                seed=own,
                build=on_digits.convolutions,
                advance=tell,
            )
            pictures = on_digits.data().test.pictures
            distortions: dict[int, float] = {}
            denoise = watched(trained, pictures, distortions, num_steps)
            bound = on_digits.bits(denoise, process, pictures, noise=(own, 2), advance=tell)
            bounds.setdefault(name, []).append(bound)
            points = [replace(p, distortion=distortions[round(p.t * num_steps)]) for p in rate_points(bound)]
            curves.setdefault(name, []).append(tuple(points))
    return _report(curves, bounds, num_steps)


def watched(denoise: Denoiser, pictures: Tensor, distortions: dict[int, float], num_steps: int) -> Denoiser:
    """The same beliefs; each call notes how far the picture that one would show is from the true one.

    What one would show is no darker than black; beliefs are, in models that are trained by the bound: the decoder
    rewards it.

    Args:
        denoise: what is believed.
        pictures: the truth.
        distortions: by the number of the step, root mean squared errors; filled by the calls.
        num_steps: T.
    """

    def watching(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        belief = denoise(x_t, level, previous)
        error = belief.x0.clamp(-1, 1) - pictures
        distortions[round(level.t.item() * num_steps)] = error.square().mean().sqrt().item()
        return belief

    return watching


def _report(
    curves: Mapping[str, Sequence[Sequence[RatePoint]]], bounds: Mapping[str, Sequence[Bound]], num_steps: int
) -> Report:
    rows: list[dict[str, Any]] = []
    cells: list[tuple[object, ...]] = []
    for place, (paper_rate, paper_rmse) in PAPER.items():
        row: dict[str, Any] = {"steps_sent": place, "paper_rate": paper_rate, "paper_rmse": paper_rmse}
        cell: list[object] = [place, f"{paper_rate:.5f}", f"{paper_rmse:.2f}"]
        for name, ours in curves.items():
            points = [curve[max(0, place * num_steps // 1000 - 1)] for curve in ours]
            rate, rate_error = mean_and_error([point.rate for point in points])
            rmse, rmse_error = mean_and_error([point.distortion for point in points])
            key = name.lower()
            row |= {f"{key}_rate": rate, f"{key}_rate_error": rate_error}
            row |= {f"{key}_rmse": 127.5 * rmse, f"{key}_rmse_error": 127.5 * rmse_error, f"{key}_rmse_of_16": 8 * rmse}
            cell += [told(rate, rate_error), told(127.5 * rmse, 127.5 * rmse_error), f"{8 * rmse:.2f}"]
        rows.append(row)
        cells.append(tuple(cell))
    heads = [(f"rate ({name})", "of 255", "of 16") for name in curves]
    columns = ("T - t + 1", "rate (paper)", "RMSE of 255", *(head for heads_of_one in heads for head in heads_of_one))
    parts = {name: _parts(bounds[name], curves[name]) for name in curves}
    paper_share = 1 - PAPER[900][0] / PAPER[1000][0]
    return Report(
        figures={"rows": rows, "paper_share_after": paper_share, **{name.lower(): parts[name] for name in parts}},
        lines=(
            *table(columns, cells),
            *(_told_parts(name, part) for name, part in parts.items()),
            f"of the paper's rate {100 * paper_share:.1f} % is spent after the RMSE is {SEEN:.0f} of 255; "
            "of ours, " + "; ".join(f"{_percent(part['share_after'])} ({name})" for name, part in parts.items()),
            f"of all bits, the decoder's included, come after that: {100 * PAPER_ALL_AFTER:.1f} % (paper); "
            + "; ".join(f"{100 * part['all_after']:.1f} % ({name})" for name, part in parts.items()),
        ),
        notes=(
            *on_digits.NOTES,
            "255 is from black to white for both; neighbours among our 17 grey levels are 15.9 apart, among the "
            "paper's 256 they are 1: of its bits that tell what can hardly be seen there is no counterpart here, where "
            "the decoder's bits tell one level from the next",
            "the network predicts v, not noise: the loss is the same, but no belief is divided by the little signal "
            "that is left near t = 1; distortions are of beliefs within black and white",
            "the ten times are those of the paper's chain less its first 4.6 %, which are one step here",
        ),
        draw=lambda path: _picture(curves, path),
    )


def _parts(bounds: Sequence[Bound], curves: Sequence[Sequence[RatePoint]]) -> dict[str, Any]:
    total, error = mean_and_error([bound.mean for bound in bounds])
    decoder, decoder_error = mean_and_error([bound.reconstruction.mean().item() for bound in bounds])
    shares = [share for curve in curves if (share := share_after(curve, SEEN)) is not None]
    share, share_error = mean_and_error(shares) if len(shares) == len(curves) else (None, None)
    rate = total - decoder
    return {
        "bits_per_dim": total,
        "bits_per_dim_error": error,
        "decoder": decoder,
        "decoder_error": decoder_error,
        "share_after": share,
        "share_after_error": share_error,
        "all_after": ((share or 0.0) * rate + decoder) / total,
    }


def _told_parts(name: str, part: Mapping[str, Any]) -> str:
    total = told(part["bits_per_dim"], part["bits_per_dim_error"])
    return (
        f"{name}: {total} bits/dim without loss, of which {told(part['decoder'], part['decoder_error'])} the decoder's"
    )


def _percent(share: float | None) -> str:
    return "none, it never is" if share is None else f"{100 * share:.1f} %"


def _picture(curves: Mapping[str, Sequence[Sequence[RatePoint]]], path: Path) -> None:
    pyplot = plots()
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    other = axes[1].twinx()
    for place, (name, ours) in enumerate(curves.items()):
        rate = torch.tensor([[point.rate for point in curve] for curve in ours]).mean(0)
        rmse = 127.5 * torch.tensor([[point.distortion for point in curve] for curve in ours]).mean(0)
        steps = torch.arange(1, len(rate) + 1) / len(rate)
        axes[0].plot(rate.numpy(), rmse.numpy(), label=f"digits, {name}", color=f"C{place}")
        axes[1].plot(steps.numpy(), rmse.numpy(), color=f"C{place}")
        other.plot(steps.numpy(), rate.numpy(), color=f"C{place}", linestyle=":")
    rates, rmses = zip(*PAPER.values(), strict=True)
    sent = [place / 1000 for place in PAPER]
    axes[0].plot(rates, rmses, "ko-", markersize=3, linewidth=0.7, label="CIFAR-10 (paper)")
    axes[1].plot(sent, rmses, "ko", markersize=3)
    other.plot(sent, rates, "k+")
    axes[0].set(xlabel="rate, bits/dim", ylabel="RMSE, of 255", title="distortion after so many bits")
    axes[0].axhline(SEEN, color="grey", linewidth=0.5)
    axes[0].legend(fontsize=8)
    axes[1].set(xlabel="share of the steps that are sent", ylabel="RMSE (lines, dots)", title="the same over time")
    other.set_ylabel("rate (dotted, crosses)")
    save_plot(figure, path)
