"""``unstir check``: what it prints, in which order, with which exit status; each finding is proved in tests/data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unstir.recipes import RECIPES

Call = Callable[..., tuple[int, str, str]]


def make(root: Path, count: int, *, side: int = 64, captions: bool = True) -> Path:
    root.mkdir(exist_ok=True)
    for index in range(count):
        blocks = np.random.default_rng(index).integers(0, 256, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).save(root / f"{index}.png")
        if captions:
            (root / f"{index}.txt").write_text(f"number {index}")
    return root


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return make(tmp_path / "good", 24)


# A run of which a step takes an instant.
SMALL = [
    "--set", 'model.network={"kind": "dit", "size": 32, "patch": 16, "width": 32, "depth": 1, "heads": 2}',
    "--model.network.text.vocabulary", "300", "--batch", "8", "--device", "cpu",
]  # fmt: skip


def test_a_good_set_is_fine(call: Call, good: Path) -> None:
    status, out, err = call("check", good, "--no-measure")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == f"24 pictures in {good}, for the recipe tiny (32x32)"
    assert lines[-1] == "no problems, no warnings"
    assert all(line.startswith("fine:     ") for line in lines[1:-1])
    assert "fine:     every picture has a caption" in lines
    assert "comparing pictures: 24/24" in err


def test_a_warning_has_a_remedy_and_stops_nothing(call: Call, tmp_path: Path) -> None:
    status, out, _ = call("check", make(tmp_path / "few", 3), "--no-measure")
    assert status == 0
    lines = out.splitlines()
    place = lines.index("warning:  there are only 3 pictures to train on")
    assert lines[place + 1].startswith("          remedy: add pictures")
    assert lines[-1] == "no problems, 1 warning"


def test_a_problem_is_exit_status_1(call: Call, tmp_path: Path) -> None:
    status, out, _ = call("check", make(tmp_path / "bare", 24, captions=False))
    assert status == 1
    assert "problem:  24 of 24 pictures have no caption (0.png, 1.png, 2.png, ...)" in out.splitlines()
    assert out.splitlines()[-2:] == [
        "time, memory and learning were not measured: mend the problems first",
        "1 problem, no warnings",
    ]


@pytest.mark.parametrize("count", [3, 24])
def test_json_is_one_object_and_nothing_else(call: Call, tmp_path: Path, count: int) -> None:
    folder = make(tmp_path / "set", count)
    status, out, _ = call("check", folder, "emoji", "--no-measure", "--json")
    result = json.loads(out)
    assert result["ahead"]["planned_images"] == 1_500_000
    assert {key: value for key, value in result.items() if key not in ("findings", "ahead")} == {
        "data": str(folder), "pictures": count, "recipe": "emoji", "size": 64,
    }  # fmt: skip
    assert len(result["findings"]) == 11 + 2
    assert {tuple(finding) for finding in result["findings"]} == {("severity", "what", "remedy")}
    severities = {finding["severity"] for finding in result["findings"]}
    assert severities == ({"fine", "warning"} if count == 3 else {"fine"})
    assert status == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_pictures_are_looked_at_as_the_recipe_has_them(call: Call, tmp_path: Path, recipe: str) -> None:
    folder = make(tmp_path / "set", 24, side=48)
    result = json.loads(call("check", folder, recipe, "--no-measure", "--json")[1])
    size = RECIPES[recipe]().model.size
    assert (result["recipe"], result["size"]) == (RECIPES[recipe]().recipe, size)
    assert any("are enlarged" in finding["what"] for finding in result["findings"]) == (size > 48)


def test_the_run_json_of_a_run_is_a_recipe(call: Call, good: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"recipe": "mine", "fingerprint": "abc", "model": {"size": 16}}))
    assert json.loads(call("check", good, path, "--no-measure", "--json")[1])["size"] == 16


@pytest.mark.parametrize(("count", "recipe"), [(99, "tiny"), (100, "emoji")])
def test_the_default_recipe_is_the_one_of_train(call: Call, tmp_path: Path, count: int, recipe: str) -> None:
    result = json.loads(call("check", make(tmp_path / "set", count, side=8), "--no-measure", "--json")[1])
    assert result["recipe"] == recipe


def test_captions_come_from_where_one_says(call: Call, good: Path) -> None:
    assert call("check", good, "--no-measure")[0] == 0
    status, out, _ = call("check", good, "--captions", "none")
    assert status == 1
    assert "--allow-missing-captions" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere"],
        ["empty"],
        ["good", "kittens"],
        ["good", "no.json"],
        ["good", "--seed", "-1"],
        ["good/0.png"],
        ["good", "--images", "0"],
        ["good", "tiny", "--set", "model.nonsense=1"],
        ["good", "--set", "nonsense"],
        ["good", "tiny", "--set", "model.network.patch=7"],
    ],
    ids=" ".join,
)
def test_bad_input_is_told_in_one_sentence(call: Call, good: Path, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    status, out, err = call("check", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_misspelt_recipe_is_told_before_the_pictures_are_read(call: Call) -> None:
    assert "did you mean tiny?" in call("check", "nowhere", "tinny")[2]


def test_steps_foretell_the_run(call: Call, good: Path) -> None:
    """Memory, time, disk and learning: each a finding, each figure in the JSON, and no file anywhere."""
    before = sorted(good.parent.rglob("*"))
    status, out, err = call("check", good, "tiny", *SMALL, "--images", "800", "--overfit", "--json")
    result = json.loads(out)
    ahead = result["ahead"]
    assert status == 0
    assert ahead["planned_images"] == 800
    assert ahead["seconds"] == pytest.approx(800 / ahead["steps"]["images_per_second"])
    assert (ahead["at_once"], ahead["by_heart"]["pictures"], ahead["by_heart"]["is_learned"]) == (8, 8, True)
    assert {finding["severity"] for finding in result["findings"]} == {"fine"}
    assert len(result["findings"]) == 11 + 6
    assert "taking training steps: " in err
    assert "learning one batch by heart: " in err
    assert sorted(good.parent.rglob("*")) == before


def test_a_run_that_cannot_learn_is_exit_status_1(call: Call, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unstir.training.lookahead._TIMES_SEEN", 30)
    slow = ["--training.optimizer.learning_rate", "1e-12", "--overfit"]
    status, out, _ = call("check", good, "tiny", *SMALL, *slow)
    assert status == 1
    assert "learns no set" in out
    assert "(it was 1e-12)" in out
    status, out, _ = call("check", good, "tiny", *SMALL, *slow[:-1], "--no-overfit")
    assert status == 0
    assert "not tried: whether one batch can be learned by heart" in out


def test_a_schedule_that_keeps_too_much_is_a_warning(call: Call, good: Path) -> None:
    schedule = 'model.schedule={"kind": "variance_exploding", "sigma_max": 10}'
    status, out, _ = call("check", good, "tiny", "--set", schedule, "--no-measure")
    assert status == 0
    assert "warning:  10.0% of the amplitude at t = 1 is still the picture (log-SNR -4.6)" in out
    assert out.splitlines()[-1] == "no problems, 1 warning"


@pytest.mark.parametrize("setting", ["model.schedule=cosine", "model.schedule=rectified_flow"])
def test_the_remedies_are_settings(call: Call, good: Path, setting: str) -> None:
    status, out, _ = call("check", good, "tiny", "--set", setting, "--no-measure")
    assert (status, out.splitlines()[-1]) == (0, "no problems, no warnings")
