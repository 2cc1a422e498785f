"""DDIM's table, on digits: how much fresh noise a sampler should add, for how many steps it takes.

Knows: the rows and columns of the paper's Table 1, and what the paper found.
Does not know: how a small model of digits is trained, drawn from or measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.objective import Simple, weight_noise
from unstir.diffusion.parameterization import PredictNoise
from unstir.diffusion.process import Estimate
from unstir.diffusion.samplers import DDIM, Ancestral
from unstir.diffusion.schedule import Level
from unstir.diffusion.times import UniformTimes
from unstir.reproduce import on_digits
from unstir.reproduce.report import Advance, Report, mean_and_error, one_thread, plots, save_plot, table, told
from unstir.typing import X

STEPS = (10, 20, 50, 100, 1000)
PAPER = {
    "eta 0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "eta 0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "eta 0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "eta 1": (41.07, 18.36, 8.01, 5.78, 4.73),
    "sigma-hat": (367.43, 133.37, 32.72, 9.99, 3.17),
}
"""FID on CIFAR-10 at so many steps, by what fresh noise is added; sigma-hat is the variance beta of DDPM.

Source: Song et al. 2021, arXiv:2010.02502, Table 1.
"""

ETAS = {"eta 0": 0.0, "eta 0.2": 0.2, "eta 0.5": 0.5, "eta 1": 1.0}


@one_thread()
def ddim_steps(*, seed: int, advance: Advance, effort: float = 1.0) -> Report:
    """Three models trained by L_simple, each drawn from in every way.

    Args:
        seed: of the first model and its noise; the others have the two after it.
        advance: called often.
        effort: of training and drawing, for tests.

    Source: Song et al. 2021, arXiv:2010.02502, Table 1 and Sec. 5.1.
    """
    num_steps = on_digits.NUM_STEPS if effort == 1 else 20
    process = on_digits.chain(num_steps=num_steps)
    objective = Simple(weight=weight_noise, times=UniformTimes(num_steps=num_steps))
    columns = STEPS if effort == 1 else (5, 10, 20)
    found: dict[str, dict[int, list[float]]] = {name: {steps: [] for steps in columns} for name in PAPER}
    shown: dict[str, Tensor] = {}
    for place, own in enumerate(on_digits.three(seed)):
        tell = on_digits.staged(advance, place, 3)
        steps = on_digits.shorter(4000, effort)
        trained = on_digits.learn(process, PredictNoise(), objective, steps=steps, seed=own, advance=tell)
        denoise = on_digits.within_range(trained)
        for name in PAPER:
            sampler = DDIM(eta=ETAS[name]) if name in ETAS else Ancestral()
            for count in columns:
                drawn = on_digits.pictures_of(
                    sampler,
                    denoise if name in ETAS else with_beta(denoise),
                    process,
                    count=on_digits.shorter(500 if count == 1000 else 1000, effort, least=10),
                    num_steps=count,
                    noise=(own, 1),  # the same for all: rows and columns differ by the sampler alone
                    advance=tell,
                )
                found[name][count].append(on_digits.distance(drawn).value)
                if place == 0 and count == columns[0]:
                    shown[name] = drawn[:20]
    return _report(found, shown, columns)


def with_beta(denoise: Denoiser) -> Denoiser:
    """The same beliefs, with the reverse variance beta ("fixed large")."""

    def larger(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        return Estimate(x0=denoise(x_t, level, previous).x0, variance_fraction=1.0)

    return larger


def _report(
    found: Mapping[str, Mapping[int, Sequence[float]]], shown: Mapping[str, Tensor], columns: Sequence[int]
) -> Report:
    data = on_digits.distance_of_data()
    rows: list[dict[str, Any]] = []
    cells: list[tuple[object, ...]] = []
    for name, by_steps in found.items():
        cell: list[object] = [name]
        for index, (steps, values) in enumerate(by_steps.items()):
            mean, error = mean_and_error(values)
            paper = PAPER[name][index]
            rows.append(
                {
                    "row": name,
                    "steps": steps,
                    "paper_fid": paper,
                    "kernel_distance": mean,
                    "kernel_distance_error": error,
                    "kernel_distances": list(values),
                }
            )
            cell += [f"{paper:.2f}", told(mean, error)]
        cells.append(tuple(cell))
    by_column = {steps: {name: found[name][steps] for name in found} for steps in columns}
    paper = {steps: {name: PAPER[name][index] for name in PAPER} for index, steps in enumerate(columns)}
    few = columns[0]
    is_shown = ["eta 0", "sigma-hat"] in on_digits.against(paper[few], by_column[few])["held"]
    heads = [(f"FID {steps}", f"ours {steps}") for steps in columns]
    return Report(
        figures={
            "rows": rows,
            "kernel_distance_of_data": data.value,
            "kernel_distance_of_data_error": data.standard_error,
            "by_steps": {str(steps): on_digits.compare(column) for steps, column in by_column.items()},
            "against_paper": {str(steps): on_digits.against(paper[steps], by_column[steps]) for steps in columns},
        },
        lines=(
            *table(("fresh noise, steps", *(head for pair in heads for head in pair)), cells),
            f"digits that are trained on, against the same held-out ones: {told(data.value, data.standard_error)}",
            *(
                line
                for steps, column in by_column.items()
                for line in (
                    *on_digits.compared(f"{steps} steps, kernel distance", column),
                    on_digits.told_against(f"{steps} steps, against FID", paper[steps], column),
                )
            ),
        ),
        notes=(
            *on_digits.NOTES,
            "FID: the paper's, of CIFAR-10; ours: kernel distance of 1,000 pictures a model, of 500 at 1,000 steps",
            "the paper's grids of times end below T, ours start at T; of its chain the first 4.6 % are one step here",
            "all rows and columns of a seed share model and noise: errors of their differences are smaller than told",
        ),
        draw=lambda path: _picture(found, shown, columns, path),
        failures=() if is_shown else (f"at {few} steps no fresh noise is not better than DDPM's, beyond errors",),
    )


def _picture(
    found: Mapping[str, Mapping[int, Sequence[float]]],
    shown: Mapping[str, Tensor],
    columns: Sequence[int],
    path: Path,
) -> None:
    pyplot = plots()
    figure = pyplot.figure(figsize=(11, 5), layout="constrained")
    grid = figure.add_gridspec(len(found), 2, width_ratios=(1, 1.3))
    left = figure.add_subplot(grid[:, 0])
    for place, (name, by_steps) in enumerate(found.items()):
        means, errors = zip(*(mean_and_error(values) for values in by_steps.values()), strict=True)
        left.errorbar(columns, means, errors, label=name, marker="o", markersize=3, capsize=2)
        axes = figure.add_subplot(grid[place, 1])
        on_digits.show(axes, shown[name], columns=10, title=f"{name}, {columns[0]} steps")
    left.set(xscale="log", yscale="log", xlabel="steps", ylabel="kernel distance to held-out digits")
    left.legend(fontsize=8)
    save_plot(figure, path)
