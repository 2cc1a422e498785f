"""Reports: what an experiment found, beside what the paper found.

Knows: the form of a result, how a mean and its error are told, how a picture is started.
Does not know: any experiment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unstir.device import one_thread as one_thread

Advance = Callable[[str, int, int], None]
"""(stage of the work, steps done, steps in all): called often."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What an experiment found.

    Args:
        figures: numbers by name, in the order in which they are printed; ``seconds`` is added by who ran it.
        lines: the same for people: sentences and tables.
        notes: what is not comparable with the paper, and why.
        draw: writes the experiment's picture to a file (PNG).
        failures: what the experiment was to show and did not.
    """

    figures: Mapping[str, Any]
    lines: Sequence[str]
    draw: Callable[[Path], None]
    notes: Sequence[str] = ()
    failures: Sequence[str] = ()


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[str, ...]:
    """Lines of a table: the first column to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return tuple(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def told(value: float, standard_error: float) -> str:
    """A number with as many digits as its standard error has meaning: 1.234 +- 0.012."""
    if not math.isfinite(standard_error) or standard_error <= 0:
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(standard_error)))
    return f"{value:.{digits}f} +- {standard_error:.{digits}f}"


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of independent values (seeds, say) and its standard error; NaN for a single one."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def mean_over_samples(values: Tensor) -> tuple[float, float]:
    """The mean of one number a sample, and its standard error."""
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def plots() -> Any:
    """The pyplot of matplotlib, drawing to files.

    Raises:
        ImportError: saying what to install, if matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install 'unstir[reproduce]'") from None
    matplotlib.use("agg")
    import matplotlib.pyplot as pyplot

    return pyplot


def save_plot(figure: Any, path: Path, *, dpi: int = 120) -> None:
    """Write a figure as PNG, whatever the name's ending, and let go of it."""
    figure.savefig(path, dpi=dpi, format="png")
    plots().close(figure)
