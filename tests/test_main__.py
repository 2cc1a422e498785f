"""``python -m unstir`` is the command."""

from __future__ import annotations

import subprocess
import sys

from unstir import __version__


def test_the_module_is_the_command() -> None:
    for arguments, status, out in ((["--version"], 0, f"{__version__}\n"), (["nonsense"], 2, "")):
        done = subprocess.run(
            [sys.executable, "-m", "unstir", *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (status, out)


def test_importing_it_runs_nothing() -> None:
    import unstir.__main__

    assert callable(unstir.__main__.main)
