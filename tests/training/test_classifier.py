"""Training a classifier: it learns what it can, a run goes on exactly where it was, and refuses what names no class."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from unstir.classifier import ClassifierConfig, build_classifier, load_classifier
from unstir.config import from_dict, to_dict
from unstir.diffusion.schedule import Cosine
from unstir.nn.encoder import EncoderConfig
from unstir.training.batches import Captioned
from unstir.training.classifier import (
    ClassifierReport,
    ClassifierRun,
    ClassifierTrainer,
    ClassifierTraining,
    Labelled,
    accuracy_by_time,
    execute_classifier,
    load_classes,
    mirrored,
    read_classifier_run,
)
from unstir.training.optimizer import OptimizerConfig
from unstir.training.run import Outcome
from unstir.training.watch import standing

NETWORK = EncoderConfig(outputs=2, width=8, multipliers=(1, 2), blocks=1)
CONFIG = ClassifierConfig(classes=("red", "blue"), network=NETWORK, size=8)
TRAINING = ClassifierTraining(
    images=800,
    batch=16,
    precision="float32",
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_images=0, anneal=0.0),
)


def toy(count: int) -> Labelled:
    """Pictures that are nearly red or nearly blue."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(count) % 2
    pictures = torch.randint(0, 60, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    pictures[torch.arange(count), 2 * classes] += 190
    return Labelled(pictures=pictures, classes=classes)


def trainer_of(training: ClassifierTraining = TRAINING, **change: Any) -> ClassifierTrainer:
    torch.manual_seed(0)
    return ClassifierTrainer(build_classifier(replace(CONFIG, **change)), toy(40), training, device="cpu")


def run_to_the_end(trainer: ClassifierTrainer) -> list[ClassifierReport]:
    reports = []
    while trainer.images_seen < trainer.config.images:
        reports.append(trainer.step())
    return reports


def test_it_starts_at_chance_and_learns_what_noise_leaves() -> None:
    """In the last quarter of t the noise is loud, but the colour of 64 equal pixels is still there for some times."""
    trainer = trainer_of()
    reports = run_to_the_end(trainer)
    assert reports[0].loss == pytest.approx(math.log(2))
    assert reports[-1].images_seen == 800
    told = accuracy_by_time(trainer.ema_classifier, toy(200))
    assert list(told) == ["clean", "0..0.25", "0.25..0.5", "0.5..0.75", "0.75..1"]
    assert told["clean"] == 1
    assert told["0.25..0.5"] > 0.95
    assert 0.5 < told["0.75..1"] < 1
    assert accuracy_by_time(trainer.ema_classifier, toy(200)) == told, "the same pictures, times and noise every time"


def test_at_the_noisy_end_it_says_how_little_it_knows() -> None:
    """At t = 1 nothing is left of the picture, so the best answer is the share of the classes, 1/2 each."""
    trainer = trainer_of()
    run_to_the_end(trainer)
    noise = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    level = Cosine().at(torch.ones((), dtype=torch.float64))
    assert trainer.ema_classifier.log_probs(noise, level).exp().mean(0)[0].item() == pytest.approx(0.5, abs=0.2)


def test_one_of_clean_pictures_sees_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    trainer = trainer_of(is_clean=True)
    trainer.network.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[0]))
    trainer.step()
    values = (seen[0] + 1) * 127.5
    torch.testing.assert_close(values, values.round(), rtol=0, atol=1e-3)
    assert list(accuracy_by_time(trainer.ema_classifier, toy(4))) == ["clean"]


def test_the_noise_is_that_of_the_schedule() -> None:
    """Of the same pictures, more is left at lower t: what the network reads is alpha x0 + sigma noise."""
    seen: list[tuple[Tensor, Tensor]] = []
    trainer = trainer_of(replace(TRAINING, batch=40, images=40, flip=False))
    trainer.network.register_forward_pre_hook(lambda network, inputs: seen.append((inputs[0], inputs[1])))
    trainer.step()
    x, log_snr = seen[0]
    alpha = torch.sigmoid(log_snr).sqrt()
    colours = x.mean((2, 3))  # red and blue are far from 0 in clean pictures
    spread = (colours[:, 0] - colours[:, 2]).abs()
    assert torch.corrcoef(torch.stack([alpha, spread]))[0, 1] > 0.9
    noisiest = x[alpha < 0.3]
    assert len(noisiest) > 2
    assert noisiest.std().item() == pytest.approx(1, abs=0.1)


def test_half_of_the_pictures_are_mirrored() -> None:
    x = torch.arange(24.0).view(2, 3, 2, 2)
    turned = mirrored(x, torch.tensor([True, False]))
    assert torch.equal(turned[0], x[0].flip(-1))
    assert torch.equal(turned[1], x[1])
    seen: list[Tensor] = []
    picture = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    picture[..., 0] = 255
    data = Labelled(pictures=picture, classes=torch.tensor([0]))
    for flip in (False, True):
        training = replace(TRAINING, flip=flip, images=64, batch=64)
        trainer = ClassifierTrainer(build_classifier(replace(CONFIG, is_clean=True)), data, training, device="cpu")
        trainer.network.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[0]))
        trainer.step()
    assert (seen[0][..., 0] > 0).all()
    share = (seen[1][:, 0, 0, 0] > 0).float().mean().item()
    assert share == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(64))


def test_it_goes_on_exactly_where_it_was() -> None:
    straight = trainer_of()
    run_to_the_end(straight)
    first = trainer_of()
    for _ in range(20):
        first.step()
    second = trainer_of()
    with torch.no_grad():
        for weight in second.network.parameters():
            weight.zero_()
    second.restore(first.checkpoint())
    assert second.images_seen == 320
    run_to_the_end(second)
    for name, weight in straight.network.state_dict().items():
        assert torch.equal(weight, second.network.state_dict()[name]), name
    for name, weight in straight.ema_network.state_dict().items():
        assert torch.equal(weight, second.ema_network.state_dict()[name]), name


def test_a_state_of_another_network_is_refused() -> None:
    other = trainer_of(network=replace(NETWORK, width=16))
    with pytest.raises(ValueError, match="another network"):
        trainer_of().restore(other.checkpoint())


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    trainer = trainer_of()
    trainer.step()
    with torch.no_grad():
        trainer.network.head.bias[0] = math.nan
    before = {name: weight.clone() for name, weight in trainer.network.state_dict().items()}
    with pytest.raises(ArithmeticError, match="not finite after 16 pictures"):
        trainer.step()
    assert trainer.images_seen == 16
    assert all(weight.grad is None for weight in trainer.network.parameters())
    for name, weight in trainer.network.state_dict().items():
        assert torch.equal(weight, before[name]) or name == "head.bias"


def captioned(*captions: tuple[str, ...]) -> Captioned:
    return Captioned(
        pictures=tuple(torch.zeros(3, 8, 8, dtype=torch.uint8) for _ in captions),
        captions=captions,
        keywords=((),) * len(captions),
        keys=tuple(map(str, range(len(captions)))),
    )


def test_the_first_caption_names_the_class() -> None:
    found = Labelled.of(captioned(("a blue thing", "red"), ("red",)), CONFIG.classes)
    assert found.classes.tolist() == [1, 0]
    assert found.pictures.shape == (2, 3, 8, 8)
    assert len(found) == 2


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ((), "no pictures to learn classes from"),
        ((("red",), ()), "names no class; name one of red, blue"),
        ((("green",),), "names no class"),
        ((("red and blue",),), "names 2 classes"),
    ],
)
def test_pictures_without_a_class_are_refused(captions: tuple[tuple[str, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Labelled.of(captioned(*captions), CONFIG.classes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**32}, "seed must be"),
    ],
)
def test_numbers_that_train_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TRAINING, **change)


@pytest.mark.parametrize("change", [{"log": 0}, {"checkpoint": 0}])
def test_a_cadence_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cadence"):
        ClassifierRun(classifier=CONFIG, **change)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("colours")
    data = toy(120)
    for i, (picture, number) in enumerate(zip(data.pictures, data.classes.tolist(), strict=True)):
        place = root / CONFIG.classes[number] / f"{i:03d}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(place)
    return root


def run_of(folder: Path, **change: Any) -> ClassifierRun:
    training = replace(TRAINING, images=64, **change)
    return ClassifierRun(data=str(folder), classifier=CONFIG, training=training, log=32, checkpoint=32)


def executed(directory: Path, run: ClassifierRun, said: list[str] | None = None) -> Outcome:
    lines = [] if said is None else said
    return execute_classifier(directory, run, load_classes(run), device="cpu", say=lines.append)


def test_a_run_ends_with_its_classifier(tmp_path: Path, folder: Path) -> None:
    run, said = run_of(folder), list[str]()
    outcome = executed(tmp_path / "run", run, said)
    assert outcome.is_finished
    assert outcome.images_seen == 64
    made = load_classifier(tmp_path / "run" / "model")
    assert made.config == CONFIG
    assert made.training["images_seen"] == 64
    assert made.training["held_out_accuracy"] == outcome.held_out
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["images_seen"] for line in lines] == [32, 32, 64, 64]
    assert lines[1]["accuracy"].keys() == {"clean", "0..0.25", "0.25..0.5", "0.5..0.75", "0.75..1"}
    assert lines[0].keys() == {"images_seen", "loss", "accuracy_seen", "steps_per_second"}
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints",
        "log.jsonl",
        "model",
        "run.json",
    ]
    assert any("held-out accuracy at 64" in line for line in said)
    again, _ = read_classifier_run(tmp_path / "run" / "run.json")
    assert again == run
    assert from_dict(ClassifierRun, json.loads(json.dumps(to_dict(run)))) == run


def test_a_run_that_was_longer_in_parts_is_the_same(tmp_path: Path, folder: Path) -> None:
    """Without annealing the length of a run changes nothing of its beginning."""
    executed(tmp_path / "whole", run_of(folder))
    short = run_of(folder)
    executed(tmp_path / "parts", replace(short, training=replace(short.training, images=32)))
    with (tmp_path / "parts" / "log.jsonl").open("a") as file:
        file.write('{"images_seen": 48, "loss": 9.0}\n')  # of a run that was killed after its last checkpoint
    said: list[str] = []
    executed(tmp_path / "parts", short, said)
    logged = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [line["images_seen"] for line in logged] == [32, 32, 64, 64]
    assert "going on from 32 pictures" in said
    whole, parts = (load_classifier(tmp_path / name / "model") for name in ("whole", "parts"))
    assert whole.checksum == parts.checksum
    with pytest.raises(ValueError, match="has seen 64 pictures already, more than the 32"):
        executed(tmp_path / "parts", replace(short, training=replace(short.training, images=32)))


def test_a_signal_saves_and_ends(tmp_path: Path, folder: Path) -> None:
    run = run_of(folder)

    def interrupt(report: ClassifierReport) -> None:
        import os
        import signal

        if report.images_seen == 16:
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = execute_classifier(
        tmp_path / "run", run, load_classes(run), device="cpu", say=lambda line: None, hook=interrupt
    )
    assert (outcome.is_finished, outcome.images_seen, outcome.signal) == (False, 16, 15)
    assert load_classifier(tmp_path / "run" / "model").training["images_seen"] == 16
    assert executed(tmp_path / "run", run).images_seen == 64


def test_a_log_on_a_full_disk_stops_nothing_and_a_watcher_reads_on(tmp_path: Path, folder: Path) -> None:
    run, said = run_of(folder), list[str]()
    log = tmp_path / "run" / "log.jsonl"

    def fill_disk(report: ClassifierReport) -> None:
        if report.images_seen == 48:
            log.rename(tmp_path / "before")
            log.symlink_to("/dev/full")

    outcome = execute_classifier(
        tmp_path / "run", run, load_classes(run), device="cpu", say=said.append, hook=fill_disk
    )
    assert outcome.is_finished
    assert sum(line.startswith("log.jsonl failed (OSError") for line in said) == 1
    assert standing(tmp_path / "run", "free").state == "finished"
    (tmp_path / "before").replace(log)
    now = standing(tmp_path / "run", "held")
    assert now.bands["accuracy"].keys() == {"clean", "0..0.25", "0.25..0.5", "0.5..0.75", "0.75..1"}
    assert now.images_per_second is not None


def test_a_run_on_other_pictures_is_refused(tmp_path: Path, folder: Path) -> None:
    executed(tmp_path / "run", run_of(folder))
    run = run_of(folder)
    other = replace(load_classes(run), fingerprint="another")
    with pytest.raises(ValueError, match="are not those that"):
        execute_classifier(tmp_path / "run", run, other, device="cpu", say=lambda line: None)


def test_a_foreign_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"recipe": "tiny"}')
    with pytest.raises(ValueError, match=r"run\.json: "):
        read_classifier_run(tmp_path / "run.json")
    with pytest.raises(FileNotFoundError):
        read_classifier_run(tmp_path / "none.json")
