"""Measure the naive way beside diffusion, on the same prompts; fill in docs/naive.md and draw its sheets.

    python scripts/naive_page.py            (trains what is missing under runs/, resumable; forty minutes)
    python scripts/naive_page.py --quick    (a smoke run of minutes; writes to runs/quick-naive/)

What was trained or measured before is not done again: a run goes on to its number of pictures, and a measurement is
kept in runs/naive-page/ under the checksum of its model. The emoji need ``unstir data emoji`` in EMOJI; the photographs
are left out, and their part of the page stays as it is, where CIFAR is absent.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pages
from pages import unstir
from PIL import Image
from torch import Tensor

from unstir.data.folder import find_pictures
from unstir.data.transforms import load_pictures
from unstir.evaluation.keywords import ask_keywords
from unstir.evaluation.prompts import Questions, ask_captions
from unstir.model import load_model
from unstir.pipeline import load, locate_model
from unstir.training.preview import contact_sheet

EMOJI = Path("runs/emoji")
CIFAR = Path("../shared/data/cifar10/train.parquet")
RUNS, PAGE = Path("runs"), Path("docs/naive.md")
DIFFUSION = "builtin"  # of the emoji
COLUMNS = 8  # prompts of a sheet

# --from takes the whole model of its source; a naive one is drawn by one step without guidance and forgets no words.
NAIVE = {
    "model.schedule": "rectified_flow",
    "model.parameterization": "x0",
    "model.condition_drop": 0,
    "model.sampling.sampler": "ddim",
    "model.sampling.grid": "trailing",
    "model.sampling.steps": 1,
    "model.sampling.guidance_scale": 1,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is done.

    Args:
        emoji_images: pictures that the naive emoji network sees after it starts from the built-in weights.
        cifar_images: pictures that each of the two networks for photographs sees.
        prompts: names of a split, at most.
        seeds: pictures a name.
        keywords: how many, 8 pictures each.
        cifar_seeds: pictures a caption of the photographs.
        runs: where the trained networks lie.
    """

    emoji_images: int = 60_000
    cifar_images: int = 40_000
    prompts: int = 184
    seeds: int = 4
    keywords: int = 20
    cifar_seeds: int = 32
    runs: Path = RUNS


QUICK = Plan(
    emoji_images=128, cifar_images=128, prompts=4, seeds=2, keywords=3, cifar_seeds=2, runs=RUNS / "quick-naive"
)


def trained(folder: Path, images: int, *command: object) -> str:
    """The command that trained a run folder to so many pictures; trains it, or goes on with it, where it is not yet."""
    command = ("train", *command, "--out", folder, "--images", images)
    if (folder / "run.json").exists():
        seen = load_model(folder / "model").training["images_seen"] if (folder / "model").exists() else 0
        if seen < images:
            unstir("train", "--resume", "--out", folder, "--images", images)
    else:
        unstir(*command)
    return " ".join(map(str, ("unstir", *command)))


def measured(model: str | Path, kept: Path, *arguments: object) -> dict[str, Any]:
    """What ``unstir evaluate`` says of a model, measured once."""
    checksum = load_model(locate_model(model)).checksum
    words = [str(argument) for argument in arguments]
    name = hashlib.sha256(json.dumps([checksum, words]).encode()).hexdigest()[:16]
    file = kept / f"{name}.json"
    if not file.exists():
        found = unstir("evaluate", model, *words, "--metrics", "prompts,likeness")
        kept.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=2), "utf-8")
    return json.loads(file.read_text("utf-8"))


def told(mean: Mapping[str, Any] | None, scale: float = 1, digits: int = 3, unit: str = "") -> str:
    """A mean with its standard error, in a cell."""
    if mean is None:
        return ""
    error = mean["standard_error"]
    return f"{scale * mean['value']:.{digits}f}{unit}" + ("" if error is None else f" ± {scale * error:.{digits}f}")


def table(both: Sequence[Mapping[str, Any]], part: str) -> list[str]:
    """The figures of one set of prompts: of the naive way and of diffusion, in this order, and of the real pictures."""
    scores, likes = ([found[metric][part] for found in both] for metric in ("prompts", "likeness"))
    retrieval = [
        told({"value": score["top1"], "standard_error": score["standard_error"]}, 100, 1, " %") for score in scores
    ]
    real = likes[0]
    twice = 2 * real["least_error"]["value"]
    rows = [
        ["", "naive", "diffusion", "real pictures"],
        ["---"] * 4,
        ["squared error", *(told(like["squared_error"], digits=4) for like in likes), f"{twice:.4f}"],
        ["retrieval", *retrieval, "100 %"],
        ["sharpness", *(told(like["sharpness_ratio"], 100, 1, " %") for like in likes), "100 %"],
        ["diversity over seeds", *(told(like["diversity"]) for like in likes), told(real["real_diversity"])],
    ]
    if twice > 0:
        least = f"{real['least_error']['value']:.4f}"
        rows.insert(3, ["the least that one answer can have", least, least, ""])
    if "variety" in scores[0]:
        several = [score["variety"] for score in scores]
        seeds = several[0]["seeds"]
        rows.append([f"different nearest pictures of {seeds}", *(told(v["distinct"], digits=2) for v in several), ""])
        half = [told(v["half_differ"], 100, 1, " %") for v in several]
        rows.append([f"keywords with {-(-seeds // 2)} or more of them", *half, ""])
    count, seeds, candidates = (scores[0][key] for key in ("prompts", "seeds", "candidates"))
    return [
        f"{count} prompts, {seeds} seeds each, {candidates:,} real pictures to be nearest to.",
        "",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def protocol(found: Mapping[str, Any], label: str) -> str:
    """How a model was drawn, and what it saw."""
    said = found["protocol"]
    seen = load_model(locate_model(found["model"])).training.get("images_seen", 0)
    return (
        f"{label}: {said['sampler']}, steps {said['steps']} ({said['grid']}), guidance {said['guidance']:g}, "
        f"{seen:,} pictures seen in its last run, weights {found['checksum'][:12]}"
    )


def fill(page: Path, part: str, lines: Sequence[str]) -> None:
    """Put lines between the markers of a part of the page."""
    pages.fill(page, f"<!-- figures of {part}: scripts/naive_page.py -->", f"<!-- end of {part} -->", lines)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """Real pictures and what both ways draw of the same words.

    Args:
        questions: what is asked.
        real: the real pictures.
        naive: a model.
        diffusion: a model.
    """

    questions: Questions
    real: Tensor
    naive: str | Path
    diffusion: str | Path

    def write(self, file: Path, *, real_rows: int) -> None:
        """Rows of real pictures, of two seeds of the naive way and three of diffusion; a column a prompt."""
        step = max(1, len(self.questions.prompts) // COLUMNS)
        chosen = range(0, len(self.questions.prompts), step)[:COLUMNS]
        prompts = [self.questions.prompts[i] for i in chosen]
        pictures: list[Image.Image] = []
        labels: list[str] = []
        for row in range(real_rows):
            answers = [self.questions.answers[i] for i in chosen]
            # Spread over what the words name: neighbours in a set are often alike.
            indexes = [rows[row * len(rows) // real_rows] for rows in answers]
            pictures += [Image.fromarray(self.real[i].permute(1, 2, 0).contiguous().numpy()) for i in indexes]
            labels += prompts if row == 0 else ["real"] * len(prompts)
        for label, model, seeds in (("naive", self.naive, 2), ("diffusion", self.diffusion, 3)):
            pipe = load(model)
            for seed in range(seeds):
                pictures += pipe.sample(prompts, seed=1000 * seed, batch=16)
                labels += [f"{label}, seed {seed}"] * len(prompts)
        title = f"{file.stem}: real pictures above, then the naive way, then diffusion"
        sheet = contact_sheet(pictures, labels, columns=len(prompts), title=title, scale=128 // pictures[0].width)
        sheet.save(file, optimize=True)


def emoji(plan: Plan, page: Path, kept: Path) -> None:
    """The names and the keywords of emoji."""
    naive = plan.runs / "naive-emoji"
    settings = [f"--{key}={value}" for key, value in NAIVE.items()]
    command = trained(naive, plan.emoji_images, "naive", "--from", DIFFUSION, "--data", EMOJI, *settings)
    names = ("--data", EMOJI, "--limit", plan.prompts, "--seeds", plan.seeds)
    words = ("--data", EMOJI, "--keywords", plan.keywords)
    by_name = [measured(model, kept, *names) for model in (naive, DIFFUSION)]
    by_word = [measured(model, kept, *words) for model in (naive, DIFFUSION)]
    fill(
        page,
        "names",
        ["Training names:", "", *table(by_name, "train"), "", "Held-out combinations, never seen in training:", "",
         *table(by_name, "test")],
    )  # fmt: skip
    fill(page, "keywords", table(by_word, "keywords"))
    lines = [protocol(found, label) for found, label in zip(by_name, ("naive", "diffusion"), strict=True)]
    evaluated = [" ".join(map(str, ("unstir evaluate MODEL", *options))) for options in (names, words)]
    shown = ["```sh", command, *(f"{line} --metrics prompts,likeness" for line in evaluated), "```"]
    fill(page, "emoji commands", [*shown, "", *(f"- {line}" for line in lines)])
    real, records = load_pictures(find_pictures(EMOJI), 64)
    halves = [ask_captions(records, split, COLUMNS // 2) for split in ("train", "test")]
    both = Questions(
        prompts=halves[0].prompts + halves[1].prompts,
        captions=halves[0].captions + halves[1].captions,
        answers=halves[0].answers + halves[1].answers,
    )
    for name, questions, rows in (("emoji", both, 1), ("keywords", ask_keywords(records, plan.keywords), 2)):
        sheet = Sheet(questions=questions, real=real, naive=naive, diffusion=DIFFUSION)
        sheet.write(page.with_name(f"naive-{name}.png"), real_rows=rows)


def photographs(plan: Plan, page: Path, kept: Path) -> None:
    """The ten captions of CIFAR-10."""
    if not CIFAR.exists():
        print(f"SKIPPED: there is no {CIFAR}; the photographs' part of {page} stays as it is", file=sys.stderr)
        return
    naive, diffusion = plan.runs / "naive-cifar10", plan.runs / "cifar10"
    both = ((naive, "naive-cifar10"), (diffusion, "cifar10"))
    commands = [trained(folder, plan.cifar_images, recipe, "--data", CIFAR) for folder, recipe in both]
    seen = [load_model(folder / "model").training["images_seen"] for folder, _ in both]
    if seen[0] != seen[1]:
        raise SystemExit(
            f"{naive} saw {seen[0]} pictures, {diffusion} {seen[1]}; train the shorter one on with --resume"
        )
    options = ("--data", CIFAR, "--split", "train", "--seeds", plan.cifar_seeds)
    found = [measured(folder, kept, *options) for folder, _ in both]
    fill(page, "photographs", table(found, "train"))
    evaluated = " ".join(map(str, ("unstir evaluate MODEL", *options, "--metrics prompts,likeness")))
    lines = [protocol(one, label) for one, label in zip(found, ("naive", "diffusion"), strict=True)]
    shown = ["```sh", *(line.replace(str(CIFAR), "cifar10/train.parquet") for line in (*commands, evaluated)), "```"]
    fill(page, "photographs commands", [*shown, "", *(f"- {line}" for line in lines)])
    real, records = load_pictures(find_pictures(CIFAR), 32)
    sheet = Sheet(questions=ask_captions(records, "train", COLUMNS), real=real, naive=naive, diffusion=diffusion)
    sheet.write(page.with_name("naive-cifar10.png"), real_rows=2)


PARTS: dict[str, Callable[[Plan, Path, Path], None]] = {"emoji": emoji, "photographs": photographs}


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run; the page in docs/ is not touched")
    parser.add_argument("--only", choices=PARTS, help="one part of the page")
    parser.add_argument("--emoji-images", type=int, default=Plan.emoji_images)
    parser.add_argument("--cifar-images", type=int, default=Plan.cifar_images)
    arguments = parser.parse_args()
    if not EMOJI.exists() and arguments.only != "photographs":
        raise SystemExit(f"there is no {EMOJI}; make it with: unstir data emoji {EMOJI}")
    if arguments.quick:
        plan, page = QUICK, QUICK.runs / PAGE.name
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(PAGE.read_text("utf-8"), "utf-8")
    else:
        plan, page = Plan(emoji_images=arguments.emoji_images, cifar_images=arguments.cifar_images), PAGE
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            part(plan, page, plan.runs / "naive-page")
    print(f"written: {page}")


if __name__ == "__main__":
    main()
