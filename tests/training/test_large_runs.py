"""A run on a set that stays on the disk: interrupted and resumed to the bit, and stopped in one sentence."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from unstir.classifier import ClassifierConfig, build_classifier
from unstir.conditioning.captions import Wording
from unstir.conditioning.text import WordReader
from unstir.data.table import ChangedError
from unstir.model import ModelConfig, SamplingDefaults
from unstir.nn import DiTConfig
from unstir.nn.encoder import EncoderConfig
from unstir.nn.text import TextConfig
from unstir.training import run
from unstir.training.batches import Captioned, batch_of
from unstir.training.checkpoint import load_latest
from unstir.training.classifier import ClassifierTrainer, ClassifierTraining, LabelledOnDisk
from unstir.training.optimizer import OptimizerConfig
from unstir.training.run import Cadence, RunConfig, RunData, execute, load_data
from unstir.training.trainer import EmaConfig, TrainingConfig

TEXT = TextConfig(vocabulary=300, max_tokens=16, width=16, depth=1, heads=2)
CONFIG = RunConfig(
    recipe="test",
    model=ModelConfig(
        size=16,
        network=DiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=TEXT),
        sampling=SamplingDefaults(steps=2),
    ),
    training=TrainingConfig(
        images=400,
        batch=16,
        precision="float32",
        optimizer=OptimizerConfig(warmup_images=16),
        ema=EmaConfig(half_life_images=40, warmup=0.5),
    ),
    cadence=Cadence(log=10**9, checkpoint=64, preview=10**9, validate=10**9),
)


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def fill(folder: Path, *, broken: tuple[int, ...] = ()) -> Path:
    """Two files of 150 rows, in row groups of 20."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in range(2):
        rows = range(file * 150, file * 150 + 150)
        pictures = []
        for i in rows:
            colour = tuple(numpy.random.default_rng(i).integers(0, 256, 3).tolist())
            buffer = io.BytesIO()
            Image.new("RGB", (16, 16), colour).save(buffer, "png")
            pictures.append(b"broken" if i in broken else buffer.getvalue())
        table = pyarrow.table({"image": pictures, "text": [f"{'red' if i % 2 else 'blue'} {i}" for i in rows]})
        parquet.write_table(table, folder / f"train-{file:05d}-of-00002.parquet", row_group_size=20)
    return folder


def loaded(folder: Path, **change: object) -> tuple[RunConfig, RunData]:
    config = replace(CONFIG, data=str(folder), **change)
    return config, load_data(config, most_in_memory=200)


def test_what_is_in_memory_and_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, data = loaded(fill(tmp_path / "data"))
    assert data.train.large is not None
    assert data.validation.large is None
    assert len(data.train) + len(data.validation) == 300
    assert not set(data.train.keys) & set(data.validation.keys)
    assert data.train.rows(range(3)).captions == data.train.captions[:3]
    assert any("too many for memory" in line for line in data.lines)
    assert load_data(config).train.large is None
    monkeypatch.setattr(run, "MOST_PIXELS", 300 * 3 * 16 * 16 - 1)
    assert load_data(config).train.large is not None


def batches(data: Captioned, start: int) -> list[object]:
    reader = WordReader.train(["red 1 blue 2"], vocabulary=300, max_tokens=16)
    [(pictures, condition, noise)] = batch_of(data, reader, Wording(), seed=1, start=start, count=16, drop=0.1)
    return [pictures.tolist(), condition.words.tolist(), condition.kept.tolist(), noise.keys]


def test_a_batch_is_a_function_of_its_index(tmp_path: Path) -> None:
    _, one = loaded(fill(tmp_path / "data"))
    _, other = loaded(tmp_path / "data")
    far = batches(one.train, 10**9 + 7)
    batches(one.train, 0)
    assert batches(one.train, 10**9 + 7) == far == batches(other.train, 10**9 + 7)
    assert batches(one.train, 0) != far
    assert one.train.fingerprint() == other.train.fingerprint()


def test_a_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    config, data = loaded(fill(tmp_path / "data", broken=(8,)))
    said: list[str] = []
    execute(tmp_path / "whole", config, data, device="cpu", say=said.append)
    assert sum("pictures read are broken" in line for line in said) >= 1
    short = replace(config, training=replace(config.training, images=400))

    class Stopped(Exception):
        pass

    def stop(trainer: object, report: object) -> None:
        if report.images_seen >= 170:  # type: ignore[attr-defined]
            raise Stopped

    with pytest.raises(Stopped):
        execute(tmp_path / "parts", short, data, device="cpu", say=said.append, hooks=[stop])
    _, again = loaded(tmp_path / "data")
    execute(tmp_path / "parts", config, again, device="cpu", say=said.append)
    one, other = (tmp_path / name / "model/model.safetensors" for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()


def remove(path: Path) -> None:
    path.unlink()


def rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize("change", [remove, rewrite])
def test_a_shard_that_goes_or_changes_ends_the_run_and_leaves_the_checkpoints(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    config, data = loaded(fill(tmp_path / "data"))

    def hook(trainer: object, report: object) -> None:
        if report.images_seen == 128:  # type: ignore[attr-defined]
            change(tmp_path / "data/train-00001-of-00002.parquet")

    with pytest.raises(ChangedError, match=r"train-00001-of-00002\.parquet (cannot be read|had).*--resume"):
        execute(tmp_path / "run", config, data, device="cpu", say=lambda line: None, hooks=[hook])
    latest = load_latest(tmp_path / "run/checkpoints")
    assert latest is not None
    assert latest.images_seen in (64, 128)


def test_a_classifier_learns_from_the_disk_as_well(tmp_path: Path) -> None:
    _, data = loaded(fill(tmp_path / "data"))
    network = EncoderConfig(outputs=2, width=8, multipliers=(1, 2), blocks=1)
    made = build_classifier(ClassifierConfig(classes=("red", "blue"), network=network, size=16))
    on_disk = LabelledOnDisk(data=data.train, classes=("red", "blue"))
    assert len(on_disk) == len(data.train)
    seen = on_disk.seen(0, range(16))
    chosen = data.train.rows(data.train.shown(0, range(16)))
    assert torch.equal(seen.pictures, torch.stack(list(chosen.pictures)))
    assert seen.classes.tolist() == [int(captions[0].startswith("blue")) for captions in chosen.captions]
    training = ClassifierTraining(images=32, batch=16, precision="float32")
    assert ClassifierTrainer(made, on_disk, training, device="cpu").step().images_seen == 16
