"""The look before a run: each figure against what comes of it, each finding on both sides of its line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unstir.condition import Condition
from unstir.data.findings import Finding
from unstir.diffusion.schedule import Cosine, LinearBeta, RectifiedFlow, Tabulated, VarianceExploding
from unstir.model import ModelConfig, save_model
from unstir.nn import DiTConfig
from unstir.nn.text import TextConfig
from unstir.training import lookahead as module
from unstir.training.batches import Captioned
from unstir.training.checkpoint import bytes_of_checkpoint, bytes_of_tensors, save_checkpoint
from unstir.training.lookahead import Ahead, Learned, Measured, figures_of, judge_ahead, look_ahead
from unstir.training.optimizer import OptimizerConfig
from unstir.training.run import Cadence, RunConfig, first_model, reader_for
from unstir.training.trainer import EmaConfig, Trainer, TrainingConfig

TEXT = TextConfig(vocabulary=300, max_tokens=16, width=16, depth=1, heads=2)
CONFIG = RunConfig(
    recipe="test",
    model=ModelConfig(size=16, network=DiTConfig(size=16, patch=4, width=32, depth=1, heads=2, text=TEXT)),
    training=TrainingConfig(
        images=1600, batch=16, optimizer=OptimizerConfig(learning_rate=5e-3), ema=EmaConfig(half_life_images=100)
    ),
)
GIB = 2**30
MEASURED = Measured(
    images_per_second=10.0,
    shared_bytes=GIB,
    picture_bytes=GIB // 4,
    free_bytes=16 * GIB,
    checkpoint_bytes=3 * GIB,
    model_bytes=GIB,
    fitting=16,
)
LEARNED = Learned(pictures=8, steps=40, share=0.1, x0_error=0.02, blind_error=0.3)
AHEAD = Ahead(config=CONFIG, measured=MEASURED, learned=LEARNED, seconds_by_heart=30.0, free_disk=100 * GIB)


@pytest.fixture(scope="module")
def pictures() -> Captioned:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 256, (16, 3, 2, 2), generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return Captioned(
        pictures=tuple(rows.to(torch.uint8)),
        captions=tuple((f"number {i}",) for i in range(16)),
        keywords=((),) * 16,
        keys=tuple(str(i) for i in range(16)),
    )


def found(ahead: Ahead, words: str) -> Finding:
    (one,) = (finding for finding in judge_ahead(ahead) if words in finding.what)
    return one


def trained(**changes) -> RunConfig:
    return replace(CONFIG, training=replace(CONFIG.training, **changes))


# What the configuration alone says.


@pytest.mark.parametrize(
    ("schedule", "signal", "severity"),
    [
        (RectifiedFlow(), 0.0, "fine"),
        (Cosine(), 0.0, "fine"),
        (LinearBeta(), 0.0066, "fine"),  # exp(-(0.1 + 20)/4)
        (VarianceExploding(), 1 / math.hypot(1, VarianceExploding().sigma_max), "fine"),
        # The betas of Stable Diffusion; Lin et al. 2023, arXiv:2305.08891, Sec. 3.1: sqrt(alpha_bar_T) = 0.068265.
        (Tabulated.from_betas(tuple((torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2).tolist())),
         0.068265, "warning"),
        (VarianceExploding(sigma_max=10.0), 1 / math.hypot(1, 10), "warning"),
    ],
    ids=["flow", "cosine", "linear", "exploding", "stable-diffusion", "too little noise"],
)  # fmt: skip
def test_a_schedule_ends_in_noise_or_is_told(schedule, signal: float, severity: str) -> None:
    ahead = replace(AHEAD, config=replace(CONFIG, model=replace(CONFIG.model, schedule=schedule)))
    assert ahead.end_signal == pytest.approx(signal, abs=2e-4)
    finding = found(ahead, "amplitude at t = 1")
    assert (finding.severity, f"{signal:.1%}" in finding.what) == (severity, True)


@pytest.mark.parametrize(
    ("half_life", "warmup", "severity"),
    [
        (100, 0.05, "fine"),
        (10**9, 0.05, "fine"),  # the warm-up keeps it short
        (0, 1.0, "fine"),
        (1600 / 3 - 1, 1.0, "warning"),  # a tenth of the start is left
        (800, 1.0, "warning"),
        (10**9, 0.5, "warning"),
    ],
)
def test_an_average_that_lags_behind_is_told(half_life: float, warmup: float, severity: str) -> None:
    config = trained(ema=EmaConfig(half_life_images=half_life, warmup=warmup))
    ahead = replace(AHEAD, config=config)
    finding = found(ahead, "average")
    assert finding.severity == severity
    weights = torch.ones(1, dtype=torch.float64)  # the start, averaged with zeros by hand
    from unstir.training.ema import ema_decay

    for seen in range(16, 1601, 16):
        weights *= ema_decay(16, seen, half_life_images=half_life, warmup=warmup)
    assert ahead.start_left == pytest.approx(weights.item())


# What figures say.


def test_memory_is_enough_or_what_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(AHEAD, "pictures at once keeps about 5.00 GiB, and 16.0 GiB are free").severity == "fine"
    short = replace(AHEAD, measured=replace(MEASURED, fitting=5))
    assert found(short, "16 pictures at once").severity == "problem"
    assert "--batch auto, which sees 5 pictures at once" in found(short, "16 pictures at once").remedy
    for micro_batch, at_once in ((4, 4), ("auto", 5)):
        split = replace(short, config=trained(micro_batch=micro_batch))
        assert found(split, f"{at_once} pictures at once").severity == "fine"
    none = replace(AHEAD, measured=replace(MEASURED, fitting=0, images_per_second=0.0), learned=None)
    assert found(none, "one picture keeps about 1.25 GiB").severity == "problem"
    assert figures_of(none)["seconds"] is None


@pytest.mark.parametrize(
    ("rate", "words", "severity"),
    [(10.0, "2.7 minutes", "fine"), (16.0, "100 seconds", "fine"), (0.01, "44 hours", "warning"), (1600 / 86_400, "24 hours", "fine"),
     (0.001, "19 days", "warning")],
)  # fmt: skip
def test_a_run_of_days_is_told(rate: float, words: str, severity: str) -> None:
    ahead = replace(AHEAD, measured=replace(MEASURED, images_per_second=rate))
    assert found(ahead, f"take about {words}").severity == severity


def test_a_disk_that_is_too_small_is_a_problem() -> None:
    assert AHEAD.disk_bytes == 3 * 3 * GIB + 2 * GIB + 2 * (3 * 6 * 3 * 16 * 16)
    assert found(AHEAD, "checkpoints").severity == "fine"
    assert found(replace(AHEAD, free_disk=AHEAD.disk_bytes - 1), "checkpoints").severity == "problem"
    many = replace(AHEAD, config=replace(CONFIG, previews=("a",), cadence=Cadence(preview=16)))
    assert many.disk_bytes - 11 * GIB == 102 * (3 * 1 * 3 * 16 * 16)


@pytest.mark.parametrize(
    ("changes", "is_learned"),
    [
        ({}, True),
        ({"share": 0.21}, False),
        ({"x0_error": 0.16}, False),  # the loss fell, but only to what the mean picture gives
        ({"x0_error": 0.16, "blind_error": 0.0}, True),  # pictures that are all the same
    ],
)
def test_learned_by_heart_is_more_than_the_mean_picture(changes: dict, is_learned: bool) -> None:
    ahead = replace(AHEAD, learned=replace(LEARNED, **changes))
    assert ahead.learned.is_learned == is_learned
    assert found(ahead, "8 pictures seen 40 times").severity == ("fine" if is_learned else "problem")


def test_what_was_not_tried_is_told() -> None:
    assert found(replace(AHEAD, learned=None), "--overfit tries it, in 30 seconds at most").severity == "fine"
    bare = replace(AHEAD, measured=None, learned=None, seconds_by_heart=None)
    assert len(judge_ahead(bare)) == 2
    assert figures_of(bare)["steps"] is None
    json.dumps(figures_of(AHEAD), allow_nan=False)
    json.dumps(figures_of(bare), allow_nan=False)


# What steps say.


def test_a_look_takes_steps_and_learns_one_batch(pictures: Captioned) -> None:
    stages: dict[str, int] = {}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ahead = look_ahead(
        CONFIG, pictures, device="cpu", by_heart=True, progress=lambda stage, done, total: stages.update({stage: done})
    )
    assert torch.equal(torch.get_rng_state(), before)
    measured, learned = ahead.measured, ahead.learned
    assert measured.images_per_second > 0
    assert measured.fitting == 16
    assert measured.picture_bytes > 16 * 16 * 3 * 4
    assert learned.is_learned
    assert learned.steps < 200
    assert stages == {"measuring memory": 1, "taking training steps": 4, "learning one batch by heart": learned.steps}
    assert [finding.severity for finding in judge_ahead(ahead)] == ["fine"] * 6
    assert json.loads(json.dumps(figures_of(ahead), allow_nan=False))["by_heart"]["is_learned"] is True


def test_a_rate_of_nothing_learns_nothing(pictures: Captioned) -> None:
    config = trained(optimizer=OptimizerConfig(learning_rate=1e-12))
    ahead = look_ahead(config, pictures, device="cpu", by_heart=True)
    assert ahead.learned.share > 0.95
    assert ahead.learned.steps == 200
    assert found(ahead, "learns no set").severity == "problem"


def test_a_network_that_cannot_see_learns_only_the_mean_picture(
    pictures: Captioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures that are white but for a little: their mean is most of them, and the loss alone would be content."""
    white = tuple(255 - picture // 6 for picture in pictures.pictures)
    pale = replace(pictures, pictures=white)

    def blind(config, reader):
        model = first_model(config, reader)
        model.denoiser.network.register_forward_pre_hook(
            lambda network, given: (given[0] * 0, given[1] * 0, Condition(words=given[2].words * 0))
        )
        return model

    assert look_ahead(CONFIG, pale, device="cpu", by_heart=True).learned.is_learned
    monkeypatch.setattr(module, "first_model", blind)
    learned = look_ahead(CONFIG, pale, device="cpu", by_heart=True).learned
    assert learned.share < 0.2
    assert not learned.is_learned


def test_learning_by_heart_is_tried_where_it_takes_no_minute(pictures: Captioned, monkeypatch) -> None:
    monkeypatch.setattr(module, "_TIMES_SEEN", 1)
    assert look_ahead(CONFIG, pictures, device="cpu").learned is not None
    assert look_ahead(CONFIG, pictures, device="cpu", by_heart=False).learned is None
    monkeypatch.setattr(module, "_SOON", 0.0)
    assert look_ahead(CONFIG, pictures, device="cpu").learned is None
    assert look_ahead(CONFIG, pictures, device="cpu", by_heart=True).learned is not None


def test_a_machine_without_memory_is_not_asked_for_steps(pictures: Captioned, monkeypatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 1000)
    ahead = look_ahead(CONFIG, pictures, device="cpu", by_heart=True)
    assert (ahead.measured.fitting, ahead.learned, ahead.seconds) == (0, None, None)
    assert found(ahead, "one picture").severity == "problem"


def test_a_run_shorter_than_the_look_is_looked_at(pictures: Captioned) -> None:
    ahead = look_ahead(trained(images=3, batch=16), pictures, device="cpu", by_heart=False)
    assert ahead.seconds == 3 / ahead.measured.images_per_second


def test_checkpoints_take_what_was_foretold(pictures: Captioned, tmp_path: Path) -> None:
    """And so does a run that looks before it saves: a little more is said than is taken."""
    trainer = Trainer(first_model(CONFIG, reader_for(CONFIG, pictures)), pictures, CONFIG.training, device="cpu")
    trainer.step()
    foretold = bytes_of_checkpoint(trainer.checkpoint())
    assert look_ahead(CONFIG, pictures, device="cpu", by_heart=False).measured.checkpoint_bytes == foretold
    folder = save_checkpoint(tmp_path / "checkpoints", trainer.checkpoint())
    taken = sum(file.stat().st_size for file in folder.iterdir())
    assert taken <= foretold <= 1.1 * taken + 8192
    weights = trainer.ema_network.state_dict()
    save_model(trainer.ema_model, tmp_path / "model", weights=weights)
    taken = (tmp_path / "model/model.safetensors").stat().st_size
    assert taken <= bytes_of_tensors(weights) <= 1.2 * taken
