"""Files of prompts: four formats that say the same, and everything that is wrong with one, told with its line."""

from __future__ import annotations

import csv
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unstir.generation.prompts import Wanted, read_prompts

ROWS: list[dict[str, Any]] = [
    {"prompt": "a red heart"},
    {"prompt": "a cat, with tears", "seed": 7},
    {"prompt": "pizza", "n": 2},
    {"prompt": 'a "dog"', "seed": 100, "negative": "blue", "n": 2},
    {"prompt": "🍕"},
]
# What these rows ask for with seed 40: (prompt, seed, negative).
ASKED = [
    ("a red heart", 40, "grey"),
    ("a cat, with tears", 7, "grey"),
    ("pizza", 42, "grey"),
    ("pizza", 43, "grey"),
    ('a "dog"', 100, "blue"),
    ('a "dog"', 101, "blue"),
    ("🍕", 46, "grey"),
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "seed", "negative", "n"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        names = ("prompt", "seed", "negative", "n")
        pyarrow.parquet.write_table(pyarrow.table({name: [row.get(name) for row in rows] for name in names}), path)
    return path


def told(path: Path, **settings: Any) -> list[tuple[str, int, str]]:
    wanted = list(read_prompts(path, **{"seed": 40, "negative": "grey", **settings}))
    assert [one.index for one in wanted] == list(range(len(wanted)))
    return [(one.prompt, one.seed, one.negative) for one in wanted]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".JSONL"])
def test_formats_say_the_same(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"prompts{suffix.lower()}", ROWS)
    assert told(path.rename(tmp_path / f"p{suffix}")) == ASKED


def test_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeff a red heart \r\n\n  \t\npizza, hot\n🍕".encode())
    assert told(path, number=2, seed=0) == [
        (prompt, seed, "grey")
        for prompt, seeds in (("a red heart", (0, 1)), ("pizza, hot", (2, 3)), ("🍕", (4, 5)))
        for seed in seeds
    ]
    assert [one.where for one in read_prompts(path, seed=0)] == [f"{path}, line {line}" for line in (1, 4, 5)]


def test_numbers_in_columns_with_gaps_and_cells(tmp_path: Path) -> None:
    """pandas writes whole numbers beside gaps as 7.0 and NaN; CSV has nothing but text."""
    table = pyarrow.table({"prompt": ["a", "b"], "seed": [7.0, float("nan")]})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    (tmp_path / "p.csv").write_text("seed,prompt\n 7 ,a\n,b\n")
    for name in ("p.parquet", "p.csv"):
        assert told(tmp_path / name) == [("a", 7, "grey"), ("b", 41, "grey")]


def test_negative_words_are_taken_back_by_an_empty_text(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": "a", "negative": ""}, {"prompt": "a"}])
    assert [one.negative for one in read_prompts(path, seed=0, negative="grey")] == ["", "grey"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1), min_size=1))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, prompts: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text("\n".join(prompts), "utf-8")
    if prompts[0].startswith("\ufeff"):
        return
    assert [one.prompt for one in read_prompts(path, seed=0)] == prompts


def test_a_long_file_is_read_as_far_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"a\nb\n\xff\n")
    assert [one.prompt for one in islice(read_prompts(path, seed=0), 2)] == ["a", "b"]


BAD: dict[str, tuple[str, bytes, str]] = {
    "empty": ("p.txt", b"", "holds no prompt"),
    "blank": ("p.txt", b"\n \n\t\n", "holds no prompt"),
    "empty csv": ("p.csv", b"", "holds no prompt"),
    "header alone": ("p.csv", b"prompt\n", "holds no prompt"),
    "empty parquet": ("p.parquet", b"", "not a readable parquet file"),
    "no UTF-8": ("p.txt", b"a\n\n\xff\xfe\n", "line 3: this is not UTF-8"),
    "UTF-16": ("p.txt", "a red heart\n".encode("utf-16"), "line 1: this is not UTF-8"),
    "no UTF-8 in JSON": ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "line 2: this is not UTF-8"),
    "no UTF-8 in CSV": ("p.csv", b"prompt\na\n\xff\n", "line 3: this is not UTF-8"),
    "no JSON": ("p.jsonl", b'{"prompt": "a"}\n\nnonsense\n', "line 3: this is not JSON"),
    "no object": ("p.jsonl", b'["a"]', "line 1: this is no JSON object"),
    "deep": ("p.jsonl", b"[" * 100_000, "line 1: this is not JSON"),
    "huge number": ("p.jsonl", b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "line 1: this is not JSON"),
    "unknown field": ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "a", "sed": 1}', "line 2: unknown field 'sed'; did you mean seed?"),
    "unknown column": ("p.csv", b"prompt,colour\na,red\n", "line 2: unknown field 'colour'"),
    "no prompt": ("p.jsonl", b'{"seed": 1}', "line 1: there is no prompt"),
    "empty prompt": ("p.jsonl", b'{"prompt": " "}', "line 1: there is no prompt"),
    "empty cell": ("p.csv", b"prompt,seed\n,1\n", "line 2: there is no prompt"),
    "no column": ("p.csv", b"text\na\n", "no column prompt, only text"),
    "prompt of a number": ("p.jsonl", b'{"prompt": 3}', "line 1: prompt is 3, expected text"),
    "half a character": ("p.jsonl", rb'{"prompt": "\ud800"}', "line 1: prompt holds half of a character"),
    "seed of words": ("p.jsonl", b'{"prompt": "a", "seed": "x"}', "line 1: seed is 'x', expected a whole number from 0"),
    "seed of a truth": ("p.jsonl", b'{"prompt": "a", "seed": true}', "line 1: seed is True"),
    "seed of a fraction": ("p.jsonl", b'{"prompt": "a", "seed": 1.5}', "line 1: seed is 1.5"),
    "seed below": ("p.csv", b"prompt,seed\na,-1\n", "line 2: seed is '-1'"),
    "n of nothing": ("p.jsonl", b'{"prompt": "a", "n": 0}', "line 1: n is 0, expected a whole number from 1"),
    "negative of a list": ("p.jsonl", b'{"prompt": "a", "negative": ["b"]}', "line 1: negative is ['b'], expected text"),
    "more cells": ("p.csv", b"prompt,seed\na,1,2\n", "line 2: there are more cells"),
    "open quote": ("p.csv", b'prompt\n"a\n', "this is not CSV"),
    "suffix": ("p.json", b'{"prompt": "a"}', "prompts are read from .txt, .jsonl, .csv, .parquet, got p.json"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "words"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=".") as caught:
        list(read_prompts(path, seed=0))
    assert words in str(caught.value)
    assert name in str(caught.value)


def test_columns_of_parquet_are_named(tmp_path: Path) -> None:
    for columns, words in (
        ({"text": ["a"]}, "no column prompt, only text"),
        ({"prompt": ["a"], "id": [1]}, "column 'id'"),
    ):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet")
        with pytest.raises(ValueError, match=words):
            list(read_prompts(tmp_path / "p.parquet", seed=0))


@pytest.mark.parametrize("name", ["nowhere.txt", "folder.txt"])
def test_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(FileNotFoundError, match=name):
        next(read_prompts(tmp_path / name, seed=0))


def test_a_picture_has_its_name() -> None:
    assert Wanted(index=3, prompt="a red heart", seed=0).name == "000003-a-red-heart.png"
