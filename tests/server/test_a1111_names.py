"""What AUTOMATIC1111's clients call samplers and grids."""

from __future__ import annotations

import math

import pytest
import torch

from unstir.diffusion.samplers import SAMPLERS
from unstir.diffusion.schedule import LinearBeta, Tabulated, linear_betas
from unstir.diffusion.spacing import LEGACY, SPACINGS
from unstir.model import spacing_of
from unstir.pipeline import TUNED
from unstir.server import a1111_names as names

ALL = [TUNED, *SAMPLERS]


@pytest.mark.parametrize("own", ALL)
def test_each_of_our_samplers_is_found_under_every_name_that_is_told(own: str) -> None:
    for name in (names.sampler_name(own), *names.other_names(own), own):
        assert names.read_sampler(name, ALL) == (own, None), name


@pytest.mark.parametrize("own", [TUNED, *SPACINGS, *LEGACY])
def test_each_of_our_grids_has_a_name_and_is_found_under_it(own: str) -> None:
    name = names.scheduler_name(own)
    assert name in names.SCHEDULERS
    assert {names.read_scheduler(name), names.read_scheduler(own)} == {own}
    assert names.read_scheduler(name.lower().replace(" ", "_")) == own  # as GET /schedulers lists it


def test_every_name_means_something_that_there_is() -> None:
    assert set(names.SAMPLERS.values()) <= set(SAMPLERS)
    for own in set(names.SCHEDULERS.values()) - {TUNED}:
        spacing_of(own)


@pytest.mark.parametrize("name", ["", " ", "Automatic", "automatic"])
def test_the_model_decides_where_nothing_is_said(name: str) -> None:
    assert names.read_sampler(name, ALL) == (None, None)
    assert names.read_scheduler(name) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DPM++ 2M Karras", ("dpm++2m", "karras")),
        ("dpm++ 2m sde exponential", ("dpm++2m_sde", "uniform_log_snr")),
        ("Euler a", ("euler_ancestral", None)),
        ("EULER  A", ("euler_ancestral", None)),
        ("Euler SGM Uniform", ("euler", "trailing")),
        ("k_dpmpp_2m", ("dpm++2m", None)),
        ("DDIM", ("ddim", None)),
        ("DDIM Uniform", ("ddim", "linspace")),
    ],
)
def test_old_clients_write_the_grid_behind_the_sampler(name: str, expected: tuple[str, str | None]) -> None:
    assert names.read_sampler(name, ALL) == expected


@pytest.mark.parametrize(
    "name", ["Restart", "DPM++ SDE", "DPM++ 2S a Karras", "Karras", "Euler Beta", "\ud800", "a" * 9999]
)
def test_an_unknown_sampler_is_told_the_names_that_there_are(name: str) -> None:
    with pytest.raises(ValueError, match="unknown sampler") as error:
        names.read_sampler(name, ALL)
    for known in ("Euler a", "DPM++ 2M", "UniPC", "predictor_corrector", names.AUTOMATIC):
        assert known in str(error.value)


def test_an_unknown_scheduler_is_told_the_names_that_there_are() -> None:
    with pytest.raises(ValueError, match="unknown scheduler 'Beta'.*Karras, Exponential, SGM Uniform.*Automatic"):
        names.read_scheduler("Beta")


def test_a_sampler_that_the_model_cannot_use_is_not_there() -> None:
    assert names.read_sampler("DDPM", ["ancestral"]) == ("ancestral", None)
    with pytest.raises(ValueError, match="there are DDPM, Automatic"):
        names.read_sampler("Euler", ["ancestral"])


def theirs(name: str, schedule: LinearBeta | Tabulated, count: int) -> list[float]:
    """Levels sigma/alpha of their schedulers, from their definitions, between the ends of ours."""
    times = SPACINGS[names.SCHEDULERS[name]](schedule, count)
    levels = schedule.at(torch.tensor(times[:-1], dtype=torch.float64))
    sigmas = (levels.sigma / levels.alpha).tolist()
    first, last = sigmas[1], sigmas[-1]  # the first of ours is t = 1 itself
    if name == "Karras":
        return [
            (first ** (1 / 7) + i / (count - 2) * (last ** (1 / 7) - first ** (1 / 7))) ** 7 for i in range(count - 1)
        ]
    return [math.exp(math.log(first) + i / (count - 2) * (math.log(last) - math.log(first))) for i in range(count - 1)]


@pytest.mark.parametrize("name", ["Karras", "Exponential"])
def test_levels_are_spread_as_theirs(name: str) -> None:
    schedule = LinearBeta()
    times = SPACINGS[names.SCHEDULERS[name]](schedule, 12)
    levels = schedule.at(torch.tensor(times[1:-1], dtype=torch.float64))
    assert (levels.sigma / levels.alpha).tolist() == pytest.approx(theirs(name, schedule, 12), rel=1e-6)


def test_steps_of_the_chain_are_theirs() -> None:
    table = Tabulated.from_betas(linear_betas(1000))
    expected = {
        "Uniform": [1000 - round(999 * i / 9) for i in range(10)],  # linspace(999, 0, n), counted from 1
        "SGM Uniform": [1000 - 100 * i for i in range(10)],
        "Simple": [1000 - int(i * 1000 / 10) for i in range(10)],  # sigmas[-(1 + int(i * len / n))]
        "DDIM": [1 + 100 * i for i in reversed(range(10))],  # range(1, T, T // n)
    }
    for name, steps in expected.items():
        times = spacing_of(names.SCHEDULERS[name])(table, 10)
        assert [round(t * 1000) for t in times[:-1]] == steps, name
