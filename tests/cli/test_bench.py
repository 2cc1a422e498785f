"""``unstir bench``: tables for people, one object for programs, a plot, and mistakes told before any work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from unstir.bench import sampling, server, training
from unstir.bench.clients import Fetched, Tally
from unstir.bench.processes import Compared

Call = Callable[..., tuple[int, str, str]]

# diffusers hands torch tensors to numpy in ways that newer numpy deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("fitted_fast"),
]

SMALL = ("--dimensions", "2", "--calls", "3,6", "--starts", 2, "--quick")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    return monkeypatch


def test_without_diffusers_one_line_says_so_and_ours_are_measured(call: Call, alone: object) -> None:
    status, out, err = call("bench", "solvers", *SMALL, "--json", "--plot", "p.png")
    assert status == 0
    assert err.count("pip install diffusers") == 1
    result = json.loads(out)
    assert result["diffusers"] is None
    assert result["calls"] == [3, 6]
    assert result["seed"] == 0
    assert result["machine"]["torch"]
    assert result["seconds"] > 0
    (problem,) = result["problems"]
    assert (problem["dimension"], problem["starts"]) == (2, 2)
    assert len(problem["table"]["rows"]) == len(problem["rows"]) / 2
    assert result["summary_table"]["rows"][0][0] == "3"
    with Image.open("p.png") as picture:
        assert picture.format == "PNG"


def test_people_read_tables(call: Call, alone: object) -> None:
    status, out, _ = call("bench", "solvers", *SMALL)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("2 dimensions: RMS / median error of 2 starts")
    assert any(line.startswith("default") for line in lines)
    assert any(line.startswith("unstir: dpm++2m") for line in lines)
    assert "geometric means over problems" in lines
    assert lines[-1].endswith(" s")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sampling that is not done."""
    row = {"method": "DDIM", "sampler": "ddim", "ours": 8.0, "theirs": 80.0, "ratio": 10.0}
    grids = {"ours_grid": 1.0, "theirs_grid": 2.0, "ours_calls": 10, "theirs_calls": 10}
    asked: list[str] = []

    def overhead(*, advance: Callable[[str, int, int], None], **given: int) -> list[dict]:
        asked.append(f"overhead {given}")
        return [{**row, **grids}]

    def pictures(*, advance: Callable[[str, int, int], None], **given: int) -> list[dict]:
        asked.append(f"pictures {given}")
        return [{"what": "four pictures", "ours": 2.5, "theirs": None, "ratio": None}]

    monkeypatch.setattr(sampling, "overhead", overhead)
    monkeypatch.setattr(sampling, "pictures", pictures)
    return asked


def test_sampling_is_one_object_for_programs(call: Call, quick: list[str], alone: object) -> None:
    status, out, err = call("bench", "sample", "--json")
    assert status == 0
    assert "pip install diffusers" in err
    result = json.loads(out)
    assert list(result) == ["overhead", "pictures", "machine", "seconds"]
    assert result["overhead"][0]["ratio"] == 10.0
    assert quick == ["overhead {}", "pictures {}"]


def test_sampling_is_two_tables_for_people(call: Call, quick: list[str]) -> None:
    status, out, _ = call("bench", "sample", "--quick")
    assert status == 0
    assert "10.00" in out
    assert "four pictures" in out
    assert quick == ["overhead {'steps': 10, 'repeats': 3}", "pictures {'count': 4, 'steps': 5, 'repeats': 1}"]


def test_on_a_gpu_pictures_are_drawn_there_too(call: Call, quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"what": "a U-Net", "count": 256, "seconds": 0.5, "images_per_second": 512.0}
    monkeypatch.setattr("unstir.device.resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("unstir.bench.machine.device_name", lambda device: "a large GPU")
    monkeypatch.setattr(sampling, "on_device", lambda device, *, advance: [row])
    status, out, _ = call("bench", "sample", "--json")
    assert status == 0
    result = json.loads(out)
    assert list(result) == ["overhead", "pictures", "on_gpu", "device", "machine", "seconds"]
    assert (result["on_gpu"], result["device"]) == ([row], "a large GPU")
    status, out, _ = call("bench", "sample")
    assert "a large GPU" in out.splitlines()
    assert any(line.split() == ["a", "U-Net", "256", "500.0", "512.0"] for line in out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--calls", "0"], "calls must be whole numbers from 1 to 1000, got 0"),
        (["--calls", "5,many"], "--calls takes whole numbers joined by commas"),
        (["--calls", ","], "got none"),
        (["--dimensions", "-2"], "dimensions"),
        (["--dimensions", "2.5"], "--dimensions"),
        (["--starts", "0"], "starts"),
        (["--schedule", "linaer"], "did you mean linear"),
        (["--seed", "-1"], "seed"),
        (["--plot", "p.txt"], ".txt"),
        (["--plot", "p.jpg"], "plots are png"),
        (["--plot", "nowhere/p.png"], "nowhere"),
        (["--colour", "red"], "colour"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_sentence(call: Call, tmp_path: Path, arguments: list[str], words: str) -> None:
    status, out, err = call("bench", "solvers", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert words in err.lower()
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_it_is_said_before_the_work(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = call("bench", "solvers", *SMALL, "--plot", "p.png")
    assert (status, out) == (1, "")
    assert "unstir[reproduce]" in err


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Training that is not done."""
    asked: list[dict] = []
    entry = {"side": "unstir", "role": "ours", "weights": 7_000_000, "gflop": 3.0, "step": lambda: None}
    shared = training.Conditions(batch=16, repeats=1, device=torch.device("cpu"), precision="bf16")

    def bench_training(*, advance: Callable[[str, int, int], None], **given: object) -> training.Result:
        asked.append(given)
        advance("small U-Net", 1, 2)
        again = {**entry, "role": "compiled", "is_compiled": True}
        entries = [training.Entry(**entry, how="bf16"), training.Entry(**again, how="compiled")]
        timed = [training.Timed(rounds=(0.5,)), training.Timed(warm=20.5, rounds=(0.25,))]
        rows = [{"model": "small", "title": "small U-Net", **row} for row in training.rows_of(entries, timed, 16)]
        rows = [{**row, "share_of_peak": 0.25} for row in rows]
        return training.Result(rows=rows, peaks={"float32": 100.0, "bf16": 400.0}, conditions=shared, has_peers=False)

    monkeypatch.setattr(training, "bench_training", bench_training)
    return asked


def test_training_is_one_object_for_programs(call: Call, trained: list[dict]) -> None:
    status, out, err = call("bench", "train", "--json", "--quick", "--compiled", "--levers", "--device", "cpu")
    assert status == 0
    assert err.count("pip install diffusers") == 1
    assert "small U-Net: 1/2" in err
    result = json.loads(out)
    assert list(result) == [
        *("rows", "columns", "tables", "notes", "peaks", "device", "precision", "batch", "repeats"),
        *("machine", "seconds"),
    ]
    assert list(result["tables"]) == ["small U-Net"]
    assert [row["ms_per_step"] for row in result["rows"]] == [500, 250]
    assert trained == [
        {
            "models": ["small"],
            "batch": 16,
            "repeats": 2,
            "device": "cpu",
            "is_compiled": True,
            "has_levers": True,
        }
    ]


def test_training_is_a_table_a_model_for_people(call: Call, trained: list[dict]) -> None:
    status, out, _ = call("bench", "train", "--models", "dit, small", "--batch", 4, "--repeats", 3)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "small U-Net: a training step of 16 pictures of 32x32 on cpu"
    assert lines[2].split() == ["unstir:", "bf16", "7.0", "500.0", "32.0", "3.00", "96", "25%", "-", "-", "1.00"]
    assert lines[3].split()[-1] == "2.00"
    assert "small U-Net, unstir: compiled: compiled in 20 s" in lines
    assert any("400 GFLOP/s in bf16" in line for line in lines)
    assert lines[-1].endswith(" s")
    assert [trained[0][name] for name in ("models", "batch", "repeats")] == [["dit", "small"], 4, 3]
    call("bench", "train", "--device", "cpu")
    assert [trained[1][name] for name in ("models", "batch", "repeats")] == [["ddpm", "small", "dit"], 16, 5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "smal"], "did you mean small"),
        (["--models", "cats"], "there are ddpm, small, dit"),
        (["--models", ","], "give a model to train"),
        (["--batch", "0"], "batch must be whole numbers of at least 1, got 0"),
        (["--repeats", "-1"], "repeats"),
        (["--repeats", "1.5"], "--repeats"),
        (["--device", "abacus"], "no device 'abacus'"),
    ],
    ids=" ".join,
)
def test_bad_input_of_training_is_one_sentence(call: Call, arguments: list[str], words: str) -> None:
    status, out, err = call("bench", "train", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert words in err.lower()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[server.LoadConfig]:
    """A server that is not started."""
    asked: list[server.LoadConfig] = []

    def bench_server(config: server.LoadConfig, *, advance: Callable[[str, int, int], None]) -> server.Result:
        asked.append(config)
        advance("load", 1, 2)
        picture = Fetched(asked={}, place=Path("a.png"))
        tally = Tally(accepted=4, ended=4, latencies=[0.5] * 4, pictures=[picture] * 4, seconds=2.0)
        compared = Compared(count=4, of=4, worst=1, wrong=())
        return server.Result(
            config=config,
            ready=1.25,
            rounds=(server.Round(tally=tally, before=2.0, after=2.0),),
            memory=(2**20,) * 3,
            compared=compared,
            alone=(0.5,),
            behind=(1.0,),
            killed=server.Killed(accepted=3, ended=3, seconds=1.0, compared=compared, failures=()),
        )

    monkeypatch.setattr(server, "bench_server", bench_server)
    return asked


def test_the_server_is_one_object_for_programs(call: Call, served: list[server.LoadConfig]) -> None:
    status, out, err = call(
        "bench", "server", "--json", "--mixed", "--clients", 3, "--model", "mine", "--device", "cpu"
    )
    assert status == 0
    assert "load: 1/2" in err
    result = json.loads(out)
    assert (result["share_of_offline"], result["short_seconds"]["ratio"]) == (None, 2.0)  # mixed jobs have no share
    assert list(result)[-2:] == ["machine", "seconds"]
    (config,) = served
    assert (config.clients, config.model, config.device, config.is_mixed) == (3, "mine", "cpu", True)
    assert config.seconds == server.LoadConfig().seconds


def test_the_server_is_lines_for_people(call: Call, served: list[server.LoadConfig]) -> None:
    status, out, _ = call("bench", "server", "--quick", "--seconds", 5)
    assert status == 0
    lines = out.splitlines()
    assert "start until it answers: 1.25 s" in lines
    assert any("share 100%" in line for line in lines)
    assert lines[-1].endswith(" s")
    (config,) = served
    assert (config.clients, config.seconds, config.is_mixed) == (server.QUICK.clients, 5, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--clients", "0"], "clients must be at least 1, got 0"),
        (["--seconds", "0"], "seconds must be at least 1, got 0"),
        (["--seconds", "many"], "--seconds"),
    ],
    ids=" ".join,
)
def test_bad_input_of_the_server_is_one_sentence(call: Call, arguments: list[str], words: str) -> None:
    status, out, err = call("bench", "server", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert words in err.lower()
