"""The word reader: every text has tokens and can be read back, nothing is cut silently."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from unstir.conditioning.text import MAX_PARTS, WordReader

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


# --- weighted prompts, and long ones ---

PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cn"], exclude_characters="()[]\\"))


def weights_of(prompt: str) -> list[tuple[str, float]]:
    """Every token that is read, as text, and its weight."""
    condition, _ = READER.read_weighted([prompt])
    words, mask, weights = condition.words, condition.word_mask, condition.word_weights
    assert words is not None
    assert mask is not None
    weights = torch.ones(words.shape) if weights is None else weights
    return [
        (READER.tokenizer.decode([token]), weight)
        for token, weight in zip(words[mask].tolist(), weights[mask].tolist(), strict=True)
    ]


@given(PLAIN)
@example("")
@example("flag: France")
def test_a_prompt_that_fits_and_weighs_nothing_is_the_plain_one(prompt: str) -> None:
    """Every tensor is equal; where the plain prompt is cut, the words before the cut that are whole are the same."""
    plain, cuts = READER.read([prompt])
    found, _ = READER.read_weighted([prompt])
    assert found.word_weights is None
    assert plain.words is not None
    assert plain.word_mask is not None
    assert found.words is not None
    assert found.word_mask is not None
    if not cuts:
        assert torch.equal(found.words, plain.words)
        assert torch.equal(found.word_mask, plain.word_mask)


@pytest.mark.parametrize("prompt", ["a (red:1) heart", "(a red heart:1.0)", "[(a)] red heart"])
def test_weights_of_one_are_none(prompt: str) -> None:
    condition, _ = READER.read_weighted([prompt])
    assert condition.word_weights is None
    assert torch.equal(condition.words, READER.read(["a red heart"])[0].words)  # type: ignore[arg-type]


def test_a_token_has_the_weight_of_its_letters() -> None:
    """Tokens are those of the whole text: a space before a word belongs to its token, not to the piece before."""
    assert weights_of("a (red:1.5) heart") == [(" a", 1), (" red", 1.5), (" heart", 1)]
    assert weights_of("a( red:1.5) heart") == [(" a", 1), (" red", 1.5), (" heart", 1)]
    assert weights_of("a re(d:1.5) heart") == [(" a", 1), (" red", 1), (" heart", 1)]  # of its first letter
    runs = [weight for weight, _ in itertools.groupby(weight for _, weight in weights_of("x(猫:2)x"))]
    assert runs == [1, 2, 1]  # of several bytes, so of several tokens


@given(st.lists(st.sampled_from(["red", "heart", "a", "猫", "xq", "ﬁn"]), min_size=1, max_size=6), st.data())
def test_weights_do_not_move_the_borders_of_tokens(words: list[str], data: st.DataObject) -> None:
    """The tokens are those of the plain text, and every word of a piece has its weight."""
    weights = [data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])) for _ in words]
    found = weights_of(" ".join(f"({word}:{weight})" for word, weight in zip(words, weights, strict=True)))
    plain = [READER.ids(word) for word in words]
    assert [weight for _, weight in found] == [w for w, ids in zip(weights, plain, strict=True) for _ in ids]


@given(st.lists(st.sampled_from(["red", "heart", "a", "xqz", "firefighter", "x" * 13]), min_size=1, max_size=24))
def test_long_prompts_are_read_whole_in_parts_of_whole_words(words: list[str]) -> None:
    """All tokens in order, each part full or ended by a word that did not fit, and a prompt that fits in one part."""
    prompt = " ".join(words)
    condition, cuts = READER.read_weighted([prompt])
    assert condition.words is not None
    assert condition.word_mask is not None
    parts = [
        ids[mask].tolist()
        for ids, mask in zip(*(t.reshape(-1, 8) for t in (condition.words, condition.word_mask)), strict=True)
    ]
    read = [token for part in parts for token in part]
    ids = READER.ids(prompt)
    assert read == ids[: len(read)]
    assert (len(read) < len(ids)) == bool(cuts)
    assert len(parts) == READER.num_parts(prompt) <= MAX_PARTS
    assert (len(parts) == 1) == (len(ids) <= 8)
    sizes = [len(READER.ids(word)) for word in words]
    starts = dict(zip(itertools.accumulate(sizes, initial=0), [*sizes, 0], strict=True))
    borders = itertools.accumulate(len(part) for part in parts[:-1])
    for part, border in zip(parts[:-1], borders, strict=True):
        if border in starts:
            assert len(part) + starts[border] > 8
        else:
            assert len(part) == 8, "in the middle of a word that no part holds"
            assert max(size for start, size in starts.items() if start < border < start + size) > 8


def test_only_the_longest_prompts_are_cut_and_say_so() -> None:
    prompt = "red heart " * 50
    condition, (cut,) = READER.read_weighted([prompt, "red"])
    assert condition.words is not None
    assert condition.words.shape == (2, 8 * MAX_PARTS)
    assert cut.prompt == prompt
    assert cut.tokens == len(READER.ids(prompt)) > cut.max_tokens == 8 * MAX_PARTS
    assert cut.read.startswith("red heart red")


def test_parts_are_padded_to_as_many_as_are_asked_for() -> None:
    condition, _ = READER.read_weighted(["red", "a (blue) star"], num_parts=3)
    assert condition.words is not None
    assert condition.word_mask is not None
    assert condition.words.shape == (2, 24)
    assert not condition.word_mask[:, 8:].any()
    assert condition.word_weights is not None
    assert (condition.word_weights[0] == 1).all()


def test_a_prompt_of_nothing_but_syntax_is_empty() -> None:
    condition, _ = READER.read_weighted(["()[]", ""])
    assert condition.word_weights is None
    assert torch.equal(condition.words, READER.read(["", ""])[0].words)  # type: ignore[arg-type]
    assert torch.equal(condition.word_mask, READER.read(["", ""])[0].word_mask)  # type: ignore[arg-type]


@pytest.mark.parametrize("read", [READER.read_weighted, lambda prompts: READER.num_parts(prompts[0])])
def test_weights_that_are_refused_are_refused_here_too(read: Callable[[list[str]], object]) -> None:
    with pytest.raises(ValueError, match="must be from -10 to 10"):
        read(["a (red:11) heart"])
