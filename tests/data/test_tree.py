"""The files of a folder, a zip and tars, seen as one tree."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from unstir.data.tree import Tree, join, scan_folder, scan_tars, scan_zip


def put(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def tar(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w") as file:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 1
            file.addfile(info, io.BytesIO(b"%d" % number))
    return path


def contents(tree: Tree) -> dict[str, bytes]:
    return {key: tree.read(key) for key in tree}


def test_the_three_kinds_of_trees_are_alike(tmp_path: Path) -> None:
    names = ["b/c/2.png", "b/c/10.png", "a.txt", ".hidden/x.png", "b/._y.png", "__MACOSX/z.png"]
    for number, name in enumerate(names):
        put(tmp_path / "set" / name, b"%d" % number)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for number, name in enumerate(names):
            file.writestr(name, b"%d" % number)
    trees = (
        scan_folder(tmp_path / "set"),
        scan_zip(tmp_path / "x.zip"),
        scan_tars(Path("x"), {"": tar(tmp_path / "x", *names)}),
    )
    for tree in trees:
        assert contents(tree) == {"a.txt": b"2", "b/c/10.png": b"1", "b/c/2.png": b"0"}
        assert list(tree) == ["a.txt", "b/c/10.png", "b/c/2.png"]
        assert tree.pictures() == {"b/c/2.png", "b/c/10.png"}
        assert tree.locate(".hidden/x.png") is not None
        assert tree.locate("c.png") is None
        assert tree.inner("b/c/2.png") == "b/c/2.png"
        assert list(tree.skipped) == []


def test_links_lead_nowhere_twice(tmp_path: Path) -> None:
    root = tmp_path / "set"
    put(root / "a" / "1.png")
    put(tmp_path / "elsewhere" / "2.png")
    (root / "a" / "up").symlink_to(root)
    (root / "b").symlink_to(root / "a")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "d.png").symlink_to("d.png")
    (root / "e.png").symlink_to("f.png")
    (root / "f.png").symlink_to("e.png")
    (root / "g.png").symlink_to("nothing")
    (root / "h.png").symlink_to(root / "a" / "1.png")
    (root / "i").symlink_to(tmp_path)
    tree = scan_folder(root)
    assert list(tree) == ["h.png", "a/1.png", "c/2.png"]
    reasons = dict(tree.skipped)
    assert reasons.keys() == {"a/up", "b", "d.png", "e.png", "f.png", "g.png", "i"}
    for key in ("a/up", "b"):
        assert reasons[key] == "a link leads back to a folder that was already looked through; remove the link"
    assert reasons["i"] == "a link leads up to a folder that holds this set; remove the link"
    assert reasons["g.png"] == "a link that leads nowhere: No such file or directory"
    assert reasons["d.png"].startswith("a link that leads nowhere: Too many levels")


def test_what_is_no_file_is_listed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait forever
    (tmp_path / "null.png").symlink_to("/dev/null")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty").mkdir()
    put(tmp_path / "cats.png" / "1.png")
    tree = scan_folder(tmp_path)
    assert list(tree) == ["cats.png/1.png"]
    assert dict(tree.skipped) == {
        "pipe.png": "it is a pipe, a socket or a device",
        "null.png": "it is a pipe, a socket or a device",
        "folder.png": "it is an empty folder",
    }


def test_folders_that_cannot_be_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "locked" / "b.png")
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # the tests may run as root, who may read all
    tree = scan_folder(tmp_path)
    assert list(tree) == ["a.png"]
    assert list(tree.skipped) == [("locked", "the folder cannot be looked through: Permission denied")]
    with pytest.raises(ValueError, match=r"locked cannot be looked through \(Permission denied\); give the right"):
        scan_folder(tmp_path / "locked")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    put(tmp_path / "a.txt")
    tree = scan_folder(tmp_path)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"a\.txt cannot be read \(No such file or directory\); give the right"):
        tree.read("a.txt")


def test_samples_of_a_tar_end_at_the_first_dot(tmp_path: Path) -> None:
    names = ["a/1.jpg", "a/1.depth.png", "a/1.txt", "2.b.png", "2.txt", "3.jpg", "3.png"]
    tree = scan_tars(tmp_path, {"": tar(tmp_path / "x.tar", *names)})
    assert tree.pictures() == {"a/1.jpg", "2.b.png", "3.jpg", "3.png"}
    assert [tree.stem(key) for key in ("a/1.jpg", "a/1.depth.png", "2.b.png")] == ["a/1", "a/1", "2"]


def test_names_that_come_again_are_other_samples(tmp_path: Path) -> None:
    names = ["1.txt", "1.jpg", "2.jpg", "1.jpg", "1.txt", "1.jpg", "2.jpg"]
    tree = scan_tars(tmp_path, {"": tar(tmp_path / "x.tar", *names)})
    expected = {"1.jpg": b"1", "1.txt": b"0", "2.jpg": b"2", "1#2.jpg": b"5", "1#2.txt": b"4", "2#2.jpg": b"6"}
    assert contents(tree) == expected
    assert list(tree.skipped) == [("1#2.jpg", "its name comes twice in the archive, and the last of the two counts")]


def test_neighbours_need_not_be_neighbours_where_no_name_comes_again(tmp_path: Path) -> None:
    tree = scan_tars(tmp_path, {"": tar(tmp_path / "x.tar", "1.jpg", "2.jpg", "1.txt", "2.txt")})
    assert sorted(tree) == ["1.jpg", "1.txt", "2.jpg", "2.txt"]


def test_shards(tmp_path: Path) -> None:
    shards = {
        "train/0.tar": tar(tmp_path / "0", "1.png", "c/2.png"),
        "val-1.tar": tar(tmp_path / "1", "1.png", "../3.png"),
        "x.tar": tar(tmp_path / "2", "test/1.png"),
    }
    tree = scan_tars(tmp_path, shards)
    assert sorted(tree) == ["train/0.tar/1.png", "train/0.tar/c/2.png", "val-1.tar/1.png", "x.tar/test/1.png"]
    assert tree.shards == {"train/0.tar": "train", "val-1.tar": "validation", "x.tar": None}
    assert [tree.inner(key) for key in sorted(tree)] == ["1.png", "c/2.png", "1.png", "test/1.png"]
    assert tree.shard("train/0.tar/c/2.png") == "train/0.tar"
    assert list(tree.skipped) == [("val-1.tar/../3.png", "its name leads out of the archive")]


def test_a_name_twice_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a.png", b"first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("a.png", b"last")
    tree = scan_zip(tmp_path / "x.zip")
    assert contents(tree) == {"a.png": b"last"}
    assert [key for key, _ in tree.skipped] == ["a.png"]


def test_join() -> None:
    assert (join("", "a"), join("b/c", "a")) == ("a", "b/c/a")
