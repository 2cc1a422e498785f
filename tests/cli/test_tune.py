"""``unstir tune`` and ``--within``: steps fitted to a model, kept with it, drawn with by default."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from unstir.conditioning.text import WordReader
from unstir.metadata import read_recipe
from unstir.model import STEPS, ModelConfig, SamplingDefaults, build, load_model, save_model
from unstir.nn import DiTConfig
from unstir.nn.text import TextConfig
from unstir.pipeline import TUNED, load

Call = Callable[..., tuple[int, str, str]]
READER = WordReader.train(["red heart", "blue star"], vocabulary=300, max_tokens=8)
NETWORK = DiTConfig(
    size=16,
    patch=8,
    width=32,
    depth=1,
    heads=2,
    text=TextConfig(vocabulary=300, max_tokens=8, width=16, depth=1, heads=2),
)
CONFIG = ModelConfig(size=16, network=NETWORK, sampling=SamplingDefaults(steps=4, guidance_scale=2.0))


def written(folder: Path, **more: object) -> Path:
    torch.manual_seed(0)
    save_model(replace(build(CONFIG, READER), taught=("red heart", "blue star"), **more), folder)
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tuned steps for 3 and 4."""
    from unstir.cli.app import run

    folder = written(tmp_path_factory.mktemp("tuned") / "model")
    assert run(["tune", str(folder), "--steps", "4", "3", "--starts", "2", "--iterations", "3", "--json"]) == 0
    return folder


def test_they_are_kept_and_drawn_with_by_default(call: Call, tuned: Path) -> None:
    assert [steps.num_steps for steps in load_model(tuned).tuned] == [3, 4]
    status, out, _ = call("sample", "red heart", "--model", tuned, "--seed", 1, "-o", "a.png", "--json")
    told = json.loads(out)["pictures"][0]
    assert (status, told["sampler"], told["grid"], told["steps"]) == (0, TUNED, TUNED, 4)
    call("sample", "red heart", "--model", tuned, "--seed", 1, "--steps", 3, "-o", "b.png")
    assert read_recipe(Path("b.png")).request.sampler == TUNED
    call("sample", "red heart", "--model", tuned, "--seed", 1, "--steps", 5, "-o", "c.png")
    assert read_recipe(Path("c.png")).request.sampler == "dpm++2m"
    assert call("redo", "a.png", "-o", "again.png")[0] == 0
    assert Path("again.png").exists()


def test_a_call_per_step_and_the_redo_is_the_same(tuned: Path) -> None:
    pipe = load(tuned, device="cpu")
    calls = 0
    forward = pipe.model.denoiser.network.forward

    def counted(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        return forward(*arguments)

    pipe.model.denoiser.network.forward = counted
    first, second = pipe.sample("red heart", seed=3), pipe.sample("red heart", seed=3)
    assert calls == 8
    assert first[0].tobytes() == second[0].tobytes()


def test_where_a_walk_does_not_start_in_noise_another_sampler_is_taken(tuned: Path) -> None:
    pipe = load(tuned, device="cpu")
    picture = pipe.sample("red heart", seed=0)[0]
    assert pipe.edit_requests(picture, "blue star", strength=0.5)[0][0].sampler == "dpm++2m"
    assert pipe.edit_requests(picture, "blue star", strength=1.0)[0][0].sampler == TUNED
    mask = Image.new("L", picture.size, 255)
    assert pipe.edit_requests(picture, "blue star", mask=mask, resample=2)[0][0].sampler == "dpm++2m"
    with pytest.raises(ValueError, match="start in noise"):
        pipe.edit_requests(picture, "blue star", strength=0.5, sampler=TUNED)


def test_steps_of_other_weights_are_not_used(tuned: Path, tmp_path: Path) -> None:
    folder = written(tmp_path / "model")
    (folder / STEPS).write_text((tuned / STEPS).read_text().replace(load_model(tuned).checksum, "0" * 64))
    assert load_model(folder).tuned == ()
    (folder / STEPS).write_text(json.dumps({"checksum": load_model(folder).checksum, "tuned": [{"times": [1, 0.5]}]}))
    with pytest.raises(ValueError, match="unstir tune"):
        load_model(folder)


def test_they_go_with_a_model_that_is_saved_again(tuned: Path, tmp_path: Path) -> None:
    model = load_model(tuned)
    save_model(model, tmp_path / "copy")
    assert load_model(tmp_path / "copy").tuned == model.tuned


@pytest.mark.parametrize(
    ("left", "steps", "sampler"), [(2, 2, "dpm++2m"), (3, 3, TUNED), (5, 4, TUNED), (7, 4, TUNED), (8, 8, "dpm++2m")]
)
def test_within_takes_tuned_steps_unless_twice_as_many_fit(
    tuned: Path, monkeypatch: pytest.MonkeyPatch, left: int, steps: int, sampler: str
) -> None:
    """By a clock that ticks once a look: a call takes 1 s, and five have passed before steps are counted."""
    pipe = load(tuned, device="cpu")
    monkeypatch.setattr("unstir.pipeline.time.perf_counter", itertools.count().__next__)
    chosen = pipe.within(pipe.requests(["red heart"]), 5 + left)
    assert [(request.steps, request.sampler) for request in chosen] == [(steps, sampler)]


def test_within_takes_steps_that_there_are(call: Call, tuned: Path, tmp_path: Path) -> None:
    assert call("sample", "red heart", "--model", tuned, "-o", "a.png")[0] == 0
    plain = written(tmp_path / "plain")
    status, out, _ = call("sample", "red heart", "--model", plain, "--within", 30, "-o", "b.png", "--json")
    told = json.loads(out)["pictures"][0]
    assert (status, told["sampler"], told["steps"]) == (0, "dpm++2m", 50)
    status, out, _ = call("sample", "red heart", "--model", tuned, "--within", 30, "-o", "b.png", "--json")
    assert json.loads(out)["pictures"][0]["sampler"] == "dpm++2m"
    status, out, _ = call("sample", "red heart", "--model", plain, "--within", 1e-6, "-o", "c.png", "--json")
    assert (status, json.loads(out)["pictures"][0]["steps"]) == (0, 1)
    assert "1 steps of dpm++2m" in call("sample", "red heart", "--model", plain, "--within", 1e-6, "-o", "d.png")[1]
    assert call("edit", "a.png", "--model", tuned, "--strength", 0.5, "--within", 30, "-o", "e.png")[0] == 0
    assert read_recipe(Path("e.png")).request.sampler == "dpm++2m"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("sample", "a", "--within", "0"), "within some seconds"),
        (("sample", "a", "--within", "nan"), "within some seconds"),
        (("sample", "a", "--within", "2", "--steps", "4"), "leave --steps"),
        (("sample", "a", "--sampler", "tuned", "--steps", "6"), "has them for 3, 4"),
        (("sample", "a", "--sampler", "tuned", "--grid", "trailing"), "leave one out"),
    ],
)
def test_bad_input_gets_one_sentence(call: Call, tuned: Path, arguments: tuple[str, ...], told: str) -> None:
    status, out, err = call(*arguments, "--model", tuned, "-o", "x.png")
    assert (status, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    assert not Path("x.png").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--steps", "0"), "at least 1"),
        (("--iterations", "0"), "at least 1"),
        (("--prompts", "nowhere.txt"), "no file of prompts"),
        (("--prompts", "empty.txt"), "holds no prompt"),
    ],
)
def test_bad_input_of_tune_gets_one_sentence(call: Call, tuned: Path, arguments: tuple[str, ...], told: str) -> None:
    Path("empty.txt").write_text("\n")
    status, out, err = call("tune", tuned, *arguments)
    assert (status, out) == (2, "")
    assert told in err
