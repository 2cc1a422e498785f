"""What a person reads of a set before training on it."""

import io
from pathlib import Path

import pytest
from PIL import Image

from unstir.data import find_pictures, summarize


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def make_sidecars(root: Path) -> None:
    for number in range(3):
        put(root / f"{number}.png", png())
        put(root / f"{number}.txt", f"caption {number}")


def test_the_summary(tmp_path: Path) -> None:
    make_sidecars(tmp_path / "train")
    put(tmp_path / "test" / "c.png", png((16, 4)))
    put(tmp_path / "test" / "d.png", png((32, 20)))
    put(tmp_path / "test" / "e.png", b"broken")
    put(tmp_path / "notes.pdf", b"")
    summary = summarize(find_pictures(tmp_path))
    assert summary.splits == (("train", 3), ("test", 3))
    assert dict(summary.sources) == {"sidecar": 3, "none": 3}
    assert summary.sizes == ((8, 8), (8, 8), (32, 20))
    assert summary.unreadable == ("test/e.png",)
    assert summary.uncaptioned == ("test/c.png", "test/d.png", "test/e.png")
    text = "\n".join(summary.lines())
    for part in (
        f"6 pictures in {tmp_path}",
        "splits: train 3, test 3",
        "sizes: 8x8 to 32x20, median 8x8 (6 files looked at)",
        "no caption: test/c.png",
        "skipped 1 (not a picture: .pdf): notes.pdf",
    ):
        assert part in text
    assert text.count("example: ") == 5


def test_the_summary_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for index in range(40):
        put(tmp_path / f"{index}.png", png())
        put(tmp_path / f"{index}.txt", f"caption {index}")
    pictures = find_pictures(tmp_path)
    assert summarize(pictures).lines() == summarize(pictures).lines()
    assert summarize(pictures).lines() != summarize(pictures, seed=1).lines()


def test_what_is_done_to_pictures_that_are_not_square(tmp_path: Path) -> None:
    for number, size in enumerate(((8, 8), (16, 8), (8, 16))):
        put(tmp_path / f"{number}.png", png(size))
    put(tmp_path / "3.png", b"broken")
    pictures = find_pictures(tmp_path)
    expected = {
        "crop": "centre crop (pad or buckets with --aspect)",
        "pad": "white is put around them (crop or buckets with --aspect)",
        "buckets": "each is cropped to the nearest of the shapes that have the area of the square (crop or pad with --aspect)",
    }
    for aspect, words in expected.items():
        assert f"aspect: 2 of 3 pictures are not square; {words}" in summarize(pictures, aspect=aspect).lines()
    assert summarize(pictures).oblong == 2
    with pytest.raises(ValueError, match="aspect is 'stretch', expected one of crop, pad, buckets"):
        summarize(pictures, aspect="stretch")
    for name in ("1.png", "2.png"):
        (tmp_path / name).unlink()
    assert not any("aspect" in line for line in summarize(find_pictures(tmp_path)).lines())


def test_sizes_are_read_out_of_archives(tmp_path: Path) -> None:
    import tarfile

    make_sidecars(tmp_path / "set")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "set", arcname=".")
    summary = summarize(find_pictures(tmp_path / "x.tar"))
    assert summary.sizes == ((8, 8),) * 3
    assert summary.unreadable == ()
