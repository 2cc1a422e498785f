"""Several processes that train as one: the same run as one process alone, whatever the shares."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from unstir.model import load_model
from unstir.training.checkpoint import Checkpoint, flat, load_latest
from unstir.training.engine import Team, local_device, read_shards, shapes_in, team_of

SMALL = [
    "--model.size",
    "16",
    "--model.network.size",
    "16",
    "--model.network.patch",
    "8",
    "--model.network.width",
    "32",
    "--model.network.depth",
    "2",
    "--model.network.heads",
    "2",
    "--model.network.text.vocabulary",
    "300",
    "--model.network.text.width",
    "16",
    "--model.network.text.depth",
    "1",
    "--model.network.text.heads",
    "2",
    "--model.sampling.steps",
    "2",
    "--training.precision",
    "float32",
    "--training.optimizer.hidden",
    "adamw",
    "--training.optimizer.warmup_images",
    "16",
    "--cadence.log",
    "8",
    "--device",
    "cpu",
]
TOLERANCE = 2e-5  # sums over processes round otherwise; AdamW's first steps divide by what is nearly nothing


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("data"), 10)


def fill(folder: Path, count: int) -> Path:
    for i in range(count):
        Image.new("RGB", (16, 16), (25 * i, 255 - 25 * i, 40)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"colour number {i}\n")
    return folder


def train(
    nursery: Any, data: Path, out: Path, ranks: int, *more: object, images: int = 24, program: str = ""
) -> list[int]:
    """The exit statuses of a run in several processes, which must end within ten seconds of each other."""
    arguments = ["train", "tiny", "--data", data, "--out", out, "--images", images, "--batch", 8, *SMALL, *more]
    nursery.start_all(arguments, out, ranks, program)
    ended = nursery.wait_all()
    moments = [moment for _, moment in ended]
    assert max(moments) - min(moments) < 10
    return [status for status, _ in ended]


def said(out: Path, ranks: int) -> str:
    return "".join(Path(f"{out}.{rank}.err").read_text() for rank in range(ranks))


def logged(folder: Path, name: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if "loss" in line]


def state_of(folder: Path) -> dict[str, Tensor]:
    """The newest state of a run, whole."""
    found = load_latest(folder / "checkpoints")
    assert isinstance(found, Checkpoint)
    if found.shards is None:
        return flat(found.tensors)
    tensors = {name: torch.empty(shape) for name, shape in shapes_in(found.shards).items()}
    read_shards(found.shards, tensors)
    return tensors


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], rtol=0, atol=tolerance * max(1.0, tensor.abs().max().item())), name


@pytest.fixture(scope="module")
def alone(nursery: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    assert train(nursery, data, out, 1) == [0], Path(f"{out}.err").read_text()
    return out


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_many_processes_learn_what_one_learns(
    nursery: Any, data: Path, alone: Path, tmp_path: Path, way: str, ranks: int
) -> None:
    """Equal losses, weights, average and moments at equal global batch; noise differs by sample, never by rank."""
    out = tmp_path / "run"
    statuses = train(nursery, data, out, ranks, "--training.parallel", way)
    assert statuses == [0] * ranks, said(out, ranks)
    for name in ("loss", "gradient_norm", "learning_rate"):  # AdamW would forgive a gradient of another length
        assert logged(out, name) == pytest.approx(logged(alone, name), rel=1e-4)
    assert_close(state_of(alone), state_of(out))
    one, other = (load_model(folder / "model").denoiser.network.state_dict() for folder in (alone, out))
    assert_close(one, other)
    assert not list(out.rglob(".*"))
    assert "pictures/s" not in "".join(Path(f"{out}.{rank}.err").read_text() for rank in range(1, ranks))


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_run_goes_on_with_another_number_of_processes(
    nursery: Any, data: Path, alone: Path, tmp_path: Path, way: str
) -> None:
    """Saved at 4, gone on with at 1, then at 2."""
    out = tmp_path / "run"
    for ranks, images in ((4, 8), (1, 16), (2, 24)):
        start = ["--training.parallel", way] if ranks == 4 else ["--resume"]
        # the rate anneals towards the number of pictures asked for: here it must not
        more = ["--training.optimizer.anneal", 0, *start]
        assert train(nursery, data, out, ranks, *more, images=images) == [0] * ranks, Path(f"{out}.err").read_text()
    other = tmp_path / "other"
    assert train(nursery, data, other, 1, "--training.optimizer.anneal", 0) == [0]
    assert_close(state_of(other), state_of(out))


@pytest.mark.parametrize("count", [1, 3, 7])
def test_small_sets_and_odd_ends_hang_nobody(nursery: Any, tmp_path: Path, count: int) -> None:
    """The last batch has three pictures for four processes: one of them has none, and comes along."""
    folder = tmp_path / "data"
    folder.mkdir()
    fill(folder, count)
    whole, out = tmp_path / "whole", tmp_path / "run"
    more = ["--training.micro_batch", 1]
    assert train(nursery, folder, whole, 1, *more, images=11) == [0]
    way = "fsdp" if count == 3 else "ddp"
    statuses = train(nursery, folder, out, 4, *more, "--training.parallel", way, images=11)
    assert statuses == [0] * 4, said(out, 4)
    assert_close(state_of(whole), state_of(out))


RAISING = """
from unstir.training.step import Learner
step, calls = Learner.step, []
def failing(self, *arguments, **settings):
    calls.append(1)
    if self.team.rank == 1 and len(calls) == 2:
        raise ValueError("this one has had enough")
    return step(self, *arguments, **settings)
Learner.step = failing
"""


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_one_process_that_fails_ends_all(nursery: Any, data: Path, tmp_path: Path, way: str) -> None:
    """Each within ten seconds and with one sentence: its own, or that another one ended."""
    out = tmp_path / "run"
    statuses = train(nursery, data, out, 4, "--training.parallel", way, program=RAISING)
    assert statuses == [1, 2, 1, 1]
    for rank in range(4):
        lines = [line for line in Path(f"{out}.{rank}.err").read_text().splitlines() if line.startswith("unstir: ")]
        expected = "this one has had enough" if rank == 1 else "another process of this run has ended"
        assert len(lines) == 1
        assert expected in lines[0]
        assert "Traceback" not in Path(f"{out}.{rank}.err").read_text()


def test_a_loss_that_is_not_finite_stops_all_with_the_same_sentence(nursery: Any, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ["--training.optimizer.learning_rate", "1e30", "--training.optimizer.warmup_images", 0]
    statuses = train(nursery, data, out, 2, *more)
    assert statuses == [1, 1]
    first, second = (Path(f"{out}.{rank}.err").read_text().splitlines()[-1] for rank in range(2))
    assert "not finite" in first
    assert first == second
    assert load_latest(out / "checkpoints") is None


def test_a_signal_to_one_process_saves_and_stops_all(nursery: Any, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train", "tiny", "--data", data, "--out", out, "--images", 10**6, "--batch", 8, *SMALL]
    pids = nursery.start_all(arguments, out, 2)
    until = time.monotonic() + 60
    while time.monotonic() < until and not ((out / "log.jsonl").exists() and len(logged(out)) > 1):
        time.sleep(0.01)
    os.kill(pids[1], signal.SIGTERM)
    assert [status for status, _ in nursery.wait_all()] == [143, 143]
    assert load_latest(out / "checkpoints").images_seen > 0


@pytest.mark.parametrize(
    ("ranks", "more", "sentence"),
    [
        (3, [], "a batch of 8 cannot be divided among 3 processes"),
        (2, ["--training.batch", 1], "a batch of 1 cannot be divided among 2 processes"),
        (2, ["--training.parallel", "fsdp", "--training.optimizer.hidden", "muon"], "muon moves whole matrices"),
        (2, ["--training.parallel", "all"], "parallel"),
    ],
)
def test_bad_input_is_told_in_one_sentence_by_all(
    nursery: Any, data: Path, tmp_path: Path, ranks: int, more: Sequence[object], sentence: str
) -> None:
    out = tmp_path / "run"
    statuses = train(nursery, data, out, ranks, *more)
    assert 2 in statuses
    assert 0 not in statuses
    told = [line for line in said(out, ranks).splitlines() if line.startswith("unstir: ")]
    assert any(sentence in line for line in told)
    assert len(told) == ranks
    assert not out.exists()


@given(count=st.integers(0, 50), size=st.integers(1, 9))
def test_every_sample_is_somebodys_once(count: int, size: int) -> None:
    teams = [Team(rank=rank, size=size) for rank in range(size)]
    parts = [list(range(count))[team.rows(count)] for team in teams]
    assert [sample for part in parts for sample in part] == list(range(count))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= math.ceil(count / size)


def test_a_team_of_one_speaks_to_itself() -> None:
    team = Team()
    assert team.is_first
    assert team.told("word") == "word"
    assert (team.any(False), team.any(True), team.largest(7)) == (False, True, 7)
    assert torch.equal(team.gathered(torch.ones(2, 3), 3), torch.ones(2, 3))
    team.wait()


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1", "WORLD_SIZE": "2"}, {"RANK": "one"}, {"WORLD_SIZE": "0"}],
)
def test_an_environment_that_contradicts_itself_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="not as torchrun sets them"):
        team_of(environment)


def test_a_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert local_device(torch.device("cuda"), environment) == torch.device("cuda", 1)
    assert local_device(torch.device("cpu"), environment) == torch.device("cpu")
    assert local_device(torch.device("cuda"), {}) == torch.device("cuda")
    with pytest.raises(ValueError, match="2 GPUs, too few for process 3"):
        local_device(torch.device("cuda"), {**environment, "LOCAL_RANK": "2"})


def killed(nursery: Any, data: Path, folder: Path, *, kills: int, way: str) -> None:
    """A run in two processes, one of which is killed at random moments, and the same uninterrupted: to the bit."""
    images = 24 + 8 * kills
    more = ["--checkpoint-every", 8, "--training.parallel", way]
    whole, out = folder / "whole", folder / "run"
    assert train(nursery, data, whole, 2, *more, images=images) == [0, 0]
    arguments = ["train", "tiny", "--data", data, "--out", out, "--images", images, "--batch", 8, *SMALL, *more]
    draw, done = random.Random(time.time_ns()), 0
    for _ in range(20 * kills):
        before = len(logged(out)) if (out / "log.jsonl").exists() else 0
        pids = nursery.start_all([*arguments, "--resume"], out, 2)
        until, steps = time.monotonic() + 60, draw.randint(0, 2)
        while time.monotonic() < until and Path(f"/proc/{pids[0]}").exists():
            if (out / "log.jsonl").exists() and len(logged(out)) >= before + steps:
                break
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.3))
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(pids), signal.SIGKILL)
        statuses = [status for status, _ in nursery.wait_all()]
        assert set(statuses) <= {0, 1, -signal.SIGKILL, -signal.SIGTERM}, said(out, 2)  # SIGTERM: it waited to meet it
        done += -signal.SIGKILL in statuses
        if done == kills:
            break
        if set(statuses) == {0}:  # the run had ended before it was killed: it begins anew
            shutil.rmtree(out)
    assert done == kills
    nursery.start_all([*arguments, "--resume"], out, 2)
    assert [status for status, _ in nursery.wait_all()] == [0, 0], said(out, 2)
    one, other = state_of(whole), state_of(out)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert (whole / "model/model.safetensors").read_bytes() == (out / "model/model.safetensors").read_bytes()


def test_a_process_killed_at_random_costs_nothing(nursery: Any, data: Path, tmp_path: Path) -> None:
    killed(nursery, data, tmp_path, kills=2, way="ddp")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_process_killed_twenty_times_costs_nothing(nursery: Any, data: Path, tmp_path: Path, way: str) -> None:
    killed(nursery, data, tmp_path, kills=20, way=way)
