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

from unstir.conditioning.english import DEMONYMS, SKIN_TONES, SYNONYMS

DRAWS = 12
"""How many uniform numbers one wording uses."""

_EXCHANGED = 4  # words of a caption that may be exchanged at once: as many as there are draws for it
_SKIN = re.compile(r"(.+) skin tone")


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How often a caption is said otherwise; what is left is the caption as it is.

    Args:
        paraphrase: share of captions said in another form.
        keywords: share of captions replaced by a few of the picture's keywords, where it has any.
        forget: probability of leaving out one word of what was chosen, where it has three or more.
        synonyms: probability that a word of a paraphrase is exchanged for another that means the same (English).
        shuffle: probability that the words of a paraphrase come in any order.

    Raises:
        ValueError: if a share is outside [0, 1] or the first two exceed 1 together.

    """

    paraphrase: float = 0.25
    keywords: float = 0.15
    forget: float = 0.1
    synonyms: float = 0.0
    shuffle: float = 0.0

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        shares = (self.paraphrase, self.keywords, self.forget, self.synonyms, self.shuffle)
        if not all(0 <= share <= 1 for share in shares) or self.paraphrase + self.keywords > 1:
            raise ValueError(
                f"shares of wordings must be in [0, 1], and paraphrase and keywords add up to at most 1, got {shares}"
            )

    def say(self, captions: Sequence[str], keywords: Sequence[str], draws: Sequence[float]) -> str:
        """One wording.

        Args:
            captions: what the picture is called; the first draw chooses one of them.
            keywords: further words for it.
            draws: ``DRAWS`` numbers in [0, 1) that decide.
        """
        which, kind, form, first, second, loss, order, key = draws[: DRAWS - _EXCHANGED]
        text = pick(captions, which) if captions else ""
        others = [word for word in keywords if word != text]
        if kind < self.paraphrase and text:
            text = exchange(pick(paraphrases(text), form), self.synonyms, draws[DRAWS - _EXCHANGED : DRAWS])
            if order < self.shuffle and text.count("skin") <= 1:  # of two people, the order says who is who
                text = " ".join(shuffled(text.replace(",", "").replace(":", "").split(), key))
        elif kind < self.paraphrase + self.keywords and others:
            # Half of the time one alone: so people search.
            count = min(1 + int(max(0.0, 2 * second - 1) * 3), len(others))
            text = ", ".join(shuffled(others, first)[:count])
        words = text.split()
        if loss < self.forget and len(words) >= 3:
            # The same draw, rescaled, says which word: below ``forget`` it is uniform again.
            del words[int(loss / self.forget * len(words))]
            text = " ".join(words)
        return text


def pick(items: Sequence[str], draw: float) -> str:
    """The item that a number in [0, 1) chooses."""
    return items[int(draw * len(items))]


def shuffled(items: Sequence[str], draw: float) -> list[str]:
    """The items in the order that a number in [0, 1) chooses: one of all orders, each as likely as the others."""
    left, result = list(items), list[str]()
    while left:
        draw *= len(left)
        place = int(draw)
        draw -= place
        result.append(left.pop(place))
    return result


def exchange(text: str, share: float, draws: Sequence[float]) -> str:
    """The text with words exchanged for synonyms: the first word that has some with the first draw, and so on.

    Args:
        text: what is said.
        share: probability of each exchange; a draw below it exchanges, and rescaled it says for what.
        draws: numbers in [0, 1), one a word; words beyond them stay.
    """
    left = list(draws)

    def other(match: re.Match[str]) -> str:
        draw = left.pop(0) if left else 1.0
        return pick(SYNONYMS[match[0].lower()], draw / share) if draw < share else match[0]

    return _WITH_SYNONYMS.sub(other, text)


def paraphrases(name: str) -> list[str]:
    """Other ways to say a name: with another article, as a picture of it, with what follows a colon put elsewhere.

    A name of the form "head: detail, detail" (as Unicode's names are) gives forms such as "a head with detail"; skin
    tones are said as people say them, in every place where an adjective may stand.
    """
    head, colon, tail = (part.strip() for part in name.partition(":"))
    if not colon or not head or not tail:
        bare = re.sub(r"^(an?|the)\s+(?=\S)", "", name.strip(), flags=re.IGNORECASE)
        plain = " ".join(re.sub(r"[-,;.!?()\"“”]+", " ", bare).split())
        forms = [with_article(bare), f"the {bare}", f"a picture of {with_article(bare)}", f"{bare} emoji"]
        forms += [f"icon of {with_article(bare)}"]
        return [*forms, plain] if plain else forms
    if head == "flag":
        return _flags(tail)
    details = [detail.removesuffix(" tone") for detail in tail.split(", ")]
    together = " and ".join(details)
    forms = [
        f"{with_article(head)} with {together}",
        f"{together} {head}",
        f"{head}, {', '.join(reversed(details))}",
        f"{head} {tail}",
        f"{with_article(head)}, {together}",
    ]
    tones = [match[1] for detail in tail.split(", ") if (match := _SKIN.fullmatch(detail))]
    others = [detail for detail in tail.split(", ") if not _SKIN.fullmatch(detail)]
    if len(tones) == 1 and tones[0] in SKIN_TONES:
        forms += [form for said in SKIN_TONES[tones[0]] for form in _one_person(head, said, others)]
    elif len(tones) == 2 and all(tone in SKIN_TONES for tone in tones):
        forms += _two_people(head, tones, others)
    return list(dict.fromkeys(forms))


def with_article(noun: str) -> str:
    """The noun with a or an, by its first letter, instead of the article that it may have."""
    noun = re.sub(r"^(an?|the)\s+(?=\S)", "", noun, flags=re.IGNORECASE)
    return f"{'an' if noun[:1].lower() in tuple('aeiou') else 'a'} {noun}"


def _flags(country: str) -> list[str]:
    forms = [f"{country} flag", f"the flag of {country}", f"{country}'s flag", f"flag of {country}"]
    forms += [f"the national flag of {country}", f"{country}: flag"]
    people = DEMONYMS.get(country)
    return [*forms, f"{people} flag", f"the {people} flag"] if people else forms


def _one_person(head: str, tone: str, others: Sequence[str]) -> list[str]:
    """Forms of "head: tone skin tone, other": the tone before the whole, after it, and after the person's own word."""
    having = "".join(f" and {other}" for other in others)
    person, _, rest = head.partition(" ")
    forms = [
        with_article(f"{tone}-skinned {head}") + (f" with {' and '.join(others)}" if others else ""),
        f"{with_article(head)} with {tone} skin{having}",
        f"{' '.join([*others, tone])} skin {head}",
        f"{head} {tone} skinned {' '.join(others)}".strip(),
    ]
    if rest and person in _PEOPLE:
        forms += [
            f"{with_article(person)} with {tone} skin{having}, {rest}",
            f"{rest} {person} with {tone} skin{having}",
            f"{tone} {head}{having}",
        ]
    return forms


def _two_people(head: str, tones: Sequence[str], people: Sequence[str]) -> list[str]:
    first, second = (f"{tone}-skinned" for tone in tones)
    forms = [f"{head}: {first} and {second}", f"{head}, {tones[0]} skin and {tones[1]} skin"]
    if len(people) == 2:
        pair = f"{with_article(f'{first} {people[0]}')} and {with_article(f'{second} {people[1]}')}"
        forms += [f"{head} of {pair}", f"{pair}, {head}"]
    return forms


_PEOPLE = ("woman", "man", "person", "women", "men", "people")
_WITH_SYNONYMS = re.compile(
    rf"(?<![\w-])(?:{'|'.join(map(re.escape, sorted(SYNONYMS, key=len, reverse=True)))})(?![\w-])", re.IGNORECASE
)
