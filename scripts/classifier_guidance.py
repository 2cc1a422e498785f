"""Measure classifier guidance on small photographs, in the shape of ADM's table; fill in docs/classifier-guidance.md.

    python scripts/classifier_guidance.py            (half an hour on one core after the training; goes on if ended)
    python scripts/classifier_guidance.py --quick    (a smoke run of minutes; writes to runs/quick-guidance/)

It trains what is missing: the two classifiers, ``cifar10-classifier`` to guide and ``cifar10-features`` to judge, and
the model that they guide. Pictures are kept in runs/classifier-guidance/ under the checksums of the models that made
them, so that a run that was ended goes on, and a changed model is drawn again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pages
import torch
from pages import unstir
from PIL import Image
from torch import Tensor

from unstir.classifier import Classifier, load_classifier
from unstir.data.folder import find_pictures
from unstir.data.transforms import load_pictures, to_bytes, to_unit
from unstir.device import autocast, resolve_device, resolve_precision
from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.guidance import clip, corrected
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import Estimate, Process
from unstir.diffusion.samplers import DDIM, Ancestral, sample
from unstir.diffusion.schedule import Level
from unstir.diffusion.spacing import trailing
from unstir.diffusion.tilting import steered, tilted
from unstir.evaluation.features import ClassifierFeatures, FeatureStatistics, bootstrap_error, extract, statistics_of
from unstir.evaluation.frechet import frechet_distance
from unstir.evaluation.kernel import kernel_distance
from unstir.evaluation.precision_recall import class_score, precision_recall
from unstir.model import Model, load_model, read_tensors, write_tensors
from unstir.training.preview import contact_sheet

DATA = Path("../shared/data/cifar10")
RUNS, PAGE = Path("runs"), Path("docs/classifier-guidance.md")
START, STEPS, BOOTSTRAP = 0, 1, 2  # sub-keys of randomness
HEAD = [
    ["sampler", "conditional?", "scale", "Fréchet distance", "kernel distance x 1000", "class score", "precision",
     "recall", "accuracy"],
    ["---"] * 9,
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to draw.

    Args:
        sampler: ddim (guided in score form) or ancestral (in mean form).
        is_told: whether the model is given the words; else it is given the null condition.
        scale: of the classifier; None is no classifier.
    """

    sampler: str
    is_told: bool
    scale: float | None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.sampler}, {'told' if self.is_told else 'not told'}, scale {_scale(self.scale)}"


ROWS = (
    *(Row(sampler="ddim", is_told=told, scale=scale) for told in (False, True) for scale in (None, 1.0, 3.0, 10.0)),
    *(Row(sampler="ancestral", is_told=False, scale=scale) for scale in (None, 3.0)),
)
SHOWN = (ROWS[0], ROWS[2], ROWS[3], ROWS[4], ROWS[6])  # on the sheet


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is done.

    Args:
        samples: pictures a row; a multiple of the number of classes.
        steps: network evaluations a picture.
        batch: pictures drawn together.
        resamples: of the bootstrap.
        images: pictures that a classifier sees; None is the recipe's number.
        model: the run folder of the model that is guided.
        model_images: pictures that it sees where it is not there yet.
        runs: where the classifiers lie, and what was drawn.
    """

    samples: int = 400
    steps: int = 20
    batch: int = 50
    resamples: int = 200
    images: int | None = None
    model: Path = RUNS / "cifar10"
    model_images: int = 40_000
    runs: Path = RUNS


QUICK = Plan(
    samples=20,
    steps=3,
    batch=10,
    resamples=5,
    images=256,
    model=RUNS / "quick-guidance/cifar10",
    model_images=64,
    runs=RUNS / "quick-guidance",
)


def trained(recipe: str, folder: Path, images: int | None) -> Path:
    """The model folder of a run; trains it, or goes on with it, where it has not seen its pictures yet."""
    length = [] if images is None else ["--images", images]
    if not (folder / "run.json").exists():
        unstir("train", recipe, "--data", DATA / "train.parquet", "--out", folder, *length)
        return folder / "model"
    planned = json.loads((folder / "run.json").read_text("utf-8"))["training"]["images"]
    described = folder / "model" / "unstir.json"
    seen = json.loads(described.read_text("utf-8"))["training"]["images_seen"] if described.exists() else 0
    if seen < (planned if images is None else images):
        unstir("train", "--resume", "--out", folder, *length)
    return folder / "model"


@dataclass(frozen=True, kw_only=True, eq=False)
class Artist:
    """What draws a row.

    Args:
        model: that is guided.
        classifier: that guides.
        prompts: one a class, as the model was taught them.
        plan: how much.
        kept: where pictures are kept.
    """

    model: Model
    classifier: Classifier
    prompts: Sequence[str]
    plan: Plan
    kept: Path

    def draw(self, row: Row) -> Tensor:
        """The pictures of a row, as bytes; number i has seed i and class i modulo the number of classes."""
        parts: list[Tensor] = []
        for start in range(0, self.plan.samples, self.plan.batch):
            numbers = range(start, min(start + self.plan.batch, self.plan.samples))
            told = [asdict(row), self.model.checksum, self.classifier.checksum, self.plan.steps, list(numbers)]
            name = hashlib.sha256(json.dumps([*told, list(self.prompts)]).encode()).hexdigest()[:16]
            file = self.kept / f"{name}.safetensors"
            if not file.exists():
                print(f"{row.name}: pictures {numbers[0]} to {numbers[-1]}", file=sys.stderr, flush=True)
                self.kept.mkdir(parents=True, exist_ok=True)
                temporary = file.with_suffix(".new")
                write_tensors(temporary, {"pictures": self._draw(row, numbers)})
                temporary.replace(file)
            parts.append(read_tensors(file)["pictures"])
        return torch.cat(parts)

    def _draw(self, row: Row, numbers: Sequence[int]) -> Tensor:
        model, device = self.model, resolve_device("auto")
        model.denoiser.to(device)
        self.classifier.network.to(device)
        classes = torch.tensor([i % len(self.prompts) for i in numbers], device=device)
        condition, _ = model.reader.read([self.prompts[int(i)] for i in classes])
        condition = (condition if row.is_told else condition.null()).map(lambda tensor: tensor.to(device))

        def log_likelihood(x_t: Tensor, level: Level) -> Tensor:
            return self.classifier.log_prob(x_t, level, classes)

        # In mean form the classifier leans on the reverse step, in score form on the belief.
        denoise: Denoiser = model.denoiser.given(condition)
        process: Process = model.process
        if row.scale is not None and row.sampler == "ddim":
            denoise = steered(denoise, log_likelihood, row.scale)
        elif row.scale is not None:
            strength = row.scale
            process = tilted(process, lambda x, level: strength * log_likelihood(x, level))
        denoise = corrected(denoise, clip())

        def quick(x_t: Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
            with autocast(device, resolve_precision("auto", device)):
                return denoise(x_t, level, previous)

        noise = KeyedNoise.from_seeds(list(numbers))
        size = model.config.size
        start = model.process.prior(torch.zeros(len(numbers), 3, size, size, device=device)).sample(noise.at(START))
        sampler = DDIM() if row.sampler == "ddim" else Ancestral()
        times = trailing(model.process.schedule, self.plan.steps)
        x = start
        for step in sample(sampler, quick, process, start, times, noise.at(STEPS)):
            x = step.x
        return to_bytes(x).cpu()


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """What measures pictures against real ones, with the eyes of a classifier that guided nothing.

    Args:
        classifier: of clean pictures.
        statistics: of all real pictures.
        features: of the real ones.
        resamples: of the bootstrap.
    """

    classifier: Classifier
    statistics: FeatureStatistics
    features: Tensor
    resamples: int

    def cells(self, pictures: Tensor, classes: Tensor) -> list[str]:
        """The figures of a row, each with its standard error."""
        features = extract(ClassifierFeatures(classifier=self.classifier), pictures)
        start = self.classifier.config.schedule.at(torch.zeros((), dtype=torch.float64))
        with torch.no_grad():
            log_probs = self.classifier.log_probs(to_unit(pictures), start)
        count = len(pictures)
        draws = KeyedNoise.from_seeds(range(self.resamples)).at(BOOTSTRAP)

        def frechet(rows: Tensor) -> float:
            return frechet_distance(statistics_of(features[rows]), self.statistics)

        def score(rows: Tensor) -> float:
            return class_score(log_probs[rows])

        every = torch.arange(count)
        errors = [bootstrap_error(f, count, draws=self.resamples, noise=draws) for f in (frechet, score)]
        kernel = kernel_distance(features, self.features)
        # As many real pictures as drawn ones, evenly from all classes: the set is sorted by class.
        both = precision_recall(self.features[:: len(self.features) // count][:count], features)
        right = (log_probs.argmax(1) == classes).double().mean().item()
        return [
            f"{frechet(every):.2f} ± {errors[0]:.2f}",
            f"{1000 * kernel.value:.1f} ± {1000 * kernel.standard_error:.1f}",
            f"{score(every):.2f} ± {errors[1]:.2f}",
            f"{both.precision:.2f} ± {both.precision_error:.2f}",
            f"{both.recall:.2f} ± {both.recall_error:.2f}",
            f"{right:.1%} ± {(right * (1 - right) / count) ** 0.5:.1%}",
        ]


def accuracies(classifiers: dict[str, Classifier]) -> list[str]:
    """A table of held-out accuracy by t."""
    columns = list(next(iter(classifiers.values())).training["held_out_accuracy"])
    rows = [["", "pictures seen", "weights", *(f"t {column}" if "." in column else column for column in columns)]]
    rows.append(["---"] * len(rows[0]))
    for name, one in classifiers.items():
        told = one.training["held_out_accuracy"]
        shares = [f"{told[column]:.1%}" if column in told else "" for column in columns]
        rows.append([name, f"{one.training['images_seen']:,}", one.checksum[:12], *shares])
    return [_line(row) for row in rows]


def measure(plan: Plan, page: Path) -> None:
    """Train, draw, judge, write."""
    guides = load_classifier(trained("cifar10-classifier", plan.runs / "cifar10-classifier", plan.images))
    judges = load_classifier(trained("cifar10-features", plan.runs / "cifar10-features", plan.images))
    model = load_model(trained("cifar10", plan.model, plan.model_images))
    _fill(page, "classifiers", accuracies({"guides": guides, "judges": judges}))
    real, records = load_pictures(find_pictures(DATA / "test.parquet"), model.config.size)
    numbers = torch.tensor([guides.class_of(record.captions[0]) for record in records.records])
    prompts = [records.records[int((numbers == k).nonzero()[0])].captions[0] for k in range(len(guides.config.classes))]
    features = extract(ClassifierFeatures(classifier=judges), real)
    judge = Judge(classifier=judges, statistics=statistics_of(features), features=features, resamples=plan.resamples)
    artist = Artist(model=model, classifier=guides, prompts=prompts, plan=plan, kept=plan.runs / "classifier-guidance")
    classes = torch.arange(plan.samples) % len(prompts)
    lines = [_line(cells) for cells in HEAD]
    for row in ROWS:
        cells = judge.cells(artist.draw(row), classes)
        lines.append(_line([row.sampler, "yes" if row.is_told else "no", _scale(row.scale), *cells]))
        print(lines[-1], flush=True)
    others, known = load_pictures(find_pictures(DATA / "train.parquet"), model.config.size)
    chosen = torch.arange(plan.samples) * (len(others) // plan.samples)
    truth = torch.tensor([guides.class_of(known.records[int(i)].captions[0]) for i in chosen])
    lines.append(_line(["real pictures", "", "", *judge.cells(others[chosen], truth)]))
    told = [
        "",
        f"{plan.samples} pictures a row, {plan.steps} steps, beliefs clipped to [-1, 1]; against {len(real):,} real "
        f"test pictures (precision and recall against {plan.samples} of them). Guided: the recipe cifar10 after "
        f"{model.training['images_seen']:,} pictures, weights {model.checksum[:12]}. The last row is as many pictures "
        "of the training set, which the judge has seen.",
    ]
    _fill(page, "guidance", [*lines, *told])
    sheet(artist, page.with_suffix(".png"))


def sheet(artist: Artist, file: Path) -> None:
    """The first picture of each class, a row each for some ways of drawing."""
    count = len(artist.prompts)
    drawn = [artist.draw(row)[:count] for row in SHOWN]
    pictures = [Image.fromarray(one.permute(1, 2, 0).contiguous().numpy()) for part in drawn for one in part]
    labels = [label for row in SHOWN for label in (f"scale {_scale(row.scale)}", *artist.prompts[1:])]
    title = "Rows: not told with scales -, 3, 10; then told with scales -, 3. Columns: the classes that are asked for"
    contact_sheet(pictures, labels, columns=count, title=title, scale=3).save(file, optimize=True)


def _scale(scale: float | None) -> str:
    return "-" if scale is None else f"{scale:g}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _fill(page: Path, part: str, lines: Sequence[str]) -> None:
    pages.fill(page, f"<!-- figures of {part}: scripts/classifier_guidance.py -->", f"<!-- end of {part} -->", lines)


def main() -> None:
    """Read the options and go."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run; the page in docs/ is not touched")
    parser.add_argument("--samples", type=int, default=Plan.samples, help="pictures a row")
    arguments = parser.parse_args()
    if not DATA.exists():
        raise SystemExit(f"there is no {DATA} with train.parquet and test.parquet of CIFAR-10")
    plan, page = replace(Plan(), samples=arguments.samples), PAGE
    if arguments.quick:
        plan, page = QUICK, QUICK.runs / PAGE.name
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(PAGE.read_text("utf-8"), "utf-8")
    measure(plan, page)
    print(f"written: {page}")


if __name__ == "__main__":
    main()
