"""Rows and pictures of parquet files, read by row group."""

from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from unstir.data.parquet import read_names, read_picture, read_rows, require_pictures


@pytest.fixture
def path(tmp_path: Path) -> Path:
    columns = {"image": [bytes([index]) for index in range(5)], "text": list("abcde")}
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet", row_group_size=2)
    return tmp_path / "x.parquet"


def test_rows_know_where_they_are(path: Path) -> None:
    assert read_names(path) == ["image", "text"]
    rows = list(read_rows(path, ["text"]))
    assert [(group, row) for group, row, _ in rows] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert [values for _, _, values in rows] == [{"text": letter} for letter in "abcde"]
    assert len(list(read_rows(path, []))) == 5


def test_pictures_by_row(path: Path) -> None:
    require_pictures(path)
    for index in (4, 0, 3, 1, 2):
        assert read_picture(path, index // 2, index % 2) == bytes([index])


def test_a_file_that_is_written_again_is_read_again(path: Path) -> None:
    assert read_picture(path, 0, 0) == b"\x00"
    changed = path.stat().st_mtime_ns
    parquet.write_table(pyarrow.table({"image": [b"new"]}), path)
    assert path.stat().st_mtime_ns != changed
    assert read_picture(path, 0, 0) == b"new"


@pytest.mark.parametrize("kind", [pyarrow.large_binary(), pyarrow.struct([("bytes", pyarrow.binary())])])
def test_kinds_of_picture_columns(tmp_path: Path, kind: pyarrow.DataType) -> None:
    cell = b"x" if kind == pyarrow.large_binary() else {"bytes": b"x"}
    parquet.write_table(pyarrow.table({"image": pyarrow.array([cell], kind)}), tmp_path / "x.parquet")
    require_pictures(tmp_path / "x.parquet")
    assert read_picture(tmp_path / "x.parquet", 0, 0) == b"x"


def test_a_file_that_is_gone_or_broken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a readable parquet file"):
        read_names(tmp_path / "gone.parquet")
    with pytest.raises(OSError, match="gone"):
        read_picture(tmp_path / "gone.parquet", 0, 0)
