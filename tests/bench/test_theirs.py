"""Schedulers of diffusers as contenders: every grid that they take, from our start, and on our levels; their U-Net."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from unstir.bench import theirs
from unstir.bench.contender import Contender, calls_of, measure
from unstir.bench.exact import Problem, linear, pose
from unstir.condition import Condition
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import SAMPLERS, sample
from unstir.diffusion.spacing import Spacing, trailing, uniform_log_snr
from unstir.nn.layers import BlockStyle
from unstir.nn.text import TextConfig
from unstir.nn.unet import UNet, UNetConfig

pytest.importorskip("diffusers")

# diffusers hands torch tensors to numpy in ways that newer numpy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

GRIDS: dict[str, Spacing] = {"uniform_log_snr": uniform_log_snr, "trailing": trailing}


@pytest.fixture(scope="module")
def found() -> list[Contender]:
    return theirs.contenders("linear", linear(), GRIDS, default=lambda calls: trailing(linear(), calls))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return pose(2, linear(), seed=0, starts=4, steps=100)


def named(found: list[Contender], solver: str, grid: str, group: str = "diffusers") -> Contender:
    (one,) = (each for each in found if (each.solver, each.grid, each.group) == (solver, grid, group))
    return one


def test_every_solver_is_there_on_the_grids_that_it_takes(found: list[Contender]) -> None:
    grids = {
        solver.name: [each.grid for each in found if each.solver == solver.name and each.group == "diffusers"]
        for solver in theirs.SOLVERS
    }
    assert grids["DDIM"] == grids["PNDM"] == ["plain", "trailing"]
    assert grids["DPM++ 2M"] == grids["DPM++ 3M"] == ["plain", "trailing", "Karras", "lu"]
    for name in ("UniPC 2", "UniPC 3", "Heun", "DEIS", "LMS", "Euler"):
        assert grids[name] == ["plain", "trailing", "Karras"]
    assert {each.grid for each in found if each.group == "diffusers extra"} == set(theirs.EXTRA)
    ours = {each.solver for each in found if each.group == "diffusers on our grid"}
    assert ours == {"DPM++ 2M", "DPM++ 3M", "Heun", "Euler"}
    fitted = {each.solver for each in found if each.grid == "default"}
    assert fitted == ours - {"Heun"}  # which makes two calls a step, and a default is fitted to solvers of one


@pytest.mark.parametrize(
    ("solver", "num_steps", "calls"),
    [("DDIM", 5, 5), ("PNDM skip_prk_steps", 5, 6), ("PNDM", 5, 14), ("DPM++ 2M", 5, 5), ("Heun", 5, 9), ("LMS", 5, 5)],
)
def test_calls_are_those_that_schedulers_make(found: list[Contender], solver: str, num_steps: int, calls: int) -> None:
    assert calls_of(named(found, solver, "plain").walk, num_steps) == calls


@pytest.mark.parametrize("solver", theirs.SOLVERS, ids=lambda solver: solver.name)
def test_many_steps_come_near_to_the_truth(found: list[Contender], problem: Problem, solver: theirs.Solver) -> None:
    """So the start is the same as ours, whatever coordinates a scheduler keeps its sample in."""
    row = measure(named(found, solver.name, "trailing"), problem, 200)
    assert row.failure == ""
    assert row.median is not None
    assert row.median < 0.02


def test_euler_on_our_grid_is_our_ddim(found: list[Contender], problem: Problem) -> None:
    """The same method on the same levels, given as sigmas."""
    end = named(found, "Euler", "uniform_log_snr", "diffusers on our grid").walk(problem.law, problem.starts, 10)
    times, noise = uniform_log_snr(linear(), 10), KeyedNoise.from_seeds(range(4))
    process = GaussianProcess(schedule=linear())
    *_, last = sample(SAMPLERS["ddim"](), problem.law, process, problem.starts, times, noise)
    torch.testing.assert_close(end, last.x, rtol=0, atol=2e-4)


def test_trailing_given_as_timesteps_is_their_own_trailing(found: list[Contender], problem: Problem) -> None:
    ours = named(found, "DPM++ 2M", "trailing", "diffusers on our grid").walk(problem.law, problem.starts, 10)
    own = named(found, "DPM++ 2M", "trailing").walk(problem.law, problem.starts, 10)
    assert torch.equal(ours, own)


def test_timesteps_are_whole_and_differ() -> None:
    assert theirs.timesteps_of(linear(), (1.0, 0.5, 0.001, 0.0)) == [999, 499, 0]
    with pytest.raises(ValueError, match="two of 3 times share one"):
        theirs.timesteps_of(linear(), (1.0, 0.5, 0.4999, 0.0))


def test_sigmas_end_without_noise() -> None:
    sigmas = theirs.sigmas_of(linear(), (1.0, 0.001, 0.0))
    assert sigmas == pytest.approx([157.407, 0.0100005, 0.0], rel=1e-4)


def test_without_diffusers_there_is_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert theirs.version()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert theirs.version() is None


SHIFTED = BlockStyle(modulation="shift", dropout=0.1, epsilon=1e-6)
DDPM = UNetConfig(
    width=64,
    multipliers=(1, 2),
    attention=(1,),
    heads=1,
    style=SHIFTED,
    has_normed_queries=False,
    pads_evenly=False,
    text=None,
)


@pytest.mark.parametrize("multipliers", [(1, 2), (1, 1, 1)])
def test_with_their_weights_our_u_net_says_the_same(multipliers: tuple[int, ...]) -> None:
    """At whole timesteps; theirs start at random weights throughout, the last convolution included."""
    config = replace(DDPM, multipliers=multipliers, blocks=len(multipliers) - 1)
    torch.manual_seed(0)
    their, own = theirs.their_unet(config).eval(), UNet(config).eval()
    theirs.copy_weights(their, own)
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0, 3, 777])
    with torch.no_grad():
        expected = their(x, t).sample
        found = own(x, t.float(), Condition(seeds=t))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_their_u_net_of_ddpm_has_as_many_weights() -> None:
    config = replace(DDPM, width=128, multipliers=(1, 2, 2, 2))
    with torch.device("meta"):
        counts = [sum(w.numel() for w in make(config).parameters()) for make in (theirs.their_unet, UNet)]
    assert counts == [35_746_307] * 2


@pytest.mark.parametrize("change", [{"attention": ()}, {"multipliers": (1, 3)}], ids=str)
def test_weights_of_another_shape_are_not_copied(change: dict) -> None:
    with torch.device("meta"):
        their, own = theirs.their_unet(DDPM), UNet(replace(DDPM, **change))
    with pytest.raises(ValueError, match="not of one configuration"):
        theirs.copy_weights(their, own)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", TextConfig()),
        ("style", BlockStyle()),
        ("heads", 2),
        ("head_width", 64),
        ("up_attention", "last"),
        ("transformers", 1),
        ("vector_width", 64),
        ("classes", 3),
        ("dimensions", 1),
        ("resampling", replace(SHIFTED, resampling="block")),
        ("sum_scale", replace(SHIFTED, sum_scale=0.5)),
        ("has_normed_queries", True),
        ("pads_evenly", True),
        ("width", 32),
    ],
    ids=str,
)
def test_a_u_net_that_they_have_not_is_refused(name: str, value: object) -> None:
    said = {"style": "modulation", "head_width": "heads"}.get(name, name)
    setting = "style" if isinstance(value, BlockStyle) else name
    with pytest.raises(ValueError, match=f"differs from this U-Net in {said}$"):
        theirs.their_unet(replace(DDPM, **{setting: value}))
