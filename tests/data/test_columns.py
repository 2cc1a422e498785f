"""Parquet files as a table: footers say what they can, columns are read where they must be, and no picture before."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from unstir.data import columns
from unstir.data.columns import ParquetTable, table_of
from unstir.data.folder import find_pictures
from unstir.data.table import ChangedError

TEXTS: list[object] = ["a", "b", "c", "d", "e"]


def put(path: Path, *, pictures: list[object] | None = None, **more: list[object]) -> Path:
    """Five rows, in row groups of two."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"image": pictures or [f"{path.name} {i}".encode() for i in range(5)], "text": TEXTS, **more}
    parquet.write_table(pyarrow.table(table), path, row_group_size=2)
    return path


def table_in(folder: Path, captions: str = "auto") -> ParquetTable:
    return table_of(folder, sorted(folder.glob("*.parquet")), captions, base=folder)


def rows_of(table: ParquetTable) -> list[tuple[int, int]]:
    return [(group, row) for group, size in enumerate(table.sizes.tolist()) for row in range(size)]


def test_rows_are_the_records_that_are_found_when_all_is_read(tmp_path: Path) -> None:
    more: dict[str, list[object]] = {
        "keywords": [["k"], None, [], ["l", "m"], None],
        "repeats": [1, 2, 3, 1, 1],
        "split": ["train", "test", "val", None, "train"],
        "also": [[], ["x"], None, ["y", "z"], []],
    }
    put(tmp_path / "a.parquet", **more)
    put(tmp_path / "test-b.parquet")
    table = table_in(tmp_path)
    found = {record.key: record for record in find_pictures(tmp_path).records}
    assert [table.record(*place) for place in rows_of(table)] == list(found.values())
    for place in rows_of(table):
        record, data = table.row(*place, most_bytes=10**6)
        assert record == found[record.key]
        assert data == f"{record.key.split('#')[0]} {record.key.split('#')[1]}".encode()
    splits = [table.splits(group) for group in range(6)]
    assert [one if isinstance(one, int) else one.tolist() for one in splits] == [[0, 2], [1, 0], 0, 2, 2, 2]
    repeats = [table.repeats(group) for group in range(6)]
    assert [None if one is None else one.tolist() for one in repeats] == [[1, 2], [3, 1], None, None, None, None]


def test_a_column_of_one_value_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.parquet", split=["test"] * 5, repeats=[3] * 5)
    table = table_in(tmp_path)
    monkeypatch.setattr(columns, "read_column", lambda *arguments: pytest.fail("the footer says it all"))
    assert [table.splits(group) for group in range(3)] == [2, 2, 2]
    repeats = table.repeats(2)
    assert repeats is not None
    assert repeats.tolist() == [3]


def test_opening_reads_footers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.parquet")
    for name in ("read_row", "read_column"):
        monkeypatch.setattr(columns, name, lambda *arguments: pytest.fail("a row was read"))
    assert table_in(tmp_path).sizes.tolist() == [2, 2, 1]


def test_missing_captions_are_counted_from_the_footers(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet", text=["a", None, None, "d", "e"])
    put(tmp_path / "test.parquet", text=[None] * 5)
    assert table_in(tmp_path).uncaptioned() == 2
    assert table_in(tmp_path, "none").uncaptioned() == 5
    assert table_in(tmp_path, "none").record(0, 0).captions == ()


def test_the_checksum_is_of_the_content_and_not_of_the_time_or_the_place(tmp_path: Path) -> None:
    first = table_in(put(tmp_path / "a/x.parquet").parent).checksum
    os.utime(tmp_path / "a/x.parquet", ns=(1, 1))
    assert table_in(tmp_path / "a").checksum == first
    assert table_in(put(tmp_path / "b/x.parquet").parent).checksum == first
    assert table_in(tmp_path / "b", "none").checksum != first
    other = put(tmp_path / "c/x.parquet", pictures=[b"longer than the others", b"", b"", b"", b""])
    assert table_in(other.parent).checksum != first


def test_a_missing_shard_is_noted_and_a_truncated_one_refused(tmp_path: Path) -> None:
    put(tmp_path / "train-00000-of-00003.parquet")
    path = put(tmp_path / "train-00002-of-00003.parquet")
    assert any(
        "1 shards are not there, the first is train-00001-of-00003.parquet" in n for n in table_in(tmp_path).notes
    )
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train-00002-of-00003\.parquet is not a readable parquet file"):
        table_in(tmp_path)


def test_a_file_that_changes_or_goes_is_named(tmp_path: Path) -> None:
    path = put(tmp_path / "a.parquet")
    table = table_in(tmp_path)
    table.row(0, 0, most_bytes=10**6)
    path.unlink()
    with pytest.raises(ChangedError, match=r"a\.parquet cannot be read any more"):
        table.row(0, 1, most_bytes=10**6)  # although its row group is still in memory
    put(path, pictures=[b"a"] * 5)
    with pytest.raises(ChangedError, match=r"a\.parquet"):
        table.record(0, 1)


def test_an_empty_cell_is_a_reason_and_a_wrong_value_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet", pictures=[None, b"x", b"x", b"x", b"x"], split=["train", "other", None, None, None])
    table = table_in(tmp_path)
    with pytest.raises(ValueError, match="split is 'other'"):
        table.splits(0)
    assert "no picture" in put_and_read(tmp_path / "b")


def put_and_read(folder: Path) -> str:
    put(folder / "a.parquet", pictures=[None, b"x", b"x", b"x", b"x"])
    reason = table_in(folder).row(0, 0, most_bytes=10**6)[1]
    assert isinstance(reason, str)
    return reason
