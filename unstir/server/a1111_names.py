"""The names that AUTOMATIC1111's clients have for samplers and for grids of times, and ours, both ways.

Knows: which of their names mean the same mathematics as ours.
Does not know: HTTP, models, what a sampler does.

Their schedulers are named by the web interface ("SGM Uniform") or in small letters ("sgm_uniform"); older clients write
one behind the sampler ("DPM++ 2M Karras"). Capitals do not matter.

    Karras        karras            the same formula
    Exponential   uniform_log_snr   even in log(sigma/alpha), which is half of the log-SNR
    SGM Uniform   trailing          even in time from the last step on, the first is left out
    Simple        trailing          the same, picked from the table of levels
    Uniform       linspace          even in time, both ends included
    Normal        linspace          the same, as ComfyUI calls it
    DDIM          leading           every k-th step of the chain, which does not start at its end
    Automatic     -                 the model's own
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unstir.config import choose

AUTOMATIC = "Automatic"
"""The name of whatever the model draws best with."""

SAMPLERS: dict[str, str] = {
    "Euler": "euler",
    "Euler a": "euler_ancestral",
    "Heun": "heun",
    "DPM++ 2M": "dpm++2m",
    "DPM++ 2M SDE": "dpm++2m_sde",
    "DDIM": "ddim",
    "PLMS": "plms",
    "UniPC": "unipc",
    "DEIS": "deis",
    "DDPM": "ancestral",
    "LCM": "renoise",
    "k_euler": "euler",
    "k_euler_a": "euler_ancestral",
    "euler_a": "euler_ancestral",
    "k_heun": "heun",
    "k_dpmpp_2m": "dpm++2m",
    "dpmpp_2m": "dpm++2m",
    "k_dpmpp_2m_sde": "dpm++2m_sde",
    "dpmpp_2m_sde": "dpm++2m_sde",
    "uni_pc": "unipc",
}
"""Their samplers. The first name of each of ours is the one that we answer with."""

SCHEDULERS: dict[str, str] = {
    "Karras": "karras",
    "Exponential": "uniform_log_snr",
    "SGM Uniform": "trailing",
    "Simple": "trailing",
    "Uniform": "linspace",
    "Normal": "linspace",
    "DDIM": "leading",
    "Quadratic": "quadratic",
    "Tuned": "tuned",
}
"""Their schedulers, and two that are ours alone."""


def read_sampler(name: str, ours: Iterable[str]) -> tuple[str | None, str | None]:
    """Our sampler, and our grid if the name ends with one.

    Args:
        name: theirs or ours; empty or ``AUTOMATIC`` is the model's own.
        ours: samplers that the model draws with.

    Returns:
        None for what the model decides.

    Raises:
        ValueError: with the names that there are.
    """
    there = list(ours)
    if _plain(name) in ("", _plain(AUTOMATIC)):
        return None, None
    samplers = _known(there)
    given, grid = _plain(name), None
    if given not in samplers:
        for scheduler, own in SCHEDULERS.items():
            if given.endswith(f" {_plain(scheduler)}") and given.removesuffix(f" {_plain(scheduler)}") in samplers:
                given, grid = given.removesuffix(f" {_plain(scheduler)}"), own
    if given not in samplers:
        choose(name, [*(sampler_name(own) for own in there), AUTOMATIC], "sampler")
    return samplers[given], grid


def read_scheduler(name: str) -> str | None:
    """Our grid; None for what the model decides.

    Args:
        name: theirs or ours; empty or ``AUTOMATIC`` is the model's own.

    Raises:
        ValueError: with the names that there are.
    """
    if _plain(name) in ("", _plain(AUTOMATIC)):
        return None
    grids = {_plain(theirs): own for theirs, own in SCHEDULERS.items()}
    grids |= {_plain(own): own for own in SCHEDULERS.values()}
    if (own := grids.get(_plain(name))) is None:
        choose(name, [*SCHEDULERS, AUTOMATIC], "scheduler")
    return own


def sampler_name(own: str) -> str:
    """Their name of one of our samplers, or ours where they have none."""
    return _first(SAMPLERS, own)


def scheduler_name(own: str) -> str:
    """Their name of one of our grids, or ours where they have none."""
    return _first(SCHEDULERS, own)


def other_names(own: str) -> list[str]:
    """What else one of our samplers may be called."""
    theirs = [name for name, ours in SAMPLERS.items() if ours == own]
    return [*theirs[1:], own] if theirs else []


def _first(names: Mapping[str, str], own: str) -> str:
    return next((theirs for theirs, ours in names.items() if ours == own), own)


def _known(there: list[str]) -> dict[str, str]:
    """Ours, by every name that means them."""
    theirs = {_plain(name): own for name, own in SAMPLERS.items() if own in there}
    return {_plain(own): own for own in there} | theirs


def _plain(name: str) -> str:
    """Without capitals; the web interface writes a space where programs write an underscore."""
    return " ".join(name.lower().replace("_", " ").split())
