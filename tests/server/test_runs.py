"""Trainings: which folders are runs, what their logs tell, and that no name leads out of the list."""

from __future__ import annotations

import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unstir.server.runs import Runs, curves_of
from unstir.server.service import Unknown
from unstir.training.log import RunLog

CONFIG = {"recipe": "tiny", "training": {"images": 1000, "batch": 10}}


def made(folder: Path, *lines: dict[str, Any], previews: tuple[int, ...] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(CONFIG))
    for line in lines:
        RunLog(folder / "log.jsonl").write(**{"images_seen": 0, "values": {}, **line})
    for seen in previews:
        (folder / "previews").mkdir(exist_ok=True)
        Image.new("RGB", (2, 2), (seen % 256, 0, 0)).save(folder / "previews" / f"{seen:010d}.png")
    return folder


def told(seen: int, **values: Any) -> dict[str, Any]:
    return {"images_seen": seen, "values": values}


def shown(folder: Path, hold: str = "free") -> Runs:
    return Runs(folder, lambda _: hold)  # type: ignore[arg-type]


def test_a_run_tells_what_its_folder_tells(tmp_path: Path) -> None:
    made(
        tmp_path / "mine",
        told(10, loss=0.5, images_per_second=20.0),
        told(20, loss=0.25, images_per_second=40.0),
        told(20, held_out={"-4..4": 0.1, "mean": 0.2}),
        previews=(5, 20),
    )
    run = shown(tmp_path, "held").run("mine")
    assert (run.standing.recipe, run.standing.state) == ("tiny", "going on")
    assert (run.standing.images_seen, run.standing.planned_images) == (20, 1000)
    assert run.numbers == {"loss": 0.25, "images_per_second": 40.0}
    assert run.seconds_left == (1000 - 20) / 40
    assert run.bands == {"held_out": {"-4..4": 0.1, "mean": 0.2}}
    assert dict(run.curves) == {
        "loss": [(10, 0.5), (20, 0.25)],
        "images_per_second": [(10, 20.0), (20, 40.0)],
        "held_out/-4..4": [(20, 0.1)],
        "held_out/mean": [(20, 0.2)],
    }
    assert run.previews == [20, 5]


def test_the_runs_of_a_folder_are_those_in_it_and_itself(tmp_path: Path) -> None:
    made(tmp_path)
    made(tmp_path / "b")
    made(tmp_path / "a")
    made(tmp_path / ".hidden")
    made(tmp_path / "a" / "deeper")
    (tmp_path / "no run").mkdir()
    (tmp_path / "file").write_text("")
    assert [run.name for run in shown(tmp_path).all()] == [tmp_path.name, "a", "b"]


def test_a_run_that_begins_is_seen(tmp_path: Path) -> None:
    runs = shown(tmp_path)
    assert runs.all() == []
    made(tmp_path / "mine")
    [run] = runs.all()
    assert (run.standing.images_seen, run.curves, run.previews) == (0, {}, [])
    made(tmp_path / "mine", told(10, loss=1.0))
    assert dict(runs.run("mine").curves) == {"loss": [(10, 1.0)]}
    made(tmp_path / "mine", told(20, loss=0.5))
    assert runs.run("mine").curves["loss"][-1] == (20, 0.5)


def test_a_log_that_went_back_is_read_again(tmp_path: Path) -> None:
    folder = made(tmp_path / "mine", told(10, loss=1.0), told(20, loss=0.5))
    runs = shown(tmp_path)
    assert len(runs.run("mine").curves["loss"]) == 2
    RunLog(folder / "log.jsonl").rewind(10)
    assert len(runs.run("mine").curves["loss"]) == 1


def test_a_log_that_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "mine", told(10, loss=1.0))
    runs = shown(tmp_path)
    first = runs.run("mine").curves
    monkeypatch.setattr("unstir.server.runs.curves_of", lambda lines: pytest.fail("it was read again"))
    assert runs.run("mine").curves is first


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../mine", "mine/../mine", "mine/", "/etc", "~", "MINE", "mine\0", "\ud800", "x" * 10**5]
)
def test_a_name_is_looked_up_and_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    made(tmp_path / "runs" / "mine")
    made(tmp_path / "mine")
    with pytest.raises(Unknown) as caught:
        shown(tmp_path / "runs").run(name)
    assert str(tmp_path) not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_sheet_is_the_one_of_its_number(tmp_path: Path) -> None:
    folder = made(tmp_path / "mine", previews=(5, 70))
    (folder / "previews" / "note.png").write_text("no sheet")
    (folder / "previews" / "\u0663.png").write_text("no sheet either")
    runs = shown(tmp_path)
    assert runs.run("mine").previews == [70, 5]
    assert runs.preview("mine", 5) == (folder / "previews" / "0000000005.png").read_bytes()
    for name, seen in (("mine", 6), ("mine", -5), ("other", 5)):
        with pytest.raises(Unknown):
            runs.preview(name, seen)


@pytest.mark.parametrize(
    "line",
    [
        '{"images_seen": null, "loss": 1}',
        '{"images_seen": NaN, "loss": 1}',
        '{"images_seen": Infinity, "loss": 1}',
        '{"images_seen": 1' + "0" * 400 + ', "loss": 1}',
        '{"images_seen": 5, "loss": null}',
        '{"images_seen": 5, "loss": [1]}',
        '{"images_seen": 5, "loss": 1' + "0" * 400 + "}",
        '{"images_seen": 5, "loss": NaN}',
        '{"images_seen": 5, "held_out": {"a": NaN, "b": "c"}}',
        '{"images_seen": 5, "images_per_second": 0}',
        '{"images_seen": 5, "images_per_second": "fast"}',
        '{"images_seen": 5, "loss": -Infinity}',
    ],
)
def test_no_log_breaks_the_list_of_runs(tmp_path: Path, line: str) -> None:
    folder = made(tmp_path / "odd")
    (folder / "log.jsonl").write_text(f"{line}\n")
    made(tmp_path / "sound", told(10, loss=1.0))
    runs = shown(tmp_path, "held")
    assert [run.name for run in runs.all()][-1] == "sound"
    try:
        run = runs.run("odd")
    except Unknown:
        return
    values = [value for points in run.curves.values() for _, value in points]
    values += [*run.numbers.values(), *(value for row in run.bands.values() for value in row.values())]
    assert all(value is None or math.isfinite(value) for value in [*values, run.seconds_left])


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"training": 1}'])
def test_a_folder_with_another_file_of_that_name_is_no_run(tmp_path: Path, config: str) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text(config)
    assert shown(tmp_path).all() == []
    with pytest.raises(Unknown):
        shown(tmp_path).run("other")


def test_a_folder_whose_name_is_no_text_is_left_out(tmp_path: Path) -> None:
    made(tmp_path / "mine")
    made(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")))
    assert [run.name for run in shown(tmp_path).all()] == ["mine"]


def test_a_folder_that_is_not_there_has_no_runs(tmp_path: Path) -> None:
    assert shown(tmp_path / "nothing").all() == []


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.integers(1, 12))
def test_a_long_curve_becomes_means_of_equal_stretches(values: list[float], most: int) -> None:
    lines = [{"images_seen": 10 * i, "loss": value} for i, value in enumerate(values, start=1)]
    points = curves_of(lines, most)["loss"]
    count = len(points)
    assert count == min(most, len(values))
    assert points[-1][0] == 10 * len(values)
    starts = [0, *(seen // 10 for seen, _ in points)]
    lengths = [end - start for start, end in itertools.pairwise(starts)]
    assert max(lengths) - min(lengths) <= 1
    for (start, end), (_, mean) in zip(itertools.pairwise(starts), points, strict=True):
        assert mean == pytest.approx(sum(values[start:end]) / (end - start), abs=1e-6)


def test_a_stretch_with_what_is_no_number_is_none() -> None:
    lines = [{"images_seen": i, "loss": value} for i, value in enumerate([1.0, math.nan, 3.0, 5.0])]
    assert curves_of(lines, 2)["loss"] == [(1, None), (3, 4.0)]


def test_nothing_is_written(tmp_path: Path) -> None:
    folder = made(tmp_path / "mine", told(10, loss=1.0), previews=(5,))
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    runs = shown(tmp_path)
    runs.all(), runs.run("mine"), runs.preview("mine", 5)
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before
