"""``unstir inspect``: what a file or folder is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from unstir.cli.app import run

Call = Callable[..., tuple[int, str, str]]
_SETTINGS = (
    "--model.size 16 --model.network.size 16 --model.network.patch 8 --model.network.width 32 --model.network.depth 1 "
    "--model.network.heads 2 --model.network.text.vocabulary 300 --model.network.text.width 16 "
    "--model.network.text.depth 1 --model.network.text.heads 2 --model.sampling.steps 2 --training.precision float32 "
    "--device cpu --images 8 --batch 8"
)
SMALL = _SETTINGS.split()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of pictures, a run on it, a picture drawn with it."""
    root = tmp_path_factory.mktemp("places")
    (root / "set").mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (60 * i, 0, 0)).save(root / f"set/{i}.png")
        (root / f"set/{i}.txt").write_text(f"red number {i}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        assert run(["train", "tiny", "--data", str(root / "set"), "--out", str(root / "run"), *SMALL]) == 0
    assert run(["sample", "red\nnumber", "--seed", "7", "--model", str(root / "run"), "-o", str(root / "a.png")]) == 0
    save_file({"x": torch.zeros(2, 3), "y": torch.zeros(4, dtype=torch.bfloat16)}, root / "some.safetensors")
    return root


def found(call: Call, path: Path) -> dict:
    status, out, err = call("inspect", path, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


def test_a_model(call: Call, places: Path) -> None:
    model = found(call, places / "run/model")
    assert model["kind"] == "model"
    assert model["size"] == 16
    assert model["network"]["kind"]
    assert model["taught"] == [f"red number {i}" for i in range(4)]
    assert model["training"]["images_seen"] == 8
    weights = found(call, places / "run/model/model.safetensors")
    assert model["parameters"] == weights["parameters"] > 0


def test_a_run(call: Call, places: Path) -> None:
    described = found(call, places / "run")
    assert described["kind"] == "run"
    assert described["run"]["images_seen"] == described["run"]["planned_images"] == 8
    assert described["run"]["data"] == str(places / "set")


def test_a_run_without_a_model_yet(call: Call, places: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes((places / "run/run.json").read_bytes())
    described = found(call, tmp_path)
    assert (described["kind"], described["images_seen"]) == ("run", 0)


def test_a_picture(call: Call, places: Path) -> None:
    described = found(call, places / "a.png")
    assert described["kind"] == "picture"
    assert (described["request"]["prompt"], described["request"]["seed"]) == ("red\nnumber", 7)
    assert described["checksum"] == found(call, places / "run/model")["checksum"]


def test_a_set_of_pictures(call: Call, places: Path) -> None:
    described = found(call, places / "set")
    assert described["kind"] == "pictures"
    assert any("4 pictures" in line for line in described["summary"])


def test_a_file_of_tensors(call: Call, places: Path) -> None:
    described = found(call, places / "some.safetensors")
    assert described["tensors"] == {"x": ["float32", [2, 3]], "y": ["bfloat16", [4]]}
    assert described["parameters"] == 10


@pytest.mark.parametrize("name", ["run", "run/model", "a.png", "set", "some.safetensors"])
def test_people_read_the_same(call: Call, places: Path, name: str) -> None:
    status, out, err = call("inspect", places / name)
    assert (status, err) == (0, "")
    kind = found(call, places / name)["kind"]
    assert out.startswith(f"kind: {kind}\n")


@pytest.mark.parametrize(
    "kind",
    ["nothing", "text", "empty folder", "foreign picture", "broken tensors", "broken model", "broken run", "parquet"],
)
def test_what_is_nothing_known_is_told_in_one_sentence(call: Call, places: Path, tmp_path: Path, kind: str) -> None:
    import shutil

    path = tmp_path / "given"
    if kind == "text":
        path = tmp_path / "given.png"
        path.write_text("no picture")
    elif kind == "empty folder":
        path.mkdir()
    elif kind == "foreign picture":
        path = tmp_path / "given.png"
        Image.new("RGB", (4, 4)).save(path)
    elif kind == "broken tensors":
        path = tmp_path / "given.safetensors"
        path.write_bytes(b"no tensors")
    elif kind == "broken model":
        shutil.copytree(places / "run/model", path)
        content = bytearray((path / "model.safetensors").read_bytes())
        content[-3] ^= 1
        (path / "model.safetensors").write_bytes(bytes(content))
    elif kind == "broken run":
        path.mkdir()
        (path / "run.json").write_text("{")
    elif kind == "parquet":
        path = tmp_path / "given.parquet"
        path.write_bytes(b"no table")
    status, out, err = call("inspect", path)
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert path.name in err
    assert "Traceback" not in err
