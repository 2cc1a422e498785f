"""What the README and the documents tell a reader to type is what the command line understands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]

# Checks from outside type exactly these two lines.
FIRST_PICTURES = (
    "python3 -m venv .venv && .venv/bin/pip install -e . "
    '&& .venv/bin/unstir sample "a red heart" "a cat with tears of joy" -o pictures/'
)
TESTS = ".venv/bin/pip install -e '.[test]' && .venv/bin/pytest"

OPERATORS = {"&&", "||", "|", ";", "&", ">", ">>", "<", "(", ")"}


def shell_lines(text: str) -> Iterator[str]:
    """The lines of all fenced shell blocks, without prompts, continued lines joined."""
    for language, block in re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL):
        if language in ("", "sh", "bash", "shell", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                yield re.sub(r"^\$ ", "", line.strip())


def commands(line: str) -> Iterator[list[str]]:
    """The commands of a line, each as its words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in OPERATORS:
            if words:
                yield words
            words = []
        else:
            words.append(word)


def unstir_commands() -> list[tuple[str, list[str]]]:
    """(document, arguments) of every `unstir ...` that a document shows."""
    found = []
    for document in DOCUMENTS:
        for line in shell_lines(document.read_text(encoding="utf-8")):
            if not re.search(r"(^|[\s/])unstir\s", line):
                continue  # other programs' output may not even be shell
            for words in commands(line):
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words and Path(words[0]).name == "unstir":
                    found.append((document.relative_to(ROOT).as_posix(), words[1:]))
    return found


COMMANDS = unstir_commands()


def test_the_readme_holds_the_two_commands() -> None:
    text = README.read_text(encoding="utf-8")
    if not text.strip():
        pytest.skip("README.md IS EMPTY: nothing in it was checked")
    lines = list(shell_lines(text))
    for command in (FIRST_PICTURES, TESTS):
        assert command in lines, f"README.md does not show, on one line of a shell block: {command}"
    assert any(words[:1] == ["sample"] for _, words in COMMANDS)


@pytest.mark.parametrize(("document", "arguments"), COMMANDS, ids=[" ".join(words) for _, words in COMMANDS])
def test_every_command_shown_is_understood(document: str, arguments: list[str]) -> None:
    """The verb exists and takes these options and values; nothing is run."""
    app_module = pytest.importorskip("unstir.cli.app")
    if arguments[:1] == ["train"]:
        arguments = app_module.as_settings(arguments)
    try:
        app_module.app.parse_args(arguments, exit_on_error=False, print_error=False)
    except Exception as error:  # whatever it is, the reader would get it
        pytest.fail(f"{document}: unstir {shlex.join(arguments)}: {type(error).__name__}: {error}")


def test_commands_are_found_in_documents() -> None:
    """The reader of documents above, on a document of its own."""
    text = r"""
`unstir nothing` in a sentence
```sh
$ A=1 .venv/bin/unstir sample "a b" \
  -o out/ && unstir redo x.png > log  # why
```
```python
unstir sample
```
```console
unstir evaluate runs/a/model --data d,e
```
"""
    got = [words for line in shell_lines(text) for words in commands(line)]
    assert got == [
        ["A=1", ".venv/bin/unstir", "sample", "a b", "-o", "out/"],
        ["unstir", "redo", "x.png"],
        ["log"],
        ["unstir", "evaluate", "runs/a/model", "--data", "d,e"],
    ]
