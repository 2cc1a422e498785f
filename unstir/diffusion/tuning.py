"""Tuning: the steps that lose least on a model's own trajectories.

Knows: how far a walk ends from the exact solution, and how times and weights are changed to bring it closer.
Does not know: whose denoiser it is, what its samples show, where the steps are kept.

Solvers with fixed formulas treat every model alike. Here a few samples are carried to their ends by many small steps,
once; then the times of few steps, and the weights of ``Tuned``, which contain every linear multistep method, are fitted
until the few steps end where the many did. Gradients go through the denoiser itself. The fit begins with
DPM-Solver++(2M) on evenly spaced log-SNR, so it ends no worse than that.

Source: fitting a sampler by gradients through its walk, Watson et al. 2022, arXiv:2202.05830; fitting times and
coefficients to a teacher of many steps, S4S 2025, arXiv:2502.17423. What is minimised here, and how, is ours.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.noise import BlockNoise
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import DPMSolverMultistep, Sampler, Tuned, sample
from unstir.diffusion.schedule import Level, Schedule, levels_at
from unstir.diffusion.spacing import uniform_log_snr
from unstir.typing import Time, X, floats

LOW, HIGH = -14.0, 16.0
"""Log-SNR between which the exact solution is walked; beyond them nothing that a float32 could show happens."""

_LOWEST = -5.5  # half log-SNR; stands for that of pure noise, which is infinite
_ENDS = (4.4, 5.2)  # half log-SNR at which the two first guesses ask last; the fit moves them
_TRIAL, _MORE, _SHARP = 0.16, 0.4, 0.28  # shares: each of two trials, the better one after them, its end alone
_ENOUGH = 0.07  # of the median error of DPM-Solver++(2M) on the first grid: what is closer gains nothing by more
_LEAST = 1e-9  # of that, where the first grid is exact already
_BAND = 8  # beliefs whose weights are free at a point; more only fit the samples that were seen
_APART = 1e-3  # the least distance between half log-SNRs of a walk
_KEPT = 200  # levels at which the beliefs of exact walks are kept
_REACH = 0.1  # scale of the free part of the weights beside that of the times


def exact(
    denoise: Denoiser, process: GaussianProcess, x: X, *, num_steps: int = 400, low: float = LOW, high: float = HIGH
) -> X:
    """Where the probability flow carries x from t = 1 to the data, by so many steps that what is left is small.

    Args:
        denoise: the model, guidance included.
        process: of which x is a sample at t = 1.
        x: noise.
        num_steps: of third order, evenly spaced in log-SNR; one network call each.
        low: log-SNR of the first step after t = 1.
        high: log-SNR of the last step: the cleanest level that the model was trained on.
    """
    times = uniform_log_snr(process.schedule, num_steps, low=low, high=high)
    return end_of(DPMSolverMultistep(max_order=3), denoise, process, x, times)


@dataclass(frozen=True, kw_only=True, eq=False)
class Path:
    """Exact walks of a batch: what is believed on the way, and where they end.

    Args:
        half_log_snr: rising.
        beliefs: what is believed there, in float32, a row each.
        end: where the probability flow leads.
    """

    half_log_snr: tuple[float, ...]
    beliefs: Float[Tensor, "k m"]
    end: X

    def near(self, half_log_snr: float) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"]]:
        """What is believed at any level, and its slope: straight lines between the levels that are kept."""
        right = min(max(bisect.bisect(self.half_log_snr, half_log_snr), 1), len(self.half_log_snr) - 1)
        start, end = self.half_log_snr[right - 1 : right + 1]
        before, after = (row.to(self.end) for row in self.beliefs[right - 1 : right + 1])
        slope = (after - before) / (end - start)
        return before + (half_log_snr - start) * slope, slope


def path(
    denoise: Denoiser, process: GaussianProcess, x: X, *, num_steps: int = 400, low: float = LOW, high: float = HIGH
) -> Path:
    """The walks of ``exact``, with what is believed on the way: 200 times as much memory as x in float32."""
    times = uniform_log_snr(process.schedule, num_steps, low=low, high=high)
    levels = levels_at(process.schedule, times)
    places: list[float] = []
    beliefs: list[Tensor] = []
    end = x
    for step in sample(DPMSolverMultistep(max_order=3), denoise, process, x, times, BlockNoise(key=(0,), count=len(x))):
        end = step.x
        if step.belief is None or (step.index % math.ceil(num_steps / _KEPT) and step.index < num_steps):
            continue
        half = levels[step.index - 1].log_snr.item() / 2  # where the step began
        if math.isfinite(half):
            places.append(half)
            beliefs.append(step.belief.x0.float().flatten())
    return Path(half_log_snr=tuple(places), beliefs=torch.stack(beliefs), end=end)


def misses(
    sampler: Sampler[Any], times: tuple[float, ...], denoise: Denoiser, process: GaussianProcess, x: X, target: X
) -> Float64[Tensor, "b"]:
    """How far from its target the walk of each sample ends: the RMS over its elements."""
    return _squares(end_of(sampler, denoise, process, x, times), target).sqrt()


def tune(
    denoise: Denoiser,
    process: GaussianProcess,
    x: X,
    num_steps: int,
    *,
    exact_path: Path | None = None,
    high: float = HIGH,
    iterations: int = 700,
    advance: Callable[[int, int], None] | None = None,
) -> Tuned:
    """Steps fitted to a model: times and weights with which ``num_steps`` calls end closest to the exact solution.

    What falls is the mean over samples of the logarithm of their RMS error, which no single lost sample can rule, plus
    0.3 of the logarithm of the RMS error over all. Before that the share is 3, that few be lost. This is done twice:
    the second time 30 more hold the beliefs of all points to those of the exact walk, for which sample ends somewhere
    else altogether is decided on the way, where all samples tell of it, while at the end only the few that are lost do.
    Which of the two ends nearer is known only when both are at their end. What is far closer than DPM-Solver++(2M)
    comes is left alone for what is not. Times and weights are moved together by L-BFGS; the weights keep an unchanging
    belief exact. The steps hold for this denoiser (its guidance included) and this schedule; other starts of it are
    solved as well as those that were fitted, if there were enough of them (128 or more of a small law, 16 pictures).

    Args:
        denoise: the model; gradients must pass through it. Memory is that of one call, and of 2 num_steps times x.
        process: of which x is a sample at t = 1.
        x: starts to fit to, in float64 where the denoiser answers in it.
        num_steps: network calls.
        exact_path: where they should go; without it, what ``path`` says.
        high: log-SNR beyond which the model is not asked.
        iterations: of the fit at most; each costs about four walks of num_steps calls with x.
        advance: told how many are done, and of how many.

    Returns:
        A sampler with its own ``times``: ``sample(tuned, denoise, process, x, tuned.times, noise)``.

    Raises:
        ValueError: if num_steps or iterations is below 1, or the errors are not finite from the first guess on.
    """
    if num_steps < 1 or iterations < 1:
        raise ValueError(f"tuning needs at least 1 step and 1 iteration, got {num_steps} and {iterations}")
    if num_steps == 1:
        return Tuned(times=(1.0, 0.0), weights=())
    goal = path(denoise, process, x, high=high) if exact_path is None else exact_path
    plain = uniform_log_snr(process.schedule, num_steps, high=min(high, 9.0))
    enough = _ENOUGH * misses(DPMSolverMultistep(), plain, denoise, process, x, goal.end).median().item()
    problem = _Problem(
        denoise=denoise, schedule=process.schedule, x=x, goal=goal, limit=high / 2, enough=max(enough, _LEAST)
    )
    fitted: list[_Guess] = []
    for aim, share in ((_NONE_LOST, iterations // 2), (_ON_THE_WAY, iterations - iterations // 2)):
        begun = len(fitted) * (iterations // 2)

        def told(count: int, begun: int = begun) -> None:
            if advance is not None:
                advance(min(begun + count, iterations), iterations)

        fitted.append(_developed(problem, num_steps, aim, share, told))
    if advance is not None:
        advance(iterations, iterations)
    best = problem.best(fitted)
    if best is None:
        raise ValueError("the errors of the first steps are not finite; look at what the denoiser says of noise")
    return problem.frozen(best)


@dataclass(frozen=True, kw_only=True)
class _Aim:
    """What is made small: the mean over samples of the logarithm of where they end too far, and shares of two others.

    Args:
        all: share of the logarithm of the RMS error over all samples, at the end.
        way: share of the logarithm of the RMS error over all samples and points of the walk.
    """

    all: float
    way: float


_NONE_LOST, _ON_THE_WAY = _Aim(all=3.0, way=0.0), _Aim(all=3.0, way=30.0)
_BOTH, _NEAR = _Aim(all=1.0, way=0.0), _Aim(all=0.3, way=0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Guess:
    """What is fitted: gaps between half log-SNRs (before softplus), and the free part of the weights."""

    gaps: Float64[Tensor, "m"]
    free: Float64[Tensor, "n n"]

    def copy(self) -> _Guess:
        """The same numbers, to be told gradients of their own."""
        gaps, free = (numbers.detach().clone().requires_grad_() for numbers in (self.gaps, self.free))
        return _Guess(gaps=gaps, free=free)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Problem:
    """Who is asked, from where, and where the walks should end."""

    denoise: Denoiser
    schedule: Schedule
    x: X
    goal: Path
    limit: float
    enough: float

    @cached_property
    def first(self) -> Level:
        return self.schedule.at(torch.ones((), dtype=torch.float64))

    @property
    def lowest(self) -> float:
        return max(self.first.log_snr.item() / 2, _LOWEST)

    def half_log_snr(self, guess: _Guess) -> Float64[Tensor, "n"]:
        """Rising from the first to below the limit, which is approached smoothly; no two points fall together."""
        rising = torch.cat([torch.zeros(1, dtype=torch.float64), F.softplus(guess.gaps).cumsum(0)]) + self.lowest
        apart = _APART * torch.arange(len(rising))
        limit = self.limit - apart[-1]
        return limit - F.softplus(limit - rising, beta=8) + apart

    def levels(self, half_log_snr: Float64[Tensor, "n"]) -> Level:
        """The levels, the first of them t = 1, with gradients: a step along the schedule's tangent of length 0."""
        later = 2 * half_log_snr[1:]
        here = self.schedule.at(self.schedule.time_of(later.detach()))
        moved = (later - later.detach()) / here.dlog_snr
        first = self.first

        def joined(start: Time, rest: Time) -> Time:
            return torch.cat([start[None], rest])

        return Level(
            t=joined(first.t, here.t + moved),
            alpha=joined(first.alpha, here.alpha + here.dalpha * moved),
            sigma=joined(first.sigma, here.sigma + here.dsigma * moved),
            dalpha=joined(first.dalpha, here.dalpha),
            dsigma=joined(first.dsigma, here.dsigma),
        )

    def weights(self, half_log_snr: Float64[Tensor, "n"], levels: Level, guess: _Guess) -> Float64[Tensor, "n-1 n-1"]:
        """Row i leads to point i + 1: DPM-Solver++(2M)'s, and a free part of the last 8 beliefs, whose sum is 0."""
        size = levels.alpha / levels.sigma
        last = len(size) - 1
        rows: list[Tensor] = []
        row = torch.zeros(last, dtype=torch.float64)
        ones = torch.eye(last, dtype=torch.float64)
        for i in range(last):
            change = size[i + 1] - size[i]
            row = row + change * ones[i]
            if i:
                ratio = (half_log_snr[i + 1] - half_log_snr[i]) / (half_log_snr[i] - half_log_snr[i - 1]) / 2
                row = row + change * ratio * (ones[i] - ones[i - 1])
            rows.append(row)
        band = torch.ones(last, last, dtype=torch.float64).tril().triu(1 - _BAND)
        free = guess.free[1:, :last] * band
        mean = (free.sum(1) / band.sum(1))[:, None] * band
        return torch.stack(rows) + _REACH * size[1:, None] * (free - mean)

    @torch.enable_grad()
    def learn(self, guess: _Guess, aim: _Aim) -> float:
        """What the fit makes small; its gradient is added to the guess's.

        The gradient is carried back through the walk by hand. Point i is x_i = sigma_i S_i, where
        S_i = x_0/sigma_0 + sum over j < i of w_ij D_j; so D_j is told sum over i > j of w_ij dS_i, and w_ij is told
        D_j dS_i. Automatic differentiation would copy every belief once for every later point.
        """
        half_log_snr = self.half_log_snr(guess)
        levels = self.levels(half_log_snr)
        rows = self.weights(half_log_snr, levels, guess)
        places, table = levels.map(torch.Tensor.detach).unbind(), rows.detach().to(self.x)
        points, beliefs = self.walk(places, table)
        loss, told = self.judged(beliefs[-1], aim.all)
        strays, of_way = self.astray(beliefs, floats(half_log_snr), aim.way)
        of_levels, of_rows = torch.zeros(3, len(places), dtype=torch.float64), torch.zeros_like(rows)
        of_half = torch.zeros_like(half_log_snr)
        for i in reversed(range(len(places))):
            if i and aim.way:
                miss, slope = self.miss(beliefs, i, half_log_snr[i].item())
                told = told + of_way * miss
                of_half[i] = -of_way * (miss @ slope).item()
            of_x, of_levels[:, i] = self.asked_back(points[i], places[i], told)
            if i:
                sigma = places[i].sigma.item()
                of_levels[2, i] += (of_x @ points[i]).item() / sigma
                points[i] = of_x * sigma  # dS_i, in the room of a point that is no longer needed
                of_rows[i - 1, :i] = beliefs[:i] @ points[i]
                told = table[i - 1 :, i - 1] @ points[i:]
        given = [levels.t, levels.alpha, levels.sigma, rows, half_log_snr]
        torch.autograd.backward(given, [*of_levels.unbind(), of_rows, of_half])
        return loss + strays

    @torch.no_grad()
    def walk(self, places: Sequence[Level], table: Float[Tensor, "n-1 n-1"]) -> tuple[Tensor, Tensor]:
        """Every point of the walk and what was believed there, a row each."""
        start = (self.x / places[0].sigma).flatten()
        points = self.x.new_empty(len(places), start.numel())
        beliefs = torch.empty_like(points)
        points[0] = self.x.flatten()
        for i, level in enumerate(places):
            if i:
                points[i] = level.sigma * torch.addmv(start, beliefs[:i].T, table[i - 1, :i])
            beliefs[i] = self.denoise(points[i].view_as(self.x), level).x0.flatten()
        return points, beliefs

    def astray(self, beliefs: Float[Tensor, "n m"], half_log_snr: Sequence[float], way: float) -> tuple[float, float]:
        """What straying from the exact way costs, and how much of a miss is its gradient."""
        if not way:
            return 0.0, 0.0
        points = range(1, len(beliefs))
        total = sum(self.miss(beliefs, i, half_log_snr[i])[0].square().mean().item() for i in points) + _LEAST
        return way * math.log(total) / 2, way / (total * beliefs.shape[1])

    def miss(
        self, beliefs: Float[Tensor, "n m"], i: int, half_log_snr: float
    ) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"]]:
        """How far a belief is from that of the exact walk, and the slope of the latter; the last, from its end."""
        if i == len(beliefs) - 1:  # or a walk that stands still would miss nothing
            return beliefs[i] - self.goal.end.flatten(), torch.zeros_like(beliefs[i])
        there, slope = self.goal.near(half_log_snr)
        return beliefs[i] - there, slope

    def judged(self, end: Float[Tensor, "m"], far: float) -> tuple[float, Float[Tensor, "m"]]:
        """The loss of where a walk ends, and its gradient there."""
        end = end.clone().requires_grad_()
        squares = _squares(end.view_as(self.x), self.goal.end) + self.enough**2
        loss = squares.log().mean() / 2 + far * squares.mean().log() / 2
        return loss.item(), torch.autograd.grad(loss, end)[0]

    def asked_back(
        self, point: Float[Tensor, "m"], level: Level, told: Float[Tensor, "m"]
    ) -> tuple[Float[Tensor, "m"], Float64[Tensor, "3"]]:
        """What the belief at a point tells that point, and t, alpha and sigma."""
        x_t = point.view_as(self.x).clone().requires_grad_()
        given = [each.clone().requires_grad_() for each in (level.t, level.alpha, level.sigma)]
        t, alpha, sigma = given
        belief = self.denoise(x_t, replace(level, t=t, alpha=alpha, sigma=sigma)).x0
        of_x, *of_level = torch.autograd.grad(
            belief, [x_t, *given], told.view_as(belief), allow_unused=True, materialize_grads=True
        )
        return of_x.flatten(), torch.stack(of_level)

    def best(self, guesses: Sequence[_Guess]) -> _Guess | None:
        """The one that ends nearest, all samples and the lost ones weighed alike; nothing if none has an end."""
        losses = [self.learn(guess.copy(), _BOTH) for guess in guesses]
        least = min((loss for loss in losses if math.isfinite(loss)), default=None)
        return None if least is None else guesses[losses.index(least)]

    def frozen(self, guess: _Guess) -> Tuned:
        """The steps that a guess stands for, with weights made of their very times."""
        with torch.no_grad():
            half_log_snr = self.half_log_snr(guess)
            times = self.schedule.time_of(2 * half_log_snr[1:])
            levels = self.schedule.at(torch.cat([torch.ones(1, dtype=torch.float64), times]))
            rows = self.weights(half_log_snr, levels, guess)
        return Tuned(
            times=(*floats(levels.t), 0.0), weights=tuple(tuple(floats(row[: i + 1])) for i, row in enumerate(rows))
        )


def _first_guess(problem: _Problem, num_steps: int, end: float) -> _Guess:
    """Evenly spaced half log-SNR up to ``end``, and no free part."""
    gap = torch.full((num_steps - 1,), (end - problem.lowest) / (num_steps - 1), dtype=torch.float64)
    return _Guess(gaps=gap.expm1().log(), free=torch.zeros(num_steps, num_steps, dtype=torch.float64))


def _developed(problem: _Problem, num_steps: int, aim: _Aim, iterations: int, told: Callable[[int], None]) -> _Guess:
    """The walk of one aim, carried to its end: the better of two first guesses, more of it, then the end alone."""
    done = 0

    def fit(guess: _Guess, aim: _Aim, share: float) -> _Guess:
        nonlocal done
        count, begun = max(1, round(share * iterations)), done
        done += count
        return _fit(problem, guess, aim, count, lambda asked: told(begun + asked))

    ends = dict.fromkeys(min(end, problem.limit - 0.1) for end in _ENDS)
    trials = [fit(_first_guess(problem, num_steps, end), aim, _TRIAL) for end in ends]
    guess = fit(problem.best(trials) or trials[0], aim, _MORE)
    return fit(guess, _NEAR, _SHARP)


def _fit(problem: _Problem, guess: _Guess, aim: _Aim, iterations: int, told: Callable[[int], None]) -> _Guess:
    """The best guess that L-BFGS comes by."""
    guess = guess.copy()
    free = [guess.gaps, guess.free]
    found: tuple[float, _Guess] = (math.inf, guess.copy())
    asked = 0
    optimizer = torch.optim.LBFGS(
        free, max_iter=iterations, max_eval=iterations * 5 // 4 + 1, history_size=50, line_search_fn="strong_wolfe",
        tolerance_grad=1e-9, tolerance_change=1e-10,
    )  # fmt: skip

    def closure() -> float:
        nonlocal found, asked
        asked += 1
        optimizer.zero_grad()
        loss = problem.learn(guess, aim)
        if not math.isfinite(loss):  # a step too long: the line search must see a wall, not a hole
            for each in free:
                each.grad = torch.zeros_like(each)
            return 1e3
        if loss < found[0]:
            found = (loss, guess.copy())
        told(min(asked, iterations))
        return loss

    optimizer.step(closure)
    return found[1]


def end_of(sampler: Sampler[Any], denoise: Denoiser, process: GaussianProcess, x: X, times: tuple[float, ...]) -> X:
    """Where a walk ends whose sampler draws nothing."""
    *_, last = sample(sampler, denoise, process, x, times, BlockNoise(key=(0,), count=x.shape[0]))
    return last.x


def _squares(x: X, target: X) -> Float64[Tensor, "b"]:
    """The mean square of the distance over the elements of each sample."""
    return (x - target).double().flatten(1).square().mean(1)
