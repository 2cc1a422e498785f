"""Captions while training: many wordings of one picture.

Knows: how a name may be said otherwise, and how often.
Does not know: tokens, pictures, where captions are stored.

A caption that always comes in the same words is an identifier of its picture, and a network copies; varied wordings are
the main remedy (Somepalli et al. 2023, arXiv:2305.20086).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

DRAWS = 6
"""How many uniform numbers one wording uses."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How often a caption is said otherwise; what is left is the caption as it is.

    Args:
        paraphrase: share of captions said in another form.
        keywords: share of captions replaced by a few of the picture's keywords, where it has any.
        forget: probability of leaving out one word of what was chosen, where it has three or more.

    Raises:
        ValueError: if a share is outside [0, 1] or the two shares exceed 1.

    """

    paraphrase: float = 0.25
    keywords: float = 0.15
    forget: float = 0.1

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        shares = (self.paraphrase, self.keywords, self.forget)
        if not all(0 <= share <= 1 for share in shares) or self.paraphrase + self.keywords > 1:
            raise ValueError(f"shares of wordings must be in [0, 1] and add up to at most 1, got {shares}")

    def say(self, captions: Sequence[str], keywords: Sequence[str], draws: Sequence[float]) -> str:
        """One wording.

        Args:
            captions: what the picture is called; the first draw chooses one of them.
            keywords: further words for it.
            draws: ``DRAWS`` numbers in [0, 1) that decide.
        """
        which, kind, form, first, second, loss = draws[:DRAWS]
        text = pick(captions, which) if captions else ""
        others = [word for word in keywords if word != text]
        if kind < self.paraphrase and text:
            text = pick(paraphrases(text), form)
        elif kind < self.paraphrase + self.keywords and others:
            start = int(first * len(others))
            count = 1 + int(second * 3)
            chosen = (others + others)[start : start + min(count, len(others))]
            text = ", ".join(chosen)
        words = text.split()
        if loss < self.forget and len(words) >= 3:
            # The same draw, rescaled, says which word: below ``forget`` it is uniform again.
            del words[int(loss / self.forget * len(words))]
            text = " ".join(words)
        return text


def pick(items: Sequence[str], draw: float) -> str:
    """The item that a number in [0, 1) chooses."""
    return items[int(draw * len(items))]


def paraphrases(name: str) -> list[str]:
    """Other ways to say a name: with another article, as a picture of it, with what follows a colon put elsewhere.

    A name of the form "head: detail, detail" (as Unicode's names are) gives forms such as "a head with detail".
    """
    head, colon, tail = (part.strip() for part in name.partition(":"))
    if not colon or not head or not tail:
        bare = re.sub(r"^(an?|the)\s+(?=\S)", "", name.strip(), flags=re.IGNORECASE)
        plain = " ".join(re.sub(r"[-,;.!?()\"“”]+", " ", bare).split())
        forms = [_with_article(bare), f"the {bare}", f"a picture of {_with_article(bare)}", f"{bare} emoji"]
        return [*forms, plain] if plain else forms
    details = [detail.removesuffix(" tone") for detail in tail.split(", ")]
    together = " and ".join(details)
    return [
        f"{_with_article(head)} with {together}",
        f"{together} {head}",
        f"{head}, {', '.join(reversed(details))}",
        f"{head} {tail}",
        f"the {head} of {together}" if head == "flag" else f"{_with_article(head)}, {together}",
    ]


def _with_article(noun: str) -> str:
    noun = re.sub(r"^(an?|the)\s+(?=\S)", "", noun, flags=re.IGNORECASE)
    return f"{'an' if noun[:1].lower() in tuple('aeiou') else 'a'} {noun}"
