"""``unstir bench``: tables for people, one object for programs, a plot, and mistakes told before any work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from unstir.bench import sampling

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
