"""What verbs that draw are told alike: how to draw, how words pull, where pictures go.

Knows: options of the command line and what they become in a request.
Does not know: any verb, how a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from unstir.cli.output import Whole

if TYPE_CHECKING:
    from unstir.pipeline import Settings
    from unstir.steering import Steering


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Solving:
    """How pictures are drawn.

    Parameters
    ----------
    steps
        Of the grid; the network is asked once a step, twice by heun, dpm++2s and predictor_corrector, three times by
        dpm++3s; once in the last step by all.
    sampler
        Without fresh noise: ddim (also called euler), dpm++2m, dpm++3m, dpm++2s, dpm++3s, unipc, unipc3, deis, plms,
        heun, and tuned (steps fitted to the model, the default where it has some). With it: ancestral,
        euler_ancestral, dpm++2m_sde, predictor_corrector, renoise.
    grid
        The times that the sampler visits: trailing, uniform_log_snr, linspace, quadratic, karras, leading (legacy),
        "sections 10,15,20" (steps of each part of the chain, from data to noise), or times, such as 1,0.8,0.4.
    eta
        For ddim: fresh noise, from 0 (none) to 1 (as ancestral).
    within
        Seconds: take the sampler and as many steps as draw all pictures of the call in that time on this machine.
    """

    steps: Whole | None = None
    sampler: str | None = None
    grid: str | None = None
    eta: float | None = None
    within: float | None = None

    def require_one_way(self) -> None:
        """Refuse two ways to say how many steps.

        Raises:
            ValueError: if the time is given and what it decides as well.
        """
        if self.within is not None and any(
            told is not None for told in (self.steps, self.sampler, self.grid, self.eta)
        ):
            raise ValueError("--within chooses sampler, grid and steps; leave --steps, --sampler, --grid and --eta out")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Words:
    """How words pull.

    Parameters
    ----------
    guidance
        How strongly the words pull; 1 is not at all beyond the model itself.
    guidance_interval
        A,B: the log-SNR between which guidance acts.
    guidance_method
        plain, projected (without the part that saturates colours) or zero_star (for undertrained models).
    guidance_rescale
        From 0 to 1: how far the contrast that guidance adds is taken back; 0.7 is usual.
    guidance_view
        On what --guidance.rescale acts: v, x0 or noise.
    guidance_threshold
        The quantile of a dynamic threshold, in the place of clipping; 0.995 is usual.
    negative
        What to move away from.
    prompt_syntax
        plain, or weighted: (words:1.5), (words) and [words] count more or less, and long prompts are read whole.
    """

    guidance: float | None = None
    guidance_interval: Annotated[str | None, Parameter(name="--guidance.interval", allow_leading_hyphen=True)] = None
    guidance_method: Annotated[str | None, Parameter(name="--guidance.method")] = None
    guidance_rescale: Annotated[float | None, Parameter(name="--guidance.rescale")] = None
    guidance_view: Annotated[str | None, Parameter(name="--guidance.view")] = None
    guidance_threshold: Annotated[float | None, Parameter(name="--guidance.threshold")] = None
    negative: str = ""
    prompt_syntax: str | None = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Others:
    """What else leads the way.

    Parameters
    ----------
    guidance_weak
        A model, such as an earlier one of the same run, to push off from in the place of the null (autoguidance).
    guidance_classifier
        A classifier folder; the prompt must name one of its classes.
    guidance_classifier_scale
        How strongly the classifier leads; 1 is as it says.
    """

    guidance_weak: Annotated[str | None, Parameter(name="--guidance.weak")] = None
    guidance_classifier: Annotated[str | None, Parameter(name="--guidance.classifier")] = None
    guidance_classifier_scale: Annotated[float | None, Parameter(name="--guidance.classifier-scale")] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What draws, and where pictures go.

    Parameters
    ----------
    model
        "builtin", a model folder, or a run folder.
    output
        A folder, or a file (.png, .jpg, .webp) for a single picture.
    batch
        Most pictures drawn together; no picture depends on it by more than 1/255.
    device
        auto, cpu, cuda, ...
    precision
        auto (bf16 on a CPU that multiplies it natively, else float32), float32 or bf16.
    metadata
        Whether PNGs carry their recipe.
    json
        Print one JSON object instead of text.
    """

    model: str = "builtin"
    output: Annotated[str, Parameter(name=["-o", "--output"])] = "pictures/"
    batch: Whole | None = None
    device: str = "auto"
    precision: str = "auto"
    metadata: Annotated[bool, Parameter(negative="--no-metadata")] = True
    json: Annotated[bool, Parameter(negative=())] = False


def settings_of(solving: Solving, words: Words, others: Others) -> Settings:
    """The fields of a request that these options set; None leaves the model's default.

    Raises:
        ValueError: if an interval is none, or as ``steering_of`` and ``Solving.require_one_way``.
    """
    solving.require_one_way()
    return {
        "steps": solving.steps,
        "sampler": solving.sampler,
        "grid": solving.grid,
        "eta": solving.eta,
        "guidance_scale": words.guidance,
        "guidance_interval": parse_interval(words.guidance_interval),
        "steering": steering_of(
            {
                "method": words.guidance_method,
                "rescale": words.guidance_rescale,
                "view": words.guidance_view,
                "threshold": words.guidance_threshold,
                "weak": others.guidance_weak,
                "classifier": others.guidance_classifier,
                "classifier_scale": others.guidance_classifier_scale,
            }
        ),
        "negative": words.negative,
        "syntax": words.prompt_syntax,
    }


def steering_of(options: Mapping[str, Any]) -> Steering:
    """The kind of guidance that the options ask for; None leaves a default. Paths of models become absolute.

    Raises:
        ValueError: as ``Steering``, or if a view is given that nothing is rescaled in.
    """
    from unstir.steering import Steering

    said = {name: value for name, value in options.items() if value is not None}
    if "view" in said and not said.get("rescale"):
        raise ValueError("--guidance.view says on what --guidance.rescale acts; give both")
    for name in ("weak", "classifier"):
        if said.get(name) not in (None, "", "builtin"):
            said[name] = str(Path(said[name]).resolve())
    return Steering(**said)


def parse_size(text: str | None) -> tuple[int | None, int | None]:
    """Width and height, from "64" or "96x64".

    Raises:
        ValueError: if it is neither.
    """
    if text is None:
        return None, None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"size must be WIDTHxHEIGHT or one number, got {text!r}; for instance --size 64x64")
    return int(parts[0]), int(parts[-1])


def parse_interval(text: str | None) -> tuple[float, float] | None:
    """Two numbers from "a,b".

    Raises:
        ValueError: if there are not two.
    """
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"a guidance interval is two numbers, got {text!r}; for instance --guidance.interval -4,4"
        ) from None
    return low, high


def parse_extend(text: str | None) -> tuple[int, int, int, int] | None:
    """Four whole numbers from "left,top,right,bottom".

    Raises:
        ValueError: if they are not.
    """
    if text is None:
        return None
    try:
        left, top, right, bottom = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"a canvas is extended by LEFT,TOP,RIGHT,BOTTOM, whole numbers of pixels, got {text!r}; for instance "
            "0,0,32,0"
        ) from None
    return left, top, right, bottom
