"""``unstir train`` of a classifier: from a folder to a classifier, resumed, and refused in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from unstir.classifier import load_classifier

Call = Callable[..., tuple[int, str, str]]
_SETTINGS = (
    'cifar10-classifier --classifier.classes ["red","blue"] --classifier.network.outputs 2 --classifier.size 8 '
    "--classifier.network.width 8 --classifier.network.multipliers [1,2] --training.precision float32 --batch 8 "
    "--device cpu"
)
SMALL = _SETTINGS.split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    for i in range(12):
        name = ("red", "blue")[i % 2]
        Image.new("RGB", (8, 8), (255 * (i % 2 == 0), 20 * i, 255 * (i % 2))).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"something {name}\n")
    return folder


@pytest.fixture
def call(call: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return call


def refused(found: tuple[int, str, str]) -> str:
    status, out, err = found
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    return err


def test_a_folder_becomes_a_classifier_and_goes_on(call: Call, data: Path) -> None:
    status, out, err = call("train", *SMALL, "--data", data, "--out", "run", "--images", 16, "--json")
    assert status == 0
    assert "training on 12 pictures, 0 held out" in err
    told = json.loads(out)
    assert (told["images_seen"], told["is_finished"], told["held_out"]) == (16, True, {})
    assert load_classifier(Path(told["model"])).config.classes == ("red", "blue")
    status, out, err = call("train", "--resume", "--out", "run", "--images", 24, "--checkpoint-every", 8)
    assert status == 0
    assert "going on from 16 pictures" in err
    assert out == f"24 pictures seen. The classifier: {Path('run/model').resolve()}\n"
    assert load_classifier(Path("run/model")).training["images_seen"] == 24


def test_another_run_json_is_a_recipe(call: Call, data: Path) -> None:
    assert call("train", *SMALL, "--data", data, "--out", "first", "--images", 8)[0] == 0
    assert call("train", "first/run.json", "--out", "second", "--device", "cpu")[0] == 0
    one, two = (load_classifier(Path(name, "model")) for name in ("first", "second"))
    assert one.checksum == two.checksum


def test_it_is_no_model_that_draws(call: Call, data: Path) -> None:
    assert call("train", *SMALL, "--data", data, "--out", "run", "--images", 8)[0] == 0
    assert "holds a classifier, not a model that draws" in refused(call("sample", "red", "--model", "run"))
    status, out, _ = call("inspect", "run")
    assert status == 0
    assert "makes: classifier\n" in out


@pytest.mark.parametrize(
    "option",
    [
        ["--from", "builtin"],
        ["--captions", "folder"],
        ["--aspect", "pad"],
        ["--max-broken", "0.5"],
        ["--allow-missing-captions"],
    ],
)
def test_options_of_models_that_draw_are_refused(call: Call, data: Path, option: list[str]) -> None:
    assert "leave --from" in refused(call("train", *SMALL, "--data", data, "--out", "run", *option))
    assert not Path("run").exists()


def test_what_cannot_be_trained_is_refused(call: Call, data: Path) -> None:
    assert "needs pictures" in refused(call("train", *SMALL, "--out", "run"))
    assert "did you mean" in refused(call("train", *SMALL, "--data", data, "--out", "run", "--classifier.sizes", 8))
    other = ["cifar10-classifier", "--data", data, "--out", "run", "--device", "cpu"]
    assert "names no class; name one of airplane" in refused(call("train", *other))


def test_a_run_keeps_what_decides_it(call: Call, data: Path) -> None:
    assert call("train", *SMALL, "--data", data, "--out", "run", "--images", 8)[0] == 0
    changed = call("train", "--resume", "--out", "run", "--classifier.network.width", 16)
    assert "a run cannot change classifier.network.width" in refused(changed)
    assert "started with the recipe cifar10-classifier, not cifar10-features" in refused(
        call("train", "cifar10-features", "--resume", "--out", "run")
    )
    assert load_classifier(Path("run/model")).training["images_seen"] == 8
