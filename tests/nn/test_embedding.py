"""Embeddings: sinusoids and positions against their formulas; words that are not told leave no trace."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unstir.condition import Condition
from unstir.nn.embedding import (
    ConditionReader,
    VectorEmbedding,
    grid_positions,
    require_classes,
    require_labels,
    sinusoids,
    without_dropped_labels,
)
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


# --- words that do not all count the same ---


def weighing(weights: list[list[float]]) -> Condition:
    return replace(WORDS, word_weights=torch.tensor(weights, dtype=torch.float32))


def assert_close(read: Condition, tokens: Tensor, pooled: Tensor, row: int) -> None:
    """On the tokens that exist."""
    assert read.tokens is not None
    assert read.token_mask is not None
    assert read.pooled is not None
    exists = read.token_mask[row]
    torch.testing.assert_close(read.tokens[row, exists], tokens[exists])
    torch.testing.assert_close(read.pooled[row], pooled)


def left(reader: ConditionReader, row: int, there: list[bool]) -> tuple[Tensor, Tensor]:
    """The reading of some words of a row alone, with the null in the place of the others."""
    assert WORDS.words is not None
    mask = torch.tensor([there])
    if not any(there):
        return reader.null_token.expand(4, -1), reader.null_pooled
    tokens, pooled = reader.text(WORDS.words[row : row + 1], mask)
    return torch.where(mask[0, :, None], tokens[0], reader.null_token), pooled[0]


ONES = [[1.0] * 4] * 3


def test_weights_of_one_change_no_bit() -> None:
    """Also in company: a row whose words all weigh 1 is the plain one whatever the other rows weigh."""
    reader = ConditionReader(TEXT)
    plain, ones = reader(WORDS), reader(weighing(ONES))
    mixed = reader(weighing([[0.5, 1, 2, 1], *ONES[1:]]))
    assert ones.word_weights is None
    for read, rows in ((ones, slice(0, 3)), (mixed, slice(1, 3))):
        assert torch.equal(read.tokens[rows], plain.tokens[rows])
        assert torch.equal(read.pooled[rows], plain.pooled[rows])
        assert torch.equal(read.token_mask, plain.token_mask)


def test_weights_of_padding_change_nothing() -> None:
    reader = ConditionReader(TEXT)
    read, plain = reader(weighing([[1, 1, 1, 0], [1, 5, 0, 2], [1, 1, 1, 1]])), reader(WORDS)
    assert torch.equal(read.tokens, plain.tokens)
    assert torch.equal(read.pooled, plain.pooled)


def test_a_word_of_weight_zero_is_not_there() -> None:
    """What the other words are read as does not know of it, and in its own place is the null."""
    reader = ConditionReader(TEXT)
    read = reader(weighing([[1, 0, 1, 1], *ONES[1:]]))
    assert_close(read, *left(reader, 0, [True, False, True, False]), 0)
    nothing = reader(weighing([[0, 0, 0, 1], *ONES[1:]]))
    assert_close(nothing, *left(reader, 0, [False] * 4), 0)


@pytest.mark.parametrize("weight", [-1.0, 0.3, 1.7, 4.0])
def test_a_weight_is_a_place_on_the_line_from_without_to_with(weight: float) -> None:
    """weighed = without + w (with - without)."""
    reader = ConditionReader(TEXT)
    read, plain = reader(weighing([*ONES[:2], [1, weight, weight, 1]])), reader(WORDS)
    tokens, pooled = left(reader, 2, [True, False, False, True])
    assert_close(read, torch.lerp(tokens, plain.tokens[2], weight), torch.lerp(pooled, plain.pooled[2], weight), 2)


def test_several_weights_are_taken_one_level_after_another() -> None:
    """Weights 0.25, 0.5 and 3: a quarter of all, a quarter without the first, half without both, and twice away from
    the reading without the third.
    """
    reader = ConditionReader(TEXT)
    read, plain = reader(weighing([*ONES[:2], [0.25, 0.5, 3, 1]])), reader(WORDS)
    first, both, third = ([False, True, True, True], [False, False, True, True], [True, True, False, True])
    found = [left(reader, 2, there) for there in (first, both, third)]
    full = (plain.tokens[2], plain.pooled[2])
    tokens, pooled = (
        0.25 * whole + 0.25 * one + 0.5 * two + 2 * (whole - three)
        for whole, one, two, three in zip(full, *found, strict=True)
    )
    assert_close(read, tokens, pooled, 2)


@pytest.mark.parametrize("at", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_the_reading_is_continuous_in_the_weights(at: float) -> None:
    """Two words of nearly one weight are read nearly as two of the same weight."""
    reader = ConditionReader(TEXT)
    same = reader(weighing([*ONES[:2], [at, at, 1, 1]]))
    for slightly in (at - 1e-4, at + 1e-4):
        near = reader(weighing([*ONES[:2], [at, slightly, 1, 1]]))
        assert (near.tokens - same.tokens)[2].abs().max() < 1e-2
        assert (near.pooled - same.pooled)[2].abs().max() < 1e-2


def test_a_weighed_row_is_the_same_in_any_company() -> None:
    """Bit for bit: its neighbours' weights ask for readings of their own."""
    reader = ConditionReader(TEXT)
    alone = reader(weighing([*ONES[:2], [0.5, 2, 1, 1]]))
    company = reader(weighing([[0.1, 0.2, 0.3, 1], [7, 1, 1, 1], [0.5, 2, 1, 1]]))
    assert torch.equal(alone.tokens[2], company.tokens[2])
    assert torch.equal(alone.pooled[2], company.pooled[2])


def test_weighed_words_that_are_not_kept_are_the_null() -> None:
    reader = ConditionReader(TEXT)
    read = reader(replace(weighing([[0.5, 2, 1, 1]] * 3), kept=torch.tensor([True, False, True])))
    assert (read.tokens[1] == reader.null_token).all()
    assert (read.pooled[1] == reader.null_pooled).all()


# --- prompts that are longer than the text transformer reads ---


def test_long_prompts_are_read_in_parts() -> None:
    """Each part as if it were alone; the pooled vector is the mean over the tokens of all parts."""
    reader = ConditionReader(TEXT)
    words = torch.arange(24).reshape(2, 12) % 19 + 1
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, 9:] = False
    mask[1, 6:] = False  # a part without words
    read = reader(Condition(words=words, word_mask=mask))
    assert read.tokens.shape == (2, 12, 8)
    assert torch.equal(read.token_mask, mask)
    assert bool(read.tokens.isfinite().all())
    one, first = reader.text(words[:, :6], mask[:, :6])
    two, second = reader.text(words[:1, 6:], mask[:1, 6:])
    torch.testing.assert_close(read.tokens[:, :6], one)
    torch.testing.assert_close(read.tokens[0, 6:9], two[0, :3])
    torch.testing.assert_close(read.pooled[0], (6 * first[0] + 3 * second[0]) / 9)
    torch.testing.assert_close(read.pooled[1], first[1])


def test_long_prompts_have_weights_too() -> None:
    """A part all of whose words weigh 0 is not there."""
    reader = ConditionReader(TEXT)
    words, mask = torch.arange(12)[None] + 1, torch.ones(1, 12, dtype=torch.bool)
    weights = torch.tensor([[1.0] * 6 + [0.0] * 6])
    read = reader(Condition(words=words, word_mask=mask, word_weights=weights))
    tokens, pooled = reader.text(words[:, :6], mask[:, :6])
    torch.testing.assert_close(read.tokens[:, :6], tokens)
    torch.testing.assert_close(read.tokens[0, 6:], reader.null_token.expand(6, -1))
    torch.testing.assert_close(read.pooled, pooled)


def test_a_ragged_long_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 6 tokens, got 7"):
        ConditionReader(TEXT)(Condition(words=torch.ones(1, 7, dtype=torch.long)))


def test_the_step_of_a_grid_is_what_its_cells_are_apart() -> None:
    torch.testing.assert_close(
        grid_positions(6, 6, 16, step=0.5).view(6, 6, 16)[::2, ::2].flatten(0, 1), grid_positions(3, 3, 16)
    )


LABELS = torch.tensor([2, -1, 0])


@pytest.mark.parametrize("has_null_class", [False, True])
def test_the_class_adds_its_vector_and_no_class_adds_its_own_or_nothing(has_null_class: bool) -> None:
    torch.manual_seed(0)
    embedding = VectorEmbedding(8, None, classes=3, has_null_class=has_null_class)
    assert embedding.labels is not None
    assert embedding.labels.num_embeddings == 3 + has_null_class
    scalar, table = torch.tensor([0.0, 5.0, 9.0]), embedding.labels.weight
    alone = embedding(scalar, Condition(seeds=LABELS))
    none = table[3] if has_null_class else torch.zeros(8)
    told = embedding(scalar, Condition(labels=LABELS))
    torch.testing.assert_close(told, alone + torch.stack([table[2], none, table[0]]))
    told.sum().backward()
    touched = table.grad.abs().amax(1) > 0  # type: ignore[union-attr]
    assert touched.tolist() == [True, False, True, True][: 3 + has_null_class]


def test_labels_that_are_not_kept_are_no_class() -> None:
    kept = torch.tensor([False, True, True])
    dropped = without_dropped_labels(Condition(labels=LABELS, kept=kept))
    assert dropped.labels is not None
    assert dropped.labels.tolist() == [-1, -1, 0]
    assert dropped.kept is kept
    for condition in (Condition(labels=LABELS), Condition(kept=kept)):
        assert without_dropped_labels(condition) is condition


def test_a_reader_forgets_labels_with_the_words() -> None:
    """It takes what ``kept`` says away with what it did, so nobody could do so later."""
    read = ConditionReader(TEXT)(replace(WORDS, labels=LABELS, kept=torch.tensor([False, True, True])))
    assert read.kept is None
    assert read.labels.tolist() == [-1, -1, 0]


def test_classes_are_one_at_least_or_not_there() -> None:
    require_classes(None)
    require_classes(1)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"classes must be at least 1, or null .*got {wrong}"):
            require_classes(wrong)


def test_labels_are_classes_of_the_network() -> None:
    require_labels(Condition(labels=LABELS), 3)
    require_labels(WORDS, None)
    with pytest.raises(ValueError, match="labels are from 0 to 1, or -1 for no class, got 2"):
        require_labels(Condition(labels=LABELS), 2)
    with pytest.raises(ValueError, match="got -2"):
        require_labels(Condition(labels=LABELS - 1), 3)
    with pytest.raises(ValueError, match="told no classes; give a condition without labels"):
        require_labels(Condition(labels=LABELS), None)
    with pytest.raises(ValueError, match="needs class labels; give -1 where there is none"):
        require_labels(WORDS, 3)
