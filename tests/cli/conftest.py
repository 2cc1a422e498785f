"""What the tests of all verbs share: a call of the command line, in the test's own folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from unstir.cli.app import run


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """(arguments) -> exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def function(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return function
