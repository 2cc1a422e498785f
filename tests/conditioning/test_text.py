"""The word reader: every text has tokens and can be read back, nothing is cut silently."""

from __future__ import annotations

import unicodedata

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from unstir.conditioning.text import WordReader

TEXTS = ["red heart", "blue heart", "a red star", "flag: France", "woman firefighter: medium-dark skin tone", "ü ö 猫"]
READER = WordReader.train(TEXTS, vocabulary=300, max_tokens=8)
# Unassigned code points may be assigned in the tokenizer's version of Unicode and not in Python's.
ANY = st.text(st.characters(exclude_categories=["Cs", "Cn"]))


def plain(text: str) -> str:
    """What is not told apart: NFKC, then lower case letter by letter (a final sigma is a sigma)."""
    return "".join(letter.lower() for letter in unicodedata.normalize("NFKC", text))


@given(ANY)
@example("")
@example("[pad]")
@example("a [pad] b")
@example(" two  spaces ")
@example("\uff21\ufb01 \u00b2\u212b")
@example("👩🏽‍🚒 🇫🇷 \n\t\u200b")
@example("\x00")
def test_every_text_has_tokens_and_comes_back(text: str) -> None:
    """At least one token, none unknown or out of range; decoded they are the text, up to letter forms."""
    ids = READER.ids(text)
    assert len(ids) >= 1
    assert all(0 <= token < 300 for token in ids)
    decoded = READER.tokenizer.decode(ids)
    expected = plain(text)
    assert decoded == expected or decoded == " " + expected  # the first word is read as any other: with a space before


@given(ANY)
def test_letter_forms_are_not_told_apart(text: str) -> None:
    assert READER.ids(plain(text)) == READER.ids(text)


def test_upper_case_is_not_told_apart() -> None:
    assert READER.ids("Red HEART") == READER.ids("red heart") == READER.ids("\uff52\uff45\uff44 heart")


def test_frequent_words_are_one_token() -> None:
    """The merges are learnt of the texts: their words need fewer tokens than foreign ones of the same length."""
    assert len(READER.ids("heart")) < len(READER.ids("xqzvj"))


def test_training_is_deterministic() -> None:
    """The same texts in the same order give the same tokenizer, ties among merges included."""
    texts = [f"{a}{b} {b}{a}" for a in "abcdefgh" for b in "stuvwxyz"]  # all pairs equally often
    first = WordReader.train(texts, vocabulary=300, max_tokens=8).tokenizer.to_str()
    for _ in range(5):
        assert WordReader.train(iter(texts), vocabulary=300, max_tokens=8).tokenizer.to_str() == first


def test_a_stored_tokenizer_reads_the_same() -> None:
    again = WordReader(Tokenizer.from_str(READER.tokenizer.to_str()), 8)
    for text in (*TEXTS, "", "猫 ☃", "x" * 99):
        assert again.ids(text) == READER.ids(text)


@pytest.mark.parametrize("vocabulary", [-1, 0, 1, 256])
def test_too_small_vocabularies_are_refused(vocabulary: int) -> None:
    with pytest.raises(ValueError, match=f"257 entries, got {vocabulary}"):
        WordReader.train(TEXTS, vocabulary=vocabulary, max_tokens=8)


def test_the_smallest_vocabulary_reads_bytes() -> None:
    reader = WordReader.train(TEXTS, vocabulary=257, max_tokens=8)
    assert reader.tokenizer.get_vocab_size() == 257
    assert len(reader.ids("猫")) == 4  # the space before, and three bytes
    assert reader.tokenizer.decode(reader.ids("猫")).strip() == "猫"


def test_no_texts_at_all_still_make_a_reader() -> None:
    reader = WordReader.train([], vocabulary=300, max_tokens=8)
    assert reader.tokenizer.decode(reader.ids("red")).strip() == "red"


@given(st.lists(ANY, min_size=1, max_size=5), st.none() | st.integers(1, 12))
def test_padding(prompts: list[str], length: int | None) -> None:
    """The words are the first ids of each prompt; the rest is zero and does not exist."""
    condition, _ = READER.read(prompts, length=length)
    words, mask = condition.words, condition.word_mask
    assert words is not None
    assert mask is not None
    longest = max(min(8, len(READER.ids(prompt))) for prompt in prompts)
    assert words.shape == mask.shape == (len(prompts), 8 if length is None else max(length, longest))
    assert (words.dtype, mask.dtype, condition.kept) == (torch.long, torch.bool, None)
    for row, prompt in enumerate(prompts):
        ids = READER.ids(prompt)[:8]
        assert words[row].tolist() == ids + [0] * (words.shape[1] - len(ids))
        assert mask[row].tolist() == [True] * len(ids) + [False] * (words.shape[1] - len(ids))


def test_an_empty_prompt_is_one_padding_that_exists() -> None:
    """Attention needs one token to look at: row and mask are never empty."""
    condition, cuts = READER.read(["", "red"])
    assert condition.words is not None
    assert condition.word_mask is not None
    assert condition.words[0].tolist() == [0] * 8
    assert condition.word_mask[0].tolist() == [True] + [False] * 7
    assert cuts == []


@given(st.lists(ANY | st.text("ab ", min_size=8, max_size=40), min_size=1, max_size=4))
def test_no_prompt_is_cut_silently(prompts: list[str]) -> None:
    """Exactly the prompts with more tokens than the model reads are reported, in order, with what was read of them."""
    _, cuts = READER.read(prompts)
    assert [cut.prompt for cut in cuts] == [prompt for prompt in prompts if len(READER.ids(prompt)) > 8]
    for cut in cuts:
        assert cut.tokens == len(READER.ids(cut.prompt)) > cut.max_tokens == 8
        # A letter of several bytes may have been cut in two; what is left of it is shown as U+FFFD.
        whole = cut.read.rstrip("\N{REPLACEMENT CHARACTER}")
        assert plain(cut.prompt).strip().startswith(whole)
        assert len(READER.ids(whole)) <= 8


def test_a_cut_is_one_sentence() -> None:
    _, (cut,) = READER.read(["red heart " * 20])
    sentence = str(cut)
    assert cut.read.startswith("red heart")
    assert f'"{cut.read}"' in sentence
    assert str(cut.tokens) in sentence
    assert " 8" in sentence


def test_a_prompt_of_exactly_the_length_is_not_cut() -> None:
    prompt = next(text for n in range(1, 99) if len(READER.ids(text := "x" * n)) == 8)
    assert READER.read([prompt])[1] == []
    assert len(READER.read([prompt + "q"])[1]) == 1
