"""What ``unstir evaluate`` measures: what is asked for, what is drawn of it, and how a number is told.

Knows: which options go together, which figures a metric has, their lines for people.
Does not know: how a number is computed, how a model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unstir.cli.output import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from unstir.data.folder import PictureSet
    from unstir.evaluation.prompts import Questions
    from unstir.pipeline import Pipeline, Settings
    from unstir.training.engine import Team

METRICS = ("prompts", "bits", "likeness")
_DRAWN = ("prompts", "likeness")  # metrics of drawn pictures
_LABELS = {
    "test": "held out",
    "validation": "validation",
    "train": "training",
    "keywords": "keywords",
    "free": "free wordings",
}
SPLITS = ("test", "validation", "train")
SEEDS = 3
KEYWORD_SEEDS = 8


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the options ask for.

    Args:
        metrics: names of ``METRICS``.
        splits: whose captions are asked for; None where keywords or a file say what is.
        limit: captions of a split at most.
        keywords: so many keywords instead of captions.
        prompts: a file of prompts instead of captions.
        seeds: pictures a prompt.
    """

    metrics: tuple[str, ...]
    splits: tuple[str, ...] | None
    limit: int
    keywords: int | None
    prompts: str | None
    seeds: int

    @property
    def draws(self) -> bool:
        """Whether pictures are drawn for a metric."""
        return any(metric in _DRAWN for metric in self.metrics)


def read_options(
    *,
    metrics: str,
    split: Sequence[str] | None,
    limit: int,
    keywords: int | None,
    prompts: str | None,
    seeds: int | None,
) -> Asked:
    """The options, once they are seen to go together.

    Raises:
        ValueError: if a name is unknown, a number below 1, or options exclude each other.
    """
    from unstir.config import choose

    wanted = tuple(choose(metric, METRICS, "metric") for metric in metrics.split(","))
    for name in split or []:
        choose(name, SPLITS, "split")
    others = [option for option, value in (("--keywords", keywords), ("--prompts", prompts)) if value is not None]
    if len(others) > 1:
        raise ValueError("--keywords and --prompts both say what is asked for; give one of them")
    if others and split:
        raise ValueError(f"{others[0]} asks for pictures of all splits; leave --split out")
    if others and "bits" in wanted:
        raise ValueError(f"bits are of pictures with their captions; leave bits or {others[0]} out")
    seeds = (SEEDS if keywords is None else KEYWORD_SEEDS) if seeds is None else seeds
    if min(seeds, limit, 1 if keywords is None else keywords) < 1:
        raise ValueError(f"seeds, limit and keywords must be at least 1, got {seeds}, {limit} and {keywords}")
    return Asked(
        metrics=wanted,
        splits=None if others else tuple(split or ("test", "train")),
        limit=limit,
        keywords=keywords,
        prompts=prompts,
        seeds=seeds,
    )


def questions_of(asked: Asked, records: PictureSet) -> dict[str, Questions]:
    """What is asked for, by split, or by "keywords" or "free".

    Raises:
        ValueError: if the set has not enough keywords, the file of prompts is wrong, or the splits have no captions.
        OSError: if the file of prompts cannot be read.
    """
    from unstir.evaluation.keywords import ask_keywords
    from unstir.evaluation.prompts import ask_captions, ask_lines

    if asked.keywords is not None:
        return {"keywords": ask_keywords(records, asked.keywords)}
    if asked.prompts is not None:
        return {"free": ask_lines(Path(asked.prompts).read_text("utf-8"), records)}
    found = {name: ask_captions(records, name, asked.limit) for name in asked.splits or ()}
    found = {name: questions for name, questions in found.items() if questions.prompts}
    if not found:
        raise ValueError(
            f"{records.root} has no captioned pictures in the splits asked for; choose one with --split train"
        )
    return found


def draw_questions(
    pipe: Pipeline,
    questions: Mapping[str, Questions],
    team: Team,
    *,
    seeds: int,
    seed: int,
    batch: int,
    settings: Settings,
) -> dict[str, Tensor]:
    """Everything that is asked for, drawn: a row a prompt, a column a seed; each process of a team draws its share."""
    from unstir.evaluation.prompts import draw_all, draw_with

    counts = [len(asked.prompts) for asked in questions.values()]
    total = seeds * sum(len(range(count)[team.rows(count)]) for count in counts)
    shown = progress_bar("drawing", total, unit=" pictures") if team.is_first else nullcontext(_unseen)
    with shown as advance:
        own = draw_with(pipe, seed=seed, batch=batch, settings=settings, mine=team.rows, advance=advance)

        def draw(prompts: Sequence[str], run: int) -> Tensor:
            pictures = own(prompts, run)
            rows = team.gathered(pictures.flatten(1).T.contiguous(), len(prompts)).T
            return rows.reshape(len(prompts), *pictures.shape[1:])

        return {name: draw_all(draw, asked.prompts, seeds=seeds) for name, asked in questions.items()}


def _unseen(done: int) -> None:
    """Progress of a process that shows none."""


def drawn_scores(
    asked: Asked, questions: Mapping[str, Questions], drawn: Mapping[str, Tensor], real: Tensor, records: PictureSet
) -> dict[str, dict[str, Any]]:
    """The metrics of drawn pictures that are asked for."""
    scores: dict[str, dict[str, Any]] = {}
    if "prompts" in asked.metrics:
        scores["prompts"] = prompt_scores(questions, drawn, real, records)
    if "likeness" in asked.metrics:
        scores["likeness"] = likeness_scores(questions, drawn, real)
    return scores


def prompt_scores(
    questions: Mapping[str, Questions], drawn: Mapping[str, Tensor], real: Tensor, records: PictureSet
) -> dict[str, dict[str, Any]]:
    """The metric ``prompts``: retrieval, what is right of misses, and for keywords how many answers there are."""
    from unstir.evaluation.keywords import variety
    from unstir.evaluation.prompts import parts_of_misses, retrieve, score
    from unstir.typing import integers

    names = [record.captions[0] if record.captions else "" for record in records.records]
    scores: dict[str, dict[str, Any]] = {}
    for name, asked in questions.items():
        retrieved = retrieve(drawn[name], real)
        scores[name] = asdict(score(asked, retrieved, len(real)))
        if name == "keywords":
            scores[name]["variety"] = asdict(variety(retrieved))
            continue
        found = ((caption, i) for caption, row in zip(asked.captions, retrieved, strict=True) for i in integers(row))
        parts = parts_of_misses((caption, names[i]) for caption, i in found)
        scores[name]["parts"] = None if parts is None else asdict(parts)
    return scores


def likeness_scores(
    questions: Mapping[str, Questions], drawn: Mapping[str, Tensor], real: Tensor
) -> dict[str, dict[str, Any]]:
    """The metric ``likeness``: squared error, sharpness and diversity."""
    from unstir.evaluation.likeness import likeness

    return {name: asdict(likeness(drawn[name], asked.answers, real)) for name, asked in questions.items()}


def bit_scores(
    pipe: Pipeline, asked: Asked, real: Tensor, records: PictureSet, *, draws: int, seed: int, batch: int
) -> dict[str, dict[str, Any]]:
    """The metric ``bits``: a bound, a split."""
    from unstir.evaluation.bits import measure_bits
    from unstir.evaluation.prompts import choose_prompts

    chosen = {name: choose_prompts(records, name, asked.limit) for name in asked.splits or ()}
    scores: dict[str, dict[str, Any]] = {}
    for name, rows in ((name, rows) for name, rows in chosen.items() if rows):
        captions = [records.records[i].captions[0] for i in rows]
        with progress_bar("bits", len(rows), unit=" pictures") as advance:
            bound = measure_bits(pipe.model, real[rows], captions, draws=draws, seed=seed, batch=batch, advance=advance)
        scores[name] = asdict(bound)
    return scores


def lines_of(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """What people read: a line a figure, with its standard error."""
    tell = {"prompts": _prompt_lines, "bits": _bit_lines, "likeness": _likeness_lines}
    return [
        f"{_LABELS[name]}: {line}"
        for metric, of_metric in scores.items()
        for name, score in of_metric.items()
        for line in tell[metric](score)
    ]


def _prompt_lines(score: Mapping[str, Any]) -> list[str]:
    what = "the nearest real picture carries the keyword in" if score.get("variety") else "top-1 retrieval"
    lines = [
        f"{what} {score['top1']:.1%} +- {score['standard_error']:.1%} "
        f"({score['prompts']} prompts, {score['seeds']} seeds, {score['candidates']} candidates)"
    ]
    if score.get("parts"):
        parts = score["parts"]
        shares = [f"{part} right {parts[part]:.0%}" for part in ("person", "job", "tone") if parts[part] is not None]
        lines.append(f"of {parts['misses']} misses of names with a skin tone: {', '.join(shares)}")
    if score.get("variety"):
        several = score["variety"]
        lines.append(
            f"{_told(several['distinct'], '.2f')} different nearest pictures among {several['seeds']} seeds; at least "
            f"half of the seeds differ for {_told(several['half_differ'], '.1%')} of the keywords"
        )
    return lines


def _bit_lines(score: Mapping[str, Any]) -> list[str]:
    return [
        f"at most {score['bits_per_dim']:.3f} +- {score['standard_error']:.3f} bits/dim "
        f"({score['pictures']} pictures, {score['draws']} noise levels each below a log-SNR of "
        f"{score['first_log_snr']:g}, the rest by the decoder)"
    ]


def _likeness_lines(score: Mapping[str, Any]) -> list[str]:
    several, own, ratio = score["real_diversity"], score["diversity"], score["sharpness_ratio"]
    of_real = "" if several is None else f" (real pictures of a prompt {_told(several, '.3f')})"
    share = "" if ratio is None else f", {_told(ratio, '.1%')} of the real pictures'"
    return [
        f"squared error {_told(score['squared_error'], '.4f')}, of values in [-1, 1] (one answer a prompt: at least "
        f"{score['least_error']['value']:.4f})",
        f"sharpness {score['sharpness']['value']:.4f} a pixel{share} ({score['real_sharpness']['value']:.4f})",
        "diversity needs --seeds 2 or more" if own is None else f"diversity over seeds {_told(own, '.3f')}{of_real}",
    ]


def _told(mean: Mapping[str, Any], form: str) -> str:
    error = mean["standard_error"]
    return f"{mean['value']:{form}}" + ("" if error is None else f" +- {error:{form}}")
