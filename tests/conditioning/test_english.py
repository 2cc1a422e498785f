"""Words that mean the same: no word stands for itself, and none is lost."""

from __future__ import annotations

import pytest

from unstir.conditioning.english import DEMONYMS, SKIN_TONES, SYNONYMS


@pytest.mark.parametrize("word", sorted(SYNONYMS))
def test_synonyms_are_other_words(word: str) -> None:
    others = SYNONYMS[word]
    assert others
    assert word not in others
    assert len(set(others)) == len(others)
    assert all(other == other.strip() and other for other in (word, *others))
    assert word == word.lower()


def test_the_first_name_of_a_skin_tone_is_unicodes() -> None:
    assert {tone: said[0] for tone, said in SKIN_TONES.items()} == {tone: tone for tone in SKIN_TONES}
    everything = [said for sayings in SKIN_TONES.values() for said in sayings]
    assert len(set(everything)) == len(everything)


def test_demonyms_tell_countries_apart() -> None:
    assert len(set(DEMONYMS.values())) == len(DEMONYMS)
    assert DEMONYMS["France"] == "French"
    assert DEMONYMS["South Korea"] == "South Korean"
