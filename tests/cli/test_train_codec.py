"""``unstir train`` of a codec, and of a model in its latents: from a folder to pictures, and refused in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from unstir.codec import AutoencoderConfig
from unstir.model import is_same_codec, load_codec, load_model

Call = Callable[..., tuple[int, str, str]]
_SETTINGS = (
    "codec --size 16 --codec.width 8 --codec.multipliers [1,2] --codec.groups 4 --training.discriminator.width 4 "
    "--training.weights.adversarial_start 8 --training.precision float32 --batch 8 --device cpu"
)
SMALL = [*_SETTINGS.replace("--size 16", "--set size=16").split()]
_MODEL = "tiny --model.size 16 --model.network.width 32 --model.network.depth 1 --batch 8 --device cpu"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    for i in range(12):
        Image.new("RGB", (16, 16), (255 * (i % 2), 20 * i, 128)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"colour {i}\n")
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


def test_two_commands_make_latent_diffusion(call: Call, data: Path) -> None:
    """A codec, resumed; a model in its latents, resumed without being told of the codec again; a picture."""
    status, out, err = call("train", *SMALL, "--data", data, "--out", "codec", "--images", 8, "--json")
    assert status == 0, err
    told = json.loads(out)
    assert (told["images_seen"], told["is_finished"]) == (8, True)
    status, out, err = call("train", "--resume", "--out", "codec", "--images", 16)
    assert status == 0, err
    assert "going on from 8 pictures" in err
    first, second = out.splitlines()
    assert first == f"16 pictures seen. The codec: {Path('codec/model').resolve()}"
    assert second == f"Draw in its latents: unstir train --data {data} --codec codec --out RUN"
    codec = load_codec(Path("codec/model"))
    assert codec.config == AutoencoderConfig(
        latent_channels=4, width=8, multipliers=(1, 2), blocks=1, groups=4, scale=codec.scale
    )
    assert codec.scale != 1

    model = ["train", *_MODEL.split(), "--data", data, "--codec", "codec", "--out", "run", "--images", 8]
    status, _, err = call(*model)
    assert status == 0, err
    assert "failed" not in err
    Path("codec").rename("elsewhere")
    status, _, err = call("train", "--resume", "--out", "run", "--images", 16, "--device", "cpu")
    assert status == 0, err
    made = load_model(Path("run/model"))
    assert is_same_codec(made.codec, codec)
    assert made.config.network.channels == 4
    status, _, err = call("sample", "colour 3", "--model", "run", "--output", "drawn", "--steps", 2, "--device", "cpu")
    assert status == 0, err
    (path,) = Path("drawn").rglob("*.png")
    with Image.open(path) as picture:
        assert picture.size == (16, 16)
    said = refused(call("train", "--resume", "--out", "run", "--codec", "elsewhere", "--images", 24))
    assert "draws in the latents of" in said


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--codec", "x"], "leave --from, --codec"),
        (["--captions", "sidecar"], "whose captions it does not read"),
        (["--set", "size=15"], "multiples of 2, got 15"),
        (["--training.weights.perceptual", "1"], "perceptual part of the loss has a weight"),
        (["--codec.groups", "3"], "groups of the normalisation must divide"),
    ],
)
def test_a_codec_is_refused_in_one_sentence(call: Call, data: Path, asked: list[str], words: str) -> None:
    assert words in refused(call("train", *SMALL, "--data", data, "--out", "run", "--images", 8, *asked))


def test_a_model_without_its_codec_is_refused(call: Call, data: Path) -> None:
    """No folder, a folder of something else, and latents without any codec."""
    base = ["train", *_MODEL.split(), "--data", data, "--out", "run"]
    assert "there is no codec nowhere" in refused(call(*base, "--codec", "nowhere"))
    assert "not a codec" in refused(call(*base, "--codec", "builtin"))
    own = ["--set", 'model.codec={"kind": "kl", "width": 32}', "--model.network.channels", 4, "--model.network.size", 2]
    assert "trained first" in refused(call(*base, *own, "--model.network.patch", 1))
