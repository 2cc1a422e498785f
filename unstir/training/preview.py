"""Previews: what the model draws while it is trained.

Knows: fixed prompts, fixed seeds, three views side by side.
Does not know: when a preview is due.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont

from unstir.model import Model
from unstir.pipeline import Pipeline

_SEED = 0
_LABEL = 14


def preview_sheet(raw: Model, ema: Model, prompts: Sequence[str], *, title: str, device: str = "cpu") -> Image.Image:
    """A sheet with one row a prompt: the raw weights, their average, and the average's belief after a single step.

    "Not learned yet" (the one-step view is a blur) then looks different from "sampler or average broken" (the one-step
    view is right, the others are not). Nothing of the training is touched: randomness is the prompts' own.
    """
    views = [("raw", raw, None), ("average", ema, None), ("one step", ema, 1)]
    columns: list[tuple[str, list[Image.Image]]] = []
    for label, model, steps in views:
        pipe = Pipeline(model, device=device)
        was_training = model.denoiser.training
        model.denoiser.eval()
        columns.append((label, pipe.sample(prompts, seed=_SEED, steps=steps, grid="trailing" if steps else None)))
        model.denoiser.train(was_training)
    return contact_sheet(
        [picture for row in zip(*(pictures for _, pictures in columns), strict=True) for picture in row],
        [f"{label}: {prompt}" if label == "raw" else label for prompt in prompts for label, _ in columns],
        columns=len(columns),
        title=title,
    )


def contact_sheet(
    pictures: Sequence[Image.Image], labels: Sequence[str], *, columns: int, title: str = "", scale: int = 2
) -> Image.Image:
    """Pictures in rows, each with its label under it, enlarged by whole pixels."""
    width, height = pictures[0].width * scale, pictures[0].height * scale
    rows = -(-len(pictures) // columns)
    top = _LABEL + 4 if title else 0
    sheet = Image.new("RGB", (columns * (width + 4) + 4, rows * (height + _LABEL + 4) + 4 + top), (245, 245, 245))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    draw.text((4, 3), " ".join(title.split()), fill=(0, 0, 0), font=font)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = 4 + index % columns * (width + 4), 4 + top + index // columns * (height + _LABEL + 4)
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, y))
        draw.text(
            (x, y + height),
            _fitting(label, lambda text: draw.textlength(text, font=font) <= width),
            fill=(60, 60, 60),
            font=font,
        )
    return sheet


def _fitting(label: str, fits: Callable[[str], bool]) -> str:
    label = " ".join(label.split())  # a line break would be a second line
    if fits(label):
        return label
    while label and not fits(f"{label}…"):
        label = label[:-1].rstrip()
    return f"{label}…" if label else ""
