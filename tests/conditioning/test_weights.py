"""The syntax of weights: brackets multiply, nothing is lost, what is no syntax is text."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unstir.conditioning.weights import MOST, weighted

ANY = st.text(st.characters(exclude_categories=["Cs"]))
BRACKETED = st.lists(st.sampled_from([*"ab :()[]\\", ":0.5)"]), max_size=20).map("".join)
WEIGHTS = st.integers(-100, 100).map(lambda tenths: tenths / 10)
PIECES = st.lists(st.tuples(st.text("ab :.1()[]\\é猫", min_size=1), WEIGHTS), max_size=6)


def escaped(text: str) -> str:
    """The prompt that means just this text."""
    return re.sub(r"[()\[\]\\]", r"\\\g<0>", text)


def joined(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Neighbours of one weight as one piece."""
    found: list[tuple[str, float]] = []
    for text, weight in pieces:
        found = (
            [*found[:-1], (found[-1][0] + text, weight)]
            if found and found[-1][1] == weight
            else [*found, (text, weight)]
        )
    return found


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a red heart", [("a red heart", 1)]),
        ("a (red:1.5) heart", [("a ", 1), ("red", 1.5), (" heart", 1)]),
        ("(a red:0) heart", [("a red", 0), (" heart", 1)]),
        ("a (red:-.5)", [("a ", 1), ("red", -0.5)]),
        ("a (red : +2. )", [("a ", 1), ("red ", 2)]),
        ("a (red)", [("a ", 1), ("red", 1.1)]),
        ("a [red]", [("a ", 1), ("red", 1 / 1.1)]),
        ("((a) b)", [("a", 1.1 * 1.1), (" b", 1.1)]),
        ("([a])", [("a", 1)]),
        ("((a:2) b:3)", [("a", 6), (" b", 3)]),
        ("(a (b:2) c:3)", [("a ", 3), ("b", 6), (" c", 3)]),
        ("[[a]]", [("a", 1 / 1.1 / 1.1)]),
        ("", []),
        ("()", []),
        ("( [] )", [(" ", 1.1), (" ", 1.1)]),
        (r"\(a\) \[b\] \\(c)", [("(a) [b] \\", 1), ("c", 1.1)]),
        (r"a\b\ c", [(r"a\b\ c", 1)]),
        ("a\\", [("a\\", 1)]),
        ("(red\nheart:2)", [("red\nheart", 2)]),
    ],
)
def test_the_syntax(prompt: str, pieces: list[tuple[str, float]]) -> None:
    found = weighted(prompt)
    assert [text for text, _ in found] == [text for text, _ in joined(pieces)]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in joined(pieces)])


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a (red heart", [("a ", 1), ("red heart", 1.1)]),  # acts to the end
        ("a [red (heart", [("a ", 1), ("red ", 1 / 1.1), ("heart", 1)]),
        ("a (red:1.5", [("a ", 1), ("red:1.5", 1.1)]),
        ("a) red] heart", [("a) red] heart", 1)]),  # never opened
        ("a red:1.5) heart", [("a red:1.5) heart", 1)]),
        ("[red:1.5)]", [("red:1.5)", 1 / 1.1)]),
        ("(red:loud)", [("red:loud", 1.1)]),  # no number
        ("(red:)", [("red:", 1.1)]),
        ("(red:1.2.3)", [("red:1.2.3", 1.1)]),
        ("(red:1e3)", [("red:1e3", 1.1)]),
        ("(red:nan)", [("red:nan", 1.1)]),
        ("(3:2)", [("3", 2)]),
        ("flag: France", [("flag: France", 1)]),
    ],
)
def test_what_is_no_syntax_is_text(prompt: str, pieces: list[tuple[str, float]]) -> None:
    found = weighted(prompt)
    assert [text for text, _ in found] == [text for text, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


@given(PIECES)
def test_pieces_come_back(pieces: list[tuple[str, float]]) -> None:
    """Any text with any weight can be written, and is read as it was meant."""
    prompt = "".join(f"({escaped(text)}:{weight})" for text, weight in pieces)
    assert weighted(prompt) == joined(pieces)


@given(ANY | BRACKETED)
@example("\\")
@example("\\\\")
def test_an_escaped_text_is_itself(text: str) -> None:
    assert weighted(escaped(text)) == ([(text, 1.0)] if text else [])


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="()[]\\")))
def test_a_text_without_brackets_is_itself(text: str) -> None:
    assert weighted(text) == ([(text, 1.0)] if text else [])


@given(BRACKETED)
def test_every_prompt_means_something(prompt: str) -> None:
    """No prompt of few brackets is refused, none is made longer, neighbours differ in weight, letters keep their order."""
    pieces = weighted(prompt)
    text = "".join(piece for piece, _ in pieces)
    rest = iter(prompt)
    assert all(letter in rest for letter in text)
    assert [letter for letter in text if letter in "ab"] == [letter for letter in prompt if letter in "ab"]
    assert all(one[1] != two[1] for one, two in itertools.pairwise(pieces))


@pytest.mark.parametrize(
    "prompt",
    [
        "(red:10.1)",
        "(red:-11)",
        "((red:4):4)",
        "(" * 30 + "red" + ")" * 30,
        f"(red:{'9' * 400})",
        "(red:-" + "9" * 400 + ")",
    ],
)
def test_weights_out_of_range_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match='the weight of "red" must be from -10 to 10, got') as caught:
        weighted(f"a {prompt} heart")
    assert "\n" not in str(caught.value)


def test_the_ends_of_the_range_are_allowed() -> None:
    assert weighted("(a:10)(b:-10)") == [("a", MOST), ("b", -MOST)]
