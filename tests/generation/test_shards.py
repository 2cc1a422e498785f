"""Who draws what: every picture once, whatever the number of processes; what is there is known for what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unstir.generation.drawing import draw
from unstir.generation.shards import (
    Order,
    Share,
    claim,
    is_drawn,
    missing,
    own_device,
    share_of,
    survey,
    write_index,
)
from unstir.pipeline import Pipeline

Make = Callable[..., Order]


@given(st.integers(0, 200), st.integers(1, 40))
def test_every_index_is_held_once(total: int, world: int) -> None:
    shares = [Share(rank=rank, world=world) for rank in range(world)]
    held = [[index for index in range(total) if share.holds(index)] for share in shares]
    assert sorted(index for part in held for index in part) == list(range(total))
    assert max(map(len, held)) - min(map(len, held)) <= 1


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "3"}, (2, 3)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, (1, 4)),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, (0, 2)),
        ({"SLURM_PROCID": "0"}, (0, 1)),
    ],
)
def test_a_process_learns_its_share_from_the_environment(environment: dict[str, str], share: tuple[int, int]) -> None:
    assert share_of(environment) == Share(rank=share[0], world=share[1])


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "first", "WORLD_SIZE": "2"},
        {"SLURM_PROCID": "8", "SLURM_NTASKS": "8"},
    ],
)
def test_half_a_share_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="set both"):
        share_of(environment)


def test_each_process_takes_the_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_device("auto", {"LOCAL_RANK": "1"}) == ("cuda:0" if torch.cuda.device_count() == 1 else "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [own_device("auto", {"LOCAL_RANK": str(rank)}) for rank in range(6)] == [f"cuda:{i % 4}" for i in range(6)]
    assert own_device("cuda", {"SLURM_LOCALID": "3"}) == "cuda:3"
    assert own_device("cpu", {"LOCAL_RANK": "1"}) == "cpu"
    assert own_device("cuda:2", {"LOCAL_RANK": "1"}) == "cuda:2"
    assert own_device("auto", {}) == "auto"


def test_what_is_missing_is_found_and_the_list_is_written_last(pipe: Pipeline, order: Make) -> None:
    asked = order("a red heart", "cat", "pizza", "dog", "red")
    shares = [Share(rank=rank, world=2) for rank in range(2)]
    for share in shares:
        claim(asked, share)
    assert [[one.index for one in missing(asked, share)] for share in shares] == [[0, 2, 4], [1, 3]]
    assert [one.index for one in draw(pipe, asked, missing(asked, shares[0]))] == [0, 2, 4]
    assert write_index(asked, shares[0]) is None
    assert [[one.index for one in missing(asked, share)] for share in shares] == [[], [1, 3]]
    list(draw(pipe, asked, missing(asked, shares[1])))
    path = write_index(asked, shares[1])
    assert path is not None
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [(row["index"], row["prompt"], row["seed"]) for row in rows] == [
        (0, "a red heart", 0), (1, "cat", 1), (2, "pizza", 2), (3, "dog", 3), (4, "red", 4),
    ]  # fmt: skip
    listed = sorted(path.name for path in asked.folder.iterdir())
    assert listed == sorted([*(row["file"] for row in rows), "generate.json", "index.jsonl"])


def test_half_written_and_foreign_files_are_missing_and_other_pictures_refused(pipe: Pipeline, order: Make) -> None:
    asked = order("cat", "dog", "red")
    claim(asked, Share())
    list(draw(pipe, asked, missing(asked, Share())))
    first, second, third = asked.wanted()
    files = [asked.folder / one.name for one in (first, second, third)]
    files[0].write_bytes(files[0].read_bytes()[:-30])
    files[1].write_text("no picture")
    assert [is_drawn(asked, one) for one in (first, second, third)] == [False, False, True]
    files[2].write_bytes(b"")
    assert not is_drawn(asked, third)
    list(draw(pipe, asked, [first]))
    files[0].rename(files[2])
    with pytest.raises(ValueError, match="was drawn with prompt 'cat', not 'red'"):
        list(missing(asked, Share()))


def test_a_folder_of_other_settings_is_refused(pipe: Pipeline, order: Make) -> None:
    asked = order("cat", "dog")
    claim(asked, Share())
    claim(asked, Share(rank=1, world=2))
    request = asked.recipe.request
    others = {
        "steps 3, not 4": replace(asked, recipe=replace(asked.recipe, request=replace(request, steps=4))),
        "precision 'float32', not 'bf16'": replace(
            asked, recipe=replace(asked.recipe, request=replace(request, precision="bf16"))
        ),
        "steering.method 'plain', not 'projected'": replace(
            asked,
            recipe=replace(
                asked.recipe, request=replace(request, steering=replace(request.steering, method="projected"))
            ),
        ),
        "another model": replace(asked, recipe=replace(asked.recipe, checksum="0" * 64)),
        "seed 0, not 5": replace(asked, seed=5),
        "negative '', not 'blue'": replace(asked, negative="blue"),
    }
    for words, other in others.items():
        with pytest.raises(ValueError, match=f"holds pictures drawn with {words}"):
            claim(other, Share())
    (asked.folder / "generate.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read"):
        claim(asked, Share())


def test_prompts_are_seen_before_any_is_drawn(pipe: Pipeline, order: Make) -> None:
    assert survey(pipe, order("cat", "dog")) == 2
    with pytest.raises(ValueError, match=r"line 2: seed must be a whole number"):
        survey(pipe, order("cat", "dog", seed=2**32 - 1))
    asked = order("cat", "dog")
    asked.folder.mkdir()
    (asked.folder / "000001-another.png").touch()
    (asked.folder / "000007-another.png").touch()  # of a longer file
    (asked.folder / "0001-sampled.png").touch()
    with pytest.raises(ValueError, match="holds 000001-another.png, where prompts.txt asks for 000001-dog.png"):
        survey(pipe, asked)
