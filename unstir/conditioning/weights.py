r"""Weights: the syntax by which a prompt says how much its words count.

Knows: brackets, numbers and backslashes in a prompt.
Does not know: tokens, networks, what a weight does.

    (words:1.5)     words count 1.5 times; any number from -10 to 10
    (words)         1.1 times
    [words]         1/1.1 times
    ((words))       brackets inside brackets multiply: 1.21 times
    \( \) \[ \] \\  a bracket, or a backslash, that is meant as such

It is lenient: a bracket that is never closed acts to the end of the prompt, one that was never opened is text, and so
is what should be a number and is none: (words:loud) is "words:loud", 1.1 times.

Source: AUTOMATIC1111, stable-diffusion-webui, "Attention/emphasis".
"""

from __future__ import annotations

import re

MOST = 10.0
"""Weights are between -MOST and MOST."""

_ROUND, _SQUARE = 1.1, 1 / 1.1
_MARKS = re.compile(r"\\[()\[\]\\]|[(\[\])]|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[^\\()\[\]:]+|.", re.DOTALL)


def weighted(prompt: str) -> list[tuple[str, float]]:
    """The pieces of a prompt, without the syntax, and the weight of each; neighbours of one weight are one piece.

    Joined, the texts are the prompt as it would be said plainly.

    Raises:
        ValueError: if a weight is not between -10 and 10.
    """
    pieces: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []  # brackets, and the piece that each stands before
    for mark in _MARKS.finditer(prompt):
        text, number = mark[0], mark[1]
        if text in "([":
            opened.append((text, len(pieces)))
        elif number is not None and (start := _closed(opened, "(")) is not None:
            _multiply(pieces, start, float(number))
        elif text == ")" and (start := _closed(opened, "(")) is not None:
            _multiply(pieces, start, _ROUND)
        elif text == "]" and (start := _closed(opened, "[")) is not None:
            _multiply(pieces, start, _SQUARE)
        else:
            pieces.append((text[1:] if len(text) == 2 and text[0] == "\\" else text, 1.0))
    for bracket, start in opened:
        _multiply(pieces, start, _ROUND if bracket == "(" else _SQUARE)
    return _joined(pieces)


def _closed(opened: list[tuple[str, int]], bracket: str) -> int | None:
    """The piece before which the last such bracket was opened, which is closed by this; None where none was."""
    places = [place for place, (kind, _) in enumerate(opened) if kind == bracket]
    return opened.pop(places[-1])[1] if places else None


def _multiply(pieces: list[tuple[str, float]], start: int, weight: float) -> None:
    pieces[start:] = [(text, before * weight) for text, before in pieces[start:]]


def _joined(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    joined: list[tuple[str, float]] = []
    for text, weight in pieces:
        if not -MOST <= weight <= MOST:
            raise ValueError(f'the weight of "{text}" must be from -{MOST:g} to {MOST:g}, got {weight:g}')
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return joined
