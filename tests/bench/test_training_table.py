"""What is told of a benchmark of training: every row has its line, every failure and every compilation its note."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from unstir.bench.training import Conditions, Entry, Result, Role, Timed, rows_of
from unstir.bench.training_table import COLUMNS, figures, notes, tables


@pytest.fixture
def result() -> Result:
    """Four pictures a step in 0.5 s, compiled in 0.25 s, and one that failed."""

    def entry(role: Role, how: str, **given: Any) -> Entry:
        return Entry(side="unstir", how=how, role=role, step=lambda: None, weights=7_000_000, gflop=3.0, **given)

    entries = [entry("ours", "bf16"), entry("compiled", "fast", is_compiled=True), entry("lever", "broken")]
    timed = [Timed(rounds=(0.5,)), Timed(warm=20.5, rounds=(0.25,)), Timed(failure="RuntimeError: no")]
    rows = [{"model": "small", "title": "small U-Net", **row} for row in rows_of(entries, timed, 4)]
    rows = [{**row, "share_of_peak": share} for row, share in zip(rows, (0.06, 0.12, None), strict=True)]
    shared = Conditions(batch=4, repeats=1, device=torch.device("cpu"), precision="bf16")
    return Result(rows=rows, peaks={"float32": 100.0, "bf16": 400.0}, conditions=shared, has_peers=True)


def test_a_line_says_pictures_a_second_and_the_share_of_the_peak(result: Result) -> None:
    [lines] = tables(result).values()
    told = [dict(zip(COLUMNS, line, strict=True)) for line in lines]
    assert [line["images/s"] for line in told] == ["8.0", "16.0", "-"]
    assert [line["of peak"] for line in told] == ["6%", "12%", "-"]
    assert [line["x ours"] for line in told] == ["1.00", "2.00", "-"]
    assert [line["who"] for line in told] == ["unstir: bf16", "unstir: fast", "unstir: broken"]


def test_notes_say_what_a_share_is_of_and_what_compiling_and_failing_cost(result: Result) -> None:
    told = notes(result)
    assert any("model-FLOP utilisation; peak: 100 GFLOP/s in float32, 400 GFLOP/s in bf16" in line for line in told)
    assert told[-2:] == [
        "small U-Net, unstir: fast: compiled in 20 s",
        "small U-Net, broken: failed: RuntimeError: no",
    ]


def test_figures_are_json(result: Result) -> None:
    told = json.loads(json.dumps(figures(result), allow_nan=False))
    assert told["tables"] == tables(result)
    assert (told["batch"], told["precision"], told["columns"]) == (4, "bf16", list(COLUMNS))
