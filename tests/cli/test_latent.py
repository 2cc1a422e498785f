"""Every verb with a model that draws in the latents of a codec, and what ``inspect`` tells of all kinds of folders."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from torch import nn

from unstir.classifier import ClassifierConfig, build_classifier, save_classifier
from unstir.cli.app import run
from unstir.codec import AutoencoderConfig, LearnedCodec
from unstir.metadata import read_recipe
from unstir.model import checksum_of, load_codec, load_model, save_codec
from unstir.nn.encoder import EncoderConfig
from unstir.pipeline import load
from unstir.server.app import create
from unstir.server.guard import Guard
from unstir.server.levels import spoiled
from unstir.server.logs import Log
from unstir.server.runs import Runs
from unstir.server.service import Service

Call = Callable[..., tuple[int, str, str]]
SHAPE = AutoencoderConfig(latent_channels=3, width=8, multipliers=(1, 2), blocks=1, groups=4, scale=0.9)
_TEXT = '{"vocabulary": 300, "max_tokens": 16, "width": 16, "depth": 1, "heads": 2}'
_NETWORK = f'{{"kind": "unet", "width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [1], "text": {_TEXT}}}'
SMALL = ["--model.size", "16", "--set", f"model.network={_NETWORK}", "--batch", "4", "--device", "cpu"]
COLOURS = {"red": (230, 20, 20), "green": (20, 200, 40), "blue": (20, 30, 230), "yellow": (240, 220, 20)}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of four pictures, a codec of random weights, and a run in its latents whose network draws any size."""
    root = tmp_path_factory.mktemp("places")
    (root / "set").mkdir()
    for name, colour in COLOURS.items():
        picture = Image.new("RGB", (16, 16), colour)
        picture.paste((0, 0, 0), (0, 0, 8, 8))
        picture.save(root / "set" / f"{name}.png")
        (root / "set" / f"{name}.txt").write_text(f"the {name} one")
    torch.manual_seed(0)
    save_codec(cast(LearnedCodec, SHAPE.build()), root / "codec", training={"images_seen": 7})
    asked = ["train", "tiny", "--data", root / "set", "--codec", root / "codec", "--out", root / "run", "--images", 8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        assert run([str(part) for part in [*asked, *SMALL, "--model.sampling.steps", 3]]) == 0
    weights = load_file(root / "run/model/model.safetensors")  # after so few pictures it would draw one grey
    generator = torch.Generator().manual_seed(1)
    for name, weight in weights.items():
        weights[name] = weight + 0.1 * torch.randn(weight.shape, generator=generator)
    save_file(weights, root / "run/model/model.safetensors", {"format": "pt"})
    told = json.loads((root / "run/model/unstir.json").read_text("utf-8"))
    told["checksum"] = checksum_of(root / "run/model/model.safetensors")
    (root / "run/model/unstir.json").write_text(json.dumps(told), "utf-8")
    return root


def pixels(path: Path | str) -> numpy.ndarray[Any, Any]:
    with Image.open(path) as picture:
        return numpy.array(picture.convert("RGB")).astype(int)


def draw(call: Call, places: Path, *options: object) -> None:
    status, _, err = call("sample", "the red one", "--model", places / "run", "--device", "cpu", *options)
    assert (status, err) == (0, "")


def test_inspect_tells_what_a_codec_is(call: Call, places: Path) -> None:
    told = json.loads(call("inspect", places / "codec", "--json")[1])
    assert (told["kind"], told["downsampling"], told["latent_channels"]) == ("codec", 2, 3)
    assert told["codec"]["scale"] == 0.9
    assert told["training"] == {"images_seen": 7}
    assert told["checksum"] == checksum_of(places / "codec/model.safetensors")
    network = cast(nn.Module, load_codec(places / "codec"))
    assert told["parameters"] == sum(weight.numel() for weight in network.parameters())
    assert call("inspect", places / "codec")[1].startswith("kind: codec\n")
    told = json.loads(call("inspect", places / "run", "--json")[1])
    assert (told["kind"], told["makes"], told["codec"]["kind"]) == ("run", "model", "kl")
    assert told["codec_parameters"] == sum(weight.numel() for weight in network.parameters())
    assert told["parameters"] == load_model(places / "run/model").num_parameters


def test_inspect_tells_what_a_classifier_is(call: Call, tmp_path: Path) -> None:
    network = EncoderConfig(width=8, multipliers=(1, 2), blocks=1, outputs=2)
    made = build_classifier(ClassifierConfig(network=network, classes=("cat", "dog"), size=16, is_clean=True))
    save_classifier(made, tmp_path / "classifier")
    told = json.loads(call("inspect", tmp_path / "classifier", "--json")[1])
    assert (told["kind"], told["classes"], told["is_clean"]) == ("classifier", ["cat", "dog"], True)
    assert told["parameters"] == sum(weight.numel() for weight in made.network.parameters())
    assert call("inspect", tmp_path / "classifier")[1].startswith("kind: classifier\n")


def test_inspect_tells_of_a_codec_run(call: Call, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    small = ["--set", "size=16", "--codec.width", 8, "--codec.multipliers", "[1,2]", "--codec.groups", 4]
    small += ["--training.weights.adversarial", 0, "--batch", 4, "--device", "cpu"]
    status, _, err = call("train", "codec", *small, "--data", places / "set", "--out", "codec-run", "--images", 4)
    assert status == 0, err
    told = json.loads(call("inspect", "codec-run", "--json")[1])
    assert (told["kind"], told["makes"], told["run"]["recipe"], told["run"]["images_seen"]) == (
        "run",
        "codec",
        "codec",
        4,
    )
    Path("codec-run/model").rename("elsewhere")
    told = json.loads(call("inspect", "codec-run", "--json")[1])
    assert (told["kind"], told["recipe"], told["images_seen"]) == ("run", "codec", 4)


def test_check_looks_at_a_run_in_latents(call: Call, places: Path) -> None:
    """By recipe and codec, and by the run's own file; without its codec it is refused before pictures are read."""
    options = ["--no-overfit", "--images", 64, "--json"]
    status, out, err = call("check", places / "set", "tiny", "--codec", places / "codec", *SMALL, *options)
    assert status in (0, 1), err
    told = json.loads(out)
    assert told["ahead"]["steps"]["images_per_second"] > 0
    status, out, err = call("check", places / "set", places / "run/run.json", "--device", "cpu", *options)
    assert status in (0, 1), err
    assert json.loads(out)["recipe"] == "tiny"
    status, out, err = call("check", places / "set", "tiny", "--codec", places / "set")
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1


def test_evaluate_measures_prompts_and_refuses_bits(call: Call, places: Path) -> None:
    """Retrieval is the nearest real picture to each that was drawn; bits would be of something else."""
    options = ["--seeds", 2, "--seed", 5, "--steps", 3, "--device", "cpu"]
    status, out, err = call("evaluate", places / "run", "--data", places / "set", *options, "--json")
    assert (status, err) == (0, "")
    files = sorted((places / "set").glob("*.png"))
    prompts, real = [f"the {file.stem} one" for file in files], numpy.stack([pixels(file) for file in files])
    pipe, hits = load(places / "run", device="cpu"), 0
    for seed in range(2):
        for row, picture in enumerate(pipe.sample(prompts, seed=5 + 4 * seed, steps=3)):
            hits += int(((real - numpy.array(picture)) ** 2).mean((1, 2, 3)).argmin()) == row
    (score,) = json.loads(out)["prompts"].values()
    assert score["top1"] == pytest.approx(hits / 8)
    status, out, err = call("evaluate", places / "run", "--data", places / "set", "--metrics", "bits")
    assert (status, out) == (2, "")
    assert re.fullmatch(r"unstir: bits/dim are of pictures, but this model's codec .*\n", err)


def test_sample_redo_edit_and_tune(call: Call, places: Path) -> None:
    """A picture again to the bit; an edit that leaves alone what the mask does, and again; steps fitted in latents."""
    draw(call, places, "--seed", 3, "-o", "a.png")
    draw(call, places, "--seed", 4, "-o", "b.png")
    assert not numpy.array_equal(pixels("a.png"), pixels("b.png"))
    assert call("redo", "a.png", "-o", "again.png")[0] == 0
    assert numpy.array_equal(pixels("a.png"), pixels("again.png"))
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    mask.save("mask.png")
    options = ["--prompt", "the blue one", "--mask", "mask.png", "--seed", 1, "--model", places / "run"]
    assert call("edit", "a.png", *options, "-o", "edited.png")[0] == 0
    assert numpy.array_equal(pixels("edited.png")[:, 8:], pixels("a.png")[:, 8:])
    assert not numpy.array_equal(pixels("edited.png")[:, :8], pixels("a.png")[:, :8])
    assert call("redo", "edited.png", "-o", "edited-again.png")[0] == 0
    assert numpy.array_equal(pixels("edited.png"), pixels("edited-again.png"))
    status, _, err = call("tune", places / "run", "--steps", 2, "--starts", 2, "--iterations", 2, "--json")
    assert status == 0, err
    draw(call, places, "--steps", 2, "-o", "tuned.png")
    assert read_recipe(Path("tuned.png")).request.sampler == "tuned"
    (places / "run/model/steps.json").unlink()


def test_larger_pictures_than_it_was_trained_on(call: Call, places: Path) -> None:
    """A U-Net in latents is convolutional: any size that network and codec divide, and others are refused."""
    draw(call, places, "--size", "48x32", "--seed", 3, "-o", "large.png")
    assert pixels("large.png").shape == (32, 48, 3)
    seen: list[tuple[int, ...]] = []
    pipe = load(places / "run", device="cpu")
    network = cast(nn.Module, pipe.model.denoiser.network)
    with_look = network.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape[1:])))
    (same,) = pipe.sample("the red one", seed=3, width=48, height=32)
    with_look.remove()
    assert set(seen) == {(3, 16, 24)}
    assert numpy.abs(numpy.array(same).astype(int) - pixels("large.png")).max() <= 1
    status, out, err = call("sample", "the red one", "--model", places / "run", "--size", "18x16")
    assert (status, out) == (2, "")
    assert "multiples of 4" in err


def test_serve_draws_and_spoils(places: Path, tmp_path: Path) -> None:
    """A job over HTTP is the picture of the pipeline; noise is put on its latents."""
    pipe = load(places / "run", device="cpu", precision="float32")
    service = Service({"latent": pipe}, tmp_path / "data")
    runs = Runs(tmp_path / "runs", lambda _: "free")
    app = create(
        service, guard=Guard(names=("testserver",), rate=0), runs=runs, log=Log(io.StringIO()), is_warmed=False
    )
    with TestClient(app) as client:
        job = client.post("/api/jobs", json={"prompt": "the red one", "seed": 3, "steps": 3}).json()
        text = client.get(f"/api/jobs/{job['id']}/events").text
        told = [json.loads(data) for kind, data in re.findall(r"^event: (.*)\ndata: (.*)\n$", text, re.M)]
        assert (told[-1]["state"], told[-1]["error"]) == ("done", "")
        content = client.get(told[-1]["pictures"][0]["url"]).content
    (ours,) = pipe.sample("the red one", seed=3, steps=3)
    served = pixels(cast(Any, io.BytesIO(content)))
    assert numpy.abs(served - numpy.array(ours).astype(int)).max() <= 1
    finished = torch.from_numpy(numpy.array(ours)).permute(2, 0, 1)
    looks = [numpy.array(spoiled(pipe, finished, 3, t)) for t in (0.0, 0.5, 1.0)]
    assert numpy.array_equal(looks[0], numpy.array(ours))
    assert not numpy.array_equal(looks[1], looks[2])
    assert all(look.shape == (16, 16, 3) for look in looks)
