"""The text transformer: it pools what exists, and what does not exist has no influence."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from unstir.nn.text import TextConfig, TextTransformer

TEXT = TextConfig(vocabulary=20, max_tokens=8, width=8, depth=2, heads=2)
WORDS = torch.tensor([[3, 4, 5, 1, 2], [6, 7, 1, 2, 3]])
MASK = torch.tensor([[True, True, True, False, False], [True, True, False, False, False]])


def test_the_pooled_vector_is_the_mean_over_tokens_that_exist() -> None:
    tokens, pooled = TextTransformer(TEXT)(WORDS, MASK)
    assert tokens.shape == (2, 5, 8)
    torch.testing.assert_close(pooled[0], tokens[0, :3].mean(0))
    torch.testing.assert_close(pooled[1], tokens[1, :2].mean(0))


def test_padding_has_no_influence() -> None:
    text = TextTransformer(TEXT)
    tokens, pooled = text(WORDS, MASK)
    other_words = torch.where(MASK, WORDS, 19)
    longer = F.pad(other_words, (0, 3), value=11), F.pad(MASK, (0, 3), value=False)
    for words, mask in ((other_words, MASK), longer, (WORDS[:, :3], MASK[:, :3])):
        other_tokens, other_pooled = text(words, mask)
        torch.testing.assert_close(other_pooled, pooled, atol=1e-6, rtol=0)
        torch.testing.assert_close(other_tokens[0, :3], tokens[0, :3], atol=1e-6, rtol=0)
        torch.testing.assert_close(other_tokens[1, :2], tokens[1, :2], atol=1e-6, rtol=0)


def test_every_word_and_its_place_matter() -> None:
    text = TextTransformer(TEXT)
    whole = torch.ones(4, 3, dtype=torch.bool)
    pooled = text(torch.tensor([[3, 4, 5], [5, 4, 3], [3, 4, 6], [9, 4, 5]]), whole)[1]
    assert (torch.pdist(pooled) > 1e-3).all()


def test_words_that_come_later_are_seen_by_earlier_ones() -> None:
    tokens, _ = TextTransformer(TEXT)(torch.tensor([[3, 4, 5], [3, 4, 6]]), torch.ones(2, 3, dtype=torch.bool))
    assert (tokens[0, 0] - tokens[1, 0]).abs().max() > 1e-4
