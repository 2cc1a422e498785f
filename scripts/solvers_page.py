"""Measure solvers and sampling; fill in docs/solvers.md with its plot, and docs/performance.md.

    python scripts/solvers_page.py [--quick] [--only solvers|sample]     (hours for all dimensions and calls)

Needs diffusers and matplotlib, which the extra "test" has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pages import fill, unstir

from unstir.bench.machine import told
from unstir.bench.sampling import OVERHEAD_COLUMNS, PICTURE_COLUMNS, overhead_cells, picture_cells

SOLVERS, PLOT, PERFORMANCE = Path("docs/solvers.md"), Path("docs/solvers.png"), Path("docs/performance.md")
BEGIN, END = "<!-- figures: scripts/solvers_page.py -->", "<!-- end of figures -->"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def solvers(found: dict[str, Any]) -> list[str]:
    """The lines of docs/solvers.md that one run gives."""
    dimensions = ",".join(str(problem["dimension"]) for problem in found["problems"])
    calls = ",".join(str(number) for number in found["calls"])
    lines = [
        f"`unstir bench solvers --dimensions {dimensions} --calls {calls}`: schedule {found['schedule']}, "
        f"seed {found['seed']}, {found['seconds']:.0f} s on {told(found['machine'])}.",
        "",
        "Geometric means over the problems. *diffusers* is the best on each problem, *one scheduler* the single one "
        "that is best in this mean, *with extra* the best on each problem with exponential and beta sigmas too; every "
        "ratio is theirs to our default.",
        "",
        *table(**found["summary_table"]),
        "",
        "Problem by problem, with the name of the best:",
        "",
        *table(**found["problem_table"]),
    ]
    for problem in found["problems"]:
        lines += [
            "",
            f"### {problem['dimension']} dimensions",
            "",
            f"{problem['starts']} starts. The exact solution, of {problem['reference_steps']} steps, differs from that "
            f"of half as many by {problem['reference_rms']:.1e} (RMS), {problem['reference_worst']:.1e} for the worst "
            "start.",
            "",
            *table(**problem["table"]),
        ]
        if problem["failures"]:
            lines += ["", *(f"- failed: {line}" for line in problem["failures"])]
    return lines


def sampling(found: dict[str, Any], command: str) -> list[str]:
    """The lines of docs/performance.md between its markers."""
    return [
        f"`{command}`: {told(found['machine'])}.",
        "",
        *table(OVERHEAD_COLUMNS, overhead_cells(found["overhead"])),
        "",
        *table(PICTURE_COLUMNS, picture_cells(found["pictures"])),
    ]


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small: to try the script")
    parser.add_argument("--only", choices=("solvers", "sample"))
    parser.add_argument("--dimensions", help="of the problems, instead of all")
    parser.add_argument("--calls", help="numbers of network calls, instead of all")
    parser.add_argument("--found", type=Path, nargs="+", help="what `unstir bench solvers ... --json` printed, instead")
    arguments = parser.parse_args()
    quick = ["--quick"] if arguments.quick else []
    narrowed = [f"--{name} {value}" for name in ("dimensions", "calls") if (value := getattr(arguments, name))]
    if arguments.only != "sample":
        asked = [*quick, *" ".join(narrowed).split()]
        if arguments.found is None:
            runs = [unstir("bench", "solvers", *asked, "--plot", PLOT)]
        else:
            runs = [json.loads(path.read_text("utf-8")) for path in arguments.found]
        fill(SOLVERS, BEGIN, END, [line for run in runs for line in [*solvers(run), ""]][:-1])
    if arguments.only != "solvers":
        found = unstir("bench", "sample", *quick)
        fill(PERFORMANCE, BEGIN, END, sampling(found, " ".join(["unstir bench sample", *quick])))


if __name__ == "__main__":
    main()
