"""The examples of serving: what stands in them can be said to the command line, and systemd reads the unit."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from unstir.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "serve"


def joined(text: str) -> str:
    """Without the line breaks that a backslash takes away."""
    return re.sub(r"\\\n\s*", "", text)


def calls() -> list[list[str]]:
    """Every call of `unstir serve` in the examples and the page about them."""
    unit = (FOLDER / "unstir-serve.service").read_text(encoding="utf-8")
    image = joined((FOLDER / "Containerfile").read_text(encoding="utf-8"))
    found = [shlex.split(line.partition("=")[2]) for line in unit.splitlines() if line.startswith("ExecStart=")]
    found += [json.loads(line.partition(" ")[2]) for line in image.splitlines() if line.startswith("ENTRYPOINT")]
    for page in (ROOT / "docs" / "serving.md", *FOLDER.glob("*.md")):
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            found += [shlex.split(line, comments=True) for line in joined(block).splitlines()]
    said = [[word for word in line if not re.match(r"[A-Z_]+=", word)] for line in found]
    return [line[1:] for line in said if line and Path(line[0]).name == "unstir"]


def test_there_are_as_many_calls_as_somebody_sees() -> None:
    assert len(calls()) >= 9


@pytest.mark.parametrize("words", calls(), ids=" ".join)
def test_the_command_line_takes_it(words: list[str]) -> None:
    """It is read to the end, and nothing of it is left over; nothing is started."""
    app.parse_args(words, exit_on_error=False, print_error=False)


def test_the_image_has_what_the_unit_has() -> None:
    """Neither runs as root, both keep their data in one place, and neither has a token in its words."""
    image = (FOLDER / "Containerfile").read_text(encoding="utf-8")
    assert re.search(r"^USER unstir$", image, flags=re.MULTILINE)
    assert re.search(r"^HEALTHCHECK ", image, flags=re.MULTILINE)
    assert "VOLUME /data" in image
    unit = (FOLDER / "unstir-serve.service").read_text(encoding="utf-8").splitlines()
    assert {"DynamicUser=yes", "ProtectSystem=strict", "StateDirectory=unstir", "NoNewPrivileges=yes"} <= set(unit)
    assert not any("--token" in words and "--token-file" not in words for words in calls())


def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("SYSTEMD IS NOT HERE: its unit was not read")
    text = (FOLDER / "unstir-serve.service").read_text(encoding="utf-8")
    unit = tmp_path / "unstir-serve.service"
    unit.write_text(text.replace("/opt/unstir/bin/unstir", "/bin/true"), encoding="utf-8")
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False)
    about = [line for line in done.stderr.splitlines() if unit.name in line]
    assert not about, about
