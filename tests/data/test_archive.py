"""Members of tar and zip files: read back exactly, and nothing but one sentence from what is damaged or malicious."""

import contextlib
import io
import os
import re
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unstir.data import archive
from unstir.data.archive import (
    InArchive,
    InZip,
    expand_braces,
    has_braces,
    index_tar,
    index_zip,
    is_compressed,
    is_text,
    printable,
    read_member,
)

names_of_files = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0:"), min_size=1, max_size=20)
contents = st.dictionaries(
    names_of_files.filter(lambda name: name not in (".", "..")), st.binary(max_size=700), max_size=6
)


def put_tar(path: Path, files: dict[str, bytes], **options: object) -> Path:
    with tarfile.open(path, "w", **options) as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def put_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def put_raw_tar(path: Path, *headers: tarfile.TarInfo) -> Path:
    path.write_bytes(b"".join(header.tobuf() for header in headers) + bytes(1024))
    return path


def fresh(folder: Path, suffix: str) -> Path:
    """Another file for every example; zip files stay open, and a file that is written again too soon looks the same."""
    return folder / f"{len(os.listdir(folder))}{suffix}"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(files=contents, kind=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_what_is_put_into_a_tar_comes_out(files: dict[str, bytes], kind: int, tmp_path: Path) -> None:
    index = index_tar(put_tar(fresh(tmp_path, ".tar"), files, format=kind))
    assert {name: read_member(place) for name, place in index.members} == files
    assert index.skipped == ()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(files=contents, compression=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
def test_what_is_put_into_a_zip_comes_out(files: dict[str, bytes], compression: int, tmp_path: Path) -> None:
    index = index_zip(put_zip(fresh(tmp_path, ".zip"), files, compression))
    assert {name: read_member(place) for name, place in index.members} == files
    assert index.skipped == ()


FILES = {"a.png": bytes(range(256)) * 5, "b/c.txt": b"words", "d.png": b"x" * 3000}


def complaint(index: object, path: Path) -> str:
    """The sentence that an index gives; empty where it lists members, each of which can be read or gives a sentence."""
    try:
        found = index(path)
    except ValueError as error:
        return str(error)
    for _, place in found.members:
        with contextlib.suppress(ValueError):
            read_member(place)
    return ""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(kind=st.sampled_from(["tar", "zip"]), where=st.floats(0, 1), noise=st.binary(max_size=60), cut=st.booleans())
def test_damage_gives_a_sentence(kind: str, where: float, noise: bytes, cut: bool, tmp_path: Path) -> None:
    path = fresh(tmp_path, "." + kind)
    (put_tar if kind == "tar" else put_zip)(path, FILES)
    data = path.read_bytes()
    at = int(where * min(len(data), 7000))  # after that a tar is all zeros
    path.write_bytes(data[:at] + noise + (b"" if cut else data[at + len(noise) :]))
    sentence = complaint(index_tar if kind == "tar" else index_zip, path)
    assert sentence == "" or re.fullmatch(rf"{re.escape(str(path))} [^\n]*\.", sentence)


@pytest.mark.parametrize("blocks", range(1, 13))
def test_a_tar_that_is_cut_anywhere_is_refused(blocks: int, tmp_path: Path) -> None:
    whole = put_tar(tmp_path / "x.tar", FILES).read_bytes()
    ending = whole.rstrip(b"\0")
    assert len(ending) > 12 * 512
    for extra in (0, 1, 511):
        (tmp_path / "x.tar").write_bytes(whole[: 512 * blocks + extra])
        with pytest.raises(ValueError, match=r"x\.tar is damaged or no tar \(.*\); fetch or write it again\."):
            index_tar(tmp_path / "x.tar")


def test_a_header_that_is_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = put_tar(tmp_path / "x.tar", FILES)
    data = bytearray(path.read_bytes())
    data[data.index(b"b/c.txt") + 3] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"what stands at byte 2,048 is no header"):
        index_tar(path)


def test_tars_that_were_joined_with_cat_are_refused(tmp_path: Path) -> None:
    path = put_tar(tmp_path / "x.tar", FILES)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(ValueError, match=r"something follows after its end; tar archives are joined with tar -A\)"):
        index_tar(path)


def test_sizes_below_zero_do_not_loop_forever(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.png")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024 in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(tarfile.TarInfo("b").tobuf() + bytes(header) + bytes(2048))
    with pytest.raises(ValueError, match=r"the size of a\.png is impossible"):
        index_tar(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/a.png", "its name leads out of the archive"),
        ("../a.png", "its name leads out of the archive"),
        ("b/../../a.png", "its name leads out of the archive"),
        ("..", "its name leads out of the archive"),
        ("C:/a.png", "its name leads out of the archive"),
        ("a" * 5000 + ".png", "its name has more than 4,096 characters"),
    ],
)
def test_names_that_lead_out_are_listed_and_never_read(name: str, reason: str, tmp_path: Path) -> None:
    for index in (
        index_tar(put_tar(tmp_path / "x.tar", {name: b"x"})),
        index_zip(put_zip(tmp_path / "x.zip", {name: b"x"})),
    ):
        assert index.members == ()
        assert index.skipped == ((name, reason),)


def test_names_of_archives_made_on_windows_and_on_macs(tmp_path: Path) -> None:
    path = put_zip(tmp_path / "x.zip", {"a?cat.png": b"1", "?????.png": b"2", "????.png": b"3"})
    data = path.read_bytes().replace(b"a?cat.png", b"a\\cat.png").replace(b"?????.png", b"f\xc3\xbcch.png")
    path.write_bytes(
        data.replace(b"????.png", b"f\xfcch.png")
    )  # the former in UTF-8 without the flag, the latter in no UTF-8
    index = index_zip(path)
    assert [(name, read_member(place)) for name, place in index.members] == [("a/cat.png", b"1"), ("füch.png", b"2")]
    assert index.skipped == (("f\\xfcch.png", "its name is not UTF-8"),)


def test_a_tar_with_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = put_tar(tmp_path / "x.tar", {"caf\udce9.png": b""}, format=tarfile.GNU_FORMAT)
    assert index_tar(path).skipped == (("caf\\xe9.png", "its name is not UTF-8"),)
    assert not is_text("caf\udce9.png")
    assert printable("caf\udce9.png") == "caf\\xe9.png"


def test_only_whole_files_are_members(tmp_path: Path) -> None:
    kinds = {
        "link.png": tarfile.SYMTYPE,
        "hard.png": tarfile.LNKTYPE,
        "pipe.png": tarfile.FIFOTYPE,
        "null": tarfile.CHRTYPE,
    }
    headers = []
    for name, kind in {**kinds, "folder.png": tarfile.DIRTYPE}.items():
        headers.append(tarfile.TarInfo(name))
        headers[-1].type, headers[-1].linkname = kind, "/etc/passwd"
    index = index_tar(put_raw_tar(tmp_path / "x.tar", *headers))
    assert index.members == ()
    assert [name for name, _ in index.skipped] == list(kinds)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("folder/", b"")
    assert index_zip(tmp_path / "x.zip").members == ()
    assert index_zip(tmp_path / "x.zip").skipped[0][0] == "link.png"


def test_a_member_of_a_tar_larger_than_allowed_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.png")
    info.size = archive.MAX_BYTES + 1
    with (tmp_path / "x.tar").open("wb") as file:  # a sparse file: large, and nothing on disk
        file.write(info.tobuf())
        file.truncate(512 + archive.MAX_BYTES + 512 + 1024)
    index = index_tar(tmp_path / "x.tar")
    assert index.skipped == (("a.png", "it has 268,435,457 bytes, of which 268,435,456 are allowed"),)
    with pytest.raises(ValueError, match=r"x\.tar, byte 512: it has 268,435,457 bytes"):
        read_member(InArchive(path=tmp_path / "x.tar", offset=512, size=info.size))


def test_a_zip_bomb_that_tells_its_size_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 2**20)
    path = put_zip(tmp_path / "x.zip", {"a.png": bytes(2**20 + 1), "b.png": bytes(2**20)})
    assert path.stat().st_size < 4000
    index = index_zip(path)
    assert index.skipped == (("a.png", "it has 1,048,577 bytes, of which 1,048,576 are allowed"),)
    with pytest.raises(
        ValueError, match=r"x\.zip, a\.png: it has 1,048,577 bytes, .*; fetch or write the archive again\."
    ):
        read_member(InZip(path=path, member="a.png"))
    assert len(read_member(InZip(path=path, member="b.png"))) == 2**20


def test_a_zip_bomb_that_lies_about_its_size_is_not_inflated_beyond_it(tmp_path: Path) -> None:
    path = put_zip(tmp_path / "x.zip", {"a.png": bytes(50 * 2**20)})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", 50 * 2**20), struct.pack("<I", 100)))
    place = index_zip(path).members[0][1]
    with pytest.raises(
        ValueError, match=r"x\.zip, a\.png: Bad CRC-32 for file 'a\.png'; fetch or write the archive again"
    ):
        read_member(place)


def test_members_of_a_zip_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    path = put_zip(tmp_path / "x.zip", {"a.png": bytes(1000)}, zipfile.ZIP_BZIP2)
    assert "write the archive with deflate or without" in index_zip(path).skipped[0][1]
    path = put_zip(tmp_path / "y.zip", {"a.png": bytes(1000)})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert index_zip(path).skipped == (("a.png", "it is encrypted; write the archive without a password"),)


def test_a_zip_that_is_written_again_is_read_again(tmp_path: Path) -> None:
    path = put_zip(tmp_path / "x.zip", {"a": b"old"})
    place = index_zip(path).members[0][1]
    put_zip(path, {"a": b"new"})
    os.utime(path, ns=(1, 1))
    assert read_member(place) == b"new"
    put_zip(path, {"b": b"new"})
    with pytest.raises(ValueError, match=r"x\.zip, a: .*no item named 'a'"):
        read_member(place)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_member(place)


def test_a_tar_that_shrinks_after_it_was_looked_at(tmp_path: Path) -> None:
    path = put_tar(tmp_path / "x.tar", FILES)
    place = index_tar(path).members[0][1]
    os.truncate(path, 600)
    with pytest.raises(ValueError, match=r"x\.tar ends at byte 600, within a file; fetch it again"):
        read_member(place)


def test_lists_of_shards() -> None:
    assert expand_braces(Path("d/x-{08..10}.tar")) == [Path("d/x-08.tar"), Path("d/x-09.tar"), Path("d/x-10.tar")]
    assert expand_braces(Path("x-{8..10}.tar")) == [Path("x-8.tar"), Path("x-9.tar"), Path("x-10.tar")]
    assert [path.name for path in expand_braces(Path("{0..1}-{0..1}"))] == ["0-0", "0-1", "1-0", "1-1"]
    assert len(expand_braces(Path("{0..1}-{0..1}-{00000..00001}"))) == 8
    assert has_braces("x-{0..1}.tar")
    assert not has_braces("x-{a,b}.tar")
    for name, what in (
        ("x.tar", "has no range in braces"),
        ("{1..0}", "upwards"),
        ("{0..999}{0..999}", "100,000 shards"),
    ):
        with pytest.raises(ValueError, match=what):
            expand_braces(Path(name))


def test_compression_is_seen_by_name_and_by_content(tmp_path: Path) -> None:
    for mode in ("gz", "bz2", "xz"):
        with tarfile.open(tmp_path / f"x-{mode}.tar", f"w:{mode}") as file:
            file.addfile(tarfile.TarInfo("a"))
        assert is_compressed(tmp_path / f"x-{mode}.tar")
    assert is_compressed(tmp_path / "not there.tar.zst")
    assert not is_compressed(put_tar(tmp_path / "x.tar", FILES))
