"""Measure solvers; fill in docs/solvers.md with its plot.

    python scripts/solvers_page.py [--quick]     (hours for all dimensions and calls)

Needs diffusers and matplotlib, which the extra "test" has.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pages import fill, table, unstir

from unstir.bench.machine import told
from unstir.bench.solvers import STARTS

SOLVERS, PLOT = Path("docs/solvers.md"), Path("docs/solvers.png")
BEGIN, END = "<!-- figures: scripts/solvers_page.py -->", "<!-- end of figures -->"


def solvers(found: dict[str, Any]) -> list[str]:
    """The lines of docs/solvers.md that one run gives."""
    dimensions = ",".join(str(problem["dimension"]) for problem in found["problems"])
    calls = ",".join(str(number) for number in found["calls"])
    starts = found["problems"][0]["starts"]
    counted = "" if starts == STARTS else f" --starts {starts}"
    lines = [
        f"`unstir bench solvers --dimensions {dimensions} --calls {calls}{counted}`: schedule {found['schedule']}, "
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


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small: to try the script")
    parser.add_argument("--dimensions", help="of the problems, instead of all")
    parser.add_argument("--calls", help="numbers of network calls, instead of all")
    parser.add_argument("--found", type=Path, nargs="+", help="what `unstir bench solvers ... --json` printed, instead")
    arguments = parser.parse_args()
    asked = ["--quick"] if arguments.quick else []
    for name in ("dimensions", "calls"):
        if value := getattr(arguments, name):
            asked += [f"--{name}", value]
    if arguments.found is None:
        runs = [unstir("bench", "solvers", *asked, "--plot", PLOT)]
    else:
        runs = [json.loads(path.read_text("utf-8")) for path in arguments.found]
    fill(SOLVERS, BEGIN, END, [line for run in runs for line in [*solvers(run), ""]][:-1])


if __name__ == "__main__":
    main()
