"""DDPM's ablation of objectives, on digits: what the network predicts, and what it is trained for.

Knows: the rows of the paper's Table 2, one of improved DDPM, and what the papers found.
Does not know: how a small model of digits is trained, drawn from or measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unstir.diffusion.objective import Hybrid, Simple, VariationalBound, Weight, weight_noise
from unstir.diffusion.parameterization import (
    FixedLarge,
    LearnedRange,
    LearnedVariance,
    Parameterization,
    PredictMean,
    PredictNoise,
)
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import Ancestral
from unstir.diffusion.schedule import Level
from unstir.diffusion.times import UniformTimes
from unstir.reproduce import on_digits
from unstir.reproduce.fit import Objective
from unstir.reproduce.report import Advance, Report, mean_and_error, one_thread, plots, save_plot, table, told
from unstir.typing import Time


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table.

    Args:
        parameterization: what the network's output means.
        objective: what is minimised.
        paper: FID on CIFAR-10, or what the paper says instead.
    """

    parameterization: Parameterization
    objective: Objective
    paper: float | str


def rows_of(process: GaussianProcess, num_steps: int) -> dict[str, Row]:
    """The rows by name, in the table's order.

    Source: Ho et al. 2020, arXiv:2006.11239, Table 2; Nichol & Dhariwal 2021, arXiv:2102.09672, Sec. 3.1 (hybrid; its
        FID is that of a longer chain and another network).
    """
    mean, noise = PredictMean(process=process, num_steps=num_steps), PredictNoise()
    bound, times = VariationalBound(num_steps=num_steps), UniformTimes(num_steps=num_steps)

    def learned(prediction: Parameterization) -> Parameterization:
        return LearnedVariance(mean=prediction, process=process, num_steps=num_steps)

    def row(parameterization: Parameterization, objective: Objective, paper: float | str) -> Row:
        return Row(parameterization=parameterization, objective=objective, paper=paper)

    step_error = Simple(weight=weight_mean(process, num_steps), times=times)
    return {
        "mean, L, learned": row(learned(mean), bound, 23.69),
        "mean, L, fixed": row(FixedLarge(mean=mean), bound, 13.22),
        "mean, MSE, fixed": row(FixedLarge(mean=mean), step_error, "unstable"),
        "noise, L, learned": row(learned(noise), bound, "unstable"),
        "noise, L, fixed": row(FixedLarge(mean=noise), bound, 13.51),
        "noise, L_simple, fixed": row(FixedLarge(mean=noise), Simple(weight=weight_noise, times=times), 3.17),
        "noise, L_hybrid, range": row(LearnedRange(mean=noise), Hybrid(bound=bound), "not in Table 2"),
    }


def weight_mean(process: GaussianProcess, num_steps: int) -> Weight:
    """(alpha_s beta/sigma_t^2)^2: the squared error on the mean of the step from t to s = t - 1/T, unweighted.

    Source: Ho et al. 2020, arXiv:2006.11239, Eq. 7 (the mean's coefficient on x0).
    """

    def weight(level: Level) -> Time:
        before = process.schedule.at(((level.t * num_steps).round() - 1).clamp(min=0) / num_steps)
        beta = process.variances(before, level)[1]
        return (before.alpha * beta / level.sigma**2) ** 2

    return weight


@one_thread()
def objectives(*, seed: int, advance: Advance, effort: float = 1.0) -> Report:
    """Train each row with three seeds; kernel distance and bits/dim beside the paper's FID.

    Args:
        seed: of the first model; the others have the two after it.
        advance: called often.
        effort: of training and drawing, for tests.

    Source: Ho et al. 2020, arXiv:2006.11239, Table 2; Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 16.
    """
    num_steps = on_digits.FEW_STEPS if effort == 1 else 20
    process = on_digits.chain(num_steps=num_steps)
    rows = rows_of(process, num_steps)
    found: dict[str, dict[str, Any]] = {}
    shown: dict[str, Tensor] = {}
    for index, (name, row) in enumerate(rows.items()):
        distances: list[float] = []
        bits: list[float] = []
        for place, own in enumerate(on_digits.three(seed)):
            tell = on_digits.staged(advance, 3 * index + place, 3 * len(rows))
            try:
                trained = on_digits.learn(
                    process,
                    row.parameterization,
                    row.objective,
                    steps=on_digits.shorter(2000, effort),
                    seed=own,
                    advance=tell,
                )
            except ArithmeticError:
                continue
            denoise = on_digits.within_range(trained)
            drawn = on_digits.pictures_of(
                Ancestral(),
                denoise,
                process,
                count=on_digits.shorter(1000, effort, least=10),
                num_steps=num_steps,
                noise=(own, 1),
                advance=tell,
            )
            shown.setdefault(name, drawn[:20])
            distances.append(on_digits.distance(drawn).value)
            test = on_digits.data().test.pictures
            bound = on_digits.bits(
                on_digits.within_range(trained, on_digits.FOR_BITS), process, test, noise=(own, 2), advance=tell
            )
            bits.append(bound.mean)
        found[name] = {"paper_fid": row.paper, "distances": distances, "bits": bits, "diverged": 3 - len(bits)}
    return _report(found, shown)


def _report(found: Mapping[str, Mapping[str, Any]], shown: Mapping[str, Tensor]) -> Report:
    data = on_digits.distance_of_data()
    distances = {name: row["distances"] for name, row in found.items() if len(row["distances"]) > 1}
    bits = {name: row["bits"] for name, row in found.items() if len(row["bits"]) > 1}
    paper = {name: row["paper_fid"] for name, row in found.items() if isinstance(row["paper_fid"], float)}
    rows: list[dict[str, Any]] = []
    cells: list[tuple[object, ...]] = []
    for name, row in found.items():
        far, far_error = mean_and_error(row["distances"]) if name in distances else (None, None)
        bound, bound_error = mean_and_error(row["bits"]) if name in bits else (None, None)
        rows.append(
            {
                "row": name,
                "paper_fid": row["paper_fid"],
                "kernel_distance": far,
                "kernel_distance_error": far_error,
                "bits_per_dim": bound,
                "bits_per_dim_error": bound_error,
                "diverged": row["diverged"],
                "kernel_distances": row["distances"],
                "bits_per_dims": row["bits"],
            }
        )
        cells.append(
            (
                name,
                row["paper_fid"],
                "-" if far is None or far_error is None else told(far, far_error),
                "-" if bound is None or bound_error is None else told(bound, bound_error),
                f"{row['diverged']} of 3",
            )
        )
    return Report(
        figures={
            "rows": rows,
            "kernel_distance_of_data": data.value,
            "kernel_distance_of_data_error": data.standard_error,
            "by_kernel_distance": on_digits.compare(distances),
            "against_paper": on_digits.against(paper, distances),
            "by_bits_per_dim": on_digits.compare(bits),
        },
        lines=(
            *table(
                ("prediction, objective, variance", "FID (paper)", "kernel distance", "bits/dim", "diverged"), cells
            ),
            f"digits that are trained on, against the same held-out ones: {told(data.value, data.standard_error)}",
            *on_digits.compared("kernel distance", distances),
            on_digits.told_against("kernel distance against FID", paper, distances),
            *on_digits.compared("bits/dim", bits),
        ),
        notes=(
            *on_digits.NOTES,
            "the paper's FIDs are of CIFAR-10, T = 1000, a U-Net of 36 million weights and 800,000 batches; ours is an "
            f"MLP of 190,000, T = {on_digits.FEW_STEPS} and 2,000 batches",
            "the paper calls rows unstable without more; here a seed has diverged if its loss was not finite",
        ),
        draw=lambda path: _picture(found, shown, path),
    )


def _picture(found: Mapping[str, Mapping[str, Any]], shown: Mapping[str, Tensor], path: Path) -> None:
    pyplot = plots()
    figure = pyplot.figure(figsize=(11, 7), layout="constrained")
    grid = figure.add_gridspec(len(found), 2, width_ratios=(1, 1.3))
    left = figure.add_subplot(grid[:, 0])
    for place, (name, row) in enumerate(found.items()):
        left.plot(row["distances"], [place] * len(row["distances"]), "o", color="C0", alpha=0.7)
        axes = figure.add_subplot(grid[place, 1])
        on_digits.show(axes, shown.get(name, torch.zeros(20, 1, 8, 8)), columns=10, title=name)
    left.set(yticks=range(len(found)), xlabel="kernel distance to held-out digits", xscale="log")
    left.set_yticklabels([f"{name}\nFID (paper): {row['paper_fid']}" for name, row in found.items()], fontsize=8)
    left.invert_yaxis()
    left.set_title("a dot a seed", fontsize=9)
    save_plot(figure, path)
