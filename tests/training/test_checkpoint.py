"""Only whole checkpoints count, and a failing save costs nothing (C41, C52)."""

from __future__ import annotations

import builtins
import contextlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unstir.training import checkpoint as module
from unstir.training.checkpoint import KEEP, Checkpoint, is_whole, load_latest, save_checkpoint

FILES = ["ema.safetensors", "manifest.json", "network.safetensors", "optimizer.safetensors", "state.json"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def state(images_seen: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(images_seen)
    tensors: dict[str, dict[str, Tensor]] = {
        group: {
            "weight": torch.randn(3, 2, generator=generator),
            "half": torch.randn(4, generator=generator).bfloat16(),
        }
        for group in ("network", "ema")
    }
    tensors["optimizer"] = {
        "step.weight": torch.tensor(float(images_seen)),
        "exp_avg.weight": torch.full((3, 2), 1e-30),
    }
    return Checkpoint(images_seen=images_seen, tensors=tensors, values={"note": "ü", "numbers": [1, 2.5, None]})


def same(one: Checkpoint | None, other: Checkpoint) -> bool:
    if one is None or one.images_seen != other.images_seen or one.values != other.values:
        return False
    if {group: set(tensors) for group, tensors in one.tensors.items()} != {g: set(t) for g, t in other.tensors.items()}:
        return False
    return all(
        torch.equal(tensor, other.tensors[group][name]) and tensor.dtype == other.tensors[group][name].dtype
        for group, tensors in one.tensors.items()
        for name, tensor in tensors.items()
    )


def numbers(directory: Path) -> list[int]:
    return sorted(int(path.name) for path in directory.iterdir())


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "deep" / "checkpoints", state(64))
    assert folder.name == "000000000064"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert same(load_latest(folder.parent), state(64))


def test_an_empty_group_comes_back(tmp_path: Path) -> None:
    """Before its first step an optimizer has no moments."""
    start = Checkpoint(images_seen=0, tensors={"network": {"w": torch.ones(1)}, "optimizer": {}}, values={})
    save_checkpoint(tmp_path, start)
    assert same(load_latest(tmp_path), start)


@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_nothing(tmp_path: Path, there: bool) -> None:
    directory = tmp_path / "checkpoints"
    if there:
        directory.mkdir()
    assert load_latest(directory) is None


def test_the_newest_stay(tmp_path: Path) -> None:
    for seen in (8, 16, 24, 1000, 10_000):
        save_checkpoint(tmp_path, state(seen))
    assert KEEP == 2
    assert numbers(tmp_path) == [1000, 10_000]
    assert same(load_latest(tmp_path), state(10_000))


def test_saving_the_same_place_again_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(8))
    again = Checkpoint(images_seen=8, tensors={"network": {"w": torch.zeros(2)}}, values={})
    save_checkpoint(tmp_path, again)
    assert numbers(tmp_path) == [8]
    assert same(load_latest(tmp_path), again)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path, state(8))
    save_checkpoint(tmp_path, state(16))
    return tmp_path


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "delete", "grow"])
def test_a_damaged_checkpoint_does_not_exist(two: Path, name: str, harm: str) -> None:
    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        if harm == "flip":
            content[len(content) // 2] ^= 1
            file.write_bytes(bytes(content))
        elif harm == "delete":
            file.unlink()
        else:
            file.write_bytes({"cut": bytes(content[:-3]), "empty": b"", "grow": bytes(content) + b"x"}[harm])

    damage(two / f"{16:012d}" / name)
    assert not is_whole(two / f"{16:012d}")
    assert same(load_latest(two), state(8))
    damage(two / f"{8:012d}" / name)
    assert load_latest(two) is None


def test_every_single_bit_of_the_manifest_matters_or_changes_nothing(two: Path) -> None:
    """Whatever bit of the list of checksums flips, what is loaded is one of the two saved states, whole."""
    manifest = two / f"{16:012d}" / "manifest.json"
    content = manifest.read_bytes()
    for place in range(len(content)):
        manifest.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        found = load_latest(two)
        assert same(found, state(8)) or same(found, state(16)), f"byte {place}"


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"state.json": 3}', "\ud800"])
def test_a_manifest_that_vouches_for_nothing_vouches_for_nothing(two: Path, content: str) -> None:
    (two / f"{16:012d}" / "manifest.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    (two / f"{16:012d}" / "network.safetensors").write_bytes(b"damaged")
    assert same(load_latest(two), state(8))


def test_leftovers_of_a_killed_save_are_ignored_and_swept_away(two: Path) -> None:
    shutil.copytree(two / f"{16:012d}", two / f".{24:012d}.new")
    (two / "notes.txt").write_text("mine")
    (two / "folder").mkdir()
    assert same(load_latest(two), state(16))
    save_checkpoint(two, state(24))
    assert sorted(path.name for path in two.iterdir()) == [f"{16:012d}", f"{24:012d}", "folder", "notes.txt"]
    assert same(load_latest(two), state(24))


def test_a_save_never_sweeps_itself_away(tmp_path: Path) -> None:
    """Damaged checkpoints with higher numbers must not crowd out the only whole one (transformers#25136)."""
    for seen in (300, 400):
        save_checkpoint(tmp_path, state(seen))
        (tmp_path / f"{seen:012d}" / "state.json").unlink()
    assert load_latest(tmp_path) is None
    save_checkpoint(tmp_path, state(100))
    assert same(load_latest(tmp_path), state(100))
    save_checkpoint(tmp_path, state(200))
    assert same(load_latest(tmp_path), state(200))


class Full(OSError):
    pass


def failing_at(count: int, function: object, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    calls = iter(range(10_000))

    def fail(*arguments: object, **settings: object) -> object:
        if next(calls) == count:
            raise Full(28, "No space left on device")
        return function(*arguments, **settings)  # type: ignore[operator]

    monkeypatch.setattr(owner, name, fail)


@pytest.mark.parametrize(
    ("owner", "name", "count"),
    [(module, "write_tensors", i) for i in range(3)]
    + [(Path, "write_text", 0), (Path, "write_text", 1), (os, "rename", 0), (module, "checksum_of", 1)]
    + [(os, "fsync", i) for i in range(5)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_failing_save_leaves_the_older_ones(
    two: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, count: int
) -> None:
    with monkeypatch.context() as patch:
        failing_at(count, getattr(owner, name), patch, owner, name)
        with pytest.raises(Full):
            save_checkpoint(two, state(24))
    assert numbers(two) == [8, 16]
    assert same(load_latest(two), state(16))


@pytest.mark.parametrize("count", range(12))
def test_a_save_may_die_anywhere(two: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """As by kill -9: nothing is tidied up after the moment of death, not even by ``finally``.

    The same place is saved again, the hardest case: at no moment may there be no whole checkpoint, and at 24 neither.
    """

    class Dead(BaseException):
        pass

    calls = iter(range(10_000))
    alive = True

    def dying(function: object) -> object:
        def call(*arguments: object, **settings: object) -> object:
            nonlocal alive
            if not alive or next(calls) == count:
                alive = False
                raise Dead
            return function(*arguments, **settings)  # type: ignore[operator]

        return call

    for target in (16, 24):
        with monkeypatch.context() as patch:
            for owner, name in (
                (module, "write_tensors"),
                (module, "checksum_of"),
                (Path, "write_text"),
                (os, "rename"),
                (shutil, "rmtree"),
            ):
                patch.setattr(owner, name, dying(getattr(owner, name)))
            with contextlib.suppress(Dead):
                save_checkpoint(two, state(target))
        found = load_latest(two)
        assert same(found, state(16)) or same(found, state(8)) or same(found, state(24))
        alive, calls = True, iter(range(10_000))


def test_replacing_the_only_checkpoint_is_safe_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run that is resumed saves its last state once more; if it dies there, the state must not be lost."""
    save_checkpoint(tmp_path, state(8))

    class Dead(BaseException):
        pass

    def die(*arguments: object) -> None:
        raise Dead

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", die)
        patch.setattr(os, "replace", die)
        with pytest.raises(Dead):
            save_checkpoint(tmp_path, state(8))
    assert same(load_latest(tmp_path), state(8))


def test_everything_is_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is flushed before the rename that makes it a checkpoint, and the folder after it."""
    events: list[str] = []
    rename = os.rename

    def note(source: object, target: object) -> None:
        events.append("rename")
        rename(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", lambda handle: events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name))
    monkeypatch.setattr(os, "rename", note)
    save_checkpoint(tmp_path, state(8))
    place = events.index("rename")
    assert set(FILES) <= set(events[:place])
    assert events[:place][-1] == "manifest.json" or events[:place].index("manifest.json") > events.index("state.json")
    assert tmp_path.name in events[place:]


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither saving nor loading touches pickle, and no file on the disk is one."""
    import pickle

    def refuse(*arguments: object, **settings: object) -> None:
        raise AssertionError("pickle")

    for name in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    folder = save_checkpoint(tmp_path, state(8))
    assert same(load_latest(tmp_path), state(8))
    for file in folder.iterdir():
        with builtins.open(file, "rb") as handle:
            assert handle.read(4) not in (b"PK\x03\x04",)
        assert file.read_bytes()[:1] != b"\x80" or file.suffix == ".safetensors"
        assert file.suffix in (".safetensors", ".json")
