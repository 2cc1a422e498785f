"""``unstir train``: killed and resumed to the bit, refused in one sentence, told in one JSON object."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from unstir.cli.app import run
from unstir.cli.train import as_settings
from unstir.training.checkpoint import flat, load_latest

Call = Callable[..., tuple[int, str, str]]
_SETTINGS = (
    "--model.size 16 --model.network.size 16 --model.network.patch 8 --model.network.width 32 --model.network.depth 1 "
    "--model.network.heads 2 --model.network.text.vocabulary 300 --model.network.text.width 16 "
    "--model.network.text.depth 1 --model.network.text.heads 2 --model.sampling.steps 2 --training.precision float32 "
    "--training.optimizer.warmup_images 16 --device cpu"
)
SMALL = _SETTINGS.split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for i in range(10):
        Image.new("RGB", (16, 16), (25 * i, 255 - 25 * i, 40)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"colour number {i}\n")
    return folder


@pytest.fixture
def call(call: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return call


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_refused(found: tuple[int, str, str], statuses: tuple[int, ...] = (2,)) -> None:
    status, out, err = found
    assert status in statuses
    assert out == ""
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert "bug in unstir" not in err


def short(data: Path, out: object, *more: object) -> list[object]:
    return ["train", "tiny", "--data", data, "--out", out, "--images", 16, "--batch", 8, *SMALL, *more]


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied by who changes it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        assert run([str(argument) for argument in short(data, folder)]) == 0
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(finished, tmp_path / "run"))


# Told.


def test_a_run_tells_where_its_model_is_and_how_to_draw_with_it(call: Call, data: Path, tmp_path: Path) -> None:
    status, out, err = call(*short(data, "runs/a"))
    assert status == 0
    assert str(tmp_path / "runs/a/model") in out
    assert "unstir sample" in out
    assert "16/16 pictures" in err
    assert "10 pictures" in err
    assert call("sample", "colour number 3", "--model", "runs/a", "-o", "p/")[0] == 0


def test_json_is_one_object(call: Call, data: Path, tmp_path: Path) -> None:
    status, out, _ = call(*short(data, "r", "--json"))
    found = json.loads(out)
    assert status == 0
    assert found["run"] == str(tmp_path / "r")
    assert found["model"] == str(tmp_path / "r/model")
    assert (found["images_seen"], found["is_finished"], found["held_out"]) == (16, True, {})


def test_options_reach_the_configuration(call: Call, data: Path, tmp_path: Path) -> None:
    more = ["--seed", 7, "--checkpoint-every", 8, "--set", "training.ema.warmup=0.5", "--training.weight=x0"]
    assert call(*short(data, "r", *more, "--training.times", "uniform"))[0] == 0
    content = json.loads((tmp_path / "r/run.json").read_text())
    training = content["training"]
    assert (training["images"], training["batch"], training["seed"], training["weight"]) == (16, 8, 7, "x0")
    assert training["ema"]["warmup"] == 0.5
    assert training["times"]["kind"] == "uniform"
    assert content["cadence"]["checkpoint"] == 8
    assert Path(content["data"]) == data


def test_without_a_recipe_few_pictures_take_the_tiny_one(call: Call, data: Path, tmp_path: Path) -> None:
    status, _, err = call("train", "--data", data, "--out", "r", "--images", 8, "--batch", 8, *SMALL)
    assert status == 0
    assert "tiny" in err
    assert json.loads((tmp_path / "r/run.json").read_text())["recipe"] == "tiny"


def test_the_configuration_of_another_run_is_a_recipe(call: Call, data: Path, finished: Path, tmp_path: Path) -> None:
    """The same configuration on the same pictures is the same model."""
    assert call("train", finished / "run.json", "--out", "again", "--device", "cpu")[0] == 0
    one, other = (folder / "model/model.safetensors" for folder in (finished, tmp_path / "again"))
    assert one.read_bytes() == other.read_bytes()


def test_a_finished_run_goes_on_with_more_images(call: Call, copied: Path) -> None:
    status, out, _ = call("train", "--out", copied, "--resume", "--images", 24, "--json")
    assert (status, json.loads(out)["images_seen"]) == (0, 24)
    assert load_latest(copied / "checkpoints").images_seen == 24


def test_batch_auto_is_the_recipes_batch_in_parts_that_a_resumed_run_keeps(
    call: Call, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["train", "tiny", "--data", data, "--out", tmp_path / "run", "--batch", "auto", *SMALL]
    monkeypatch.setattr("unstir.training.trainer.most_that_fit", lambda count, free, *, fixed, each: 5)
    status, _, err = call(*arguments, "--images", 32)
    assert status == 0
    assert "5 of 32 pictures of a batch at once" in err
    written = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["training"]
    assert (written["batch"], written["micro_batch"]) == (32, 5)
    monkeypatch.setattr("unstir.training.trainer.most_that_fit", lambda count, free, *, fixed, each: 3)
    assert call(*arguments, "--images", 64, "--resume")[0] == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["training"]["micro_batch"] == 5


def test_moved_data_are_found_again(call: Call, copied: Path, data: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(data, tmp_path / "moved")
    assert call("train", "--out", copied, "--resume", "--images", 24, "--data", tmp_path / "moved")[0] == 0
    assert json.loads((copied / "run.json").read_text())["data"] == str(tmp_path / "moved")


def test_a_run_starts_from_another(call: Call, data: Path, finished: Path, tmp_path: Path) -> None:
    status, _, _ = call("train", "tiny", "--data", data, "--out", "r", "--from", finished, "--images", 8, "--batch", 8)
    assert status == 0
    assert json.loads((tmp_path / "r/run.json").read_text())["start"] == str(finished / "model")


# Refused.

BAD = {
    "nothing": ["train"],
    "no data": ["train", "tiny", "--out", "r"],
    "missing data": ["train", "tiny", "--data", "nowhere", "--out", "r"],
    "empty data": ["train", "tiny", "--data", "EMPTY", "--out", "r"],
    "data is a file": ["train", "tiny", "--data", "FILE", "--out", "r"],
    "data is no picture": ["train", "tiny", "--data", "BROKEN", "--out", "r"],
    "no captions": ["train", "tiny", "--data", "BARE", "--out", "r"],
    "some captions": ["train", "tiny", "--data", "PART", "--out", "r"],
    "recipe": ["train", "teeny", "--data", "DATA", "--out", "r"],
    "recipe, default folder": ["train", "teeny", "--data", "DATA"],
    "recipe file": ["train", "nowhere.json", "--data", "DATA", "--out", "r"],
    "recipe of nonsense": ["train", "NONSENSE", "--data", "DATA", "--out", "r"],
    "misspelt": ["train", "tiny", "--data", "DATA", "--out", "r", "--training.bach", "4"],
    "misspelt, emoji": ["train", "emoji", "--out", "r", "--training.bach", "4"],
    "words": ["train", "tiny", "--data", "DATA", "--out", "r", "--training.batch", "abc"],
    "no value": ["train", "tiny", "--data", "DATA", "--out", "r", "--training.batch"],
    "no equals": ["train", "tiny", "--data", "DATA", "--out", "r", "--set", "training.batch"],
    "batch zero": ["train", "tiny", "--data", "DATA", "--out", "r", "--batch", "0"],
    "images zero": ["train", "tiny", "--data", "DATA", "--out", "r", "--images", "0"],
    "seed below": ["train", "tiny", "--data", "DATA", "--out", "r", "--seed", "-1"],
    "seed above": ["train", "tiny", "--data", "DATA", "--out", "r", "--seed", str(2**32)],
    "seed of words": ["train", "tiny", "--data", "DATA", "--out", "r", "--seed", "abc"],
    "cadence zero": ["train", "tiny", "--data", "DATA", "--out", "r", "--checkpoint-every", "0"],
    "kind": ["train", "tiny", "--data", "DATA", "--out", "r", "--model.schedule", "cosin"],
    "patch": ["train", "tiny", "--data", "DATA", "--out", "r", "--model.network.patch", "7"],
    "heads": ["train", "tiny", "--data", "DATA", "--out", "deep/r", "--model.network.heads", "3"],
    "sampler": ["train", "tiny", "--data", "DATA", "--out", "r", "--model.sampling.sampler", "dpm2"],
    "vocabulary": ["train", "tiny", "--data", "DATA", "--out", "r", "--model.network.text.vocabulary", "100"],
    "device": ["train", "tiny", "--data", "DATA", "--out", "r", "--device", "abacus"],
    "from nowhere": ["train", "tiny", "--data", "DATA", "--out", "r", "--from", "nowhere"],
    "from a folder": ["train", "tiny", "--data", "DATA", "--out", "r", "--from", "EMPTY"],
    "out is a file": ["train", "tiny", "--data", "DATA", "--out", "FILE"],
    "out below a file": ["train", "tiny", "--data", "DATA", "--out", "FILE/r"],
    "out cannot be made": ["train", "tiny", "--data", "DATA", "--out", "/proc/x/r"],
    "not empty": ["train", "tiny", "--data", "DATA", "--out", "DATA"],
    "resume nothing": ["train", "--resume"],
    "resume nowhere": ["train", "--resume", "--out", "nowhere/deep"],
    "resume an empty folder": ["train", "--resume", "--out", "EMPTY"],
    "option": ["train", "tiny", "--data", "DATA", "--out", "r", "--colour", "red"],
}


@pytest.fixture
def places(tmp_path: Path, data: Path) -> dict[str, str]:
    for name in ("empty", "broken", "bare", "part"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "nonsense.json").write_text('{"model": {"size": "x"}}')
    (tmp_path / "broken/0.png").write_bytes(b"no picture")
    (tmp_path / "broken/0.txt").write_text("x")
    for i in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"bare/{i}.png")
        Image.new("RGB", (8, 8)).save(tmp_path / f"part/{i}.png")
    (tmp_path / "part/0.txt").write_text("x")
    names = {
        "EMPTY": "empty",
        "FILE": "file",
        "BROKEN": "broken",
        "BARE": "bare",
        "PART": "part",
        "NONSENSE": "nonsense.json",
    }
    return {**names, "DATA": str(data)}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD)
def test_bad_input_is_told_in_one_sentence_and_leaves_nothing(
    call: Call, tmp_path: Path, places: dict[str, str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    from unstir.data import emoji

    monkeypatch.setattr(
        emoji, "build_emoji", lambda directory, **settings: pytest.fail("an hour of drawing for nothing")
    )
    before = everything(tmp_path)
    given = [places.get(argument, argument).replace("FILE/", "file/") for argument in arguments]
    assert_refused(call(*given), (1, 2) if "/proc/x/r" in given else (2,))
    assert everything(tmp_path) == before


def test_a_misspelt_setting_is_suggested(call: Call, data: Path) -> None:
    found = call("train", "tiny", "--data", data, "--out", "r", "--training.bach", "4")
    assert "did you mean 'training.batch'?" in found[2]
    assert "did you mean tiny?" in call("train", "tinny", "--data", data, "--out", "r")[2]


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--resume", "--batch", 4],
        ["--resume", "--seed", 5],
        ["--resume", "--training.optimizer.learning_rate", "0.1"],
        ["--resume", "--model.size", "32"],
        ["--resume", "--from", "builtin"],
        ["--resume", "--from", "/"],
        ["--resume", "--training.bach", "4"],
        ["--resume", "--images", "0"],
        ["--resume", "--images", "8"],
    ],
    ids=lambda more: " ".join(map(str, more)) or "without --resume",
)
def test_a_run_is_not_changed_on_its_way(call: Call, copied: Path, more: list[object]) -> None:
    before = everything(copied)
    assert_refused(call("train", "--out", copied, *more))
    assert everything(copied) == before


def test_a_run_is_not_resumed_by_another_recipe(call: Call, copied: Path) -> None:
    before = everything(copied)
    found = call("train", "emoji", "--out", copied, "--resume")
    assert_refused(found)
    assert "tiny" in found[2]
    assert everything(copied) == before


@pytest.mark.parametrize("change", ["caption", "picture", "more"])
def test_other_data_are_refused(call: Call, copied: Path, data: Path, tmp_path: Path, change: str) -> None:
    """By the fingerprint: one changed caption or pixel is enough."""
    import shutil

    other = Path(shutil.copytree(data, tmp_path / "other"))
    if change == "caption":
        (other / "3.txt").write_text("colour number three\n")
    else:
        Image.new("RGB", (16, 16), (1, 2, 3)).save(other / ("3.png" if change == "picture" else "99.png"))
        (other / "99.txt").write_text("x") if change == "more" else None
    before = everything(copied)
    assert_refused(call("train", "--out", copied, "--resume", "--images", 24, "--data", other))
    assert everything(copied) == before


def test_a_second_process_is_refused(call: Call, copied: Path) -> None:
    """The lock is held by another open file, as another process would hold it; its file is not taken away."""
    import fcntl

    with (copied / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        before = everything(copied)
        found = call("train", "--out", copied, "--resume", "--images", 24)
        assert_refused(found)
        assert "another process" in found[2]
        assert everything(copied) == before
    assert call("train", "--out", copied, "--resume", "--images", 24)[0] == 0
    assert not (copied / ".lock").exists()


def test_settings_are_written_out() -> None:
    assert as_settings(["train", "--a.b", "1", "--c.d_e.f=x=y", "--batch", "4"]) == [
        "train", "--set", "a.b=1", "--set", "c.d_e.f=x=y", "--batch", "4",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"--a\.b needs a value"):
        as_settings(["--a.b"])


# Interrupted: see ``Nursery`` in tests/conftest.py.


def lines_of(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def wait_for(log: Path, lines: int, pid: int) -> None:
    """Until the log has so many lines, or a while has passed."""
    until = time.monotonic() + 30
    while lines_of(log) < lines and time.monotonic() < until and Path(f"/proc/{pid}").exists():
        time.sleep(0.002)


def killed_at_random_moments(
    nursery: Any, data: Path, folder: Path, *, kills: int, seed: int, more: Sequence[object] = ()
) -> None:
    images, batch = 24 + 8 * kills, 4
    arguments = [
        "train",
        "tiny",
        "--data",
        data,
        "--images",
        images,
        "--batch",
        batch,
        "--checkpoint-every",
        batch,
        *SMALL,
    ]
    arguments += ["--cadence.log", batch, "--cadence.preview", 24, *more]
    nursery.start([*arguments, "--out", folder / "whole"], folder / "whole")
    assert nursery.wait() == 0, (folder / "whole.err").read_text()
    draw = random.Random(seed)
    broken, done = folder / "broken", 0
    for _ in range(20 * kills):
        pid = nursery.start([*arguments, "--out", broken, "--resume"], folder / "broken")
        wait_for(broken / "log.jsonl", lines_of(broken / "log.jsonl") + draw.randint(0, 3), pid)
        time.sleep(draw.uniform(0, 0.12))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        status = nursery.wait()
        assert status in (-signal.SIGKILL, 0), (folder / "broken.err").read_text()
        done += status == -signal.SIGKILL
        if done == kills:
            break
        if status == 0:  # the run had ended before it was killed: it begins anew
            shutil.rmtree(broken)
    assert done == kills
    nursery.start([*arguments, "--out", broken, "--resume"], folder / "broken")
    assert nursery.wait() == 0, (folder / "broken.err").read_text()
    one, other = (folder / name for name in ("whole", "broken"))
    assert (one / "model/model.safetensors").read_bytes() == (other / "model/model.safetensors").read_bytes()
    left, right = load_latest(one / "checkpoints"), load_latest(other / "checkpoints")
    assert left.images_seen == right.images_seen == images
    for group, tensors in left.tensors.items():
        assert tensors.keys() == right.tensors[group].keys()
        assert all(torch.equal(tensor, right.tensors[group][name]) for name, tensor in tensors.items())
    assert not [path for path in other.rglob(".*") if path.name.endswith((".new", ".old"))]


WAYS = {
    "plain": [],
    "workers and parts": ["--training.workers", 4, "--training.micro_batch", 3, "--cadence.validate", 12],
}


@pytest.mark.parametrize("way", WAYS)
def test_killed_a_few_times_is_uninterrupted_to_the_bit(nursery: Any, data: Path, tmp_path: Path, way: str) -> None:
    """kill -9 at random moments, then the same command with --resume; five kills in all."""
    kills = 2 if way == "plain" else 3
    killed_at_random_moments(nursery, data, tmp_path, kills=kills, seed=time.time_ns(), more=WAYS[way])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_killed_a_hundred_times_is_uninterrupted_to_the_bit(nursery: Any, data: Path, tmp_path: Path, way: str) -> None:
    """A checkpoint follows every step, so that half of the kills or so come during a save."""
    killed_at_random_moments(nursery, data, tmp_path, kills=100, seed=time.time_ns(), more=WAYS[way])


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_saved_and_says_how_to_go_on(
    nursery: Any, data: Path, tmp_path: Path, number: signal.Signals, expected: int
) -> None:
    folder = tmp_path / "run"
    arguments = ["train", "tiny", "--data", data, "--out", folder, "--images", 100_000, "--batch", 4, *SMALL]
    pid = nursery.start([*arguments, "--cadence.log", 4, "--json"], tmp_path / "text")
    wait_for(folder / "log.jsonl", 3, pid)
    os.kill(pid, number)
    assert nursery.wait() == expected
    err = (tmp_path / "text.err").read_text()
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert f"unstir train --out {folder} --resume" in last
    seen = load_latest(folder / "checkpoints").images_seen
    assert f"{seen} pictures" in last
    found = json.loads((tmp_path / "text.out").read_text())
    assert (found["images_seen"], found["is_finished"]) == (seen, False)
    assert not (folder / ".lock").exists()


# Disks that fill up, and folders that cannot be written.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("NO RIGHT TO MOUNT A SMALL DISK HERE: A DISK THAT FILLS UP IS NOT TESTED")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a lock may be open still


@pytest.mark.parametrize("is_foreseen", [True, False], ids=["foreseen", "in the middle of a file"])
def test_a_disk_that_fills_up_costs_no_checkpoint(
    call: Call,
    finished: Path,
    data: Path,
    disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_foreseen: bool,
) -> None:
    import shutil

    status, _, err = call(*short(data, disk / "run"))
    assert status == 0, err
    before = state_of(disk / "run")
    with (disk / "filler").open("wb") as filler:
        left = shutil.disk_usage(disk).free
        filler.write(bytes(left - 150_000))  # of which the log takes a little, and a checkpoint would take more
    if not is_foreseen:
        usage = shutil.disk_usage(disk)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**40))
    found = call("train", "--out", disk / "run", "--resume", "--images", 24, "--device", "cpu", "--json")
    status, out, err = found
    assert (status, out) == (1, "")
    said = [line for line in err.splitlines() if line.startswith("unstir: ")]
    assert len(said) == 1
    assert ("the disk has 0 MiB left" if is_foreseen else "no space left on device") in said[0]
    assert "Traceback" not in err
    assert_same_state(state_of(disk / "run"), before)
    (disk / "filler").unlink()
    monkeypatch.undo()
    assert call("train", "--out", disk / "run", "--resume", "--images", 24, "--device", "cpu")[0] == 0
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    assert call("train", "--out", other, "--resume", "--images", 24, "--device", "cpu")[0] == 0
    assert_same_state(state_of(disk / "run"), state_of(other))


def test_a_folder_that_cannot_be_written_is_told_and_left_alone(call: Call, data: Path, disk: Path) -> None:
    assert call(*short(data, disk / "run"))[0] == 0
    before = everything(disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for arguments in (
        ["--out", disk / "run", "--resume", "--images", 24],
        ["tiny", "--data", data, "--out", disk / "b"],
    ):
        assert_refused(call("train", *arguments, "--device", "cpu"), statuses=(1, 2))
    assert everything(disk) == before


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return flat(load_latest(folder / "checkpoints").tensors)


def assert_same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_batch_that_cannot_fit_is_refused_before_a_step(
    call: Call, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the first pictures keep; seen in parts it is trained on."""
    from unstir.training import trainer

    monkeypatch.setattr(trainer, "free_bytes", lambda device: 20 * 2**20)
    arguments = ["train", "tiny", "--data", data, "--images", 512, "--batch", 512, *SMALL]
    found = call(*arguments, "--out", tmp_path / "run")
    assert_refused(found, statuses=(1,))
    assert "--batch auto" in found[2]
    assert not (tmp_path / "run" / "run.json").exists()
    assert call(*arguments, "--out", tmp_path / "parts", "--training.micro_batch", 8)[0] == 0


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), None])
def test_memory_that_runs_out_is_told(
    call: Call, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    from unstir.training.step import Learner

    def step(*arguments: object, **settings: object) -> None:
        raise error or torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Learner, "step", step)
    status, _, err = call(*short(data, tmp_path / "run"))
    assert status == 1
    assert err.splitlines()[-1].startswith("unstir: the memory does not take it; give a smaller --batch")
