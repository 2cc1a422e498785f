"""Which picture is seen when, and what is said of it: functions of (seed, index) and of nothing else (C40, C42)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unstir.conditioning.captions import Wording
from unstir.conditioning.text import WordReader
from unstir.diffusion.noise import KeyedNoise
from unstir.training import batches
from unstir.training.batches import CAPTION, DROP, OBJECTIVE, Captioned, batch_of, order_of_epoch, picture_of, say_all

COUNT = 11
NAMES = [
    "red heart",
    "cat: light skin tone",
    "flag: France",
    "pizza",
    "old blue boat",
    "a",
    "two words",
    "x y z",
    "Ü",
    "🍕 pie",
    "dog",
]


@pytest.fixture(scope="module")
def data() -> Captioned:
    # The first pixel of picture i is i, so that a batch tells which pictures it holds.
    pictures = torch.arange(COUNT, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 4, 4)
    return Captioned(
        pictures=pictures,
        captions=tuple((name, f"{name} again") for name in NAMES),
        keywords=tuple((f"k{i}", f"word{i}", "shared") for i in range(COUNT)),
        keys=tuple(f"{i}.png" for i in range(COUNT)),
    )


@pytest.fixture(scope="module")
def reader() -> WordReader:
    return WordReader.train(NAMES, vocabulary=300, max_tokens=16)


def seen(data: Captioned, reader: WordReader, start: int, count: int, seed: int = 5, drop: float = 0.3):
    [(pictures, condition, noise)] = batch_of(data, reader, Wording(), seed=seed, start=start, count=count, drop=drop)
    which = ((pictures[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    words = [row[mask].tolist() for row, mask in zip(condition.words, condition.word_mask, strict=True)]
    draws = noise.at(OBJECTIVE).normal(torch.zeros(count, 7))
    return list(zip(which, words, condition.kept.tolist(), draws.tolist(), strict=True))


def test_every_epoch_sees_every_picture_once() -> None:
    for epoch in range(5):
        whole = [picture_of(7, epoch * COUNT + i, COUNT) for i in range(COUNT)]
        assert sorted(whole) == list(range(COUNT))


def test_two_epochs_have_two_orders_and_so_have_two_seeds() -> None:
    orders = {order_of_epoch(seed, epoch, 50) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_order_is_uniform() -> None:
    """Each picture is first in about 1/4 of the epochs: chi-square, 3 degrees of freedom, below the 0.999 quantile."""
    first = [order_of_epoch(0, epoch, 4)[0] for epoch in range(800)]
    assert sum((first.count(i) - 200) ** 2 / 200 for i in range(4)) < 16.27


@pytest.mark.parametrize("sizes", [(1,) * 24, (4,) * 6, (8, 8, 8), (5, 7, 12), (24,)])
def test_a_sample_is_the_same_in_any_batch(data: Captioned, reader: WordReader, sizes: tuple[int, ...]) -> None:
    """Picture, words, whether they are forgotten, and noise of sample i do not depend on how samples are batched."""
    whole = seen(data, reader, 0, 24)
    parts, start = [], 0
    for size in sizes:
        parts += seen(data, reader, start, size)
        start += size
    assert parts == whole


def test_a_batch_may_span_epochs(data: Captioned, reader: WordReader) -> None:
    rows = seen(data, reader, COUNT - 3, 6)
    assert [row[0] for row in rows] == [*order_of_epoch(5, 0, COUNT)[-3:], *order_of_epoch(5, 1, COUNT)[:3]]


def test_seeds_differ(data: Captioned, reader: WordReader) -> None:
    one, other = seen(data, reader, 0, 22, seed=1), seen(data, reader, 0, 22, seed=2)
    for part in range(4):
        assert [row[part] for row in one] != [row[part] for row in other]


def test_going_anywhere_costs_nothing_and_leaves_no_trace(data: Captioned, reader: WordReader) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    far = seen(data, reader, 10**9, 4)
    assert far == seen(data, reader, 10**9, 4)
    assert torch.equal(before, torch.get_rng_state())


def test_words_are_forgotten_at_the_rate_that_is_asked_for(data: Captioned, reader: WordReader) -> None:
    kept = [row[2] for row in seen(data, reader, 0, 2000, drop=0.1)]
    assert abs(kept.count(False) - 200) < 4 * (2000 * 0.1 * 0.9) ** 0.5
    assert all(row[2] for row in seen(data, reader, 0, 50, drop=0.0))


def test_no_randomness_is_used_twice(data: Captioned, reader: WordReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders of epochs, wordings, forgetting and noise draw from keys that never coincide, over several epochs."""
    used: list[tuple[int, ...]] = []
    draw = KeyedNoise._draw

    def note(self: KeyedNoise, *arguments: object) -> object:
        used.extend(self.keys)
        return draw(self, *arguments)

    monkeypatch.setattr(KeyedNoise, "_draw", note)
    order_of_epoch.cache_clear()
    for start in range(0, 6 * COUNT, COUNT):
        [(_, _, noise)] = batch_of(data, reader, Wording(), seed=9, start=start, count=COUNT, drop=0.1)
        noise.at(OBJECTIVE).at(0).normal(torch.zeros(COUNT, 1))
        noise.at(batches.CODEC).normal(torch.zeros(COUNT, 1))
    twice = sorted({key for key in used if used.count(key) > 1})
    assert not twice, f"drawn from more than once: {twice}"


def test_an_epoch_shows_every_picture_as_often_as_it_is_repeated(data: Captioned, reader: WordReader) -> None:
    repeated = replace(data, repeats=tuple(1 + i % 3 for i in range(COUNT)))
    total = sum(repeated.repeats)
    for epoch in range(2):
        shown = [which for which, *_ in seen(repeated, reader, epoch * total, total)]
        assert [shown.count(i) for i in range(COUNT)] == list(repeated.repeats)
    chosen = repeated.rows([4, 2])
    assert chosen.repeats == (2, 3)
    assert len(repeated) == COUNT


def test_samples_of_one_shape_come_together_and_are_what_they_are_alone(data: Captioned, reader: WordReader) -> None:
    """The same picture, words and noise for every sample index, whatever the others of its batch are."""
    shapes = [(3, 4, 4), (3, 2, 6), (3, 6, 2)]
    mixed = replace(data, pictures=tuple(torch.full(shapes[i % 3], i, dtype=torch.uint8) for i in range(COUNT)))
    parts = batch_of(mixed, reader, Wording(), seed=5, start=2, count=9, drop=0.3)
    alone = seen(data, reader, 2, 9)
    found: dict[int, tuple[list[int], bool, list[float]]] = {}
    for pictures, condition, noise in parts:
        draws = noise.at(OBJECTIVE).normal(torch.zeros(len(pictures), 7)).tolist()
        words = [row[mask].tolist() for row, mask in zip(condition.words, condition.word_mask, strict=True)]
        for row, key in enumerate(noise.keys):
            which = round((pictures[row, 0, 0, 0].item() + 1) * 127.5)
            assert pictures[row].shape == shapes[which % 3]
            found[key[1]] = (which, words[row], condition.kept.tolist()[row], draws[row])
    assert [found[i] for i in range(2, 11)] == alone
    assert len(parts) == len({tuple(part[0].shape[1:]) for part in parts}) == 3


def test_pictures_that_are_shown_once_need_not_say_so(data: Captioned, reader: WordReader) -> None:
    assert seen(replace(data, repeats=(1,) * COUNT), reader, 3, 9) == seen(data, reader, 3, 9)
    assert replace(data, repeats=(1,) * COUNT).fingerprint() == data.fingerprint()
    assert replace(data, repeats=(2,) * COUNT).fingerprint() != data.fingerprint()


def test_a_picture_without_captions_is_trained_as_if_its_words_had_been_forgotten(reader: WordReader) -> None:
    """As RunConfig.allow_missing_captions promises: the learned null, not the words of an empty prompt."""
    data = Captioned(
        pictures=torch.zeros(2, 3, 4, 4, dtype=torch.uint8), captions=((), ("x",)), keywords=((), ()), keys=("a", "b")
    )
    [rows] = batch_of(data, reader, Wording(), seed=0, start=0, count=8, drop=0.0)
    kept = rows[1].kept.tolist()
    assert kept == [picture_of(0, i, 2) == 1 for i in range(8)]


def test_wordings_are_of_the_picture(data: Captioned) -> None:
    noise = KeyedNoise(keys=tuple((i,) for i in range(COUNT)))
    plain = say_all(data, Wording(paraphrase=0, keywords=0, forget=0), noise.at(CAPTION))
    assert all(said in captions for said, captions in zip(plain, data.captions, strict=True))
    words = say_all(data, Wording(paraphrase=0, keywords=1, forget=0), noise.at(CAPTION))
    for said, allowed in zip(words, data.keywords, strict=True):
        assert set(said.split(", ")) <= set(allowed)
    assert say_all(data, Wording(), noise.at(CAPTION)) != say_all(data, Wording(), noise.at(DROP))


def test_the_fingerprint_sees_every_change(data: Captioned) -> None:
    """Any byte of a picture, any caption, keyword, name, and their order."""
    from dataclasses import replace

    changed = data.pictures.clone()
    changed[3, 1, 2, 2] += 1
    others = [
        replace(data, pictures=changed),
        replace(data, captions=(("other",), *data.captions[1:])),
        replace(data, keywords=((), *data.keywords[1:])),
        replace(data, keys=("other.png", *data.keys[1:])),
        data.rows([1, 0, *range(2, COUNT)]),
        data.rows(range(COUNT - 1)),
    ]
    prints = [data.fingerprint(), *(other.fingerprint() for other in others)]
    assert len(set(prints)) == len(prints)
    assert data.fingerprint() == data.rows(range(COUNT)).fingerprint()
