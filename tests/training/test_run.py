"""A run folder, from its configuration to its model: interrupted, resumed, refused, looked at."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unstir.conditioning.text import WordReader
from unstir.model import ModelConfig, SamplingDefaults, load_model
from unstir.nn import DiTConfig, UNetConfig
from unstir.nn.text import TextConfig
from unstir.training import run as module
from unstir.training.checkpoint import load_latest
from unstir.training.optimizer import OptimizerConfig
from unstir.training.run import Cadence, Outcome, RunConfig, execute, load_data, read_run, write_run
from unstir.training.trainer import EmaConfig, TrainingConfig

TEXT = TextConfig(vocabulary=300, max_tokens=16, width=16, depth=1, heads=2)
NEVER = Cadence(log=10**9, checkpoint=10**9, preview=10**9, validate=10**9)
OFTEN = Cadence(log=8, checkpoint=16, preview=24, validate=8)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def fill(folder: Path, count: int, *, start: int = 0, captions: bool = True) -> Path:
    """Pictures of one colour each, with a caption beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        colour = tuple(numpy.random.default_rng(i).integers(0, 256, 3).tolist())
        Image.new("RGB", (16, 16), colour).save(folder / f"{i:03d}.png")
        if captions:
            (folder / f"{i:03d}.txt").write_text(f"colour {i}\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten to train on, three held out."""
    root = tmp_path_factory.mktemp("pictures")
    fill(root / "train", 10)
    fill(root / "validation", 3, start=50)
    return root


@pytest.fixture
def config(pictures: Path) -> RunConfig:
    return RunConfig(
        recipe="test",
        data=str(pictures),
        model=ModelConfig(
            size=16,
            network=DiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=TEXT),
            sampling=SamplingDefaults(steps=2),
        ),
        training=TrainingConfig(
            images=44,
            batch=8,
            seed=1,
            precision="float32",
            optimizer=OptimizerConfig(warmup_images=16),
            ema=EmaConfig(half_life_images=40, warmup=0.5),
        ),
        cadence=NEVER,
    )


def go(folder: Path, config: RunConfig, **settings) -> Outcome:
    return execute(
        folder, config, load_data(config), device="cpu", say=settings.pop("say", lambda line: None), **settings
    )


def assert_same_run(one: Path, other: Path) -> None:
    """The model and the newest state, to the bit."""
    assert (one / "model/model.safetensors").read_bytes() == (other / "model/model.safetensors").read_bytes()
    left, right = load_latest(one / "checkpoints"), load_latest(other / "checkpoints")
    assert left is not None
    assert right is not None
    assert left.images_seen == right.images_seen
    for group, tensors in left.tensors.items():
        assert tensors.keys() == right.tensors[group].keys()
        assert all(torch.equal(tensor, right.tensors[group][name]) for name, tensor in tensors.items()), group


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def test_a_run_folder_holds_what_it_says(tmp_path: Path, config: RunConfig) -> None:
    folder = tmp_path / "run"
    outcome = go(folder, replace(config, cadence=OFTEN))
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    states = ["ema.safetensors", "manifest.json", "network.safetensors", "optimizer.safetensors", "state.json"]
    assert files == sorted(
        [
            "run.json",
            "tokenizer.json",
            "log.jsonl",
            *(f"previews/{seen:012d}.png" for seen in (0, 24, 44)),
            *(f"checkpoints/{seen:012d}/{name}" for seen in (32, 44) for name in states),
            *(
                f"model/{name}"
                for name in ("README.md", "model.safetensors", "taught.json", "tokenizer.json", "unstir.json")
            ),
        ]
    )
    assert (outcome.images_seen, outcome.is_finished, outcome.signal) == (44, True, 0)
    lines = log_of(folder)
    steps = [line for line in lines if "loss" in line]
    assert [line["images_seen"] for line in steps] == [8, 16, 24, 32, 40, 44]
    assert [line["images_seen"] for line in lines if "held_out" in line] == [8, 16, 24, 32, 40, 44]
    assert outcome.held_out == lines[-1]["held_out"]
    for seen in (0, 24, 44):
        with Image.open(folder / f"previews/{seen:012d}.png") as sheet:
            assert sheet.size == (3 * 36 + 4, 6 * 50 + 4 + 18)


def test_the_model_is_the_average_and_tells_where_it_is_from(tmp_path: Path, config: RunConfig) -> None:
    go(tmp_path, config)
    state = load_latest(tmp_path / "checkpoints")
    weights = load_file(tmp_path / "model/model.safetensors")
    assert weights.keys() == state.tensors["ema"].keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in state.tensors["ema"].items())
    model = load_model(tmp_path / "model")
    assert model.training["images_seen"] == 44
    assert model.training["recipe"] == "test"
    assert model.training["fingerprint"] == load_data(config).train.fingerprint()
    assert model.training["held_out_error"]["mean"] > 0
    assert model.taught == tuple(f"colour {i}" for i in range(10))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"folder": tmp_path_factory.mktemp("reference")}


@pytest.fixture
def whole(reference: dict[str, Path], config: RunConfig) -> Path:
    """A run that never looked up and was never interrupted."""
    if not (reference["folder"] / "model").exists():
        go(reference["folder"], config)
    return reference["folder"]


@pytest.mark.parametrize(
    "cadence",
    [
        OFTEN,
        replace(NEVER, preview=8),
        replace(NEVER, validate=8),
        Cadence(log=3, checkpoint=10, preview=40, validate=33),
    ],
    ids=["all", "preview", "validate", "odd"],
)
def test_looking_up_does_not_change_the_run(tmp_path: Path, config: RunConfig, whole: Path, cadence: Cadence) -> None:
    """C42: previews, validation, logging and checkpoints, to the bit."""
    go(tmp_path, replace(config, cadence=cadence))
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(
    ("number", "moments"),
    [(signal.SIGTERM, (8,)), (signal.SIGTERM, (16, 40)), (signal.SIGINT, (24, 24))],
    ids=["term", "term twice", "int twice"],
)
def test_a_signal_saves_and_the_run_goes_on_to_the_bit(
    tmp_path: Path, config: RunConfig, whole: Path, number: signal.Signals, moments: tuple[int, ...]
) -> None:
    waiting = list(moments)

    def interrupt(trainer, report) -> None:
        if waiting and report.images_seen >= waiting[0]:
            waiting.pop(0)
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    for _ in moments:
        outcome = go(tmp_path, config, hooks=[interrupt])
        assert not outcome.is_finished
        assert outcome.signal == number
        assert load_latest(tmp_path / "checkpoints").images_seen == outcome.images_seen
        assert load_model(tmp_path / "model").training["images_seen"] == outcome.images_seen
        assert signal.getsignal(number) is before
    assert go(tmp_path, config).is_finished
    assert_same_run(tmp_path, whole)


def test_a_signal_with_the_last_picture_is_no_interruption(tmp_path: Path, config: RunConfig, whole: Path) -> None:
    def interrupt(trainer, report) -> None:
        if report.images_seen == 44:
            os.kill(os.getpid(), signal.SIGTERM)

    assert go(tmp_path, config, hooks=[interrupt]).is_finished
    assert_same_run(tmp_path, whole)


def test_a_damaged_checkpoint_costs_time_and_nothing_else(tmp_path: Path, config: RunConfig, whole: Path) -> None:
    go(tmp_path, replace(config, cadence=replace(NEVER, checkpoint=16)))
    newest = tmp_path / "checkpoints" / f"{44:012d}" / "ema.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    lines: list[str] = []
    go(tmp_path, config, say=lines.append)
    assert any("from 32 pictures" in line for line in lines)
    assert_same_run(tmp_path, whole)


def test_checkpoints_that_are_all_damaged_do_not_start_the_run_anew_in_silence(
    tmp_path: Path, config: RunConfig
) -> None:
    """The person who resumes must hear of it before hours of work are trained over."""
    go(tmp_path, config)
    for manifest in (tmp_path / "checkpoints").glob("*/manifest.json"):
        manifest.unlink()
    lines: list[str] = []
    try:
        go(tmp_path, config, say=lines.append)
    except ValueError as error:
        lines.append(str(error))
    assert any("checkpoint" in line for line in lines)


def test_a_finished_run_goes_on_with_more_pictures(tmp_path: Path, config: RunConfig) -> None:
    go(tmp_path, config)
    longer = replace(config, training=replace(config.training, images=60))
    outcome = go(tmp_path, longer)
    assert outcome.images_seen == 60
    assert load_latest(tmp_path / "checkpoints").images_seen == 60
    assert read_run(tmp_path)[0].training.images == 60


def test_resuming_what_is_finished_changes_nothing(tmp_path: Path, config: RunConfig, whole: Path) -> None:
    often = replace(config, cadence=replace(OFTEN, preview=10**9, validate=24))
    go(tmp_path, often)
    lines = log_of(tmp_path)
    held_out = go(tmp_path, often).held_out
    assert_same_run(tmp_path, whole)
    assert held_out == lines[-1]["held_out"]
    assert log_of(tmp_path) == lines  # not told twice


def test_the_held_out_loss_is_the_same_every_time(tmp_path: Path, config: RunConfig) -> None:
    outcomes = [go(tmp_path / name, config).held_out for name in ("a", "b")]
    assert outcomes[0] == outcomes[1]
    assert set(outcomes[0]) == {"-8..-4", "-4..-1.5", "-1.5..1.5", "1.5..4", "4..8", "mean"}


def test_the_log_goes_back_with_the_run(tmp_path: Path, config: RunConfig) -> None:
    """After an interruption at 24 and a damaged newest checkpoint no place is told twice, and none is left out."""
    often = replace(config, cadence=Cadence(log=8, checkpoint=8, preview=10**9, validate=16))

    def interrupt(trainer, report) -> None:
        if report.images_seen == 24:
            os.kill(os.getpid(), signal.SIGTERM)

    go(tmp_path, often, hooks=[interrupt])
    newest = max((tmp_path / "checkpoints").iterdir())
    (newest / "state.json").unlink()
    go(tmp_path, often)
    lines = log_of(tmp_path)
    assert [line["images_seen"] for line in lines if "loss" in line] == [8, 16, 24, 32, 40, 44]
    assert [line["images_seen"] for line in lines if "held_out" in line] == [16, 32, 44]


@pytest.mark.parametrize("every", [16, 8], ids=["between checkpoints", "before a checkpoint"])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, config: RunConfig, every: int) -> None:
    """C44: the loss that shows them ends the run, and what is on the disk is good, whenever a checkpoint is due."""

    def poison(trainer, report) -> None:
        if report.images_seen == 24:
            with torch.no_grad():
                next(trainer.network.parameters()).fill_(float("nan"))

    with pytest.raises(ArithmeticError, match="not finite"):
        go(tmp_path, replace(config, cadence=replace(NEVER, checkpoint=every, log=8)), hooks=[poison])
    state = load_latest(tmp_path / "checkpoints")
    assert state is not None
    for tensors in state.tensors.values():
        assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(tmp_path / "model/model.safetensors").values())


def test_what_cannot_be_trained_writes_nothing(tmp_path: Path, config: RunConfig) -> None:
    network = config.model.network
    wrong = [
        replace(config, model=replace(config.model, network=replace(network, patch=7))),
        replace(config, model=replace(config.model, network=replace(network, heads=3))),
        replace(config, model=replace(config.model, size=20)),
        replace(config, model=replace(config.model, network=replace(network, text=replace(TEXT, vocabulary=100)))),
    ]
    for one in wrong:
        with pytest.raises(ValueError, match=r"\w"):
            go(tmp_path / "run", one)
        assert not (tmp_path / "run").exists()


def test_a_model_without_dropped_captions_can_be_trained_or_is_refused_at_once(
    tmp_path: Path, config: RunConfig
) -> None:
    """condition_drop 0 with the default guidance: previews must not end the run half-way into its folder."""
    try:
        assert go(tmp_path / "run", replace(config, model=replace(config.model, condition_drop=0.0))).is_finished
    except ValueError:
        assert not (tmp_path / "run").exists()


def test_run_json_comes_back(tmp_path: Path, config: RunConfig) -> None:
    odd = replace(
        config,
        previews=("a", "ü 🍕"),
        allow_missing_captions=True,
        cadence=OFTEN,
        model=replace(config.model, sampling=SamplingDefaults(guidance_interval=(-4.0, 4.5), eta=0.25)),
    )
    tmp_path.joinpath("run").mkdir()
    data = load_data(config)
    write_run(tmp_path / "run", odd, data)
    assert read_run(tmp_path / "run") == (odd, data.train.fingerprint())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"recipe": "x", "nonsense": 1}', '{"training": {"batch": "many"}}']
)
def test_a_damaged_run_json_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json"):
        read_run(tmp_path)


def test_no_run_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run folder"):
        read_run(tmp_path)


def test_a_state_of_another_network_is_refused(tmp_path: Path, config: RunConfig) -> None:
    go(tmp_path, config)
    wider = replace(config, model=replace(config.model, network=replace(config.model.network, width=64)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="another network"):
        go(tmp_path, wider)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_starts_from_a_model(tmp_path: Path, config: RunConfig) -> None:
    """Its weights and its words are the first ones: at a rate that rounds to nothing it stays what it came from."""
    go(tmp_path / "first", config)
    still = replace(config.training, images=8, optimizer=OptimizerConfig(learning_rate=1e-30, weight_decay=0.0))
    go(tmp_path / "second", replace(config, start=str(tmp_path / "first"), training=still))
    first, second = (load_file(tmp_path / name / "model/model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert load_model(tmp_path / "second/model").training["started_from"] == str(tmp_path / "first")


# What is seen, and what is not.


def test_the_sets_own_validation_is_held_out(config: RunConfig) -> None:
    data = load_data(config)
    assert data.train.keys == tuple(f"train/{i:03d}.png" for i in range(10))
    assert data.validation.keys == tuple(f"validation/{i:03d}.png" for i in (50, 51, 52))


def test_pictures_of_the_test_split_are_not_opened(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "train", 4)
    fill(tmp_path / "test", 2, start=20)
    (tmp_path / "test" / "broken.png").write_bytes(b"no picture")
    opened: list[str] = []
    for owner, name in ((Image, "open"), (Path, "read_bytes")):
        function = getattr(owner, name)

        def note(source, *arguments, function=function):
            opened.append(str(source))
            return function(source, *arguments)

        monkeypatch.setattr(owner, name, note)
    data = load_data(replace(config, data=str(tmp_path)))
    assert len(data.train) == 4
    assert any("/train/" in path for path in opened)
    assert not [path for path in opened if "/test/" in path and not path.endswith(".txt")]


def test_a_set_of_test_pictures_only_is_refused(tmp_path: Path, config: RunConfig) -> None:
    fill(tmp_path / "test", 2)
    fill(tmp_path / "train", 0)
    with pytest.raises(ValueError, match="test split"):
        load_data(replace(config, data=str(tmp_path)))


def test_one_in_twenty_is_held_out_of_a_hundred_and_none_of_fewer(tmp_path: Path, config: RunConfig) -> None:
    """By the hash of its name, so that a picture stays where it is when others are added."""
    fill(tmp_path / "small", 99)
    assert len(load_data(replace(config, data=str(tmp_path / "small"))).validation) == 0
    fill(tmp_path / "large", 140)
    first = load_data(replace(config, data=str(tmp_path / "large")))
    assert len(first.train) + len(first.validation) == 140
    assert 1 <= len(first.validation) <= 18
    assert not set(first.train.keys) & set(first.validation.keys)
    fill(tmp_path / "large", 60, start=140)
    second = load_data(replace(config, data=str(tmp_path / "large")))
    assert set(first.validation.keys) == {key for key in second.validation.keys if int(key[:3]) < 140}


@pytest.mark.parametrize("with_captions", [0, 2])
def test_missing_captions_are_refused_unless_allowed(tmp_path: Path, config: RunConfig, with_captions: int) -> None:
    fill(tmp_path / "a", 4, captions=False)
    for i in range(with_captions):
        (tmp_path / "a" / f"{i:03d}.txt").write_text("a caption")
    short = replace(config, data=str(tmp_path / "a"), training=replace(config.training, images=8))
    with pytest.raises(ValueError, match=r"caption.*--allow-missing-captions"):
        load_data(short)
    allowed = replace(short, allow_missing_captions=True)
    assert len(load_data(allowed).train) == 4
    assert go(tmp_path / "run", allowed).is_finished


def shaped(folder: Path, shapes: list[tuple[int, int]]) -> Path:
    """Pictures of the given widths and heights, red where the middle is, blue at the ends of the longer side."""
    folder.mkdir()
    for i, (width, height) in enumerate(shapes):
        picture = Image.new("RGB", (width, height), "blue")
        side = min(width, height)
        picture.paste("red", ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2))
        picture.save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"shape {i}", "utf-8")
    return folder


def test_crop_takes_the_middle_and_pad_the_whole(tmp_path: Path, config: RunConfig) -> None:
    wide = replace(config, data=str(shaped(tmp_path / "data", [(64, 32)] * 3 + [(32, 32)])))
    cropped = load_data(wide)
    assert all(torch.equal(one, cropped.train.pictures[3]) for one in cropped.train.pictures)
    assert any("centre crop" in line and "3 of" in line for line in cropped.lines), cropped.lines
    padded = load_data(replace(wide, aspect="pad"))
    first = padded.train.pictures[0].permute(1, 2, 0)
    assert first.shape == (16, 16, 3)
    assert (first[:3] == 255).all()  # white above
    assert first[8, 0].tolist() == [0, 0, 255]
    assert any("white" in line for line in padded.lines), padded.lines


def test_buckets_train_on_every_shape(tmp_path: Path, config: RunConfig) -> None:
    """Three shapes in one run, on a network that draws any multiple of 2; the middle picture of each is whole."""
    network = UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), text=TEXT)
    data = shaped(tmp_path / "data", [(64, 32), (32, 64), (32, 32)] * 3)
    mixed = replace(config, data=str(data), aspect="buckets", model=replace(config.model, network=network))
    loaded = load_data(mixed)
    assert len({tuple(one.shape) for one in loaded.train.pictures}) == 3
    assert loaded.train.pictures[0][:, :, 0].float().mean(1).tolist() == pytest.approx([0, 0, 255], abs=30)  # the end
    assert go(tmp_path / "run", mixed).is_finished


def test_buckets_are_refused_by_a_network_of_one_size(tmp_path: Path, config: RunConfig) -> None:
    data = shaped(tmp_path / "data", [(64, 32)] * 3)
    with pytest.raises(ValueError, match=r"draws 16x16 only.*--aspect crop or pad"):
        load_data(replace(config, data=str(data), aspect="buckets"))


def test_broken_pictures_are_listed_and_too_many_stop(tmp_path: Path, config: RunConfig) -> None:
    folder = fill(tmp_path / "data", 7)
    for i in range(3):
        (folder / f"{i:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    short = replace(config, data=str(folder))
    with pytest.raises(ValueError, match=r"3 of the 7 pictures .* cannot be decoded \(42\.9%.*mend or remove"):
        load_data(short)
    loaded = load_data(replace(short, max_broken=0.5))
    assert loaded.train.keys == tuple(f"{i:03d}.png" for i in range(3, 7))
    assert sum(line.startswith("broken and left out: 00") for line in loaded.lines) == 3


def test_captions_come_from_where_one_says(tmp_path: Path, config: RunConfig) -> None:
    folder = fill(tmp_path / "data", 3)
    for i in range(3):
        (folder / f"{i:03d}.png").rename(folder / f"a red thing {i}.png")
        (folder / f"{i:03d}.txt").rename(folder / f"a red thing {i}.txt")
    data = replace(config, data=str(folder))
    assert load_data(data).train.captions == tuple((f"colour {i}",) for i in range(3))
    assert load_data(replace(data, captions="filename")).train.captions == (("a red thing",),) * 3


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="max_broken"):
        RunConfig(max_broken=share)


def test_captions_may_hold_line_breaks_and_any_sign(tmp_path: Path, config: RunConfig) -> None:
    """From metadata they can; the run, its previews and its list of captions must bear it."""
    fill(tmp_path / "data", 3, captions=False)
    said = ["first\nsecond line", "🍕\ttab", "a" * 400]
    rows = [json.dumps({"file_name": f"{i:03d}.png", "text": text}) for i, text in enumerate(said)]
    (tmp_path / "data/metadata.jsonl").write_text("\n".join(rows))
    short = replace(config, data=str(tmp_path / "data"), training=replace(config.training, images=8))
    assert go(tmp_path / "run", short).is_finished
    assert len(load_model(tmp_path / "run/model").taught) == 3


def test_the_words_are_kept_and_made_from_training_captions_alone(tmp_path: Path, config: RunConfig) -> None:
    go(tmp_path, config)
    content = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "model/tokenizer.json").unlink()
    go(tmp_path, config)
    assert (tmp_path / "tokenizer.json").read_bytes() == content
    model = load_model(tmp_path / "model")
    assert isinstance(model.reader, WordReader)
    assert model.reader.ids("colour 3") == load_model(tmp_path / "model").reader.ids("colour 3")


@pytest.mark.parametrize("name", ["log", "checkpoint", "preview", "validate"])
def test_cadences_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Cadence(**{name: 0})


# What is told of a run, and what is not allowed to stop it.


def test_the_log_tells_what_was_lost_in_each_band(tmp_path: Path, config: RunConfig) -> None:
    seen: list = []
    go(tmp_path, replace(config, cadence=OFTEN), hooks=[lambda trainer, report: seen.append(report.moved.loss)])
    lines = [line for line in log_of(tmp_path) if "loss" in line]
    for line, loss in zip(lines, seen, strict=True):  # a line a step
        log_snr, count, summed = loss.parts["log_snr"], 0, 0.0
        for band, mean in line["loss_by_band"].items():
            low, high = (float(end) for end in band.split(".."))
            rows = ((log_snr >= low) & (log_snr < high)).nonzero().flatten().tolist()
            assert mean == pytest.approx(sum(loss.per_sample[i].item() for i in rows) / len(rows))
            errors = [loss.parts["x0_error"][i].item() for i in rows]
            assert line["x0_error_by_band"][band] == pytest.approx(sum(errors) / len(rows))
            count, summed = count + len(rows), summed + mean * len(rows)
        assert count == ((log_snr >= -8) & (log_snr < 8)).sum()


class Board:
    """A logger that raises at each call, or only where it is made."""

    def __init__(self, directory, **settings) -> None:
        self.calls = 0

    def write(self, images_seen, values) -> None:
        self.calls += 1
        raise RuntimeError("no board")

    show = write


def test_nothing_that_only_tells_of_a_run_stops_it(
    tmp_path: Path, config: RunConfig, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log on a full disk, a TensorBoard that raises, previews that cannot be drawn: the weights are the same."""
    told: list[str] = []

    def no_preview(*arguments, **settings):
        raise MemoryError("no room")

    def fill_disk(trainer, report) -> None:
        (tmp_path / "log.jsonl").unlink()
        (tmp_path / "log.jsonl").symlink_to("/dev/full")

    monkeypatch.setattr(module, "TensorBoard", Board)
    monkeypatch.setattr(module, "preview_sheet", no_preview)
    wanted = replace(config, cadence=OFTEN, log_to=("tensorboard",))
    assert go(tmp_path, wanted, hooks=[fill_disk], say=told.append).is_finished
    assert_same_run(tmp_path, whole)
    failures = [line for line in told if "failed" in line]
    assert sorted(line.split(" failed")[0] for line in failures) == ["a preview", "log.jsonl", "tensorboard"]


def test_a_preview_that_cannot_be_written_stops_nothing(tmp_path: Path, config: RunConfig) -> None:
    told: list[str] = []
    previews = tmp_path / "previews"

    def in_the_way(trainer, report) -> None:
        if previews.is_dir():
            for file in previews.iterdir():
                file.unlink()
            previews.rmdir()
            previews.write_text("a file")

    assert go(tmp_path, config, hooks=[in_the_way], say=told.append).is_finished
    assert [line for line in told if line.startswith("a preview failed (NotADirectoryError")]


def test_a_checkpoint_that_cannot_be_saved_is_not_swallowed(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space"):
        go(tmp_path, replace(config, cadence=replace(NEVER, checkpoint=16)))


def test_tensorboard_is_asked_for_in_the_configuration(tmp_path: Path, config: RunConfig) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    go(tmp_path, replace(config, cadence=OFTEN, log_to=("tensorboard",)))
    assert read_run(tmp_path)[0].log_to == ("tensorboard",)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    lines = log_of(tmp_path)
    assert [e.step for e in events.Scalars("held_out/mean")] == [x["images_seen"] for x in lines if "held_out" in x]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([x["loss"] for x in lines if "loss" in x])
    assert [e.step for e in events.Images("preview")] == [0, 24, 44]


def test_a_logger_that_is_not_installed_is_told_before_the_run_starts(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unstir.training.log.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'unstir\[tensorboard\]'"):
        go(tmp_path / "run", replace(config, log_to=("tensorboard",)))
    assert not (tmp_path / "run").exists()
