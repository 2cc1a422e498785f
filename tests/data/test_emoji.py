"""The emoji set: its counts, its split, and that a folder is written whole or not at all."""

import hashlib
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unstir.data import EmojiSummary, build_emoji, emoji, find_pictures, load_pictures, split_of

SKIN_TONES = "🏻🏼🏽🏾🏿"

needs_packages = pytest.mark.skipif(
    not (emoji.FONT.is_file() and (emoji.ANNOTATIONS / "annotationsDerived" / "en.xml").is_file()),
    reason="EMOJI NOT TESTED: apt-get install fonts-noto-color-emoji unicode-cldr-core",
)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> EmojiSummary:
    return build_emoji(tmp_path_factory.mktemp("emoji") / "set", size=16)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only thirty sequences, for the tests that are about folders."""
    read = emoji._read_annotations

    def read_few(locale: str) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
        names, keywords = read(locale)
        chosen = [sequence for sequence in names if sequence >= "\U0001f000"][:30]
        return {sequence: names[sequence] for sequence in chosen}, keywords

    monkeypatch.setattr(emoji, "_read_annotations", read_few)


def rows(directory: Path) -> list[dict[str, object]]:
    return [row for path in sorted((directory / "data").iterdir()) for row in parquet.read_table(path).to_pylist()]


@needs_packages
def test_the_counts(built: EmojiSummary) -> None:
    assert (built.pictures, built.held_out) == (3621, 184)
    assert built.train + built.validation + built.held_out == built.pictures
    assert (built.size, built.language) == (16, "en")
    assert sorted(path.name for path in (built.directory / "data").iterdir()) == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00001.parquet",
        "validation-00000-of-00001.parquet",
    ]


@needs_packages
def test_nothing_held_out_is_in_the_training_part(built: EmojiSummary) -> None:
    found = Counter[str]()
    for path in (built.directory / "data").iterdir():
        split = path.name.split("-")[0]
        for row in parquet.read_table(path, columns=["id", "split"]).to_pylist():
            remainder = int(hashlib.sha256(row["id"].encode()).hexdigest(), 16) % 10
            toned = len(row["id"]) > 1 and any(tone in row["id"] for tone in SKIN_TONES)
            expected = {0: "test", 1: "validation"}.get(remainder, "train") if toned else "train"
            assert row["split"] == split == expected == split_of(row["id"])
            found[split] += 1
    assert found == {"train": built.train, "validation": built.validation, "test": 184}


@needs_packages
def test_the_columns(built: EmojiSummary) -> None:
    all_rows = rows(built.directory)
    by_id = {row["id"]: row for row in all_rows}
    assert len(by_id) == len({row["image"]["path"] for row in all_rows}) == 3621
    assert not any("\ufe0f" in row["id"] for row in all_rows)
    assert all(row["text"] == row["name"] for row in all_rows)
    grinning = by_id["😀"]
    assert grinning["name"] == "grinning face"
    assert grinning["keywords"] == ["face", "grin", "grinning face"]
    assert grinning["image"]["path"] == "1f600.png"
    assert by_id["🏴󠁧󠁢󠁥󠁮󠁧󠁿"]["name"] == "flag: England"
    assert by_id["#⃣"]["name"] == "keycap: #"
    assert "❤" in by_id
    assert "🇦🇺" in by_id
    assert "🇭🇲" not in by_id  # the same flag, later
    assert by_id["🇦🇺"]["also"] == ["flag: Heard & McDonald Islands"]
    assert {name for row in all_rows for name in row["also"]} >= {"flag: France", "flag: Spain", "flag: United States"}
    assert {row["repeats"] for row in all_rows if "skin tone" in row["name"]} == {1}
    assert by_id["😀"]["repeats"] == 2


@needs_packages
def test_the_layout_is_hugging_faces(built: EmojiSummary) -> None:
    file = parquet.ParquetFile(built.directory / "data" / "train-00000-of-00001.parquet")
    assert str(file.schema_arrow.field("image").type) == "struct<bytes: binary, path: string>"
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert (
        list(features)
        == file.schema_arrow.names
        == [*("image", "text", "id", "name", "keywords", "split", "also", "repeats")]
    )
    assert max(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)) == 100
    card = (built.directory / "README.md").read_text()
    assert card.startswith("---\n")
    for word in ("ofl-1.1", "apache-2.0", "Unicode-DFS-2016", "path: data/validation-*", "3621 distinct"):
        assert word in card


@needs_packages
def test_the_set_reads_back_as_a_picture_set(built: EmojiSummary) -> None:
    pictures = find_pictures(built.directory)
    assert len(pictures.records) == 3621
    assert ("flag: Clipperton Island", "flag: France", "flag: St. Martin") in {r.captions for r in pictures.records}
    grinning = next(record for record in pictures.records if record.key == "😀")
    assert grinning.captions == ("grinning face",)
    assert grinning.keywords == ("face", "grin", "grinning face")
    loaded, kept = load_pictures(pictures.split("test"), 16)
    assert loaded.shape == (184, 3, 16, 16)
    assert kept.skipped == ()
    assert all(split_of(record.key) == "test" for record in kept.records)


@needs_packages
@pytest.mark.usefixtures("few")
def test_the_pictures_are_the_fonts_own_bitmaps_on_white(tmp_path: Path) -> None:
    build_emoji(tmp_path / "set", size=136)
    font = emoji.FONT.read_bytes()
    tables = [font[12 + 16 * index : 28 + 16 * index] for index in range(int.from_bytes(font[4:6], "big"))]
    start, length = next(
        (int.from_bytes(row[8:12], "big"), int.from_bytes(row[12:16], "big")) for row in tables if row[:4] == b"CBDT"
    )
    wanted = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows(tmp_path / "set")[::10]]
    at = start
    while wanted and (at := font.find(b"\x89PNG", at, start + length)) >= 0:
        end = font.find(b"IEND", at) + 8
        drawn = Image.new("RGBA", (136, 136), "white")
        drawn.alpha_composite(Image.open(io.BytesIO(font[at:end])).convert("RGBA"), (0, 4))
        bitmap = np.asarray(drawn.convert("RGB"), dtype=np.int16)
        # FreeType multiplies by alpha and Pillow divides again: one grey level.
        wanted = [picture for picture in wanted if np.abs(bitmap - picture).max() > 1]
        at = end
    assert not wanted


@needs_packages
@pytest.mark.usefixtures("few")
def test_the_same_bytes_every_time_and_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    for name in ("a", "b"):
        build_emoji(tmp_path / name, size=16, progress=lambda done, total: seen.append((done, total)))
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    assert seen[29] == (30, 30)


@needs_packages
@pytest.mark.usefixtures("few")
def test_other_languages_have_the_same_ids(tmp_path: Path) -> None:
    build_emoji(tmp_path / "en", size=8)
    summary = build_emoji(tmp_path / "de", size=8, language="de")
    english = {row["id"]: row for row in rows(tmp_path / "en")}
    german = {row["id"]: row for row in rows(tmp_path / "de")}
    assert german
    assert german.keys() <= english.keys()
    assert german["🏻"]["name"] == "helle Hautfarbe"
    assert all(row["image"] == english[key]["image"] for key, row in german.items())
    assert summary.language == "de"
    assert "language: de" in (tmp_path / "de" / "README.md").read_text()


@needs_packages
def test_english_decides_which_of_equal_pictures_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["🇦🇺", "🇭🇲"]
    orders = {"en": flags, "de": flags[::-1]}
    monkeypatch.setattr(emoji, "_read_annotations", lambda locale: (dict.fromkeys(orders[locale], "Flagge"), {}))
    build_emoji(tmp_path / "set", size=8, language="de")
    assert [row["id"] for row in rows(tmp_path / "set")] == ["🇦🇺"]


@needs_packages
def test_a_regional_language_takes_from_its_parent() -> None:
    names, keywords = emoji._read_with_parents("de_CH")
    assert names["😀"] == emoji._read_annotations("de")[0]["😀"]
    assert keywords["😀"]
    assert emoji._INHERITED not in names.values()


@needs_packages
@pytest.mark.parametrize("language", ["tlh", "../annotations/en", "root", ""])
def test_an_unknown_language_is_refused(tmp_path: Path, language: str) -> None:
    with pytest.raises(ValueError, match=r"not one of the .* en, de"):
        build_emoji(tmp_path / "set", language=language)


@pytest.mark.parametrize("size", [7, 137, 0, -1])
def test_sizes_outside_the_bounds_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match=f"size is {size}, .* 8 to 136"):
        build_emoji(tmp_path / "set", size=size)


@pytest.mark.parametrize("missing", ["FONT", "ANNOTATIONS"])
def test_missing_packages_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(emoji, missing, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="apt-get install fonts-noto-color-emoji unicode-cldr-core"):
        build_emoji(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@needs_packages
@pytest.mark.usefixtures("few")
def test_an_earlier_set_and_an_empty_folder_are_replaced(tmp_path: Path) -> None:
    target = tmp_path / "set"
    target.mkdir()
    build_emoji(target, size=8)
    build_emoji(target, size=16)
    assert Image.open(io.BytesIO(rows(target)[0]["image"]["bytes"])).size == (16, 16)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@needs_packages
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("extra", ["notes.txt", "data/mine.png"])
def test_a_folder_with_other_files_is_refused_and_kept(tmp_path: Path, extra: str) -> None:
    target = tmp_path / "set"
    build_emoji(target, size=8)
    (target / extra).write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        build_emoji(target, size=8)
    assert (target / extra).read_text() == "mine"
    shutil.rmtree(target / "data")
    with pytest.raises(ValueError, match="holds other files"):
        build_emoji(target, size=8)


@needs_packages
def test_a_file_and_the_current_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        build_emoji(tmp_path / "file")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="is in use"):
        build_emoji(Path("."))


@needs_packages
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("when", ["_encode", "_write_split", "_card"])
def test_nothing_is_left_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException], when: str
) -> None:
    def fail(*_: object) -> None:
        raise failure

    build_emoji(tmp_path / "old", size=8)
    monkeypatch.setattr(emoji, when, fail)
    for target in (tmp_path / "old", tmp_path / "new" / "deeper"):
        with pytest.raises(failure):
            build_emoji(target, size=8)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert len(rows(tmp_path / "old")) == 30


@needs_packages
@pytest.mark.usefixtures("few")
def test_the_old_set_comes_back_when_the_last_step_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_emoji(tmp_path / "old", size=8)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        build_emoji(tmp_path / "old", size=8)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert len(rows(tmp_path / "old")) == 30


@given(st.text("a👩👍\u200d", max_size=4), st.sampled_from([*SKIN_TONES, ""]), st.text("b🏿", max_size=2))
def test_split_of_follows_the_rule(before: str, tone: str, after: str) -> None:
    sequence = before + tone + after
    remainder = int(hashlib.sha256(sequence.encode()).hexdigest(), 16) % 10
    toned = len(sequence) > 1 and any(0x1F3FB <= ord(character) <= 0x1F3FF for character in sequence)
    assert (split_of(sequence) == "test") == (toned and remainder == 0)
    assert (split_of(sequence) == "validation") == (toned and remainder == 1)
    assert split_of(sequence) in ("train", "validation", "test")


@pytest.mark.parametrize("tone", SKIN_TONES)
def test_a_tone_by_itself_is_trained_on(tone: str) -> None:
    assert split_of(tone) == "train"
