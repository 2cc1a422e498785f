"""Statements: every one is true of a correct target and false of one with the bug that it is about."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import Estimate, GaussianProcess
from unstir.diffusion.samplers import DDIM, Ancestral, DPMSolverMultistep, Sampler
from unstir.diffusion.samplers.base import Known
from unstir.diffusion.schedule import Cosine, Level, RectifiedFlow, Schedule, Tabulated, linear_betas
from unstir.diffusion.spacing import LEGACY, Spacing, trailing
from unstir.typing import Noise
from unstir.verify.outcome import Outcome
from unstir.verify.outcome import made as attempted
from unstir.verify.statements import STATEMENTS
from unstir.verify.target import Promise, SamplerTarget, level_of, promise_of

TABLE = Tabulated.from_betas(linear_betas(1000))
ON_TARGETS = {name: statement for name, statement in STATEMENTS.items() if statement.on_target is not None}


def made(
    sampler: Sampler[Any], schedule: Schedule = TABLE, spacing: Spacing = trailing, formula: str | None = None
) -> SamplerTarget:
    promise = promise_of(sampler, schedule, spacing, formula)
    return SamplerTarget(name="planted", sampler=sampler, schedule=schedule, spacing=spacing, promise=promise)


def found(name: str, target: Any) -> Outcome:
    experiment = STATEMENTS[name].on_target
    assert experiment is not None
    return attempted(lambda: experiment(target))


@dataclass
class Wrapped:
    """A correct target, parts of which can be replaced by broken ones."""

    inner: SamplerTarget
    promise: Promise = field(default_factory=Promise)
    name: str = "planted"

    def __post_init__(self) -> None:
        self.promise = self.inner.promise

    @property
    def trained(self) -> Level:
        return self.inner.trained

    def levels(self, num_steps: int) -> Level:
        return self.inner.levels(num_steps)

    def run(self, denoise: Denoiser, x: Tensor, num_steps: int, noise: Noise, start: int = 0) -> Tensor:
        return self.inner.run(denoise, x, num_steps, noise, start)


# Broken samplers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OffByOne(DDIM):
    """Steps to one entry of the table below the one where the next step starts."""

    def step(self, denoise: Denoiser, process: Any, x_t: Tensor, t: Level, s: Level, memory: None, noise: Noise) -> Any:
        wrong = process.schedule.at((s.t - 0.001).clamp(min=0))
        return super().step(denoise, process, x_t, t, wrong, memory, noise)


@dataclass(frozen=True, kw_only=True)
class SharedNoise(Ancestral):
    """One noise for the whole batch."""

    def step(self, denoise: Denoiser, process: Any, x_t: Tensor, t: Level, s: Level, memory: None, noise: Noise) -> Any:
        return super().step(denoise, process, x_t, t, s, memory, Shared(noise=noise))


@dataclass(frozen=True)
class Shared(Noise):
    noise: Noise

    def normal(self, like: Tensor) -> Tensor:
        return self.noise.rows(slice(0, 1)).normal(like[:1]).expand_as(like)


@dataclass(frozen=True, kw_only=True)
class TooLoud(Ancestral):
    """Draws with twice the variance."""

    def step(self, denoise: Denoiser, process: Any, x_t: Tensor, t: Level, s: Level, memory: None, noise: Noise) -> Any:
        normal = process.reverse(x_t, t, s, denoise(x_t, t))
        return replace(normal, std=normal.std * math.sqrt(2)).sample(noise), None


@dataclass(frozen=True, kw_only=True)
class BetaOfTheTable(Ancestral):
    """Strided, with the mean of a single step of the table."""

    def step(self, denoise: Denoiser, process: Any, x_t: Tensor, t: Level, s: Level, memory: None, noise: Noise) -> Any:
        near = process.schedule.at((t.t - 0.001).clamp(min=0))
        right = process.reverse(x_t, t, s, Estimate(x0=denoise(x_t, t).x0))
        wrong = process.reverse(x_t, t, near, Estimate(x0=denoise(x_t, t).x0))
        return replace(right, mean=wrong.mean).sample(noise), None


@dataclass(frozen=True, kw_only=True)
class Slipped(DPMSolverMultistep):
    """2M with one of the two slips that other tools made or were told to make."""

    slip: str

    def step(
        self, denoise: Denoiser, process: Any, x_t: Tensor, t: Level, s: Level, memory: tuple[Known, ...], noise: Noise
    ) -> Any:
        if memory:
            last, belief = memory[0], denoise(x_t, t)
            h, h_last = (s.log_snr - t.log_snr) / 2, (t.log_snr - last.level.log_snr) / 2
            weight = {"h is h_last": h / h * 1.0, "r inverted": h_last / h}[self.slip] / (h / h_last)
            slipped = replace(last, value=belief.x0 + weight * (last.value - belief.x0))
            return super().step(lambda *rest: belief, process, x_t, t, s, (slipped,), noise)
        return super().step(denoise, process, x_t, t, s, memory, noise)


def slope(x: Tensor, level: Level, x0: Tensor) -> Tensor:
    return (x / level.alpha - x0) * (level.alpha / level.sigma)


@dataclass(frozen=True, kw_only=True)
class Heun:
    """EDM's second-order step in sigma/alpha; ``divisor`` tells by which sigma the second slope is divided."""

    divisor: str = "s"
    order: int = 2

    def start(self) -> None:
        pass

    def step(self, denoise: Denoiser, process: Any, x_t: Tensor, t: Level, s: Level, memory: None, noise: Noise) -> Any:
        rise = s.sigma / s.alpha - t.sigma / t.alpha
        first = slope(x_t, t, denoise(x_t, t).x0)
        guess = s.alpha * (x_t / t.alpha + rise * first)
        x0 = denoise(guess, s).x0
        below = s.sigma / s.alpha if self.divisor == "s" else t.sigma / t.alpha
        second = (guess / s.alpha - x0) / below
        return s.alpha * (x_t / t.alpha + rise * (first + second) / 2), None


class Remembering(DPMSolverMultistep):
    """Keeps its last belief on itself, as schedulers do, and forgets it only when it is made."""

    def __init__(self) -> None:
        object.__setattr__(self, "kept", [()])

    def step(self, denoise: Denoiser, process: Any, x_t: Tensor, t: Level, s: Level, memory: Any, noise: Noise) -> Any:
        kept: list[Any] = self.kept  # type: ignore[attr-defined]
        x_s, kept[0] = super().step(denoise, process, x_t, t, s, kept[0], noise)
        return x_s, ()


# Broken targets -------------------------------------------------------------------------------------------------------


class NoiseAtTheEnd(Wrapped):
    def run(self, denoise: Denoiser, x: Tensor, num_steps: int, noise: Noise, start: int = 0) -> Tensor:
        end = super().run(denoise, x, num_steps, noise, start)
        return end + 0.01 * noise.at(99).normal(end)


class RepeatedLast(Wrapped):
    """The last noisy sigma twice, instead of 0."""

    def levels(self, num_steps: int) -> Level:
        grid = super().levels(num_steps)
        last = [*range(num_steps), num_steps - 1]
        return level_of(grid.alpha[last], grid.sigma[last])

    def run(self, denoise: Denoiser, x: Tensor, num_steps: int, noise: Noise, start: int = 0) -> Tensor:
        calls: list[Tensor] = []

        def watched(x_t: Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
            calls.append(x_t)
            return denoise(x_t, level)

        super().run(watched, x, num_steps, noise, start)
        return calls[-1]


class OneMore(Wrapped):
    """53 -> 54 steps, as rounding of a stride does."""

    def levels(self, num_steps: int) -> Level:
        return super().levels(num_steps + (num_steps == 53))


class Leading(Wrapped):
    """Starts below the top of the table."""

    def levels(self, num_steps: int) -> Level:
        times = [(num_steps - 1 - i) * (1000 // num_steps) / 1000 + 0.001 for i in range(num_steps)]
        return TABLE.at(torch.tensor([*times, 0.0], dtype=torch.float64))


class BeyondTraining(Wrapped):
    """Thinks that the table is longer than it is."""

    @property
    def trained(self) -> Level:
        return super().trained[:900]


class Duplicates(Wrapped):
    """Two equal levels, and a run that looks for the second of them first."""

    def levels(self, num_steps: int) -> Level:
        grid = super().levels(num_steps)
        index = [0, *range(num_steps)] if num_steps == 13 else [*range(num_steps + 1)]
        return level_of(grid.alpha[index], grid.sigma[index])


class SkipsOne(Wrapped):
    """Leaves out a level of its own grid."""

    def run(self, denoise: Denoiser, x: Tensor, num_steps: int, noise: Noise, start: int = 0) -> Tensor:
        return super().run(denoise, x, num_steps, noise, start + (num_steps == 20))


class ShiftedTwice(Wrapped):
    @property
    def trained(self) -> Level:
        return RectifiedFlow(shift=3.0).at(torch.arange(1, 1001, dtype=torch.float64) / 1000)

    def levels(self, num_steps: int) -> Level:
        grid = RectifiedFlow(shift=9.0).at(torch.tensor(trailing(Cosine(), num_steps), dtype=torch.float64))
        return level_of(grid.alpha, grid.sigma)


class TwoWays(Wrapped):
    def remake(self, num_steps: int) -> Mapping[str, Level]:
        grid = self.levels(num_steps)
        shifted = RectifiedFlow(shift=3.0).at(torch.tensor(trailing(Cosine(), num_steps), dtype=torch.float64))
        return {"times": grid, "sigmas": shifted}


class HalfTable(Wrapped):
    """Casts alpha_bar before it takes 1 - alpha_bar."""

    def spoil(self, x0: Tensor, noise: Tensor, num_steps: int, step: int) -> Tensor:
        alpha_bar = (self.levels(num_steps).alpha[step] ** 2).to(x0)
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise


class SpoiledOneLower(Wrapped):
    """Adds the noise of t + 1."""

    def spoil(self, x0: Tensor, noise: Tensor, num_steps: int, step: int) -> Tensor:
        level = TABLE.at((self.levels(num_steps).t[step] - 0.001).clamp(min=0))
        return level.alpha * x0 + level.sigma * noise


class NotFinite(Wrapped):
    def run(self, denoise: Denoiser, x: Tensor, num_steps: int, noise: Noise, start: int = 0) -> Tensor:
        end = super().run(denoise, x, num_steps, noise, start)
        return end / 0 if num_steps % 3 == 2 else end


class Crashes(Wrapped):
    def run(self, denoise: Denoiser, x: Tensor, num_steps: int, noise: Noise, start: int = 0) -> Tensor:
        if num_steps == 4:
            raise IndexError("index 5 is out of bounds")
        return super().run(denoise, x, num_steps, noise, start)


class ClipsHalf(Wrapped):
    """Clips x0, and goes on with the noise of the belief that was not clipped."""

    is_right = False

    def __post_init__(self) -> None:
        self.promise = replace(self.inner.promise, clip=1.0, formula="ddim")

    def run(self, denoise: Denoiser, x: Tensor, num_steps: int, noise: Noise, start: int = 0) -> Tensor:
        grid = self.levels(num_steps)
        for i in range(start, num_steps):
            t, s, raw = grid[i], grid[i + 1], denoise(x, grid[i]).x0
            x0 = raw.clamp(-1, 1)
            x = s.alpha * x0 + s.sigma * (x - t.alpha * (x0 if self.is_right else raw)) / t.sigma
        return x


class ClipsRight(ClipsHalf):
    is_right = True


class WrongVelocity(Wrapped):
    """x0 = alpha x + sigma v."""

    sign = 1.0

    def __post_init__(self) -> None:
        self.promise = replace(self.inner.promise, formula="ddim of v")

    def run(self, denoise: Denoiser, x: Tensor, num_steps: int, noise: Noise, start: int = 0) -> Tensor:
        def through_v(x_t: Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
            x0 = denoise(x_t, level).x0
            v = level.alpha * (x_t - level.alpha * x0) / level.sigma - level.sigma * x0
            return Estimate(x0=level.alpha * x_t + self.sign * level.sigma * v)

        return super().run(through_v, x, num_steps, noise, start)


class RightVelocity(WrongVelocity):
    sign = -1.0


class OneMoreWhenLate(Wrapped):
    """Runs one step too many when it starts in the middle."""

    def run(self, denoise: Denoiser, x: Tensor, num_steps: int, noise: Noise, start: int = 0) -> Tensor:
        return super().run(denoise, x, num_steps, noise, max(0, start - 1))


class Adams(Wrapped):
    """Adams-Bashforth with weights by position in the grid, though it may have no slope yet (as LMS in diffusers)."""

    def run(self, denoise: Denoiser, x: Tensor, num_steps: int, noise: Noise, start: int = 0) -> Tensor:
        grid = self.levels(num_steps)
        before: Tensor | None = None
        for i in range(start, num_steps):
            t, s = grid[i], grid[i + 1]
            rise = s.sigma / s.alpha - t.sigma / t.alpha
            here = slope(x, t, denoise(x, t).x0)
            moved = here if i == 0 else 1.5 * here - 0.5 * (0 * here if before is None else before)
            x, before = s.alpha * (x / t.alpha + rise * moved), here
        return x


class NoiseOfTheBatch(Wrapped):
    """A row's noise depends on its place in the batch."""

    def run(self, denoise: Denoiser, x: Tensor, num_steps: int, noise: Noise, start: int = 0) -> Tensor:
        return super().run(denoise, x, num_steps, KeyedNoise.from_seeds(range(x.shape[0])), start)


@dataclass(frozen=True, kw_only=True)
class HeavyTail(DDIM):
    """A first-order step that promises the second."""

    @property
    def order(self) -> int:
        return 2


DDIM_TARGET = made(DDIM(), formula="ddim")
CHAIN = made(Ancestral(), formula="ancestral")
SECOND = made(DPMSolverMultistep(), Cosine(), formula="dpm++2m")
FLOW = made(DDIM(), RectifiedFlow(), formula="ddim")
HEUN = made(Heun(), Cosine(), formula="heun")


def promising(target: Any, **changes: Any) -> Any:
    target.promise = replace(target.promise, **changes)
    return target


PLANTED: list[tuple[str, str, Callable[[], Any]]] = [
    ("C1", "another level", lambda: made(OffByOne())),
    ("C2", "one step more", lambda: OneMore(DDIM_TARGET)),
    ("C3", "levels of no training", lambda: BeyondTraining(DDIM_TARGET)),
    ("C4", "leading", lambda: Leading(DDIM_TARGET)),
    ("C5", "duplicates", lambda: Duplicates(DDIM_TARGET)),
    ("C5", "one left out", lambda: SkipsOne(DDIM_TARGET)),
    ("C6", "beta of the table", lambda: made(BetaOfTheTable(), formula="ancestral")),
    ("C7", "twice the variance", lambda: made(TooLoud(), formula="ancestral")),
    ("C9", "shifted twice", lambda: promising(ShiftedTwice(FLOW), visits_table=True)),
    ("C10", "two ways", lambda: TwoWays(FLOW)),
    ("C11", "alpha_bar in half precision", lambda: HalfTable(DDIM_TARGET)),
    ("C12", "noise of another step", lambda: SpoiledOneLower(DDIM_TARGET)),
    ("C12", "noise at the end", lambda: NoiseAtTheEnd(DDIM_TARGET)),
    ("C14", "h replaced by h_last", lambda: made(Slipped(slip="h is h_last"), Cosine(), uneven)),
    ("C14", "Heun with the wrong sigma", lambda: made(Heun(divisor="t"), Cosine())),
    ("C14", "more promised than kept", lambda: made(HeavyTail(), Cosine())),
    ("C16", "r inverted", lambda: made(Slipped(slip="r inverted"), Cosine(), uneven, "dpm++2m")),
    ("C16", "Heun with the wrong sigma", lambda: made(Heun(divisor="t"), Cosine(), formula="heun")),
    ("C16", "off by one", lambda: made(OffByOne(), formula="ddim")),
    ("C17", "last sigma repeated", lambda: RepeatedLast(DDIM_TARGET)),
    ("C17", "noise at the end", lambda: NoiseAtTheEnd(CHAIN)),
    ("C18", "not finite", lambda: NotFinite(DDIM_TARGET)),
    ("C18", "crashes", lambda: Crashes(DDIM_TARGET)),
    ("C19", "noise of the unclipped", lambda: ClipsHalf(DDIM_TARGET)),
    ("C20", "state is kept", lambda: made(Remembering(), Cosine())),
    ("C21", "state is shared", lambda: made(Remembering(), Cosine())),
    ("C22", "noise at the end", lambda: NoiseAtTheEnd(CHAIN)),
    ("C22", "twice the variance", lambda: made(TooLoud())),
    ("C22", "noise is shared", lambda: made(SharedNoise())),
    ("C22", "noise of the batch", lambda: NoiseOfTheBatch(CHAIN)),
    ("C22b", "wrong sign", lambda: WrongVelocity(DDIM_TARGET)),
    ("C30", "one step more", lambda: OneMoreWhenLate(DDIM_TARGET)),
    ("C31", "weights without slopes", lambda: Adams(DDIM_TARGET)),
]


def uneven(schedule: Schedule, num_steps: int) -> tuple[float, ...]:
    """Steps of lengths 1 and 3 in turn."""
    lengths = torch.tensor([1.0, 3.0], dtype=torch.float64).repeat(num_steps)[:num_steps]
    return (1.0, *(1 - torch.cumsum(lengths, 0) / lengths.sum())[:-1].tolist(), 0.0)


@pytest.mark.parametrize(("name", "bug", "plant"), PLANTED, ids=[f"{name}-{bug}" for name, bug, _ in PLANTED])
def test_a_planted_bug_is_found(name: str, bug: str, plant: Callable[[], Any]) -> None:
    outcome = found(name, plant())
    assert outcome.status == "failed", outcome
    assert outcome.measured
    assert outcome.expected


def test_every_statement_can_fail() -> None:
    assert {name for name, _, _ in PLANTED} == set(ON_TARGETS)


CORRECT: dict[str, Any] = {
    "ddim": DDIM_TARGET,
    "ancestral": CHAIN,
    "dpm++2m": SECOND,
    "2m on uneven steps": made(DPMSolverMultistep(), Cosine(), uneven, "dpm++2m"),
    "flow": FLOW,
    "heun": HEUN,
    "clipping": ClipsRight(DDIM_TARGET),
    "of v": RightVelocity(DDIM_TARGET),
}


@pytest.mark.parametrize("target", CORRECT.values(), ids=CORRECT)
def test_a_correct_target_passes_everything(target: Any) -> None:
    outcomes = {name: found(name, target) for name in ON_TARGETS}
    failed = {name: outcome for name, outcome in outcomes.items() if outcome.status == "failed"}
    assert not failed


def test_what_applies_where() -> None:
    """A statement about what is not promised says so, and says nothing else."""
    applies = {
        name: {kind for kind, target in CORRECT.items() if found(name, target).status == "passed"}
        for name in ("C6", "C7", "C14", "C16", "C19", "C22", "C22b")
    }
    assert applies["C6"] == applies["C7"] == applies["C22"] == {"ancestral"}
    assert applies["C19"] == {"clipping"}
    assert applies["C22b"] == {"of v"}
    assert applies["C14"] == set(CORRECT) - {"ancestral", "clipping"}
    assert applies["C16"] == set(CORRECT) - {"ancestral", "clipping"}
    assert found("C14", promising(Wrapped(DDIM_TARGET), order=None)).status == "not_applicable"
    assert found("C14", promising(Wrapped(DDIM_TARGET), order=None)).measured, "the order is told all the same"


def test_an_inverted_ratio_keeps_its_order() -> None:
    """The errors telescope (C16 of the list of bugs), which is why steps are held against formulas too."""
    assert found("C14", made(Slipped(slip="r inverted"), Cosine(), uneven)).status == "passed"


def test_off_by_one_is_counted_step_by_step() -> None:
    """The first step that is off does not spoil the count of those after it."""
    assert "6 of 6 steps at N = 7" in found("C1", made(OffByOne())).measured


def test_processes_other_than_a_table_have_no_last_index() -> None:
    assert found("C9", SECOND).status == "not_applicable"
    assert found("C10", SECOND).status == "not_applicable"
    assert GaussianProcess(schedule=Cosine()).schedule == Cosine()


@pytest.mark.parametrize("schedule", [TABLE, Cosine()], ids=["table", "cosine"])
@pytest.mark.parametrize("spacing", LEGACY.values(), ids=LEGACY)
def test_what_is_legacy_starts_too_late_and_is_sound_else(spacing: Spacing, schedule: Schedule) -> None:
    """The reason why ``LEGACY`` is not in ``SPACINGS``: C4 fails, and nothing else does."""
    target = made(DDIM(), schedule, spacing, "ddim")
    assert [name for name in ON_TARGETS if found(name, target).status == "failed"] == ["C4"]
