"""Targets: ours, and what strangers' names lead to."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import DDIM, Ancestral, sample
from unstir.diffusion.schedule import SCHEDULES, Cosine, Level, Tabulated, linear_betas
from unstir.diffusion.spacing import SPACINGS, trailing
from unstir.verify.oracles import GaussianOracle
from unstir.verify.target import (
    Remakes,
    SamplerTarget,
    Spoils,
    level_of,
    load_cases,
    promise_of,
    schedules,
    targets_of,
)

ORACLE = GaussianOracle(mean=torch.tensor(0.2), variance=torch.tensor(0.5))


def target(sampler: DDIM | Ancestral = DDIM(), schedule: Cosine | Tabulated = Cosine()) -> SamplerTarget:  # noqa: B008
    promise = promise_of(sampler, schedule, trailing)
    return SamplerTarget(name="x", sampler=sampler, schedule=schedule, spacing=trailing, promise=promise)


def test_a_level_of_two_numbers() -> None:
    level = level_of(torch.tensor([0.0, 0.6, 1.0]), torch.tensor([1.0, 0.8, 0.0]))
    assert level.t.tolist() == pytest.approx([1.0, 0.8 / 1.4, 0.0])
    assert level.alpha.dtype == torch.float64


def test_a_sampler_runs_as_in_the_loop() -> None:
    process, x, noise = GaussianProcess(schedule=Cosine()), torch.randn(2, 1), KeyedNoise.from_seeds([1, 2])
    for sampler in (DDIM(), Ancestral()):
        *_, last = sample(sampler, ORACLE, process, x, trailing(Cosine(), 6)[2:], noise)
        assert torch.equal(target(sampler).run(ORACLE, x, 6, noise, 2), last.x)


def test_levels_are_those_of_the_spacing() -> None:
    found = target().levels(5)
    expected = Cosine().at(torch.tensor(trailing(Cosine(), 5), dtype=torch.float64))
    assert torch.equal(found.alpha, expected.alpha)
    assert torch.equal(found.sigma, expected.sigma)


def test_what_was_trained() -> None:
    ends = target().trained
    assert ends.t.tolist() == [0, 1]
    table = Tabulated.from_betas(linear_betas(1000))
    chain = target(schedule=table)
    assert chain.trained.alpha.square().tolist() == pytest.approx(table.table)
    assert chain.promise.visits_table
    assert not target().promise.visits_table


def test_promises_follow_from_the_order() -> None:
    assert promise_of(DDIM(), Cosine(), trailing).order == 1
    drawing = promise_of(DDIM(eta=0.5), Cosine(), trailing)
    assert (drawing.order, drawing.is_stochastic) == (None, True)


def test_a_sampler_spoils_and_makes_its_grid_in_one_way() -> None:
    it = target()
    assert isinstance(it, Spoils)
    assert not isinstance(it, Remakes)
    x0, noise = torch.randn(2, 1, 3), torch.randn(2, 1, 3)
    level = it.levels(4)[2]
    torch.testing.assert_close(it.spoil(x0, noise, 4, 2), (level.alpha * x0 + level.sigma * noise).float())


def test_all_schedules_and_spacings_are_picked_up() -> None:
    found = targets_of("ddim", DDIM())
    assert {type(each.schedule) for each in found} == set(SCHEDULES.values())
    assert {each.spacing for each in found} == set(SPACINGS.values())
    assert len({each.name for each in found}) == len(found)
    assert schedules()["zero_snr_table"].at(torch.ones((), dtype=torch.float64)).alpha == 0


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"strange_{tmp_path.name.replace('-', '_')}"

    def write(text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        return name

    yield write
    sys.modules.pop(name, None)


STRANGER = """
from unstir.verify.target import Promise
from unstir.diffusion.samplers import DDIM

class Mine:
    name, promise, trained = "mine", Promise(), None
    def levels(self, num_steps): ...
    def run(self, denoise, x, num_steps, noise, start=0): ...

def sampler(): return DDIM()
def target(): return Mine()
def several(): return {"target": Mine(), "other": Mine()}
def klass(): return Mine
def nothing(): return None
def needs(argument): return argument
def refuses(): raise ValueError("no such luck")
VALUE = 3
"""


def test_a_stranger_is_let_in(module) -> None:
    name = module(STRANGER)
    (case,) = load_cases(f"{name}:target")
    assert (case.target.name, case.spec) == ("mine", f"{name}:target")
    assert [case.spec for case in load_cases(f"{name}:several")] == [f"{name}:target", f"{name}:other"]
    cases = load_cases(f"{name}:sampler")
    assert len(cases) == len(targets_of("x", DDIM()))
    assert {case.spec for case in cases} == {f"{name}:sampler"}
    assert cases[0].target.name.startswith("sampler, ")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{}", "package.module:factory"),
        (":make", "package.module:factory"),
        ("{}:", "package.module:factory"),
        ("no_such_module:make", "cannot import 'no_such_module'"),
        ("{}:targt", "did you mean target"),
        ("{}:VALUE", "unknown factory"),
        ("{}:nothing", "returned a NoneType"),
        ("{}:needs", "called without arguments"),
        ("{}:refuses", "no such luck"),
    ],
)
def test_what_leads_nowhere_is_told(module, spec: str, words: str) -> None:
    name = module(STRANGER)
    with pytest.raises(ValueError, match=words):
        load_cases(spec.format(name))


def test_a_module_with_a_mistake_is_told(module) -> None:
    with pytest.raises(ValueError, match="SyntaxError"):
        load_cases(f"{module('def broken(:')}:broken")


def test_a_class_is_no_object(module) -> None:
    name = module("class Half:\n    name = 'half'\ndef make(): return Half\n")
    with pytest.raises(ValueError, match="not its class"):
        load_cases(f"{name}:make")


def test_levels_are_levels() -> None:
    assert isinstance(target().levels(3), Level)
