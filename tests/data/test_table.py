"""A file that is not the one that was looked through is named, with what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unstir.data.table import ChangedError, require_unchanged


def test_a_file_that_is_as_it_was_passes_and_another_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x-00001.tar"
    path.write_bytes(b"four")
    changed = path.stat().st_mtime_ns
    require_unchanged(path, 4, changed)
    with pytest.raises(ChangedError, match=r"x-00001\.tar had 5 bytes when the run began, and now has 4.*--resume"):
        require_unchanged(path, 5, changed)
    os.utime(path, ns=(changed, changed + 1))
    with pytest.raises(ChangedError, match=r"x-00001\.tar was written anew since the run began.*untouched"):
        require_unchanged(path, 4, changed)
    path.unlink()
    with pytest.raises(ChangedError, match=r"x-00001\.tar cannot be read any more \(No such file"):
        require_unchanged(path, 4, changed)
