"""``unstir evaluate``: its numbers are those of a brute-force computation from the same pictures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from unstir.cli.app import run
from unstir.pipeline import load

Call = Callable[..., tuple[int, str, str]]
_SETTINGS = (
    "--model.size 16 --model.network.size 16 --model.network.width 64 --model.network.depth 2 "
    "--model.network.text.vocabulary 300 --model.sampling.steps 3 --training.precision float32 "
    "--training.optimizer.warmup_images 64 --training.optimizer.learning_rate 0.004 --device cpu --images 480 "
    "--batch 16 --training.wording.forget 0 --training.ema.half_life_images 50"
)
SMALL = _SETTINGS.split()
COLOURS = {
    "red": (230, 20, 20),
    "green": (20, 200, 40),
    "blue": (20, 30, 230),
    "yellow": (240, 220, 20),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}


def read(path: Path) -> numpy.ndarray:
    with Image.open(path) as picture:
        return numpy.array(picture.convert("RGB"))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("places")
    for split, names in (("train", list(COLOURS)[:5]), ("test", list(COLOURS)[5:])):
        (root / "set" / split).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (16, 16), COLOURS[name]).save(root / "set" / split / f"{name}.png")
            (root / "set" / split / f"{name}.txt").write_text(f"the {name} one\nanother {name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        assert run(["train", "tiny", "--data", str(root / "set"), "--out", str(root / "run"), *SMALL]) == 0
    return root


def test_retrieval_is_the_brute_force_one(call: Call, places: Path) -> None:
    """Every drawn picture against every real one, in float64, with the seeds that the protocol says."""
    options = ("--seeds", 2, "--seed", 11, "--batch", 4, "--steps", 4, "--guidance", 1.25)
    status, out, err = call("evaluate", places / "run", "--data", places / "set", *options, "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    files = sorted((places / "set").rglob("*.png"))
    real = numpy.stack([read(file) for file in files]).astype(numpy.float64)
    pipe = load(places / "run")
    for split in ("train", "test"):
        asked = [i for i, file in enumerate(files) if file.parent.name == split]
        prompts = [f"the {files[i].stem} one" for i in asked]
        shares = numpy.zeros((len(asked), 2))
        for seed in range(2):
            drawn = pipe.sample(prompts, seed=11 + seed * len(prompts), batch=4, steps=4, guidance_scale=1.25)
            for row, picture in enumerate(drawn):
                distances = ((real - numpy.array(picture, dtype=numpy.float64)) ** 2).mean((1, 2, 3))
                shares[row, seed] = int(distances.argmin()) == asked[row]
        score = result["prompts"][split]
        assert score["top1"] == pytest.approx(shares.mean())
        means = shares.mean(1)
        error = means.std(ddof=1) / len(means) ** 0.5 if len(means) > 1 else 0.0
        assert score["standard_error"] == pytest.approx(error)
        assert (score["prompts"], score["seeds"], score["candidates"]) == (len(asked), 2, 6)
    assert result["prompts"]["train"]["top1"] > 1 / 6  # it learned something to be measured
    protocol = result["protocol"]
    assert (protocol["first_seed"], protocol["steps"], protocol["guidance"], protocol["size"]) == (11, 4, 1.25, 16)
    assert result["checksum"] == pipe.model.checksum


def test_twice_is_the_same_number_whatever_the_batch(call: Call, places: Path) -> None:
    arguments = ("evaluate", places / "run", "--data", places / "set", "--split", "train", "--seeds", 2, "--json")
    scores = [json.loads(call(*arguments, "--batch", batch)[1])["prompts"] for batch in (1, 16, 16)]
    assert scores[0] == scores[1] == scores[2]
    assert list(scores[0]) == ["train"]


def test_several_processes_draw_a_share_each_and_find_the_same(
    call: Call, places: Path, nursery: Any, tmp_path: Path
) -> None:
    """Also where one of them has nothing to draw: six prompts of two splits for six processes."""
    arguments = ["evaluate", places / "run", "--data", places / "set", "--seeds", 2, "--metrics", "prompts,likeness"]
    arguments += ["--precision", "float32", "--device", "cpu", "--json"]
    alone = json.loads(call(*arguments)[1])
    for ranks in (2, 6):
        out = tmp_path / str(ranks)
        nursery.start_all(arguments, out, ranks)
        assert [status for status, _ in nursery.wait_all()] == [0] * ranks
        found = json.loads(Path(f"{out}.0.out").read_text())
        assert found["prompts"] == alone["prompts"]
        assert found["likeness"] == alone["likeness"]
        assert all(Path(f"{out}.{rank}.out").read_text() == "" for rank in range(1, ranks))


def test_a_limit_chooses_by_the_hash_of_the_key(call: Call, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unstir.pipeline import Pipeline

    asked: list[str] = []
    requests = Pipeline.requests

    def note(self, prompts, **settings):
        asked.extend(prompts)
        return requests(self, prompts, **settings)

    monkeypatch.setattr(Pipeline, "requests", note)
    options = ("--split", "train", "--limit", 2, "--seeds", 1, "--json")
    assert call("evaluate", places / "run", "--data", places / "set", *options)[0] == 0
    keys = sorted(
        (f"train/{name}.png" for name in list(COLOURS)[:5]), key=lambda k: hashlib.sha256(k.encode()).hexdigest()
    )
    assert sorted(asked) == sorted(f"the {Path(key).stem} one" for key in keys[:2])


def test_people_read_the_protocol_with_the_number(call: Call, places: Path) -> None:
    status, out, _ = call("evaluate", places / "run", "--data", places / "set", "--seeds", 1)
    assert status == 0
    assert "held out: top-1 retrieval" in out
    assert "training: top-1 retrieval" in out
    assert "+-" in out
    assert "6 candidates" in out
    assert "steps 3" in out


def test_bits_are_told_beside_or_alone(call: Call, places: Path) -> None:
    """``--metrics bits``: a bound a split, with its error; together with prompts both are there."""
    arguments = ("evaluate", places / "run", "--data", places / "set", "--draws", 4, "--seeds", 1)
    status, out, _ = call(*arguments, "--metrics", "bits")
    assert status == 0
    assert "held out: at most" in out
    assert "bits/dim" in out
    assert "retrieval" not in out
    status, out, _ = call(*arguments, "--metrics", "prompts,bits", "--json")
    result = json.loads(out)
    assert status == 0
    assert set(result["bits"]) == set(result["prompts"]) == {"test", "train"}
    score = result["bits"]["train"]
    assert score["bits_per_dim"] == pytest.approx(score["prior"] + score["diffusion"] + score["reconstruction"])
    assert (score["pictures"], score["draws"]) == (5, 4)


@pytest.fixture(scope="module")
def many(places: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of two captions, with keywords: "shade" and "tint" are of many and no captions, "dark" is one."""
    folder = tmp_path_factory.mktemp("many")
    random = numpy.random.default_rng(0)
    lines = []
    for i in range(12):
        low, high, name = (0, 60, "dark") if i % 2 else (190, 256, "light")
        Image.fromarray(random.integers(low, high, (16, 16, 3), dtype=numpy.uint8)).save(folder / f"{i}.png")
        words = ["shade", "dark"] + (["tint"] if i < 9 else ["rare"])
        lines.append(json.dumps({"file_name": f"{i}.png", "text": name, "keywords": words}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_likeness_is_told_beside_retrieval_of_the_same_pictures(call: Call, places: Path) -> None:
    """Against the same pictures drawn by hand: mean square in [-1, 1], gradients, distances of the two seeds."""
    options = ("--split", "train", "--seeds", 2, "--seed", 5, "--metrics", "prompts,likeness")
    status, out, err = call("evaluate", places / "run", "--data", places / "set", *options, "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert set(result) >= {"prompts", "likeness"}
    files = sorted((places / "set" / "train").glob("*.png"))
    asked = numpy.stack([read(file) for file in files]) / 127.5 - 1
    pipe = load(places / "run")
    prompts = [f"the {file.stem} one" for file in files]
    drawn = numpy.stack(
        [numpy.stack(pipe.sample(prompts, seed=5 + 5 * run)) for run in range(2)]  # rows, columns, channels
    )
    drawn = drawn / 127.5 - 1
    score = result["likeness"]["train"]
    errors = ((drawn - asked) ** 2).mean((2, 3, 4)).mean(0)
    assert score["squared_error"]["value"] == pytest.approx(errors.mean())
    assert score["squared_error"]["standard_error"] == pytest.approx(errors.std(ddof=1) / 5**0.5)
    across = drawn[:, :, :-1, 1:] - drawn[:, :, :-1, :-1]
    down = drawn[:, :, 1:, :-1] - drawn[:, :, :-1, :-1]
    assert score["sharpness"]["value"] == pytest.approx(numpy.hypot(across, down).mean())
    distances = ((drawn[0] - drawn[1]) ** 2).mean((1, 2, 3)) ** 0.5
    assert score["diversity"]["value"] == pytest.approx(distances.mean())
    assert (score["least_error"]["value"], score["real_diversity"], score["prompts"]) == (0, None, 5)


def test_people_read_likeness(call: Call, places: Path, many: Path) -> None:
    arguments = ("evaluate", places / "run", "--data", many, "--split", "train", "--metrics", "likeness")
    status, out, _ = call(*arguments, "--seeds", 2)
    assert status == 0
    assert "training: squared error" in out
    assert "of the real pictures'" in out
    assert "diversity over seeds" in out
    assert "real pictures of a prompt" in out  # two captions, six pictures each
    assert "retrieval" not in out
    assert "steps 3" in out
    assert "diversity needs --seeds 2" in call(*arguments, "--seeds", 1)[1]


def test_a_shared_caption_is_asked_once_and_right_on_any_of_its_pictures(
    call: Call, places: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is drawn, black pictures are nearest to a dark one: right for "dark", on any of six, and not for "light"."""
    from unstir.pipeline import Pipeline, Result

    def paint(self, requests, album):
        for request in requests:
            yield Result(request=request, picture=Image.new("RGB", (16, 16)), seconds=0.0, warnings=())

    monkeypatch.setattr(Pipeline, "_draw", paint)
    arguments = ("evaluate", places / "run", "--data", many, "--split", "train", "--metrics", "prompts,likeness")
    score = json.loads(call(*arguments, "--json")[1])
    assert score["prompts"]["train"]["top1"] == 0.5
    assert (score["prompts"]["train"]["prompts"], score["prompts"]["train"]["seeds"]) == (2, 3)
    assert score["likeness"]["train"]["least_error"]["value"] > 0
    assert score["likeness"]["train"]["diversity"]["value"] == 0


def test_keywords_are_asked_instead(call: Call, places: Path, many: Path) -> None:
    """Two words are of 8 pictures or more and no caption; eight seeds; every picture carries "shade"."""
    arguments = ("evaluate", places / "run", "--data", many, "--keywords", 2)
    status, out, err = call(*arguments, "--metrics", "prompts,likeness", "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    score = result["prompts"]["keywords"]
    assert list(result["prompts"]) == list(result["likeness"]) == ["keywords"]
    assert (score["prompts"], score["seeds"], score["variety"]["seeds"]) == (2, 8, 8)
    assert score["top1"] >= 0.5
    assert 1 <= score["variety"]["distinct"]["value"] <= 8
    assert result["likeness"]["keywords"]["real_diversity"]["value"] > 0
    out = call(*arguments, "--seeds", 2)[1]
    assert "keywords: the nearest real picture carries the keyword in" in out
    assert "different nearest pictures among 2 seeds" in out
    assert "half of the seeds differ for" in out


def test_a_file_of_free_words_is_asked_instead(call: Call, places: Path, tmp_path: Path) -> None:
    (tmp_path / "free.tsv").write_text("something red\tthe red one\nsnow\tthe white one\n")
    arguments = ("evaluate", places / "run", "--data", places / "set", "--prompts", "free.tsv", "--seeds", 1)
    status, out, _ = call(*arguments, "--json")
    assert status == 0
    score = json.loads(out)["prompts"]["free"]
    assert (score["prompts"], score["seeds"], score["candidates"], score["parts"]) == (2, 1, 6, None)
    assert "free wordings: top-1 retrieval" in call(*arguments)[1]


def test_what_is_right_of_misses_is_told(call: Call, places: Path, tmp_path: Path, monkeypatch) -> None:
    """Names with skin tones, and a drawer of black pictures: retrieved is always the darkest one."""
    from unstir.pipeline import Pipeline, Result

    def paint(self, requests, album):
        for request in requests:
            yield Result(request=request, picture=Image.new("RGB", (16, 16)), seconds=0.0, warnings=())

    monkeypatch.setattr(Pipeline, "_draw", paint)
    folder = tmp_path / "people"
    folder.mkdir()
    names = ("man pilot: dark skin tone", "woman pilot: dark skin tone", "man judge: light skin tone", "heart")
    for i, name in enumerate(names):
        Image.new("RGB", (16, 16), (60 * i,) * 3).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(name)
    arguments = ("evaluate", places / "run", "--data", folder, "--split", "train", "--seeds", 1)
    parts = json.loads(call(*arguments, "--json")[1])["prompts"]["train"]["parts"]
    assert parts == {"misses": 2, "person": 0.5, "job": 0.5, "tone": 0.5}
    assert (
        "of 2 misses of names with a skin tone: person right 50%, job right 50%, tone right 50%" in call(*arguments)[1]
    )


def test_a_sheet_is_written(call: Call, places: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", places / "run", "--data", places / "set", "--seeds", 1, "--sheet", "sheet.png")
    assert call(*arguments)[0] == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 36 + 4, 50 + 4)  # six pictures in one row


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keywords", "1", "--split", "train"], "--keywords asks for pictures of all splits; leave --split out"),
        (["--prompts", "free.tsv", "--split", "test"], "--prompts asks for pictures of all splits"),
        (["--keywords", "1", "--prompts", "free.tsv"], "give one of them"),
        (["--keywords", "1", "--metrics", "prompts,bits"], "leave bits or --keywords out"),
        (["--keywords", "0"], "at least 1, got 8, 184 and 0"),
        (["--keywords", "3"], "2 keywords of this set name 8 pictures or more, 3 were asked for"),
        (["--prompts", "free.tsv"], "free.tsv: no such file"),
    ],
)
def test_what_excludes_each_other_is_told(
    call: Call, places: Path, many: Path, arguments: list[str], words: str
) -> None:
    """On a set that has keywords, so that nothing else is wrong."""
    status, out, err = call("evaluate", places / "run", "--data", many, *arguments)
    assert (status, out) == (2, "")
    assert words in err


BAD = {
    "metric": ["--metrics", "beauty"],
    "one bad metric": ["--metrics", "prompts,beauty"],
    "split": ["--split", "dev"],
    "keywords": ["--keywords", "0"],
    "too many keywords": ["--keywords", "3"],
    "keywords of a split": ["--keywords", "1", "--split", "test"],
    "keywords and a file": ["--keywords", "1", "--prompts", "free.tsv"],
    "bits of keywords": ["--keywords", "1", "--metrics", "prompts,bits"],
    "a file that is not there": ["--prompts", "free.tsv"],
    "split without pictures": ["--split", "validation"],
    "limit": ["--limit", "0"],
    "limit of words": ["--limit", "all"],
    "seeds": ["--seeds", "0"],
    "seed": ["--seed", "-1"],
    "last seed": ["--seed", str(2**32 - 1)],
    "batch": ["--batch", "0"],
    "draws": ["--draws", "0"],
    "steps": ["--steps", "0"],
    "sampler": ["--sampler", "dpm2"],
    "grid": ["--grid", "karass"],
    "guidance": ["--guidance", "nan"],
    "sheet": ["--sheet", "sheet.gif"],
    "sheet nowhere": ["--sheet", "nowhere/sheet.png"],
    "device": ["--device", "abacus"],
    "option": ["--colour", "red"],
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD)
def test_bad_input_is_told_before_anything_is_drawn(
    call: Call, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """An evaluation may take an hour: nobody should learn of a misspelt suffix after it."""
    from unstir.pipeline import Pipeline

    drawn: list[object] = []
    draw = Pipeline._draw

    def note(self, requests):
        drawn.extend(requests)
        return draw(self, requests)

    monkeypatch.setattr(Pipeline, "_draw", note)
    status, out, err = call("evaluate", places / "run", "--data", places / "set", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert not drawn


@pytest.mark.parametrize("what", ["no such data", "no such model", "no captions", "no pictures", "broken"])
def test_what_cannot_be_measured_is_told(call: Call, places: Path, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "given"
    if what != "no such data":
        folder.mkdir()
    if what == "no captions":
        Image.new("RGB", (8, 8)).save(folder / "0.png")
    if what == "broken":
        (folder / "0.png").write_bytes(b"no picture")
        (folder / "0.txt").write_text("x")
    model = tmp_path / "nowhere" if what == "no such model" else places / "run"
    data = places / "set" if what == "no such model" else folder
    status, out, err = call("evaluate", model, "--data", data)
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
