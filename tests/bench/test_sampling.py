"""The benchmark of sampling: what is timed is what is said; no figure of time is asserted."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from unstir.bench import sampling as module
from unstir.bench.exact import linear
from unstir.bench.sampling import (
    DEVICE_COLUMNS,
    OVERHEAD_COLUMNS,
    PEERS,
    PICTURE_COLUMNS,
    SHAPE,
    Still,
    device_cells,
    on_device,
    overhead,
    overhead_cells,
    picture_cells,
    pictures,
    take_turns,
)
from unstir.condition import Condition
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import Estimate
from unstir.diffusion.samplers import DDIM, SAMPLERS, sample
from unstir.diffusion.schedule import Level
from unstir.pipeline import load

# diffusers hands torch tensors to numpy in ways that newer numpy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def silent(stage: str, done: int, total: int) -> None:
    """Nobody looks."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of a few thousand weights."""
    monkeypatch.setattr(
        module,
        "_SMALL",
        replace(module._SMALL, width=64, multipliers=(1,), blocks=1, attention=()),  # pyright: ignore
    )


def test_the_network_says_the_same_and_counts() -> None:
    network = Still(torch.ones(2, 3, 4, 4))
    x = torch.zeros(2, 3, 4, 4)
    for _ in range(3):
        assert torch.equal(network(x, torch.zeros(2), Condition(kept=torch.ones(2, dtype=torch.bool))), network.output)
    assert network.calls == 3


def test_every_sampler_beside_its_peer() -> None:
    pytest.importorskip("diffusers")
    stages = []
    rows = overhead(steps=3, repeats=1, advance=lambda stage, done, total: stages.append((stage, done, total)))
    known = [name for name, peer in PEERS.items() if peer.ours in SAMPLERS]
    assert [row["method"] for row in rows] == known
    assert {"DDIM", "Euler", "DPM++ 2M"} <= set(known)
    for row in rows:
        assert row["ours"] > 0
        assert row["theirs"] / row["ours"] == pytest.approx(row["ratio"])
        assert row["ours_grid"] > 0
        assert row["theirs_grid"] > 0
    calls = {row["method"]: (row["ours_calls"], row["theirs_calls"]) for row in rows}
    assert calls["DDIM"] == calls["DPM++ 2M"] == (3, 3)
    assert calls["PLMS"][1] == 4
    assert stages == [("overhead of samplers", 1, 2), ("overhead of samplers", 2, 2)]
    assert all(len(line) == len(OVERHEAD_COLUMNS) for line in overhead_cells(rows))
    json.dumps(rows, allow_nan=False)


def test_without_diffusers_ours_are_timed_alone(monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    rows = overhead(steps=2, repeats=1, advance=silent)
    assert all(row["ours"] > 0 and row["theirs"] is row["ratio"] is row["theirs_calls"] is None for row in rows)
    assert overhead_cells(rows)[0][3:5] == ["-", "-"]
    drawn = pictures(count=2, steps=2, repeats=1, advance=silent)
    assert drawn[0]["ours"] > 0
    assert drawn[0]["theirs"] is None


def test_both_loops_ask_the_network_for_the_same_pictures() -> None:
    """From the same noise, at the same whole timesteps, DDIM ends alike on both sides."""
    diffusers = pytest.importorskip("diffusers")
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    seen: dict[str, list[torch.Tensor]] = {"ours": [], "theirs": []}

    class Watching(torch.nn.Module):
        in_channels = out_channels = 3

        def __init__(self, side: str) -> None:
            super().__init__()
            self.side = side

        def forward(self, x: torch.Tensor, scalar: torch.Tensor, condition: Condition) -> torch.Tensor:
            seen[self.side].append(x)
            return 0.9 * x.tanh()

    condition = Condition(kept=torch.ones(SHAPE[0], dtype=torch.bool))
    module.our_run(SAMPLERS["ddim"](), Watching("ours"), condition, x, 4)()()
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    network = Watching("theirs")
    module.their_run(scheduler, lambda x_t, t: network(x_t, t, condition), x, 4)()()
    assert len(seen["ours"]) == len(seen["theirs"]) == 4
    for one, other in zip(seen["ours"], seen["theirs"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_turns_are_taken_after_one_to_warm_up() -> None:
    order: list[str] = []

    def run(name: str) -> module.Run:
        def ready():
            order.append(f"{name} grid")
            return lambda: order.append(name)

        return ready

    done: list[tuple[int, int]] = []
    taken = take_turns(
        {("m", "a"): run("a"), ("m", "b"): run("b")}, 2, lambda done_, total: done.append((done_, total))
    )
    assert order == ["a grid", "a", "b grid", "b"] * 3
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert set(taken) == {("m", "a"), ("m", "b")}


def test_medians_leave_the_first_round_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that says what grids (1, 2, 3, 4) and walks (100, 10, 20, 30) of four rounds take."""
    moments, now = [], 0.0
    for grid, walk in ((1, 100), (2, 10), (3, 20), (4, 30)):
        moments += [now, now + grid, now + grid + walk]
        now += 1000
    clock = iter(moments)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    taken = take_turns({("m", "a"): lambda: lambda: None}, 3, lambda done, total: None)
    assert (taken["m", "a"].grid, taken["m", "a"].walk) == (3, 20)


@pytest.mark.parametrize("native", [True, False])
def test_pictures_are_drawn_beside_the_pipeline_and_the_scheduler(
    small: None, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.setattr("unstir.device.has_native_bf16", lambda device: native)
    rows = pictures(count=2, steps=2, repeats=1, advance=silent)
    assert [row["what"].rpartition("; ")[2] for row in rows] == [
        "diffusers' DDIMPipeline as it comes, in float32",
        *(["diffusers' DDIMPipeline under bf16 autocast"] if native else []),
        "DDIMScheduler, 2 steps, around its network in float32",
    ]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["theirs"] / row["ours"])
    assert all(len(line) == len(PICTURE_COLUMNS) for line in picture_cells(rows))


def test_the_scheduler_around_the_built_in_network_walks_as_our_ddim_does() -> None:
    """So that its seconds are those of the same pictures: the same levels, from the same noise."""
    pytest.importorskip("diffusers")
    pipe = load("builtin")
    model, steps = pipe.model, 5
    seen: list[torch.Tensor] = []
    handle = model.denoiser.network.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        module._their_guided(pipe, 1, steps)()()  # pyright: ignore[reportPrivateUsage]
    finally:
        handle.remove()
    null, told = seen[-1].chunk(2)
    words, _ = model.reader.read([module.PROMPT])
    ask = model.denoiser.given(words.null().cat(words))

    def denoise(x_t: torch.Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        one, other = ask(torch.cat([x_t, x_t]), level).x0.chunk(2)
        return Estimate(x0=one + 2 * (other - one))

    chain = linear().at(torch.arange(1000, 0, -200, dtype=torch.float64) / 1000)
    times = (*model.config.schedule.time_of(chain.log_snr).tolist(), 0.0)
    start = model.config.schedule.at(torch.tensor(times[0], dtype=torch.float64)).alpha / chain.alpha[0]
    noise = KeyedNoise.from_seeds([0])
    x = noise.normal(torch.zeros(1, 3, 64, 64)) * start
    *_, last = sample(DDIM(), denoise, model.process, x, times, noise)
    torch.testing.assert_close(null + 2 * (told - null), last.x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["count", "steps", "repeats"])
def test_bad_numbers_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="of at least 1, got 0"):
        pictures(**{"count": 1, "steps": 1, "repeats": 1, name: 0}, advance=silent)
    if name != "count":
        with pytest.raises(ValueError, match="of at least 1, got 0"):
            overhead(**{"steps": 1, "repeats": 1, name: 0}, advance=silent)


@pytest.mark.parametrize("native", [True, False])
def test_a_device_is_asked_for_few_and_for_many(small: None, monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(module, "has_native_bf16", lambda device: native)
    stages: list[tuple[str, int, int]] = []
    device = torch.device("cpu")
    rows = on_device(device, counts=(1, 3), steps=2, repeats=1, advance=lambda *told: stages.append(told))
    formats = ["float32", "bf16"] if native else ["float32"]
    assert [(row["count"], row["what"].rpartition(", ")[2]) for row in rows] == [
        (n, f) for n in (1, 3) for f in formats
    ]
    for row in rows:
        assert row["images_per_second"] == pytest.approx(row["count"] / row["seconds"])
    assert all(len(line) == len(DEVICE_COLUMNS) for line in device_cells(rows))
    assert stages[-1] == ("pictures on cpu", 2, 2)
    json.dumps(rows, allow_nan=False)
    with pytest.raises(ValueError, match="pictures must be whole numbers of at least 1, got 0"):
        on_device(device, counts=(0,), advance=silent)
