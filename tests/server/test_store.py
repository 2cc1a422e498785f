"""The store: what was written is found again by whoever opens the folder next, and nothing is ever half there."""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unstir.editing import Blend, Edit, Reference
from unstir.pipeline import Request
from unstir.server.jobs import Job, Picture, State
from unstir.server.store import Store

REQUEST = Request(
    prompt="a red heart",
    seed=2**32 - 1,
    steps=3,
    sampler="ddim",
    grid="trailing",
    guidance_scale=1.5,
    guidance_interval=(-math.inf, 1 / 3),
    width=16,
    height=16,
    edit=Edit(source=Reference(sha256="a" * 64, name="b" * 64)),
    blend=Blend(share=0.5, prompt="猫"),
)
A, B = "a" * 32, "b" * 32


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "data")
    yield made
    made.close()


def job(name: str = A, n: int = 2) -> Job:
    return Job(id=name, model="tiny", created=1.5, requests=tuple(replace(REQUEST, seed=i) for i in range(n)))


def picture(name: str = A, index: int = 0, prompt: str = "a red heart") -> Picture:
    request = replace(REQUEST, prompt=prompt, seed=index)
    return Picture(job=name, index=index, request=request, created=2.5, seconds=0.25, warnings=('w"1', "ü"))


def test_everything_is_found_again(tmp_path: Path) -> None:
    first = Store(tmp_path)
    first.add(job(), "sum", ["c" * 64], "key", "asked")
    first.add(job(B), "other sum", [])
    first.add_picture(picture(index=1), b"png")
    name = first.keep(b"upload")
    first.close()
    again = Store(tmp_path)
    assert again.job(A) == job()
    assert again.job_of("key") == ("asked", A)
    assert again.unended() == [(job(), "sum"), (job(B), "other sum")]
    assert again.drawn(A) == (1,)
    assert again.picture(A, 1) == picture(index=1)
    assert again.pictures() == [picture(index=1)]
    assert again.read(A, 1) == b"png"
    assert again.kept(name) == b"upload"
    again.close()


def test_what_is_not_there(store: Store) -> None:
    store.add(job(), "sum", [])
    assert store.job(B) is None
    assert store.job_of("key") is None
    assert store.picture(A, 0) is None
    assert store.drawn(A) == ()
    assert store.read(A, 0) is None
    assert store.kept("0" * 64) is None
    assert not store.touch("0" * 64)
    assert not store.delete(A, 0)
    with pytest.raises(LookupError, match="no picture"):
        store.pictures(before=f"{A}/0")


@pytest.mark.parametrize("name", ["", ".", "../jobs.sqlite", "/etc/passwd", A + "\n", "A" * 32, "é" * 32, "%2e%2e"])
def test_no_name_leads_out_of_the_folder(store: Store, name: str) -> None:
    assert store.read(name, 0) is None
    assert store.kept(name) is None
    assert not store.touch(name)
    assert not store.delete(name, 0)
    for place in (name, f"{name}/0", f"{A}/{name}"):
        if place:
            with pytest.raises(LookupError):
                store.pictures(before=place)


@pytest.mark.parametrize("state", ["done", "failed", "cancelled"])
def test_an_ended_job_is_not_gone_on_with(store: Store, state: State) -> None:
    store.add(job(), "sum", [])
    store.end(A, state, "why")
    assert store.unended() == []
    assert store.job(A) == replace(job(), state=state, error="why")


def test_search_finds_pictures_with_all_words_in_any_case(store: Store) -> None:
    for index, prompt in enumerate(["A red HEART", "straße, ＲＥＤ", "50% off_x", "blue"]):
        store.add_picture(picture(index=index, prompt=prompt), b"")
    found = {
        words: [each.index for each in store.pictures(search=words)]
        for words in ["red", "heart RED", "STRASSE", "%", "_", "50% off", "green", " ", "'; drop table jobs; --", "猫"]
    }
    assert found == {
        "red": [1, 0],
        "heart RED": [0],
        "STRASSE": [1],
        "%": [2],
        "_": [2],
        "50% off": [2],
        "green": [],
        " ": [3, 2, 1, 0],
        "'; drop table jobs; --": [],
        "猫": [3, 2, 1, 0],  # the other end of the way
    }


def test_pages_go_on_where_the_last_ended_even_if_that_is_deleted(store: Store) -> None:
    for index in range(5):
        store.add_picture(picture(index=index), b"")
    first = store.pictures(limit=2)
    assert [each.index for each in first] == [4, 3]
    store.delete(A, 3)
    assert [each.index for each in store.pictures(before=f"{A}/3", limit=2)] == [2, 1]
    assert [each.index for each in store.pictures()] == [4, 2, 1, 0]


def test_of_what_is_deleted_nothing_stays(tmp_path: Path) -> None:
    """Neither rows nor files, nor the prompt in some corner of the database."""
    store = Store(tmp_path)
    store.add(replace(job(), requests=tuple(replace(REQUEST, prompt="secret words") for _ in range(2))), "sum", [], "k")
    for index in range(2):
        store.add_picture(picture(index=index, prompt="secret words"), b"secret picture")
    assert store.delete(A, 0)
    assert not store.delete(A, 0)
    store.end(A, "done")
    assert store.job(A) is not None
    assert store.delete(A, 1)
    assert store.job(A) is None
    assert store.job_of("k") is None
    store.close()
    left = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"secret" not in left


def test_a_job_whose_pictures_are_deleted_while_it_runs_goes_at_its_end(store: Store) -> None:
    store.add(job(n=1), "sum", [])
    store.add_picture(picture(), b"")
    store.delete(A, 0)
    assert store.deleted(A) == (0,)
    assert store.job(A) is not None
    store.end(A, "done")
    assert store.job(A) is None


def test_unused_uploads_grow_old(store: Store) -> None:
    used, unused = store.keep(b"used"), store.keep(b"unused")
    store.add(job(), "sum", [used])
    store.prune(3600)
    assert store.kept(unused) is not None
    store.prune(-1)
    assert store.kept(unused) is None
    assert store.kept(used) is not None
    assert store.touch(used)


def test_a_second_server_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    first = Store(tmp_path)
    with pytest.raises(ValueError, match="another server uses"):
        Store(tmp_path)
    first.close()
    Store(tmp_path).close()


def test_a_killed_server_holds_no_lock(tmp_path: Path) -> None:
    code = "import os, sys, pathlib; from unstir.server.store import Store; s = Store(pathlib.Path(sys.argv[1]))\n"
    code += "s.keep(b'x'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    store = Store(tmp_path)
    assert len(list((tmp_path / "uploads").iterdir())) == 1
    store.close()


def test_what_a_killed_server_left_half_written_is_removed(tmp_path: Path) -> None:
    Store(tmp_path).close()
    for folder in ("pictures", "uploads"):
        (tmp_path / folder / ".x.png.1.new").write_bytes(b"half")
    Store(tmp_path).close()
    assert not [path for path in tmp_path.rglob("*.new")]


def test_a_damaged_or_newer_store_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    database = sqlite3.connect(tmp_path / "jobs.sqlite")
    database.execute("pragma user_version = 99")
    database.close()
    with pytest.raises(ValueError, match="another unstir"):
        Store(tmp_path)
    (tmp_path / "jobs.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(ValueError, match="damaged"):
        Store(tmp_path)


def test_nothing_is_left_of_what_could_not_be_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        store.add_picture(picture(), b"png")
    with pytest.raises(OSError, match="No space"):
        store.keep(b"upload")
    assert store.picture(A, 0) is None
    assert not list(store._pictures.iterdir())
    assert not list(store._uploads.iterdir())


def test_a_change_is_made_wholly_or_not_at_all(store: Store) -> None:
    store.add(job(), "sum", [], "key", "asked")
    with pytest.raises(OSError, match="cannot be written"):
        store.add(job(B), "sum", ["c" * 64], "key", "asked")  # the key is there already
    assert store.job(B) is None
    store.add(job(B), "sum", [])
    assert store.job(B) == job(B)


def test_a_full_disk_is_an_error_and_the_store_lives_on(store: Store) -> None:
    pages = store._write.execute("pragma page_count").fetchone()[0]
    store._write.execute(f"pragma max_page_count = {pages}")
    long = replace(job(), requests=tuple(replace(REQUEST, prompt="x" * 10_000) for _ in range(4)))
    with pytest.raises(OSError, match="full"):
        store.add(long, "sum", [])
    store._write.execute("pragma max_page_count = 1000000")
    store.add(long, "sum", [])
    assert store.job(A) == long


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(prompt=TEXT, search=TEXT)
def test_whatever_is_searched_for(tmp_path_factory: pytest.TempPathFactory, prompt: str, search: str) -> None:
    """A prompt is found by each of its own words; nothing that is searched for is an error."""
    store = Store(tmp_path_factory.mktemp("search"))
    store.add_picture(picture(prompt=prompt), b"")
    store.pictures(search=search)
    for word in prompt.split():
        assert store.pictures(search=word)
    assert store.picture(A, 0) == picture(prompt=prompt)
    store.close()
