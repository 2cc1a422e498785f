"""The feed: batches are the same whoever prepares them, errors come at their step, and no thread is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from unstir.condition import Condition
from unstir.conditioning.captions import Wording
from unstir.conditioning.text import WordReader
from unstir.data.large import Lazily
from unstir.data.transforms import shape_of
from unstir.diffusion.noise import KeyedNoise
from unstir.model import ModelConfig, build
from unstir.nn import DiTConfig
from unstir.nn.text import TextConfig
from unstir.nn.unet import UNetConfig
from unstir.speedups import without
from unstir.training import feed as module
from unstir.training.batches import Captioned, batch_of
from unstir.training.feed import Feed, Foresight, is_of_one_shape, of_one_length, resident, workers_of
from unstir.training.trainer import MAX_WORKERS, Trainer, TrainingConfig
from unstir.typing import Noise

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
COUNT = 10
TEXT = TextConfig(vocabulary=300, max_tokens=16, width=16, depth=1, heads=2)
MODEL = ModelConfig(size=16, network=DiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=TEXT))
CONFIG = TrainingConfig(images=44, batch=8, seed=3, precision="float32")
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def data() -> Captioned:
    generator = torch.Generator().manual_seed(0)
    return Captioned(
        pictures=torch.randint(0, 256, (COUNT, 3, 16, 16), generator=generator, dtype=torch.uint8),
        captions=tuple((f"a picture of thing {i}" + " and more" * (i % 3), f"number {i}") for i in range(COUNT)),
        keywords=tuple((f"thing{i}", "number") for i in range(COUNT)),
        keys=tuple(f"{i}.png" for i in range(COUNT)),
    )


@pytest.fixture(scope="module")
def reader(data: Captioned) -> WordReader:
    return WordReader.train([text for texts in data.captions for text in texts], vocabulary=300, max_tokens=16)


@pytest.fixture
def fresh(data: Captioned, reader: WordReader) -> Callable[..., Trainer]:
    def make(config: TrainingConfig = CONFIG, *, device: str = "cpu", model: ModelConfig = MODEL) -> Trainer:
        torch.manual_seed(0)
        return Trainer(build(model, reader), data, config, device=device)

    return make


def run(trainer: Trainer, most: int = 10**6) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of the steps, and the state after them."""
    losses: list[float] = []
    trainer.run([lambda _, report: losses.append(report.loss)], should_stop=lambda: len(losses) == most)
    groups = trainer.checkpoint().tensors
    return losses, {f"{group}/{name}": t.clone() for group, named in groups.items() for name, t in named.items()}


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("unstir-feed")]


def counted(images: int = 44, batch: int = 8) -> Callable[[int], tuple[int, int] | None]:
    return lambda start: (start, min(batch, images - start)) if start < images else None


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("stop", [None, 2, 5])
def test_threads_change_nothing_to_the_bit(fresh: Callable[..., Trainer], workers: int, stop: int | None) -> None:
    """Losses and the whole state; also where another trainer goes on from the middle."""
    losses, state = run(fresh())
    trainer = fresh(replace(CONFIG, workers=workers))
    found: list[float] = []
    if stop is not None:
        found, _ = run(trainer, stop)
        other = fresh(replace(CONFIG, workers=workers))
        other.restore(trainer.checkpoint())
        trainer = other
    more, after = run(trainer)
    assert [*found, *more] == losses
    assert state.keys() == after.keys()
    assert all(torch.equal(state[name], after[name]) for name in state)
    assert not threads()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_their_order_and_few_lie_ahead(workers: int) -> None:
    lock, made, taken, ahead = threading.Lock(), [0], [0], []

    def prepare(start: int, count: int) -> tuple[int, int]:
        with lock:
            made[0] += 1
            ahead.append(made[0] - taken[0])
        return start, count

    feed: Feed[tuple[int, int]] = Feed(prepare, counted(), workers=workers)
    for start in (0, 8, 16, 24, 32, 40):
        asked = (start, min(8, 44 - start))
        assert feed.take(*asked) == asked
        with lock:
            taken[0] += 1
    assert made[0] == 6
    assert max(ahead) <= 1 + 2 * workers
    assert not threads(), "the last batch ends the threads"


def test_batches_are_prepared_while_a_step_is_taken() -> None:
    begun = threading.Event()

    def prepare(start: int, count: int) -> int:
        if start == 8:
            begun.set()
        return start

    feed: Feed[int] = Feed(prepare, counted(), workers=1)
    feed.take(0, 8)
    assert begun.wait(10), "nobody asked for the second batch, and it was made"
    feed.close()
    assert not threads()


def test_going_back_begins_anew_and_looking_does_not_disturb() -> None:
    made: list[tuple[int, int]] = []
    feed: Feed[tuple[int, int]] = Feed(lambda *asked: made.append(asked) or asked, counted(), workers=2)
    assert feed.take(0, 8) == (0, 8)
    assert feed.take(8, 3) == (8, 3), "no batch of the run: it is made at once"
    assert feed.take(8, 8) == (8, 8)
    assert made.count((8, 8)) == 1, "looking has forgotten nothing"
    assert feed.take(0, 8) == (0, 8)
    assert feed.take(32, 8) == (32, 8)
    assert feed.take(40, 4) == (40, 4)
    feed.close()
    feed.close()
    assert made.count((8, 3)) == 1
    assert feed.take(0, 8) == (0, 8), "a feed that was closed opens again"
    feed.close()
    assert not threads()


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_an_error_comes_out_at_its_step(fresh: Callable[..., Trainer], monkeypatch, workers: int) -> None:
    trainer = fresh(replace(CONFIG, workers=workers))
    real = trainer.feed.prepare

    def prepare(start: int, count: int):
        if start >= 16:
            raise OSError(f"the disk at {start} is gone")
        return real(start, count)

    monkeypatch.setattr(trainer.feed, "prepare", prepare)
    with pytest.raises(OSError, match="the disk at 16 is gone"):
        trainer.run([])
    assert trainer.images_seen == 16
    assert not threads()
    monkeypatch.setattr(trainer.feed, "prepare", real)
    trainer.run([])
    assert trainer.images_seen == 44


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_no_thread_outlives_an_interrupted_run(fresh: Callable[..., Trainer], error: type[BaseException]) -> None:
    trainer = fresh(replace(CONFIG, workers=3))

    def interrupt(trainer: Trainer, report: object) -> None:
        assert threads()
        raise error

    with pytest.raises(error):
        trainer.run([interrupt])
    assert not threads()


def test_auto_is_no_thread_on_a_cpu_and_two_on_cuda() -> None:
    assert [workers_of("auto", place) for place in (CPU, CUDA)] == [0, 2]
    assert [workers_of(3, place) for place in (CPU, CUDA)] == [3, 3]
    with without("pinned_prefetch"):
        assert workers_of("auto", CUDA) == 0
    for bad in (-1, MAX_WORKERS + 1):
        with pytest.raises(ValueError, match=f"workers must be from 0 to {MAX_WORKERS}, or auto, got {bad}"):
            TrainingConfig(workers=bad)


def test_pictures_on_the_device_are_the_same_pictures(data: Captioned, reader: WordReader) -> None:
    there = resident(data, CPU, is_forced=True)
    assert there.pictures is not data.pictures
    assert len({picture.untyped_storage().data_ptr() for picture in there.pictures}) == 1, "one tensor holds them all"
    for start in (0, 5, 17):
        [(one, _, _)], [(other, _, _)] = (
            batch_of(each, reader, Wording(), seed=3, start=start, count=8, drop=0.1) for each in (data, there)
        )
        assert torch.equal(one, other)


def test_a_run_on_resident_pictures_is_the_same(fresh: Callable[..., Trainer], monkeypatch) -> None:
    losses, state = run(fresh(), 3)
    monkeypatch.setattr("unstir.training.trainer.resident", lambda data, device: resident(data, CPU, is_forced=True))
    found, after = run(fresh(replace(CONFIG, workers=2)), 3)
    assert found == losses
    assert all(torch.equal(state[name], after[name]) for name in state)


def test_pictures_stay_where_they_are(data: Captioned, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU; where they differ in shape, are none, or take more than a quarter of what is free; or switched off."""
    size = data.pictures[0].numel() * COUNT
    assert resident(data, CPU) is data
    mixed = replace(data, pictures=(*data.pictures[:-1], torch.zeros(3, 8, 16, dtype=torch.uint8)))
    assert resident(mixed, CPU, is_forced=True) is mixed
    empty = data.rows(())
    assert resident(empty, CPU, is_forced=True) is empty
    monkeypatch.setattr(module, "free_bytes", lambda device: 4 * size - 1)
    assert resident(data, CPU, is_forced=True) is data
    monkeypatch.setattr(module, "free_bytes", lambda device: 4 * size)
    assert resident(data, CPU, is_forced=True) is not data
    with without("resident_pictures"):
        assert resident(data, torch.device("meta")) is data


def test_numbers_that_are_foreseen_are_those_that_would_be_drawn() -> None:
    """Of every sub-key, kind, format and row; none is drawn a second time once it was asked for."""
    foresight, pictures = Foresight(), torch.zeros(6, 3, 8, 8)

    def ask(noise: Noise) -> list[Tensor]:
        some, like = noise.at(3).rows(slice(2, 5)), torch.zeros(3, 2, 4)
        numbers = [some.normal(like), some.at(1, 7).uniform(like[:, 0]), some.uniform(like.double()), some.normal(like)]
        return [*numbers, noise.uniform(torch.zeros(6, dtype=torch.float64)), some.brownian(0.2, 0.7, like)]

    def missing(draw: object) -> None:
        raise AssertionError(f"{draw} was asked for before")

    for batch in range(3):
        base = KeyedNoise(keys=tuple((batch, i) for i in range(6)))
        noise = foresight.of(pictures, base, is_pinned=False)
        assert len(noise.ready) == (4 if batch else 0)
        wanted, found = ask(base), ask(replace(noise, note=missing) if batch else noise)
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        found[0].zero_()
        assert torch.equal(ask(noise)[0], wanted[0]), "who takes numbers has them alone"
    with pytest.raises(ValueError, match="6 keys"):
        noise.uniform(torch.zeros(5, dtype=torch.float64))
    other = foresight.of(torch.zeros(6, 3, 16, 8), base, is_pinned=False)
    assert not other.ready, "pictures of another shape ask for other numbers"


@pytest.mark.parametrize("offset_noise", [0.0, 0.1])
def test_once_a_step_was_taken_no_step_draws(fresh: Callable[..., Trainer], monkeypatch, offset_noise: float) -> None:
    """But threads do; and a batch seen in parts takes its rows of what is there."""
    names: set[str] = set()
    draw = KeyedNoise._draw

    def noted(self: KeyedNoise, like: Tensor, fill: object) -> Tensor:
        names.add(threading.current_thread().name.rpartition("_")[0] or "main")
        return draw(self, like, fill)

    monkeypatch.setattr(KeyedNoise, "_draw", noted)
    config = replace(CONFIG, workers=1, micro_batch=3, offset_noise=offset_noise)
    trainer = fresh(config)
    for _ in range(4):  # one that asks, and the two that were begun before it
        names.clear()
        trainer.step()
    assert names <= {"unstir-feed"}
    trainer.feed.close()
    steps = fresh(replace(config, workers=0))
    for _ in range(4):
        steps.step()
    for one, other in zip(trainer.network.parameters(), steps.network.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("aspect", "is_one"), [("crop", True), ("pad", True), ("buckets", False)])
def test_a_set_on_the_disk_stays_there_and_its_shapes_are_known_unread(aspect: str, is_one: bool) -> None:
    def unread(row: int) -> Tensor:
        raise AssertionError("nobody reads a picture to know its shape")

    large = SimpleNamespace(shape=shape_of(aspect, 64, 16))
    data = Captioned(pictures=Lazily(9, unread), captions=((),) * 9, keywords=((),) * 9, keys=("k",) * 9, large=large)
    assert is_of_one_shape(data) is is_one
    assert resident(data, CPU, is_forced=True) is data


def test_words_of_one_length_say_the_same(data: Captioned, reader: WordReader) -> None:
    torch.manual_seed(0)
    network = build(MODEL, reader).denoiser.network
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    [(pictures, condition, _)] = batch_of(data, reader, Wording(), seed=3, start=0, count=8, drop=0.3)
    padded = of_one_length(condition, 16)
    assert condition.words.shape[1] < 16
    assert padded.words.shape == padded.word_mask.shape == (8, 16)
    assert torch.equal(padded.seeds, condition.seeds)
    scalar = torch.linspace(-3, 3, 8)
    torch.testing.assert_close(network(pictures, scalar, padded), network(pictures, scalar, condition))
    wordless = Condition(kept=torch.ones(2, dtype=torch.bool))
    assert of_one_length(wordless, 16) is wordless


def test_where_networks_are_compiled_words_have_one_length(fresh: Callable[..., Trainer]) -> None:
    trainer = fresh()
    lengths = {trainer._prepare(start, 1)[0][1].words.shape[1] for start in range(8)}
    assert len(lengths) > 1
    trainer.learner._compiled = lambda: None
    assert {trainer._prepare(start, 1)[0][1].words.shape[1] for start in range(8)} == {16}


UNET = ModelConfig(size=16, network=UNetConfig(width=32, multipliers=(1, 2), attention=(1,), heads=1, text=TEXT))


@on_cuda
@pytest.mark.parametrize("model", [MODEL, UNET], ids=["dit", "unet"])
@pytest.mark.parametrize("name", ["compiled_networks", "channels_last", "pinned_prefetch", "resident_pictures"])
@pytest.mark.filterwarnings("default")  # what a compiler says of itself
def test_a_speed_up_on_a_gpu_changes_rounding_alone(fresh: Callable[..., Trainer], name: str, model) -> None:
    config = replace(CONFIG, precision="bf16")
    losses, _ = run(fresh(config, device="cuda", model=model))
    with without(name):
        without_it, _ = run(fresh(config, device="cuda", model=model))
    assert losses == pytest.approx(without_it, rel=0.02)


@on_cuda
def test_pinned_copies_are_the_same_to_the_bit_on_a_gpu(fresh: Callable[..., Trainer]) -> None:
    with without("compiled_networks"):
        trainer = fresh(device="cuda")
        for start in range(0, 40, 8):
            trainer.images_seen = start
            one = trainer.losses(8)
            with without("pinned_prefetch"):
                other = trainer.losses(8)
            for left, right in zip(one, other, strict=True):
                assert torch.equal(left().per_sample, right().per_sample)
    trainer.feed.close()
