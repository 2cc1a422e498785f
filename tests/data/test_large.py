"""Sets that stay on the disk: what is trained on and held out, what stands in for a broken picture, and when to stop."""

from __future__ import annotations

import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from unstir.data.large import Divided, LargeSet, Lazily, Part, Tally, count_pictures, divide, look_through
from unstir.data.records import PictureSet
from unstir.data.table import Table
from unstir.data.transforms import shape_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value % 256, value // 256, 0)).save(buffer, "png")
    return buffer.getvalue()


def put(path: Path, count: int, *, broken: tuple[int, ...] = (), **more: list[object]) -> Path:
    """Row i is a picture of colour i; row groups of ten."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [b"no picture" if i in broken else png(i) for i in range(count)]
    columns = {"image": pictures, "text": [f"picture {i}" for i in range(count)], **more}
    parquet.write_table(pyarrow.table(columns), path, row_group_size=10)
    return path


def table_in(root: Path, most: int = 0) -> Table:
    table = look_through(root, "auto", most=most)
    assert not isinstance(table, PictureSet)
    return table


def divided(root: Path) -> Divided:
    return divide(table_in(root), aspect="crop", allow_missing_captions=False)


def large(root: Path, max_broken: float = 0.05) -> LargeSet:
    parts = divided(root)
    return LargeSet(
        table=parts.table,
        part=parts.train,
        repeats=parts.repeats,
        shape=shape_of("crop", 4),
        tally=Tally(root=root, max_broken=max_broken),
    )


def numbers(made: LargeSet, rows: range | list[int]) -> list[int]:
    """What the pictures of these rows show."""
    pictures = [made.take(row)[1][:, 0, 0].tolist() for row in rows]
    return [red + 256 * green for red, green, _ in pictures]


def test_what_fits_is_found_as_ever_and_the_split_test_does_not_count(tmp_path: Path) -> None:
    put(tmp_path / "train.parquet", 30)
    put(tmp_path / "test.parquet", 40)
    assert isinstance(look_through(tmp_path, "auto", most=30), PictureSet)
    assert not isinstance(look_through(tmp_path, "auto", most=29), PictureSet)
    assert count_pictures(tmp_path) == 70
    with pytest.raises(ValueError, match="There is no folder"):
        look_through(tmp_path / "none", "auto", most=9)
    with pytest.raises(ValueError, match="those of parquet files are in their columns"):
        look_through(tmp_path, "sidecar", most=0)


def test_every_row_comes_once_an_epoch_with_its_own_caption(tmp_path: Path) -> None:
    made = large(put(tmp_path / "x.parquet", 95))
    shown = made.shown(7, range(95, 190))
    assert sorted(shown) == list(range(95))
    for row in shown:
        record, picture = made.take(row)
        assert record == made.record(row)
        assert record.captions == (f"picture {int(picture[0, 0, 0])}",)


def test_a_set_without_a_validation_split_gives_the_ends_of_some_groups(tmp_path: Path) -> None:
    parts = divided(put(tmp_path / "x.parquet", 300))
    held_out = {int(record.key.split("#")[1]) for record in parts.held_out.records}
    assert 15 <= len(held_out) <= 16
    assert all(number % 10 == 9 for number in held_out)
    assert max(held_out) - min(held_out) > 200
    rows = {group * 10 + row for group, row in map(parts.train.place, range(len(parts.train)))}
    assert rows == set(range(300)) - held_out
    assert not divided(put(tmp_path / "y.parquet", 99)).held_out.records


def test_splits_of_a_column_and_repeats_are_kept(tmp_path: Path) -> None:
    split: list[object] = [("train", "val", "test")[i % 3] if i < 40 else "train" for i in range(60)]
    root = put(tmp_path / "x.parquet", 60, split=split, repeats=[1 + i % 4 for i in range(60)])
    parts, made = divided(root), large(root)
    train = [i for i in range(60) if split[i] == "train"]
    assert [int(record.key.split("#")[1]) for record in parts.held_out.records] == [
        i for i in range(60) if split[i] == "val"
    ]
    assert numbers(made, range(len(made))) == train
    total = made.order.total
    assert total == sum(1 + i % 4 for i in train)
    shown = numbers(made, made.shown(0, range(total)))
    assert sorted(shown) == sorted(i for i in train for _ in range(1 + i % 4))
    assert any("splits: train" in line for line in parts.lines)


def test_the_split_test_is_never_read(tmp_path: Path) -> None:
    put(tmp_path / "train.parquet", 120)
    put(tmp_path / "test.parquet", 50, broken=tuple(range(50)), split=["test"] * 50)
    made = large(tmp_path)
    numbers(made, range(len(made)))
    assert made.tally.broken == 0
    with pytest.raises(ValueError, match="no pictures to train on: all of its 50"):
        divided(put(tmp_path / "none/val.parquet", 50))


def test_the_next_row_stands_in_for_a_broken_one(tmp_path: Path) -> None:
    made = large(put(tmp_path / "x.parquet", 60, broken=(3, 4, 59)), max_broken=0.2)
    assert numbers(made, [2, 3, 4, 5, 59]) == [2, 5, 5, 5, 0]
    assert made.take(3)[0].captions == ("picture 5",), "its caption is the other's too"
    assert made.tally.broken == 6
    assert "x.parquet#3: The file of 10 bytes" in made.tally.lines()[0]


def test_too_many_broken_ones_stop_and_few_do_not(tmp_path: Path) -> None:
    made = large(put(tmp_path / "x.parquet", 99, broken=tuple(range(0, 99, 2))))
    with pytest.raises(
        ValueError, match=r"of the 2\d pictures read so far .*x\.parquet cannot be decoded.*--max-broken"
    ):
        numbers(made, range(99))
    fine = large(put(tmp_path / "y.parquet", 99, broken=(1, 50)))
    numbers(fine, range(99))
    none = large(put(tmp_path / "z.parquet", 99, broken=(50,)), max_broken=0.0)
    with pytest.raises(ValueError, match="1 of the 51 pictures"):
        numbers(none, range(99))
    all_of_them = large(put(tmp_path / "a.parquet", 99, broken=tuple(range(99))), max_broken=1.0)
    with pytest.raises(ValueError, match="in a row cannot be decoded"):
        all_of_them.take(0)


def test_missing_captions_are_refused_unless_allowed(tmp_path: Path) -> None:
    root = put(tmp_path / "x.parquet", 30, text=[None if i == 4 else "x" for i in range(30)])
    with pytest.raises(ValueError, match=r"1 of the 30 pictures .* have no caption.*--allow-missing-captions"):
        divided(root)
    assert "without a caption: 1" in divide(table_in(root), aspect="crop", allow_missing_captions=True).lines


def test_files_are_read_lazily_as_well(tmp_path: Path) -> None:
    for i in range(300):
        folder = tmp_path / "set" / ("validation" if i % 10 == 0 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:03d}.png").write_bytes(png(i))
        (folder / f"{i:03d}.txt").write_text(f"picture {i}")
    made = large(tmp_path / "set")
    assert numbers(made, made.shown(0, range(len(made)))) != list(range(270))
    assert sorted(numbers(made, range(len(made)))) == [i for i in range(300) if i % 10]
    assert len(divided(tmp_path / "set").held_out.records) == 30


def test_another_process_opens_its_own(tmp_path: Path) -> None:
    made = large(put(tmp_path / "x.parquet", 60))
    numbers(made, [1, 2])
    again = pickle.loads(pickle.dumps(made))
    assert numbers(again, again.shown(3, range(20))) == numbers(made, made.shown(3, range(20)))


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=40), most=st.integers(40, 100), groups=st.integers(1, 40)
)
def test_what_is_spread_is_bounded_different_and_reaches_the_end(sizes: list[int], most: int, groups: int) -> None:
    part = Part(counts=np.array(sizes), chosen={})
    rows = part.spread(most, groups)
    assert len(rows) <= most
    assert rows == sorted(set(rows))
    assert all(0 <= row < len(part) for row in rows)
    if len(part) > most and groups > 1:
        assert part.place(rows[0])[0] == next(i for i, size in enumerate(sizes) if size)
        assert part.place(rows[-1])[0] == max(i for i, size in enumerate(sizes) if size)


def test_threads_read_the_same(tmp_path: Path) -> None:
    made = large(put(tmp_path / "x.parquet", 400))
    rows = made.shown(1, range(300))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda row: numbers(made, [row])[0], rows)) == numbers(made, rows)


def test_a_lazy_sequence_is_one() -> None:
    lazily = Lazily(4, lambda i: i * i)
    assert list(lazily) == [0, 1, 4, 9]
    assert (lazily[-1], lazily[1:3], len(lazily)) == (9, (1, 4), 4)
    with pytest.raises(IndexError):
        lazily[4]
