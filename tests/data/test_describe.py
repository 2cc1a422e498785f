"""What is counted is what is there: on sets made by hand, against numpy, and with everything wrong that can be."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unstir.data import choose_pairs, describe, find_pictures
from unstir.data.describe import _captions, _look, _sizes, _words
from unstir.data.description import Twins
from unstir.data.records import InFile, PictureSet, Record
from unstir.data.transforms import decode, square


def noisy(seed: int, size: tuple[int, int] = (24, 24)) -> Image.Image:
    """A picture with large random blocks, unlike any other."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def save(image: Image.Image, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def write_rows(root: Path, rows: dict[str, object]) -> None:
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows.items()]
    (root / "metadata.jsonl").write_text("\n".join(lines))


def record(key: str, *captions: str, keywords: tuple[str, ...] = (), split: str = "train") -> Record:
    source = "metadata" if captions else "none"
    return Record(
        key=key, captions=captions, source=source, split=split, locate=InFile(path=Path(key)), keywords=keywords
    )


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Ten files in two splits, with everything planted once."""
    save(noisy(0), tmp_path / "train/a1.png")
    save(noisy(0), tmp_path / "train/a2.png")  # equal to a1
    save(noisy(1, (48, 48)), tmp_path / "train/b1.png")
    save(noisy(1, (48, 48)), tmp_path / "train/b2.jpg", quality=60)  # near to b1
    save(noisy(2, (48, 24)), tmp_path / "train/wide.png")
    save(noisy(3, (8, 8)), tmp_path / "train/small.png")
    save(noisy(4).convert("L"), tmp_path / "train/grey.png")
    (tmp_path / "train/broken.png").write_bytes(b"no picture")
    save(noisy(0), tmp_path / "test/leak.png")  # equal to a1
    save(noisy(1, (44, 44)), tmp_path / "test/near.png")  # near to b1
    (tmp_path / "train/notes.doc").write_text("")
    write_rows(
        tmp_path,
        {
            "train/a1.png": "a red fox",
            "train/a2.png": "a red fox",
            "train/b1.png": ["a green tree", "a tree with leaves"],
            "train/b2.jpg": "a green tree",
            "train/wide.png": "a fox-hunter's horn",
            "train/small.png": "a " + "very " * 40 + "small fox",
            "train/broken.png": "gone",
            "test/leak.png": "a red fox",
        },
    )
    return tmp_path


def test_everything_planted_is_counted(made: Path) -> None:
    found = describe(find_pictures(made), 16)
    assert found.splits == (("train", 8), ("test", 2))
    assert found.pictures == 10
    assert found.files.looked_at == 10
    assert [key for key, _ in found.files.broken] == ["train/broken.png"]
    assert "not a picture" in found.files.broken[0][1]
    assert found.files.skipped == (("train/notes.doc", "not a picture: .doc"),)
    captions = found.captions
    assert captions.sources == (("metadata", 8), ("none", 2))
    assert captions.missing == (("test/near.png", "test"), ("train/grey.png", "train"))
    assert (captions.single, captions.several, captions.distinct) == (7, 1, 6)
    assert captions.common == (("a red fox", 3), ("a green tree", 2))
    assert captions.words == (3, 43)
    assert captions.long == 1
    assert found.words.vocabulary == 12
    assert found.words.once == 7
    assert found.words.examples == ("fox-hunter's", "gone", "horn", "leaves", "small", "very", "with")
    sizes = found.sizes
    assert sizes is not None
    assert (sizes.smallest, sizes.median, sizes.largest) == ((8, 8), (24, 24), (48, 48))
    assert (sizes.square, sizes.oblong, sizes.small) == (16, 1, 1)
    assert sizes.cut == pytest.approx(0.5 / 9)
    duplicates = found.duplicates
    assert duplicates.equal == (("test/leak.png", "train/a1.png", "train/a2.png"),)
    assert duplicates.near == (("test/near.png", "train/b1.png", "train/b2.jpg"),)
    assert duplicates.across == (
        Twins(one="test/leak.png", one_split="test", other="train/a1.png", other_split="train", is_equal=True),
        Twins(one="test/near.png", one_split="test", other="train/b1.png", other_split="train", is_equal=False),
        Twins(one="test/near.png", one_split="test", other="train/b2.jpg", other_split="train", is_equal=False),
    )


def test_equal_pictures_join_the_group_of_a_near_one(tmp_path: Path) -> None:
    image = noisy(1, (48, 48))
    for name in ("a.png", "b.png"):
        save(image, tmp_path / name)
    save(image, tmp_path / "c.jpg", quality=60)
    duplicates = describe(find_pictures(tmp_path), 16).duplicates
    assert duplicates.equal == (("a.png", "b.png"),)
    assert duplicates.near == (("a.png", "b.png", "c.jpg"),)
    assert duplicates.across == ()


def test_equal_means_pixels_not_files(tmp_path: Path) -> None:
    """PNG and BMP of one picture are equal; the same pixels in another arrangement are not."""
    save(noisy(0), tmp_path / "a.png")
    save(noisy(0), tmp_path / "b.bmp")
    pixels = np.asarray(noisy(5, (24, 12)))
    save(Image.fromarray(pixels), tmp_path / "c.png")
    save(Image.fromarray(pixels.reshape(24, 12, 3)), tmp_path / "d.png")
    assert describe(find_pictures(tmp_path), 16).duplicates.equal == (("a.png", "b.bmp"),)


def test_pixels_are_those_of_numpy(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (20, 20, 3)).astype(np.uint8) for _ in range(4)]
    images[1][:10] = 255
    images[2][:, :5] = 0
    images[3] = np.repeat(images[3][:, :, :1], 3, axis=2)
    for index, pixels in enumerate(images):
        save(Image.fromarray(pixels), tmp_path / f"{index}.png")
    found = describe(find_pictures(tmp_path), 20).pixels
    assert found is not None
    flat = np.stack(images).reshape(-1, 3)
    assert found.mean == pytest.approx(tuple((flat / 255).mean(axis=0)), abs=1e-12)
    assert found.deviation == pytest.approx(tuple((flat / 255).std(axis=0)), abs=1e-12)
    assert found.white == (flat == 255).all(axis=1).mean() >= 0.125
    assert found.black == (flat == 0).all(axis=1).mean() >= 0.0625
    assert found.grey == 0.25


def test_pixels_are_those_that_are_trained_on(tmp_path: Path) -> None:
    """Cropped to the middle and resized: the red sides of a wide picture do not count."""
    pixels = np.zeros((16, 48, 3), dtype=np.uint8)
    pixels[..., 0] = 255
    pixels[:, 16:32] = (0, 0, 255)
    save(Image.fromarray(pixels), tmp_path / "a.png")
    found = describe(find_pictures(tmp_path), 8).pixels
    assert found is not None
    assert found.mean == (0, 0, 1)
    assert found.deviation == (0, 0, 0)


def test_jpeg_makes_no_colour_of_grey(tmp_path: Path) -> None:
    save(noisy(0).convert("L").convert("RGB"), tmp_path / "a.jpg", quality=70)
    found = describe(find_pictures(tmp_path), 16).pixels
    assert found is not None
    assert found.grey == 1


@pytest.mark.parametrize(("difference", "share"), [(2, 1), (3, 0)])
def test_a_faint_tint_is_no_colour(tmp_path: Path, difference: int, share: int) -> None:
    save(Image.new("RGB", (8, 8), (100, 100 + difference, 100)), tmp_path / "a.png")
    found = describe(find_pictures(tmp_path), 8).pixels
    assert found is not None
    assert found.grey == share


def test_a_caption_said_twice_of_one_picture_is_not_common() -> None:
    found = _captions([record("a", "x", "x"), record("b", "y"), record("c", "y", "y")])
    assert (found.common, found.distinct, found.single, found.several) == ((("y", 2),), 2, 1, 2)


TEXTS = st.lists(st.text("ab '-", min_size=1, max_size=9), max_size=3)


@given(st.lists(TEXTS, min_size=1, max_size=8))
def test_counts_of_captions_add_up(texts: list[list[str]]) -> None:
    records = [record(str(index), *captions) for index, captions in enumerate(texts)]
    found = _captions(records)
    assert len(found.missing) + found.single + found.several == len(records)
    assert sum(count for _, count in found.sources) == len(records)
    assert found.distinct == len({caption for captions in texts for caption in captions})
    counts = [count for _, count in found.common]
    assert counts == sorted(counts, reverse=True)
    for caption, count in found.common:
        assert count == sum(caption in captions for captions in texts) > 1
    assert found.words[0] <= found.words[1]


@given(st.lists(TEXTS, min_size=1, max_size=8), st.integers(0, 5))
def test_words_of_one_picture_are_in_one_picture(texts: list[list[str]], seed: int) -> None:
    records = [record(str(index), *captions) for index, captions in enumerate(texts)]
    found = _words(records, seed)
    assert len(found.examples) == min(20, found.once) <= found.vocabulary
    for word in found.examples:
        assert sum(any(word in caption for caption in captions) for captions in texts) >= 1
    doubled = [*records, *(replace(one, key=f"again {one.key}") for one in records)]
    assert _words(doubled, seed).once == 0
    assert _words(doubled, seed).vocabulary == found.vocabulary


def test_words_of_any_script_keywords_too() -> None:
    records = [
        record("a", "Ein Fuchs, ein FUCHS!", keywords=("wild animal",)),
        record("b", "красная лиса", "don't", "don\N{RIGHT SINGLE QUOTATION MARK}t snake_case 3"),
        record("c", "fuchs animal", keywords=("wild",)),
    ]
    found = _words(records, 0)
    once = {"ein", "красная", "лиса", "don't", "don\N{RIGHT SINGLE QUOTATION MARK}t", "snake", "case", "3"}
    assert set(found.examples) == once
    assert (found.once, found.vocabulary) == (8, 11)


def test_examples_of_words_are_few_and_chosen_by_the_seed() -> None:
    records = [record(str(index), f"word{index}") for index in range(100)]
    one, again, other = (_words(records, seed) for seed in (1, 1, 2))
    assert one == again
    assert one.examples != other.examples
    assert (one.once, len(one.examples)) == (100, 20)
    assert list(one.examples) == sorted(one.examples)


def test_captions_of_thirty_words_are_not_long() -> None:
    assert _captions([record("a", " ".join(["word"] * 30)), record("b", " ".join(["word"] * 31))]).long == 1


def test_sizes_go_by_area_and_the_shorter_side_decides_what_is_enlarged() -> None:
    found = _sizes([(50, 4), (30, 30), (8, 8)], 16)
    assert (found.smallest, found.median, found.largest) == ((8, 8), (50, 4), (30, 30))
    assert (found.oblong, found.small) == (1, 2)


def test_a_picture_that_an_archive_cannot_give_is_broken(tmp_path: Path) -> None:
    """The zip tells the checksum of what it holds; the picture itself would decode."""
    content = io.BytesIO()
    noisy(0).save(content, "BMP")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.bmp", content.getvalue())
        archive.writestr("b.bmp", content.getvalue())
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[data.index(content.getvalue()) + 100] ^= 1
    (tmp_path / "x.zip").write_bytes(data)
    assert [key for key, _ in describe(find_pictures(tmp_path / "x.zip"), 8).files.broken] == ["a.bmp"]


def test_a_large_set_is_looked_at_in_part(tmp_path: Path) -> None:
    for index in range(12):
        save(noisy(index), tmp_path / f"{index}.png")
    pictures = find_pictures(tmp_path)
    part = describe(pictures, 8, limit=5)
    assert (part.pictures, part.files.looked_at, len(part.captions.missing)) == (12, 5, 12)
    assert describe(pictures, 8, limit=5) == part
    assert describe(pictures, 8, limit=5, seed=1).pixels != part.pixels
    assert describe(pictures, 8, limit=12, seed=1) == replace(describe(pictures, 8), words=part.words)


def test_nothing_that_can_be_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    pictures = find_pictures(tmp_path)
    gone = PictureSet(root=tmp_path, records=(*pictures.records, record("gone.png")))
    found = describe(gone, 8)
    assert (found.sizes, found.pixels) == (None, None)
    assert [key for key, _ in found.files.broken] == ["a.png", "gone.png"]
    assert found.duplicates.across == found.duplicates.near == found.duplicates.equal == ()
    assert choose_pairs(gone, 8) == ()


def test_progress_goes_to_the_end(made: Path) -> None:
    told: list[tuple[str, int, int]] = []
    describe(find_pictures(made), 16, progress=lambda *done: told.append(done))
    assert told == [("looking at pictures", 10, 10), ("comparing pictures", 8, 8)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 0}, "size is 0, expected 1 to 4096 pixels"),
        ({"size": 5000}, "size is 5000, expected 1 to 4096 pixels"),
        ({"size": 8, "limit": 0}, "limit is 0, expected 1 or more"),
        ({"size": 8, "seed": -1}, "seed is -1, expected 0 or more"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_read(settings: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        describe(PictureSet(root=Path("nowhere"), records=(record("a"),)), **settings)
    if "limit" not in settings:
        with pytest.raises(ValueError, match=words):
            choose_pairs(PictureSet(root=Path("nowhere"), records=(record("a"),)), **settings)


def test_pairs_are_random_and_whole(made: Path) -> None:
    pictures = find_pictures(made)
    pairs = choose_pairs(pictures, 16, count=10)
    assert len(pairs) == 9  # the broken one is left out
    by_key = {one.key: one for one in pictures.records}
    for pair in pairs:
        assert pair.caption == next(iter(by_key[pair.key].captions), None)
        expected = square(decode(pictures.read(by_key[pair.key])), 16).transpose(1, 2, 0)
        assert (np.asarray(pair.picture) == expected).all()
    few = choose_pairs(pictures, 16, count=5)
    assert [pair.key for pair in few] == [pair.key for pair in pairs[:5]]
    others = [[pair.key for pair in choose_pairs(pictures, 16, seed=seed)] for seed in range(1, 4)]
    assert any(keys != [pair.key for pair in few] for keys in others)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_groups_of_equal_pictures_are_those_of_equal_bytes(numbers: list[int]) -> None:
    """Whatever is repeated how often, in which order."""

    class InMemory(PictureSet):
        def read(self, record: Record) -> bytes:
            buffer = io.BytesIO()
            noisy(int(record.captions[0])).save(buffer, "PNG")
            return buffer.getvalue()

    records = tuple(record(f"{index}.png", str(number)) for index, number in enumerate(numbers))
    found = describe(InMemory(root=Path("memory"), records=records), 8).duplicates
    expected = {
        tuple(f"{i}.png" for i, other in enumerate(numbers) if other == number)
        for number in numbers
        if numbers.count(number) > 1
    }
    assert set(found.equal) == expected
    assert found.near == found.across == ()


def test_a_look_is_small_whatever_the_picture(tmp_path: Path) -> None:
    save(noisy(0, (600, 600)), tmp_path / "a.png")
    seen = _look((tmp_path / "a.png").read_bytes(), 512)
    assert not isinstance(seen, str)
    look, levels = seen
    assert len(pickle.dumps(look)) < 2000
    assert look.digest == hashlib.sha256(b"600x600:" + noisy(0, (600, 600)).tobytes()).digest()
    assert int(levels.sum()) == 3 * 512 * 512
