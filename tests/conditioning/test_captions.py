"""Wordings: never empty, said as often as promised, decided by their draws alone."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

import numpy
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unstir.conditioning.captions import DRAWS, Wording, exchange, paraphrases, pick, shuffled, with_article
from unstir.conditioning.english import SKIN_TONES, SYNONYMS

UNIT = st.floats(0, 1, exclude_max=True, allow_nan=False)
ALL = st.lists(UNIT, min_size=DRAWS, max_size=DRAWS)
NAMES = st.text(min_size=1, max_size=30).filter(lambda name: bool(name.strip()))
LAST = math.nextafter(1.0, 0.0)
KEYWORDS = ["bonfire", "campfire", "spark"]


def uniform(count: int, seed: int = 0) -> list[list[float]]:
    return numpy.random.default_rng(seed).random((count, DRAWS)).tolist()


def words(text: str) -> set[str]:
    return set(re.findall(r"[\w-]+", text.lower()))


@given(st.lists(NAMES, min_size=1, max_size=3), st.lists(NAMES, max_size=4), ALL)
@example(["-"], [], [0.0, 0.0, LAST, 0.0, 0.0, LAST, *[0.0] * (DRAWS - 6)])
@example([":"], [], [0.0, 0.0, 0.3, 0.0, 0.0, LAST, *[0.0] * (DRAWS - 6)])
@example([","], [], [0.0] * DRAWS)
def test_a_wording_is_never_empty(captions: list[str], keywords: list[str], draws: list[float]) -> None:
    """Where the picture has a name, something is said, whatever the name is made of."""
    wording = Wording(paraphrase=0.6, keywords=0.3, forget=0.5, synonyms=0.5, shuffle=0.5)
    assert wording.say(captions, keywords, draws).strip()


@given(NAMES)
@example("-")
@example("“”")
@example(":")
@example("note:")
def test_no_paraphrase_is_empty(name: str) -> None:
    forms = paraphrases(name)
    assert forms
    assert all(form.strip() for form in forms), forms


@given(st.lists(NAMES, min_size=1, max_size=3), st.lists(NAMES, max_size=4), ALL)
def test_draws_decide(captions: list[str], keywords: list[str], draws: list[float]) -> None:
    """The same draws say the same, whatever was said in between; draws beyond the last have no influence."""
    wording = Wording(synonyms=0.5, shuffle=0.5)
    said = wording.say(captions, keywords, draws)
    wording.say(captions, keywords, draws[::-1])
    assert wording.say(captions, keywords, [*draws, 0.5]) == said


def kind_of(said: str) -> str:
    if said == "fire":
        return "as it is"
    return "keywords" if words(said) <= set(KEYWORDS) else "paraphrase"


@pytest.mark.parametrize("wording", [Wording(forget=0), Wording(paraphrase=0.5, keywords=0.5, forget=0)])
def test_shares_are_as_promised(wording: Wording) -> None:
    """Each share within 3 standard errors over 20,000 uniform draws ("fire" has no form that equals itself but one)."""
    count = 20_000
    kinds = [kind_of(wording.say(["fire"], KEYWORDS, draws)) for draws in uniform(count)]
    # One of the five forms only takes punctuation out, so that it is "fire" again.
    same = sum(form == "fire" for form in paraphrases("fire")) / len(paraphrases("fire"))
    expected = {
        "paraphrase": wording.paraphrase * (1 - same),
        "keywords": wording.keywords,
        "as it is": 1 - wording.paraphrase * (1 - same) - wording.keywords,
    }
    for kind, share in expected.items():
        sigma = math.sqrt(share * (1 - share) / count)
        assert kinds.count(kind) / count == pytest.approx(share, abs=3 * sigma), kind


def test_shares_of_none_and_all() -> None:
    draws = uniform(300)
    plain = Wording(paraphrase=0, keywords=0, forget=0)
    assert {plain.say(["a b c d"], KEYWORDS, d) for d in draws} == {"a b c d"}
    always = Wording(paraphrase=1, keywords=0, forget=0)
    assert {always.say(["fire"], KEYWORDS, d) for d in draws} == set(paraphrases("fire"))
    only = Wording(paraphrase=0, keywords=1, forget=0)
    assert all(words(only.say(["fire"], KEYWORDS, d)) <= set(KEYWORDS) for d in draws)


def test_every_caption_gets_its_turn() -> None:
    plain = Wording(paraphrase=0, keywords=0, forget=0)
    said = [plain.say(["a", "b", "c"], [], d) for d in uniform(3000)]
    for caption in "abc":
        assert said.count(caption) / 3000 == pytest.approx(1 / 3, abs=3 * math.sqrt(2 / 9 / 3000))


def test_keywords_only_where_there_are_others() -> None:
    """A picture whose only keyword is its own name keeps its name; of others one to three distinct ones are said.

    Half of the time it is one alone, and each is the first as often as the others (3 standard errors).
    """
    wording = Wording(paraphrase=0, keywords=1, forget=0)
    assert {wording.say(["fire"], keywords, d) for keywords in ([], ["fire"]) for d in uniform(50)} == {"fire"}
    said = [wording.say(["fire"], ["fire", *KEYWORDS], d).split(", ") for d in uniform(3000)]
    # Up to 1/2 one; then 1, 2 or 3 alike.
    assert sum(len(chosen) == 1 for chosen in said) / 3000 == pytest.approx(2 / 3, abs=3 * math.sqrt(2 / 9 / 3000))
    for word in KEYWORDS:
        first = sum(chosen[0] == word for chosen in said) / 3000
        assert first == pytest.approx(1 / 3, abs=3 * math.sqrt(2 / 9 / 3000)), word
    assert {len(chosen) for chosen in said} == {1, 2, 3}
    assert all(len(set(chosen)) == len(chosen) and set(chosen) <= set(KEYWORDS) for chosen in said)
    assert set(itertools.chain(*said)) == set(KEYWORDS)


def test_a_picture_without_captions_is_said_by_its_keywords() -> None:
    wording = Wording(paraphrase=0, keywords=1, forget=0)
    assert wording.say([], ["red"], [0.0] * DRAWS) == "red"
    assert wording.say([], [], [0.0] * DRAWS) == ""


@given(st.lists(st.text("abcd", min_size=1, max_size=3), min_size=3, max_size=9), UNIT, UNIT)
@example(["a", "b", "c"], math.nextafter(0.3, 0), 0.3)
@example(["a"] * 7, LAST, 1.0)
def test_forgetting_leaves_out_one_word(name: list[str], loss: float, forget: float) -> None:
    """Exactly one word, the others in their order; none where the draw is not below the probability."""
    said = (
        Wording(paraphrase=0, keywords=0, forget=forget)
        .say([" ".join(name)], [], [0, 0, 0, 0, 0, loss, *[0] * (DRAWS - 6)])
        .split()
    )
    if loss >= forget:
        assert said == name
    else:
        assert said in [name[:i] + name[i + 1 :] for i in range(len(name))]


def test_every_word_is_forgotten_alike() -> None:
    """The share of forgettings is ``forget``, and each word is hit equally often (3 standard errors)."""
    wording = Wording(paraphrase=0, keywords=0, forget=0.3)
    count = 20_000
    said = [wording.say(["a b c d"], [], d) for d in uniform(count, 1)]
    for word in "abcd":
        share = sum(word not in text for text in said) / count
        assert share == pytest.approx(0.075, abs=3 * math.sqrt(0.075 * 0.925 / count)), word


@pytest.mark.parametrize("name", ["red", "red heart"])
def test_short_names_are_never_shortened(name: str) -> None:
    assert Wording(paraphrase=0, keywords=0, forget=1).say([name], [], [0.0] * DRAWS) == name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("woman firefighter: medium-dark skin tone", {"woman", "firefighter"}),
        ("flag: Freedonia", {"flag", "freedonia"}),
        ("family: man, woman, girl", {"family", "man", "woman", "girl"}),
        ("cat with tears of joy", {"cat", "tears", "joy"}),
        ("man: dark skin tone, red hair", {"man", "red", "hair"}),
    ],
)
def test_paraphrases_say_the_same(name: str, content: set[str]) -> None:
    """Every content word is in every form, and the forms differ from each other."""
    forms = paraphrases(name)
    for form in forms:
        assert content <= words(form), form
        assert "  " not in form
        assert form == form.strip()
    assert len(set(forms)) == len(forms)
    assert sum(form != name for form in forms) >= 4


@pytest.mark.parametrize("tone", sorted(SKIN_TONES))
@pytest.mark.parametrize(
    "name", ["woman firefighter: {} skin tone", "man: {} skin tone, red hair", "baby: {} skin tone"]
)
def test_a_skin_tone_is_said_in_every_form_and_never_another(name: str, tone: str) -> None:
    """By one of the words that people have for it, which none of the other tones has."""
    own = {said for said in SKIN_TONES[tone]}
    others = {said for other, sayings in SKIN_TONES.items() if other != tone for said in sayings}
    assert own.isdisjoint(others)
    for form in paraphrases(name.format(tone)):
        found = [said for said in own | others if re.search(rf"(?<![\w-]){said}(?![\w])", form)]
        longest = max(found, key=len)
        assert longest in own, form
    assert any(
        f"{tone}-skinned woman firefighter" in form for form in paraphrases(f"woman firefighter: {tone} skin tone")
    )


def test_of_two_people_each_keeps_their_own_tone() -> None:
    forms = paraphrases("kiss: woman, man, dark skin tone, light skin tone")
    assert "kiss of a dark-skinned woman and a light-skinned man" in forms
    for form in forms:
        assert (form.index("dark") < form.index("light")) == ("man, woman" not in form), form


def test_two_people_are_never_shuffled() -> None:
    name = "handshake: light skin tone, dark skin tone"
    said = {Wording(paraphrase=1, keywords=0, forget=0, shuffle=1).say([name], [], d) for d in uniform(300)}
    assert said == set(paraphrases(name))


def test_flags_are_said_by_country_and_by_people() -> None:
    assert {"the flag of France", "French flag", "France flag"} <= set(paraphrases("flag: France"))
    assert all("Dutch" in form or "Netherlands" in form for form in paraphrases("flag: Netherlands"))


@given(st.lists(st.integers(0, 9), max_size=9), UNIT)
def test_shuffled_is_a_permutation(items: list[int], draw: float) -> None:
    assert sorted(shuffled(items, draw)) == sorted(items)


def test_every_order_is_as_likely() -> None:
    orders = [tuple(shuffled("abc", (i + 0.5) / 600)) for i in range(600)]
    assert sorted(set(orders)) == sorted(itertools.permutations("abc"))
    assert {orders.count(order) for order in set(orders)} == {100}


def test_synonyms_are_exchanged_as_often_as_promised() -> None:
    """Each of the two words by its own draw, each synonym alike; words that only contain one stay."""
    count = 9000
    said = [exchange("a woman pilot", 0.3, draws) for draws in uniform(count)]
    for word in ("woman", "pilot"):
        share = sum(word not in text for text in said) / count
        assert share == pytest.approx(0.3, abs=3 * math.sqrt(0.21 / count)), word
    both = sum("woman" not in text and "pilot" not in text for text in said) / count
    assert both == pytest.approx(0.09, abs=3 * math.sqrt(0.09 * 0.91 / count))
    assert {text.removeprefix("a ").removesuffix(" pilot") for text in said if "pilot" in text} == {
        "woman",
        *SYNONYMS["woman"],
    }
    assert exchange("superwoman co-pilot", 1.0, [0.0] * 4) == "superwoman co-pilot"


@given(NAMES, st.lists(UNIT, max_size=6))
@example("woman man person boy girl", [0.0, 0.0])
def test_without_share_or_draws_nothing_is_exchanged(name: str, draws: list[float]) -> None:
    assert exchange(name, 0.0, draws) == name
    assert exchange(name, 1.0, []) == name


@given(NAMES)
def test_an_article_is_put_once(name: str) -> None:
    assert with_article(with_article(name)) == with_article(name)


@pytest.mark.parametrize("name", ["हिन्दी", "cafe\u0301 noir", "ภาษาไทย"])
def test_letters_of_other_scripts_stay_whole(name: str) -> None:
    """Vowel signs and accents that are characters of their own are no punctuation."""
    for form in paraphrases(name):
        assert name in form, form


@pytest.mark.parametrize(
    ("name", "article"),
    [("apple", "an"), ("Orange", "an"), ("heart", "a"), ("eye: red", "an"), ("man: old, tired", "a"), ("7 cats", "a")],
)
def test_articles(name: str, article: str) -> None:
    """A or an, by the first letter."""
    forms = [form for form in paraphrases(name) if re.match(r"(a|an) ", form) and not form.startswith("a picture")]
    assert forms
    assert all(form.split()[0] == article for form in forms)
    other = {"a": "an", "an": "a"}[article]
    head = name.split(":")[0]
    assert not any(f" {other} {head}" in f" {form}" for form in forms)


@pytest.mark.parametrize("name", ["a red apple", "an old man", "the moon", "A red apple"])
def test_a_name_with_an_article_gets_no_second(name: str) -> None:
    """Captions that people write begin with an article more often than not."""
    for form in paraphrases(name):
        assert not re.search(r"\b(a|an|the) (a|an|the)\b", form.lower()), form


@pytest.mark.parametrize(
    "shares", [(-0.1, 0.0, 0.0), (0.0, 1.1, 0.0), (0.6, 0.6, 0.0), (0.0, 0.0, 2.0), (math.nan, 0.0, 0.0)]
)
def test_shares_that_are_none_are_refused(shares: Sequence[float]) -> None:
    with pytest.raises(ValueError, match="shares"):
        Wording(paraphrase=shares[0], keywords=shares[1], forget=shares[2])


@given(st.lists(st.text(), min_size=1, max_size=2000), UNIT)
@example(["x"] * 1999, LAST)
def test_pick_stays_inside(items: list[str], draw: float) -> None:
    assert pick(items, draw) in items
