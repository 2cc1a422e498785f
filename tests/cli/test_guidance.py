"""Options of guidance on the command line: what they ask for, what a picture remembers of them, every bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from unstir.cli.options import steering_of
from unstir.conditioning.text import WordReader
from unstir.metadata import read_recipe
from unstir.model import ModelConfig, SamplingDefaults, build, load_model, save_model
from unstir.nn import DiTConfig
from unstir.nn.text import TextConfig
from unstir.steering import Steering

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with random weights, strong and weak."""
    folder = tmp_path_factory.mktemp("models")
    text = TextConfig(vocabulary=300, max_tokens=48, width=16, depth=1, heads=2)
    network = DiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=text)
    config = ModelConfig(size=16, network=network, sampling=SamplingDefaults(steps=2, guidance_scale=3.0))
    for seed, name in enumerate(("strong", "weak")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(config, WordReader.train(["red blue cat"], vocabulary=300, max_tokens=48))
            with torch.no_grad():
                for weight in model.denoiser.network.parameters():
                    weight.add_(torch.randn(weight.shape) * 0.2)
        save_model(model, folder / name)
    return folder


def pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


def test_no_option_is_no_steering() -> None:
    assert steering_of({"method": None, "rescale": None, "weak": None}) == Steering()


def test_options_are_fields_and_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = {"method": "projected", "rescale": 0.7, "view": "x0", "threshold": 0.9, "weak": "old", "classifier": "judge"}
    expected = {**said, "weak": str(tmp_path.resolve() / "old"), "classifier": str(tmp_path.resolve() / "judge")}
    assert steering_of({**said, "classifier_scale": 2.0}) == Steering(**expected, classifier_scale=2.0)
    assert steering_of({"weak": "builtin"}).weak == "builtin"


@pytest.mark.parametrize(
    "options",
    [
        ["--guidance.method", "projected"],
        ["--guidance.method", "zero_star", "--guidance", "2"],
        ["--guidance.rescale", "0.7", "--guidance.view", "x0"],
        ["--guidance.threshold", "0.9"],
        ["--guidance.weak", "weak"],
    ],
    ids=" ".join,
)
def test_options_reach_the_picture_which_can_be_drawn_again(
    call: Call, models: Path, tmp_path: Path, options: list[str]
) -> None:
    """The PNG says what was asked, and ``redo`` draws it to the last bit."""
    options = [str(models / "weak") if option == "weak" else option for option in options]
    base = ["sample", "a cat", "--model", models / "strong", "--seed", 1]
    assert call(*base, "-o", "plain.png")[0] == 0
    status, out, err = call(*base, *options, "-o", "a.png", "--json")
    assert (status, err) == (0, "")
    (picture,) = json.loads(out)["pictures"]
    recipe = read_recipe(tmp_path / "a.png")
    assert picture["steering"]["method"] == recipe.request.steering.method
    assert recipe.request.steering != Steering()
    assert call("redo", "a.png", "-o", "b.png")[0] == 0
    first, again, plain = (pixels(tmp_path / name) for name in ("a.png", "b.png", "plain.png"))
    assert first == again
    assert first != plain


def test_redo_refuses_a_weak_model_that_changed(call: Call, models: Path, tmp_path: Path) -> None:
    """The picture knows the weights that it was drawn with."""
    save_model(load_model(models / "weak"), tmp_path / "other")
    assert call("sample", "a cat", "--model", models / "strong", "--guidance.weak", "other", "-o", "a.png")[0] == 0
    save_model(load_model(models / "strong"), tmp_path / "other")
    status, out, err = call("redo", "a.png")
    assert (status, out) == (2, "")
    assert "has other weights" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--guidance.method", "projectd"], "did you mean projected?"),
        (["--guidance.rescale", "2"], "fraction from 0"),
        (["--guidance.rescale", "0.5", "--guidance.view", "noise"], "ends without signal"),
        (["--guidance.view", "x0"], "give both"),
        (["--guidance.threshold", "0"], "quantile"),
        (["--guidance.weak", "nowhere"], "there is no model"),
        (["--guidance.classifier", "nowhere"], "nowhere"),
        (["--guidance.classifier-scale", "2"], "has no classifier"),
        (["--guidance.rescale", str(math.nan)], "fraction from 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_refused_in_one_sentence(
    call: Call, models: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    status, out, err = call("sample", "a cat", "--model", models / "strong", *options)
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "pictures").exists()
