"""The trainer: interrupted is uninterrupted to the bit (C40), and what one step does (C34, C37, C44)."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unstir.conditioning.text import WordReader
from unstir.model import Model, ModelConfig, build
from unstir.nn import DiTConfig
from unstir.nn.text import TextConfig
from unstir.training.batches import Captioned
from unstir.training.checkpoint import load_latest, save_checkpoint
from unstir.training.memory import kept_bytes
from unstir.training.optimizer import OptimizerConfig, learning_rate
from unstir.training.trainer import EmaConfig, Report, Trainer, TrainingConfig, slices

COUNT = 10
CONFIG = TrainingConfig(
    images=44,  # six batches of 8, the last of 4; four epochs and a part, no batch at the end of an epoch
    batch=8,
    seed=3,
    precision="float32",
    optimizer=OptimizerConfig(warmup_images=16),
    ema=EmaConfig(half_life_images=40, warmup=0.5),
)
TEXT = TextConfig(vocabulary=300, max_tokens=16, width=16, depth=1, heads=2)
MODEL = ModelConfig(size=16, network=DiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=TEXT))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def data() -> Captioned:
    generator = torch.Generator().manual_seed(0)
    return Captioned(
        pictures=torch.randint(0, 256, (COUNT, 3, 16, 16), generator=generator, dtype=torch.uint8),
        captions=tuple((f"a picture of thing {i}", f"number {i}") for i in range(COUNT)),
        keywords=tuple((f"thing{i}", "number") for i in range(COUNT)),
        keys=tuple(f"{i}.png" for i in range(COUNT)),
    )


@pytest.fixture(scope="module")
def reader(data: Captioned) -> WordReader:
    return WordReader.train([text for texts in data.captions for text in texts], vocabulary=300, max_tokens=16)


@pytest.fixture
def fresh(data: Captioned, reader: WordReader):
    def make(config: TrainingConfig = CONFIG, seed: int = 0) -> Trainer:
        torch.manual_seed(seed)
        return Trainer(build(MODEL, reader), data, config, device="cpu")

    return make


def snapshot(trainer: Trainer) -> dict[str, Tensor]:
    """Weights, average and moments, copied."""
    groups = trainer.checkpoint().tensors
    return {f"{group}/{name}": tensor.clone() for group, tensors in groups.items() for name, tensor in tensors.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def steps(trainer: Trainer, count: int = 10**6) -> list[Report]:
    reports = []
    while trainer.images_seen < trainer.config.images and len(reports) < count:
        reports.append(trainer.step())
    return reports


@pytest.fixture(scope="module")
def whole(data: Captioned, reader: WordReader) -> dict[str, Tensor]:
    """The state after an uninterrupted run."""
    torch.manual_seed(0)
    trainer = Trainer(build(MODEL, reader), data, CONFIG, device="cpu")
    assert [report.images_seen for report in steps(trainer)] == [8, 16, 24, 32, 40, 44]
    return snapshot(trainer)


@pytest.mark.parametrize("stops", [(0,), (1,), (2,), (3,), (5,), (1, 1, 1, 1, 1, 1), (2, 0, 3)])
def test_interrupted_is_uninterrupted_to_the_bit(fresh, whole, tmp_path: Path, stops: tuple[int, ...]) -> None:
    """Weights, average and moments; every part of the run in a new object, whose own weights are other ones."""
    trainer = fresh()
    for number, count in enumerate(stops):
        steps(trainer, count)
        save_checkpoint(tmp_path, trainer.checkpoint())
        trainer = fresh(seed=100 + number)
        torch.rand(number + 1)  # nobody's random stream matters
        checkpoint = load_latest(tmp_path)
        assert checkpoint is not None
        trainer.restore(checkpoint)
    steps(trainer)
    assert trainer.images_seen == 44
    assert_same(snapshot(trainer), whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_goes_on_where_the_optimizer_keeps_its_step_count_on_a_gpu(data, reader, tmp_path: Path) -> None:
    trainer = Trainer(build(MODEL, reader), data, CONFIG, device="cuda")
    steps(trainer, 2)
    save_checkpoint(tmp_path, trainer.checkpoint())
    other = Trainer(build(MODEL, reader), data, CONFIG, device="cuda")
    other.restore(load_latest(tmp_path))
    steps(trainer)
    steps(other)
    for name, tensor in snapshot(trainer).items():
        torch.testing.assert_close(tensor, snapshot(other)[name])


def test_an_optimizer_restored_is_placed_as_torch_places_its_own(fresh, tmp_path: Path) -> None:
    """Same keys, types, shapes and devices of every moment as in an optimizer that was never saved."""
    trainer, other = fresh(), fresh(seed=1)
    steps(trainer, 2)
    save_checkpoint(tmp_path, trainer.checkpoint())
    other.restore(load_latest(tmp_path))
    for mine, theirs in zip(trainer.network.parameters(), other.network.parameters(), strict=True):
        left, right = trainer.learner.optimizer.state_of(mine), other.learner.optimizer.state_of(theirs)
        assert {k: (v.dtype, v.shape, v.device) for k, v in left.items()} == {
            k: (v.dtype, v.shape, v.device) for k, v in right.items()
        }


def test_the_state_of_another_network_is_refused(fresh, data, reader) -> None:
    checkpoint = fresh().checkpoint()
    wider = replace(MODEL, network=replace(MODEL.network, width=64))
    with pytest.raises(ValueError, match="another network"):
        Trainer(build(wider, reader), data, CONFIG, device="cpu").restore(checkpoint)
    with pytest.raises(ValueError, match="another network"):
        fresh().restore(replace(checkpoint, tensors={"network": checkpoint.tensors["network"]}))


def test_hooks_are_called_after_every_step_and_the_run_ends(fresh) -> None:
    trainer, seen = fresh(), []
    trainer.run([lambda t, report: seen.append((t.images_seen, report.images_seen))])
    assert seen == [(n, n) for n in (8, 16, 24, 32, 40, 44)]
    trainer.run([lambda t, report: seen.append(None)])
    assert seen[-1] is not None


def test_looking_does_not_change_the_run(fresh, whole) -> None:
    """C36, C42: drawing with the raw and the averaged model, copying states, and eval() between steps."""
    from unstir.pipeline import Pipeline

    trainer = fresh()

    def look(trainer: Trainer, report: Report) -> None:
        for model in (trainer.model, trainer.ema_model):
            Pipeline(model, device="cpu").sample(["number 3"], steps=2, n=2)
        trainer.checkpoint()
        trainer.network.eval()

    trainer.run([look])
    assert_same(snapshot(trainer), whole)


def test_the_average_is_the_closed_form(fresh) -> None:
    """C34: E_n computed in float64 from the weights after each step, the smaller last step included."""
    trainer = fresh()
    expected = [weight.detach().double() for weight in trainer.network.parameters()]
    seen = 0
    while trainer.images_seen < CONFIG.images:
        trainer.step()
        count, seen = trainer.images_seen - seen, trainer.images_seen
        decay = 0.5 ** (count / min(40, 0.5 * seen))
        weights = [weight.detach().double() for weight in trainer.network.parameters()]
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, weights, strict=True)]
    for average, value in zip(trainer.ema_network.parameters(), expected, strict=True):
        torch.testing.assert_close(average.double(), value, rtol=1e-5, atol=1e-7)
    moved = [
        not torch.equal(a, w)
        for a, w in zip(trainer.ema_network.parameters(), trainer.network.parameters(), strict=True)
    ]
    assert any(moved)


def test_the_average_is_its_own_model(fresh) -> None:
    trainer = fresh()
    steps(trainer, 2)
    model = trainer.ema_model
    assert isinstance(model, Model)
    assert model.denoiser.network is trainer.ema_network
    assert not any(weight.requires_grad for weight in trainer.ema_network.parameters())
    mine = {id(weight) for weight in trainer.network.parameters()}
    assert not mine & {id(weight) for weight in trainer.ema_network.parameters()}


@pytest.mark.parametrize("batch", [4, 8, 11])
def test_the_rate_depends_on_pictures_seen_alone(fresh, batch: int) -> None:
    """C37: the table of rates is one function, whatever the batch."""
    trainer = fresh(replace(CONFIG, batch=batch))
    while trainer.images_seen < 44:
        before = trainer.images_seen
        report = trainer.step()
        assert report.learning_rate == learning_rate(CONFIG.optimizer, before, 44)
        assert {group["lr"] for group in trainer.learner.optimizer.param_groups} == {report.learning_rate}


def recorded(trainer: Trainer) -> list[tuple[list[float], list[int], list[float]]]:
    """What each sample of a run was: its picture, its words (where kept), its noise."""
    rows: list[tuple[list[float], list[int], list[float]]] = []
    objective = trainer.objective

    def note(denoiser, latents, condition, noise):
        draws = noise.normal(torch.zeros(latents.shape[0], 5))
        for i in range(latents.shape[0]):
            words = condition.words[i][condition.word_mask[i]].tolist() if condition.kept[i] else []
            rows.append((latents[i].flatten().tolist(), words, draws[i].tolist()))
        return objective(denoiser, latents, condition, noise)

    trainer.objective = note
    steps(trainer)
    return rows


def test_the_same_sample_comes_at_the_same_place_for_any_batch(fresh) -> None:
    four, eight = (recorded(fresh(replace(CONFIG, batch=batch))) for batch in (4, 8))
    assert len(four) == 44
    assert four == eight


def test_other_seeds_see_other_samples(fresh) -> None:
    one, other = recorded(fresh()), recorded(fresh(replace(CONFIG, seed=4)))
    assert [row[0] for row in one] != [row[0] for row in other]
    assert not {tuple(row[2]) for row in one} & {tuple(row[2]) for row in other}
    assert len({tuple(row[2]) for row in one}) == 44  # no two samples share their noise


def test_the_loss_is_a_mean_and_a_batch_is_the_sum_of_its_parts(fresh, data, reader) -> None:
    """C39: the gradient norm and the loss of a batch of 8 from two halves of 4, in float64."""
    torch.manual_seed(0)
    model = build(MODEL, reader)
    gradients, losses = [], []
    for start, batch in ((0, 8), (0, 4), (4, 4)):
        config = replace(CONFIG, batch=batch, optimizer=replace(CONFIG.optimizer, clip_norm=1e9))
        trainer = Trainer(copy.deepcopy(model), data, config, device="cpu")
        trainer.images_seen = start
        kept: list[Tensor] = []
        trainer.learner.optimizer.step = lambda kept=kept, t=trainer: kept.extend(  # type: ignore[method-assign]
            torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in t.network.parameters()
        )
        losses.append(trainer.step().loss)
        gradients.append(kept)
    assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-5)
    for both, left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(both, (left + right) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 8, 100])
def test_a_batch_seen_in_parts_moves_the_weights_alike(fresh, micro_batch: int) -> None:
    whole, parts = fresh(), fresh(replace(CONFIG, micro_batch=micro_batch))
    told, told_parts = steps(whole, 2), steps(parts, 2)
    for mine, theirs in zip(told, told_parts, strict=True):
        assert theirs.loss == pytest.approx(mine.loss, rel=1e-5)
        assert theirs.gradient_norm == pytest.approx(mine.gradient_norm, rel=1e-4)
    for name, tensor in snapshot(whole).items():
        torch.testing.assert_close(snapshot(parts)[name], tensor, rtol=1e-3, atol=1e-5)
    assert len(told_parts[0].moved.loss.per_sample) == 8
    torch.testing.assert_close(told[0].moved.loss.per_sample, told_parts[0].moved.loss.per_sample, rtol=1e-5, atol=0)


def test_auto_takes_what_the_memory_takes(fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory for about three pictures gives parts of at most three; the whole batch where there is plenty."""
    config = replace(CONFIG, micro_batch="auto")
    assert fresh(config).micro_batch == 8
    trainer = fresh()
    one, two = (sum(kept_bytes(loss, trainer.device, "float32") for loss in trainer.losses(n)) for n in (1, 2))
    weights = 4 * sum(weight.numel() for weight in trainer.network.parameters())
    wanted = 2 * one - two + 3 * weights + 3.5 * (two - one)
    monkeypatch.setattr("unstir.training.trainer.free_bytes", lambda device: int(wanted / 0.6))
    assert fresh(config).micro_batch == 3
    monkeypatch.setattr("unstir.training.trainer.free_bytes", lambda device: 1000)
    with pytest.raises(MemoryError, match="to spare"):
        fresh(config)
    with pytest.raises(ValueError, match="micro_batch must be at least 1"):
        replace(CONFIG, micro_batch=0)


@pytest.mark.parametrize(("count", "most", "sizes"), [(8, None, [8]), (8, 3, [2, 3, 3]), (8, 8, [8]), (7, 1, [1] * 7)])
def test_slices_are_few_and_nearly_as_long(count: int, most: int | None, sizes: list[int]) -> None:
    found = slices(count, most)
    assert [part.stop - part.start for part in found] == sizes
    assert [i for part in found for i in range(count)[part]] == list(range(count))


def test_gradients_are_clipped_and_the_norm_is_told_before(fresh) -> None:
    trainer = fresh(replace(CONFIG, optimizer=replace(CONFIG.optimizer, clip_norm=1e-3)))
    norms: list[float] = []
    step = trainer.learner.optimizer.step

    def note() -> None:
        norms.append(
            torch.cat([w.grad.flatten() for w in trainer.network.parameters() if w.grad is not None]).norm().item()
        )
        step()

    trainer.learner.optimizer.step = note  # type: ignore[method-assign]
    report = trainer.step()
    assert report.gradient_norm > 1e-3
    assert norms[0] == pytest.approx(1e-3, rel=1e-3)
    assert all(weight.grad is None for weight in trainer.network.parameters())


def test_a_loss_that_is_not_finite_changes_nothing(fresh) -> None:
    """C44: weights, average, moments and the count stay; the sentence names the level, the weight, and what to do."""
    trainer = fresh()
    steps(trainer, 2)
    name, weight = next((n, w) for n, w in trainer.network.named_parameters() if w.ndim == 2)
    with torch.no_grad():
        healthy = weight[0, 0].clone()
        weight[0, 0] = float("nan")
    before = snapshot(trainer)
    with pytest.raises(ArithmeticError, match=r"log-SNR -?[0-9.]+ is not finite after 16 pictures") as caught:
        trainer.step()
    assert name in str(caught.value)
    assert "learning_rate" in str(caught.value)
    after = snapshot(trainer)
    assert trainer.images_seen == 16
    for key, tensor in before.items():
        assert torch.equal(tensor.nan_to_num(123.0), after[key].nan_to_num(123.0)), key
    with torch.no_grad():
        weight[0, 0] = healthy
    steps(trainer)
    other = fresh()
    steps(other)
    assert_same(snapshot(trainer), snapshot(other))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_the_level_that_is_named_is_that_of_the_bad_sample(fresh, value: float) -> None:
    trainer = fresh()
    objective, levels = trainer.objective, []

    def poisoned(*arguments):
        loss = objective(*arguments)
        levels.append(loss.parts["log_snr"][5].item())
        factor = torch.ones(8)
        factor[5] = value
        return replace(loss, per_sample=loss.per_sample * factor)

    trainer.objective = poisoned
    with pytest.raises(ArithmeticError, match="log-SNR") as caught:
        trainer.step()
    assert f"log-SNR {levels[0]:.2f} " in str(caught.value)
    assert trainer.images_seen == 0


def test_a_gradient_that_is_not_finite_changes_nothing(fresh) -> None:
    trainer = fresh()
    weight = next(trainer.network.parameters())
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = snapshot(trainer)
    with pytest.raises(ArithmeticError, match="gradient"):
        trainer.step()
    assert_same(before, snapshot(trainer))
    assert trainer.images_seen == 0


@pytest.mark.parametrize("wrong", [{"images": 0}, {"batch": 0}, {"seed": -1}, {"seed": 2**32}])
def test_runs_without_pictures_or_seeds_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        TrainingConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"half_life_images": -1.0}, {"warmup": -0.1}, {"warmup": float("nan")}])
def test_averages_that_remember_nothing_sensible_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"half_life_images|warmup"):
        EmaConfig(**wrong)
