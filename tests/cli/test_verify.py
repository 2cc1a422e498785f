"""``unstir verify``: what it prints, its exit statuses, and how a stranger's file is let in."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unstir import __version__
from unstir.verify.statements import STATEMENTS

Call = Callable[..., tuple[int, str, str]]

GOOD = """
from unstir.diffusion.samplers import DDIM
print("a stranger prints on import")

def make():
    return DDIM()
"""

# Ends a hundredth of the noise too early, as a sigma list without 0 does.
BAD = """
import torch
from unstir.diffusion.schedule import Cosine
from unstir.verify.target import Promise

class Mine:
    name = "mine"
    promise = Promise(notes={"C17": "known since yesterday"})
    trained = Cosine().at(torch.tensor([0.0, 1.0], dtype=torch.float64))

    def levels(self, num_steps):
        times = torch.linspace(1, 0.01, num_steps + 1, dtype=torch.float64)
        return Cosine().at(times)

    def run(self, denoise, x, num_steps, noise, start=0):
        grid = self.levels(num_steps)
        for i in range(start, num_steps):
            t, s = grid[i], grid[i + 1]
            x0 = denoise(x, t).x0
            x = s.alpha * x0 + s.sigma * (x - t.alpha * x0) / t.sigma
        return x

def make():
    return Mine()

def several():
    return {"make": Mine(), "other": Mine()}
"""


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Write a module into the current folder of ``call``; its name is the test's own, for modules are kept."""
    name = "mine_" + "".join(letter if letter.isalnum() else "_" for letter in tmp_path.name)
    before = list(sys.path)

    def write(text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    sys.modules.pop(name, None)
    sys.path[:] = before


def test_a_strangers_sampler(call: Call, mine: Callable[[str], str]) -> None:
    status, out, err = call("verify", "--target", f"{mine(GOOD)}:make", "--only", "C1,C17")
    assert status == 0
    assert "a stranger prints on import" in err
    assert "C17   passed  The last step, to sigma = 0, returns the belief." in out
    assert "0 failed" in out
    assert f"unstir {__version__}" in out


def test_a_failure_is_told_with_its_command(call: Call, mine: Callable[[str], str]) -> None:
    name = mine(BAD)
    status, out, _ = call("verify", "--target", f"{name}:make", "--only", "C17,C1,C14")
    assert status == 1
    assert "C17   FAILED" in out
    assert "C1    passed" in out
    assert "C14   n/a     The error falls with the promised order." in out
    assert "no order of convergence is promised (measured: " in out
    assert "FAILED C17, mine: ends at sigma = " in out
    assert "(known since yesterday)" in out
    assert f"    unstir verify --target {name}:make --only C17\n" in out
    assert "1 passed, 1 failed, 1 not applicable" in out


def test_the_command_that_is_told_shows_it_again(call: Call, mine: Callable[[str], str]) -> None:
    name = mine(BAD)
    _, out, _ = call("verify", "--target", f"{name}:several", "--only", "C17", "--json")
    rows = json.loads(out)["statements"]
    assert [row["command"] for row in rows] == [
        f"unstir verify --target {name}:{factory} --only C17" for factory in ("make", "other")
    ]
    status, out, _ = call(*rows[0]["command"].split()[1:])
    assert status == 1
    assert rows[0]["measured"] in out


def test_json_is_one_object(call: Call, mine: Callable[[str], str]) -> None:
    name = mine(GOOD)
    status, out, _ = call("verify", "--target", f"{name}:make", "--only", "C17", "--json")
    assert status == 0
    result = json.loads(out)
    assert set(result) == {"target", "passed", "failed", "not_applicable", "statements", "versions", "seconds"}
    assert result["target"] == f"{name}:make"
    assert result["passed"] == len(result["statements"]) > 5
    assert set(result["statements"][0]) == {
        "id",
        "statement",
        "target",
        "status",
        "measured",
        "expected",
        "note",
        "command",
    }
    assert result["versions"]["unstir"] == __version__
    assert "torch" in result["versions"]
    assert result["seconds"] >= 0


def test_our_own(call: Call) -> None:
    """Without a target, our own mathematics too; several rows of one statement are counted."""
    status, out, err = call("verify", "--only", "C22b,C8, C16")
    assert (status, err) == (0, "")
    assert "C8    passed  " in out
    assert "alpha_T = 0, all finite; expected: " in out
    assert "passed on " in out
    result = json.loads(call("verify", "--only", "C8", "--json")[1])
    assert (result["target"], result["passed"]) == ("unstir", 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "no_such_module:make"], "cannot import 'no_such_module'"),
        (["--target", "mine"], "package.module:factory"),
        (["--target", "unstir.verify.diffusers_adapter:dimm"], "did you mean ddim"),
        (["--target", "json:dumps"], "called without arguments"),
        (["--only", "C144"], "did you mean C14"),
        (["--only", "c17"], "unknown statement"),
        (["--only", ","], "no statement was named"),
        (["--target", "unstir.verify.diffusers_adapter:ddim", "--only", "C8"], "leave the target away"),
        (["--only"], "--only"),
        (["--colour", "red"], "--colour"),
        (["mine:make"], "mine:make"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bad_input(call: Call, arguments: list[str], words: str) -> None:
    status, out, err = call("verify", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert words in err


PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"


@pytest.mark.parametrize("line", ["r = s.sigma / t.sigma", "r = s.sigma**2 / t.sigma"])
def test_the_documents_example_works(call: Call, mine: Callable[[str], str], line: str) -> None:
    """As it stands, and with the bug that the document plants in it."""
    (example,) = re.findall(r"```python\n(# mine.py\n.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    name = mine(example.replace("r = s.sigma / t.sigma", line))
    status, out, _ = call("verify", "--target", f"{name}:make_sampler", "--only", "C1,C14,C16,C20")
    assert status == ("**" in line)
    assert ("C1    FAILED" in out) is ("**" in line)
    assert ("C14   FAILED" in out) is ("**" in line)


def test_a_file_with_a_mistake_is_told(call: Call, mine: Callable[[str], str]) -> None:
    status, out, err = call("verify", "--target", f"{mine('import nothing_of_that_name')}:make")
    assert (status, out) == (2, "")
    assert "nothing_of_that_name" in err


def test_every_statement_has_its_sentence(call: Call) -> None:
    for name, statement in STATEMENTS.items():
        assert statement.sentence.endswith("."), name
        assert statement.on_target or statement.on_unstir, name
