"""Training of a codec: two players, exact resumption, what lies in the run, and a model that draws in its latents."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from unstir.classifier import ClassifierConfig, build_classifier, save_classifier
from unstir.codec import AutoencoderConfig, LearnedCodec, QuantizedAutoencoder, QuantizedConfig
from unstir.codec.losses import CodecWeights, DiscriminatorConfig
from unstir.data.transforms import to_unit
from unstir.diffusion.noise import KeyedNoise
from unstir.model import ModelConfig, in_latents, is_same_codec, load_codec, load_model
from unstir.nn import DiTConfig
from unstir.nn.encoder import Encoder, EncoderConfig
from unstir.nn.text import TextConfig
from unstir.pipeline import Pipeline
from unstir.training.batches import Captioned
from unstir.training.codec import (
    CodecReport,
    CodecRun,
    CodecTrainer,
    CodecTrainingConfig,
    execute_codec,
    features_of,
    held_out_of,
    load_pictures_of,
    psnr,
    read_codec_run,
)
from unstir.training.optimizer import OptimizerConfig
from unstir.training.run import Cadence, RunConfig, execute, load_data
from unstir.training.trainer import TrainingConfig

SHAPE = AutoencoderConfig(latent_channels=3, width=8, multipliers=(1, 2), blocks=1, groups=4)
SHAPES: dict[str, Any] = {"kl": SHAPE, "vq": QuantizedConfig(autoencoder=SHAPE, codes=12)}
TRAINING = CodecTrainingConfig(
    images=24,
    batch=4,
    seed=3,
    precision="float32",
    revive=8,
    weights=CodecWeights(perceptual=0, adversarial_start=10),
    discriminator=DiscriminatorConfig(width=4, layers=2),
    optimizer=OptimizerConfig(learning_rate=3e-3, betas=(0.5, 0.9), warmup_images=0, anneal=0),
)
CPU = torch.device("cpu")


def run(kind: str, data: Path, **changes: Any) -> CodecRun:
    return replace(
        CodecRun(data=str(data), codec=SHAPES[kind], size=16, training=TRAINING, log=8, checkpoint=12), **changes
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve blobs of colour, each with a caption, one in three of them held out."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = np.linspace(-1, 1, 16)
    for i in range(12):
        centre = 0.5 * np.cos(i), 0.5 * np.sin(i)
        blob = np.exp(-4 * ((rows[:, None] - centre[0]) ** 2 + (rows[None] - centre[1]) ** 2))
        pixels = 255 * blob[..., None] * np.array([(1 + np.cos(i)) / 2, 0.5, (1 + np.sin(i)) / 2])
        part = folder / ("validation" if i % 3 == 0 else "train")
        part.mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(part / f"{i}.png")
        (part / f"{i}.txt").write_text(f"blob {i}", "utf-8")
    return folder


def captioned(config: CodecRun) -> Captioned:
    return load_pictures_of(config).train


def trainer(kind: str, data: Path, training: CodecTrainingConfig = TRAINING) -> CodecTrainer:
    config = run(kind, data)
    torch.manual_seed(0)
    return CodecTrainer(cast(LearnedCodec, config.codec.build()), captioned(config), training, device="cpu")


def weights(codec: object) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in cast(nn.Module, codec).state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("kind", SHAPES)
def test_what_goes_on_is_what_never_stopped(kind: str, pictures: Path) -> None:
    """From any checkpoint, before and after the discriminator came in and codes were revived: every tensor, every bit."""
    whole = trainer(kind, pictures)
    states = {}
    while whole.images_seen < TRAINING.images:
        whole.step()
        state = whole.checkpoint()
        states[whole.images_seen] = replace(
            state, tensors={g: {n: t.clone() for n, t in group.items()} for g, group in state.tensors.items()}
        )
    for seen in (4, 12):
        again = trainer(kind, pictures)
        again.restore(states[seen])
        assert again.images_seen == seen
        while again.images_seen < TRAINING.images:
            again.step()
        for group, tensors in again.checkpoint().tensors.items():
            assert_equal(dict(tensors), dict(states[TRAINING.images].tensors[group]))


def test_the_discriminator_waits_and_then_learns(pictures: Path) -> None:
    """Until its start it does not move at all; from there both players do."""
    made = trainer("kl", pictures)
    assert made.judge is not None
    before = weights(made.judge.network)
    reports = [made.step() for _ in range(3)]  # seen before each: 0, 4, 8
    assert_equal(weights(made.judge.network), before)
    assert all("discriminator" not in report.parts for report in reports)
    report = made.step()
    assert {"discriminator", "real", "fake", "fooling", "adaptive_weight", "l1", "kl"} <= report.parts.keys()
    assert report.parts["adaptive_weight"] > 0
    moved = weights(made.judge.network)
    assert all(not torch.equal(moved[name], before[name]) for name in moved if name.endswith("weight"))


def test_no_discriminator_where_it_has_no_weight(pictures: Path) -> None:
    made = trainer("kl", pictures, replace(TRAINING, weights=CodecWeights(perceptual=0, adversarial=0)))
    for _ in range(6):
        made.step()
    assert made.judge is None
    assert not any(group.startswith("judge") for group in made.checkpoint().tensors)


def test_unused_codes_are_revived(pictures: Path) -> None:
    """With a codebook far from all latents, one code is used until the first revival, and several after it; the average
    is given the same places."""
    training = replace(TRAINING, weights=CodecWeights(perceptual=0, adversarial=0), revive=12)
    made = trainer("vq", pictures, training)
    for codec in (made.codec, made.ema_codec):
        with torch.no_grad():
            cast(QuantizedAutoencoder, codec).codebook.codes[1:] += 1e3
    made.step()
    made.step()
    assert int((made.counts > 0).sum()) == 1
    assert int(made.counts.sum()) == 8 * 8 * 8
    made.step()
    assert not made.counts.any()
    book = cast(QuantizedAutoencoder, made.codec).codebook.codes
    assert book.abs().max() < 100
    assert torch.equal(book[1:], cast(QuantizedAutoencoder, made.ema_codec).codebook.codes[1:])
    made.step()
    assert int((made.counts > 0).sum()) > 1


def test_it_learns(pictures: Path) -> None:
    """The absolute error falls to two thirds, and the held-out PSNR rises by 3 dB."""
    config = replace(TRAINING, images=240, weights=CodecWeights(perceptual=0, adversarial_start=160, adversarial=0.1))
    made = trainer("kl", pictures, config)
    held_out = load_pictures_of(run("kl", pictures)).held_out
    assert len(held_out) == 4
    first = held_out_of(made.ema_codec, held_out, CPU)["psnr"]
    reports: list[CodecReport] = []
    while made.images_seen < config.images:
        reports.append(made.step())
    assert sum(r.parts["l1"] for r in reports[-5:]) < sum(r.parts["l1"] for r in reports[:5]) * 2 / 3
    assert held_out_of(made.ema_codec, held_out, CPU)["psnr"] > first + 3


@pytest.mark.parametrize("kind", SHAPES)
def test_a_run_leaves_a_codec(kind: str, pictures: Path, tmp_path: Path) -> None:
    """The averaged weights with the scale that gives the training pictures' latents unit variance; a run that was
    interrupted ends with the same codec."""
    config = run(kind, pictures)
    data = load_pictures_of(config)
    said: list[str] = []
    outcome = execute_codec(tmp_path / "whole", config, data, device="cpu", say=said.append)
    assert outcome.is_finished
    assert outcome.images_seen == 24
    codec = load_codec(tmp_path / "whole" / "model")
    x = to_unit(torch.stack(list(data.train.pictures)))
    latents = codec.encode(x, KeyedNoise(keys=tuple((0x5EED, i) for i in range(len(x)))))
    assert latents.std(correction=0).item() == pytest.approx(1, rel=1e-4)
    assert outcome.held_out == pytest.approx(held_out_of(codec, data.held_out, CPU), rel=1e-5)
    assert read_codec_run(tmp_path / "whole" / "run.json") == (config, data.fingerprint)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text("utf-8").splitlines()]
    assert [line["scale"] for line in lines if "scale" in line][-1] == codec.scale
    assert any("discriminator" in line for line in lines)
    assert any("latents are scaled by" in line for line in said)
    short = replace(config, training=replace(TRAINING, images=12))
    execute_codec(tmp_path / "parts", short, data, device="cpu", say=said.append)
    execute_codec(tmp_path / "parts", config, data, device="cpu", say=said.append)
    assert is_same_codec(load_codec(tmp_path / "parts" / "model"), codec)


def test_features_of_a_classifier_are_a_distance(pictures: Path, tmp_path: Path) -> None:
    """One map a level of resolution, as the encoder itself sees it; a run takes them by the classifier's folder."""
    network = EncoderConfig(width=8, multipliers=(1, 2, 1), blocks=2, outputs=2)
    torch.manual_seed(0)
    classifier = build_classifier(ClassifierConfig(network=network, classes=("cat", "dog"), size=16, is_clean=True))
    save_classifier(classifier, tmp_path / "classifier")
    encoder = cast(Encoder, classifier.network)
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    maps = features_of(encoder)(x)
    assert [tuple(found.shape) for found in maps] == [(2, 8, 16, 16), (2, 16, 8, 8), (2, 8, 4, 4)]
    pooled = torch.nn.functional.silu(encoder.last_norm(maps[-1])).mean((2, 3))
    torch.testing.assert_close(pooled, classifier.features(x))
    assert not any(step._forward_hooks for step in encoder.steps)
    training = replace(TRAINING, images=8, weights=CodecWeights(adversarial_start=4))
    config = run("kl", pictures, features=str(tmp_path / "classifier"), training=training)
    execute_codec(tmp_path / "run", config, load_pictures_of(config), device="cpu", say=lambda line: None)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()]
    assert lines[0]["perceptual"] > 0
    with pytest.raises(ValueError, match="perceptual part of the loss has a weight and needs a distance"):
        execute_codec(tmp_path / "none", replace(config, features=""), load_pictures_of(config), device="cpu")
    assert not (tmp_path / "none").exists()


def test_psnr_is_its_formula() -> None:
    """An error of a tenth of the range everywhere is 20 dB; what leaves the range is brought back first."""
    x = torch.zeros(1, 3, 4, 4)
    assert psnr(x, x + 0.2).item() == pytest.approx(20, abs=1e-4)
    assert psnr(torch.ones(1, 3, 4, 4), torch.full((1, 3, 4, 4), 7.0)).item() == float("inf")


@pytest.mark.parametrize("kind", SHAPES)
def test_a_model_draws_in_the_latents(kind: str, pictures: Path, tmp_path: Path) -> None:
    """From a codec's run: train, resume without that run, sample, edit; the codec lies in the model as it was trained."""
    config = run(kind, pictures, training=replace(TRAINING, images=8))
    execute_codec(tmp_path / "codec", config, load_pictures_of(config), device="cpu", say=lambda line: None)
    codec = load_codec(tmp_path / "codec" / "model")
    text = TextConfig(vocabulary=300, max_tokens=8, width=16, depth=1, heads=2)
    shape = DiTConfig(size=16, patch=4, width=32, depth=1, heads=2, text=text)
    model = in_latents(ModelConfig(size=16, network=shape), codec.config)
    assert (model.network.channels, model.network.size, model.network.patch) == (3, 8, 2)
    asked = RunConfig(
        data=str(pictures),
        codec=str(tmp_path / "codec"),
        model=model,
        training=TrainingConfig(images=8, batch=4, precision="float32"),
        cadence=Cadence(log=4, checkpoint=8, preview=8, validate=8),
    )
    said: list[str] = []
    execute(tmp_path / "run", asked, load_data(asked), device="cpu", say=said.append)
    (tmp_path / "codec").rename(tmp_path / "elsewhere")
    longer = replace(asked, training=replace(asked.training, images=16))
    outcome = execute(tmp_path / "run", longer, load_data(asked), device="cpu", say=said.append)
    assert outcome.images_seen == 16
    assert not any("failed" in line for line in said), said
    assert len(list((tmp_path / "run" / "previews").iterdir())) >= 2
    made = load_model(tmp_path / "run" / "model")
    assert is_same_codec(made.codec, codec)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in made.denoiser.parameters():  # after so few pictures it would draw the same whatever it is told
            weight += 0.3 * torch.randn_like(weight)
    pipe = Pipeline(made, device="cpu", precision="float32")
    (one, two) = pipe.sample("blob 3", n=2, seed=1, steps=3)
    assert one.size == (16, 16)
    assert one.tobytes() != two.tobytes()
    (again,) = pipe.sample("blob 3", seed=2, steps=3)
    assert np.abs(np.asarray(again).astype(int) - np.asarray(two)).max() <= 1
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    edited = pipe.edit(two, "blob 5", seed=1, steps=3, mask=mask)[0]
    assert np.array_equal(np.asarray(edited)[:, 8:], np.asarray(two)[:, 8:])
    assert not np.array_equal(np.asarray(edited)[:, :8], np.asarray(two)[:, :8])


def test_a_codec_must_be_trained_first(pictures: Path, tmp_path: Path) -> None:
    """Before anything is written."""
    asked = RunConfig(data=str(pictures), model=in_latents(ModelConfig(size=16), SHAPE))
    with pytest.raises(ValueError, match="has to be trained first.*unstir train codec"):
        execute(tmp_path / "run", asked, load_data(asked), device="cpu", say=lambda line: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 15}, "multiples of 2, got 15"),
        ({"log": 0}, "at least 1 picture"),
    ],
)
def test_runs_that_are_none_are_refused(change: dict[str, Any], words: str, pictures: Path) -> None:
    with pytest.raises(ValueError, match=words):
        run("kl", pictures, **change)


def test_pictures_too_small_for_the_discriminator_are_refused(pictures: Path, tmp_path: Path) -> None:
    """At once, not when it comes in."""
    training = replace(TRAINING, discriminator=DiscriminatorConfig(width=4, layers=3))
    config = run("kl", pictures, training=training)
    with pytest.raises(ValueError, match="24x24 at least, got size 16"):
        execute_codec(tmp_path / "run", config, load_pictures_of(config), device="cpu", say=lambda line: None)


@pytest.mark.parametrize(
    ("change", "words"), [({"images": 0}, "at least 1"), ({"revive": -1}, "revive at least 0"), ({"seed": -1}, "seed")]
)
def test_numbers_out_of_range_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(TRAINING, **change)


@pytest.mark.parametrize("kind", SHAPES)
def test_bf16_starts_as_float32_does(kind: str, pictures: Path) -> None:
    """The first loss to two parts in a hundred, with the discriminator in it; weights stay float32."""
    weights_of = CodecWeights(perceptual=0, adversarial_start=0)
    losses = {}
    for precision in ("float32", "bf16"):
        made = trainer(kind, pictures, replace(TRAINING, precision=precision, weights=weights_of))
        losses[precision] = made.step().loss
        assert made.step().parts["adaptive_weight"] > 0
        assert all(tensor.dtype == torch.float32 for tensor in weights(made.codec).values())
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.02)
