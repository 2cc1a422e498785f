"""Measure the guidance curve of a model, fidelity against diversity by scale and kind; fill in docs/guidance.md.

    python scripts/guidance_page.py [--weak MODEL]     (ten minutes of two cores, two more for --weak)
    python scripts/guidance_page.py --quick            (a smoke run; writes to runs/quick-guidance/)

Keywords that name many pictures are drawn with several seeds each, the same ones for every scale and kind. Fidelity:
the nearest real picture carries the keyword. Diversity: how many different real pictures are the nearest, and how far
two seeds are apart. What was measured before is kept in runs/guidance-page/ under all that it depends on, and is not
measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pages import fill, unstir
from torch import Tensor

from unstir.config import to_dict
from unstir.data.folder import find_pictures
from unstir.data.transforms import load_pictures
from unstir.evaluation.keywords import ask_keywords, variety
from unstir.evaluation.likeness import diversity, mean_of
from unstir.evaluation.prompts import Questions, draw_all, draw_with, retrieve, score
from unstir.pipeline import Pipeline, Settings, load
from unstir.reproduce.report import plots, save_plot
from unstir.steering import Steering

PAGE, PICTURE = Path("docs/guidance.md"), "guidance-curve.png"
BEGIN, END = "<!-- figures: scripts/guidance_page.py -->", "<!-- end of figures -->"
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
INTERVAL = (-3.0, 3.0)
KINDS: dict[str, Settings] = {
    "plain": {},
    f"interval {INTERVAL[0]:g} to {INTERVAL[1]:g}": {"guidance_interval": INTERVAL},
    "rescale 0.7 (v)": {"steering": Steering(rescale=0.7, view="v")},
    "projected": {"steering": Steering(method="projected")},
    "zero_star": {"steering": Steering(method="zero_star")},
    "dynamic threshold 0.995": {"steering": Steering(threshold=0.995)},
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is done.

    Args:
        keywords: how many.
        seeds: pictures a keyword.
        scales: of guidance; 1 is the same for every kind and measured once.
        steps: network evaluations, fewer than the built-in model's 12, from which they differ by less than the errors
            here; None is the model's default.
        kept: where measurements are kept.
    """

    keywords: int = 10
    seeds: int = 8
    scales: tuple[float, ...] = SCALES
    steps: int | None = 8
    kept: Path = Path("runs/guidance-page")


QUICK = Plan(keywords=2, seeds=2, scales=(1.0, 3.0), steps=2, kept=Path("runs/quick-guidance"))


def measured(pipe: Pipeline, questions: Questions, real: Tensor, plan: Plan, settings: Settings) -> dict[str, Any]:
    """Retrieval, different nearest pictures and distance of seeds under these settings, measured once."""
    request = pipe.request(questions.prompts[0], seed=0, **settings)
    known = [pipe.model.checksum, to_dict(request), questions.prompts, plan.seeds, len(real)]
    file = plan.kept / f"{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]}.json"
    if not file.exists():
        draw = draw_with(pipe, seed=0, batch=16, settings=settings)
        drawn = draw_all(draw, questions.prompts, seeds=plan.seeds)
        retrieved = retrieve(drawn, real)
        found = {
            "retrieval": asdict(score(questions, retrieved, len(real))),
            "variety": asdict(variety(retrieved)),
            "diversity": asdict(mean_of([diversity(pictures) for pictures in drawn])),
        }
        plan.kept.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=2), "utf-8")
    return json.loads(file.read_text("utf-8"))


def curves(
    pipe: Pipeline, questions: Questions, real: Tensor, plan: Plan, kinds: Mapping[str, Settings]
) -> dict[str, list[dict[str, Any]]]:
    """A measurement a kind and scale."""
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, said in kinds.items():
        found[kind] = []
        for scale in plan.scales:
            print(f"{kind}, guidance {scale:g}", file=sys.stderr, flush=True)
            # At scale 1 nothing is combined: one measurement serves all kinds that only combine.
            own: Settings = said if scale != 1 or kind.startswith("dynamic") else {}
            settings: Settings = {**own, "guidance_scale": scale, "steps": plan.steps}
            found[kind].append(measured(pipe, questions, real, plan, settings))
    return found


def told(mean: Mapping[str, Any], factor: float = 1, digits: int = 1) -> str:
    """A mean with its standard error, in a cell."""
    error = mean["standard_error"]
    return f"{factor * mean['value']:.{digits}f}" + ("" if error is None else f" ± {factor * error:.{digits}f}")


def tables(found: Mapping[str, Sequence[Mapping[str, Any]]], plan: Plan) -> list[str]:
    """Three tables, a row a kind, a column a scale."""
    head = ["| | " + " | ".join(f"{scale:g}" for scale in plan.scales) + " |", "|---" * (len(plan.scales) + 1) + "|"]

    def rows(cell: Any) -> list[str]:
        return [f"| {kind} | " + " | ".join(cell(one) for one in ones) + " |" for kind, ones in found.items()]

    def hit(one: Mapping[str, Any]) -> str:
        top1 = {"value": one["retrieval"]["top1"], "standard_error": one["retrieval"]["standard_error"]}
        return told(top1, 100)

    return [
        "The nearest real picture carries the keyword, in %, by guidance scale:",
        "",
        *head,
        *rows(hit),
        "",
        f"Different nearest pictures among the {plan.seeds} seeds of a keyword:",
        "",
        *head,
        *rows(lambda one: told(one["variety"]["distinct"], 1, 2)),
        "",
        "Root mean square distance between two seeds of a keyword, of values in [-1, 1]:",
        "",
        *head,
        *rows(lambda one: told(one["diversity"], 1, 3)),
    ]


def plot(found: Mapping[str, Sequence[Mapping[str, Any]]], plan: Plan, file: Path) -> None:
    """Fidelity against diversity: a line a kind, a dot a scale."""
    figure, axes = plots().subplots(figsize=(8, 5.5), layout="constrained")
    for kind, ones in found.items():
        x = [one["variety"]["distinct"]["value"] for one in ones]
        y = [100 * one["retrieval"]["top1"] for one in ones]
        (line,) = axes.plot(x, y, marker="o", markersize=4, label=kind)
        for scale, across, up in zip(plan.scales, x, y, strict=True):
            axes.annotate(f"{scale:g}", (across, up), fontsize=7, color=line.get_color(), xytext=(3, 3),
                          textcoords="offset points")  # fmt: skip
    axes.set_xlabel(f"different nearest pictures among {plan.seeds} seeds")
    axes.set_ylabel("nearest picture carries the keyword (%)")
    axes.legend()
    save_plot(figure, file)


def main() -> None:
    """Measure, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run; the page in docs/ is not touched")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--weak", help="an earlier model, for a curve of autoguidance")
    parser.add_argument("--data", default="runs/emoji")
    parser.add_argument("--keywords", type=int, default=Plan.keywords)
    parser.add_argument("--seeds", type=int, default=Plan.seeds)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    arguments = parser.parse_args()
    if not Path(arguments.data).exists():
        unstir("data", "emoji", arguments.data)
    plan, page = Plan(keywords=arguments.keywords, seeds=arguments.seeds, steps=arguments.steps), PAGE
    if arguments.quick:
        plan, page = QUICK, QUICK.kept / PAGE.name
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(PAGE.read_text("utf-8"), "utf-8")
    pipe = load(arguments.model)
    real, records = load_pictures(find_pictures(Path(arguments.data)), pipe.model.config.size)
    kinds = dict(KINDS)
    if arguments.weak:
        kinds["autoguidance"] = {"steering": Steering(weak=arguments.weak)}
    questions = ask_keywords(records, plan.keywords)
    found = curves(pipe, questions, real, plan, kinds)
    plot(found, plan, page.with_name(PICTURE))
    said = pipe.request(questions.prompts[0], seed=0, steps=plan.steps)
    weak = f", weak model `{arguments.weak}`" if arguments.weak else ""
    protocol = (
        f"Protocol: {plan.keywords} keywords ({', '.join(questions.prompts)}), seeds from 0, {said.sampler}, "
        f"{said.steps} steps, {said.grid}, {said.precision}{weak}; checksum of the model {pipe.model.checksum}. The "
        "standard errors count keywords as independent; every kind draws the same keywords with the same seeds."
    )
    fill(page, BEGIN, END, [*tables(found, plan), "", f"![fidelity against diversity]({PICTURE})", "", protocol])
    print(f"written: {page}")


if __name__ == "__main__":
    main()
