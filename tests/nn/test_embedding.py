"""Embeddings: sinusoids and positions against their formulas; words that are not told leave no trace."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from unstir.condition import Condition
from unstir.nn.embedding import ConditionReader, VectorEmbedding, grid_positions, sinusoids
from unstir.nn.text import TextConfig

TEXT = TextConfig(vocabulary=20, max_tokens=6, width=8, depth=1, heads=2)
WORDS = Condition(
    words=torch.tensor([[3, 4, 5, 0], [6, 0, 0, 0], [7, 8, 9, 10]]),
    word_mask=torch.tensor([[True, True, True, False], [True, False, False, False], [True] * 4]),
)


def test_sinusoids_are_sines_then_cosines_of_falling_frequencies() -> None:
    features = sinusoids(torch.tensor([0.0, 0.7, 999.0]), 8, longest=100.0)
    assert features.shape == (3, 8)
    assert features.dtype == torch.float32
    for row, number in enumerate((0.0, 0.7, 999.0)):
        for k in range(4):
            angle = number / 100.0 ** (k / 4)
            assert features[row, k].item() == pytest.approx(math.sin(angle), abs=1e-4)
            assert features[row, 4 + k].item() == pytest.approx(math.cos(angle), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_sinusoids_are_made_in_float32_of_any_type(dtype: torch.dtype) -> None:
    features = sinusoids(torch.tensor([250.0], dtype=dtype), 8)
    assert features.dtype == torch.float32
    assert torch.equal(features, sinusoids(torch.tensor([250.0]), 8))


def test_sinusoids_tell_a_thousand_steps_apart() -> None:
    features = sinusoids(torch.arange(1000.0), 64)
    distance = torch.cdist(features, features) + 10 * torch.eye(1000)
    assert distance.min() > 0.1


def test_grid_positions_are_rows_then_columns() -> None:
    positions = grid_positions(3, 5, 16)
    assert positions.shape == (15, 16)
    for y in range(3):
        for x in range(5):
            expected: list[float] = []
            for place in (y, x):
                angles = [place / 10000.0 ** (k / 4) for k in range(4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(positions[y * 5 + x], torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_grid_positions_are_distinct() -> None:
    positions = grid_positions(16, 16, 32)
    assert (torch.cdist(positions, positions) + 10 * torch.eye(256)).min() > 0.1


def test_reading_puts_tokens_in_the_place_of_words() -> None:
    reader = ConditionReader(TEXT)
    read = reader(WORDS)
    assert WORDS.words is not None
    assert WORDS.word_mask is not None
    tokens, pooled = reader.text(WORDS.words, WORDS.word_mask)
    assert read.words is None
    assert read.word_mask is None
    assert torch.equal(read.tokens, tokens)
    assert torch.equal(read.pooled, pooled)
    assert torch.equal(read.token_mask, WORDS.word_mask)
    again = reader(read)
    assert torch.equal(again.tokens, tokens), "reading twice changes nothing"


@pytest.mark.parametrize("when", ["before reading", "after reading", "both"])
def test_words_that_are_not_kept_become_the_null(when: str) -> None:
    reader = ConditionReader(TEXT)
    kept = torch.tensor([True, False, True])
    plain = reader(WORDS)
    given = replace(WORDS, kept=kept) if when != "after reading" else WORDS
    read = reader(given)
    if when != "before reading":
        read = reader(replace(read, kept=kept))
    assert read.kept is None
    assert torch.equal(read.tokens[kept], plain.tokens[kept])
    assert torch.equal(read.pooled[kept], plain.pooled[kept])
    assert torch.equal(read.token_mask[kept], plain.token_mask[kept])
    assert (read.tokens[1] == reader.null_token).all()
    assert (read.pooled[1] == reader.null_pooled).all()
    assert read.token_mask[1].tolist() == [True, False, False, False]


def test_tokens_of_another_encoder_are_dropped_too() -> None:
    reader = ConditionReader(TEXT)
    tokens, pooled = torch.randn(2, 4, 8, requires_grad=True), torch.randn(2, 8, requires_grad=True)
    read = reader(Condition(tokens=tokens, pooled=pooled, kept=torch.tensor([False, True])))
    (read.tokens.sum() + read.pooled.sum()).backward()
    assert tokens.grad is not None
    assert pooled.grad is not None
    assert (tokens.grad[0] == 0).all()
    assert (pooled.grad[0] == 0).all()
    assert torch.equal(read.token_mask[0], torch.tensor([True, False, False, False]))
    assert torch.equal(read.tokens[1], tokens[1])


def test_a_condition_without_mask_exists_everywhere() -> None:
    reader = ConditionReader(TEXT)
    words = torch.tensor([[3, 4], [5, 6]])
    everywhere = reader(Condition(words=words, word_mask=torch.ones(2, 2, dtype=torch.bool)))
    assert torch.equal(reader(Condition(words=words)).pooled, everywhere.pooled)


def test_the_vector_is_of_the_scalar_and_the_pooled_words() -> None:
    embedding, scalar, pooled = VectorEmbedding(8, 4, features=16), torch.tensor([0.0, 500.0]), torch.randn(2, 4)
    blind = embedding(scalar, Condition(tokens=torch.zeros(2, 1, 4)))
    torch.testing.assert_close(blind, embedding.scalar(sinusoids(scalar, 16)))
    told = embedding(scalar, Condition(pooled=pooled))
    torch.testing.assert_close(told - blind, embedding.pooled(pooled))
