"""Likelihood: how many bits a model needs to write data down, as a bound and along the probability flow.

Knows: the terms of the variational bound for any process, in T steps or in continuous time; the flow's change of
density for Gaussian ones.
Does not know: networks, pictures, how a denoiser came to its beliefs.

Everything here is in float64 where the data is: give data in float64 for figures that are to be trusted to the last
bits. bits/dim is nats over the number of elements times ln 2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.distribution import Normal
from unstir.diffusion.process import Estimate, GaussianProcess, Process, require_data
from unstir.diffusion.schedule import Level, Schedule, spread
from unstir.typing import Noise, Time, X

Progress = Callable[[int, int], None]
"""(network calls done, calls in all)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bound:
    """An upper bound on the negative log-likelihood of each sample, term by term, in bits/dim.

    Args:
        prior: KL(q(x_1 | x_0) || p(x_1)).
        steps: the share of each evaluated time in sum KL(q(x_s | x_t, x_0) || p(x_s | x_t)), from data to noise.
        reconstruction: -log p(x_0 | x_{t_1}).
        times: where ``steps`` were evaluated.
        squared_error: of the belief about x_0 at these times, mean over the elements.
        first_squared_error: the same at t_1.
    """

    prior: Float[Tensor, "b"]
    steps: Float[Tensor, "b n"]
    reconstruction: Float[Tensor, "b"]
    times: Float[Tensor, "b n"]
    squared_error: Float[Tensor, "b n"]
    first_squared_error: Float[Tensor, "b"]

    @property
    def diffusion(self) -> Float[Tensor, "b"]:
        """The sum of ``steps``."""
        return self.steps.sum(1)

    @property
    def total(self) -> Float[Tensor, "b"]:
        """The bound."""
        return self.prior + self.diffusion + self.reconstruction

    @property
    def mean(self) -> float:
        """Mean of the bound over the samples."""
        return self.total.mean().item()

    @property
    def standard_error(self) -> float:
        """Of the mean over the samples, which carry the noise of the drawn times with them; NaN for one sample."""
        count = self.total.numel()
        return self.total.std().item() / math.sqrt(count) if count > 1 else math.nan


def bits_per_dim(
    denoise: Denoiser,
    process: Process,
    data: X,
    *,
    steps: int | None,
    noise: Noise,
    draws: int | None = None,
    first_log_snr: float = 13.3,
    progress: Progress = lambda done, total: None,
) -> Bound:
    """Upper bound on the negative log-likelihood of data, in bits per dimension.

    bound = KL(q(x_1|x0) || prior) + sum over steps KL(q(x_s|x_t,x0) || p(x_s|x_t)) - log p(x0 | x_{t_1})

    For continuous data (``GaussianProcess(levels=None)``) the likelihood is a density, and bits may be negative. There
    a chain even in t has steps near the data that stay long in log-SNR however many they are, and with the posterior's
    variance its bound stays 0.5 (linear, cosine) to 1.4 nats an element (rectified flow) above the limit: learn the
    variance, or take ``steps=None``.

    Args:
        denoise: what is believed.
        process: of which the data is the x_0.
        data: the samples.
        steps: number T of steps of the chain, t_1 = 1/T; None is the limit T -> infinity of the chain from t_1 to 1.
        noise: one key a sample; each evaluated time has its own sub-key.
        draws: evaluate so many stratified times a sample instead of all T - 1 of them: the bound is then estimated
            without bias. In continuous time 100 unless said otherwise, uniform in log-SNR.
        first_log_snr: in continuous time, the log-SNR of t_1, in nats; the sum of the bound is kept below what the
            schedule has.
        progress: called after every network call.

    Returns:
        ``Bound``, each part of shape (b,), prior and diffusion non-negative in expectation.

    Raises:
        ValueError: if steps or draws < 1, draws > T - 1, the first log-SNR is below the last, or data is not finite or
            not of the process's kind.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Sec. 2.4; Ho et al. 2020, arXiv:2006.11239, Eq. 5; Kingma et
        al. 2021, arXiv:2107.00630, Sec. 4 (finite and infinite T in one expression).
    """
    require_data(data)
    if (steps is not None and steps < 1) or (draws is not None and draws < 1):
        raise ValueError(f"a bound needs at least 1 step and 1 draw, got steps={steps} and draws={draws}")
    if steps is not None and draws is not None and draws > steps - 1:
        raise ValueError(
            f"a chain of {steps} steps has {steps - 1} terms to draw from, got draws={draws}; leave it out"
        )
    schedule = process.schedule
    count, size = data.shape[0], data[0].numel()
    bits = 1 / (size * math.log(2))
    if steps is None:
        first = _of_log_snr(schedule, min(first_log_snr, _nearest_data(schedule)))
        above = None
        chosen = _continuous_times(schedule, first.log_snr.item(), draws or 100, count, noise.at(1))
    else:
        first = schedule.at(_scalar(1 / steps))
        above = None if steps == 1 else schedule.at(_scalar(2 / steps))
        chosen = _chain_times(steps, draws, count, noise.at(1))
    calls = 1 + len(chosen)
    reconstruction, first_error = _decode(denoise, process, data, first, above, noise.at(0))
    progress(1, calls)
    terms: list[Tensor] = []
    errors: list[Tensor] = []
    for i, (t, weight) in enumerate(chosen):
        level = schedule.at(t)
        with torch.no_grad():
            x_t = process.marginal(data, level).sample(noise.at(2, i))
            belief = denoise(x_t, level)
            if steps is None:
                term = process.divergence_rate(data, x_t, level, belief) / spread(-level.dlog_snr, data)
            else:
                term = step_divergence(process, data, x_t, level, schedule.at(_step_before(t, steps)), belief)
        terms.append(term.flatten(1).sum(1).double().cpu() * weight * bits)
        errors.append(_squared_error(belief, data))
        progress(2 + i, calls)
    with torch.no_grad():
        end = schedule.at(_scalar(1.0))
        prior = process.marginal(data, end).kl(process.prior(data)).flatten(1).sum(1).double().cpu()
    none = prior.new_zeros(count, 0)
    return Bound(
        prior=prior * bits,
        steps=torch.stack(terms, 1) if terms else none,
        reconstruction=-reconstruction * bits,
        times=torch.stack([t.expand(count) for t, _ in chosen], 1) if chosen else none,
        squared_error=torch.stack(errors, 1) if errors else none,
        first_squared_error=first_error,
    )


def step_divergence(process: Process, x0: X, x_t: X, t: Level, s: Level, belief: Estimate) -> X:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of every element, in nats: one term of the bound, for s > 0.

    Source: Ho et al. 2020, arXiv:2006.11239, Eq. 5 (L_{t-1}).
    """
    return process.reverse(x_t, t, s, Estimate(x0=x0)).kl(process.reverse(x_t, t, s, belief))


@dataclass(frozen=True, kw_only=True)
class RatePoint:
    """One row of a rate-distortion table.

    Args:
        t: up to here the noise has been undone.
        rate: bits/dim sent so far: the prior and all steps from 1 down to t.
        distortion: root mean squared error of the belief about x_0 at t, in units of x.
    """

    t: float
    rate: float
    distortion: float


def rate_distortion(bound: Bound) -> tuple[RatePoint, ...]:
    """What is known of the data after how many bits, from noise to data: progressive lossy coding.

    The first row is the prior alone, the last all but the reconstruction, with the belief at t_1. Multiply distortions
    by 127.5 for grey levels from 0 to 255.

    Args:
        bound: with every term of a chain (``draws=None``).

    Raises:
        ValueError: if the bound's times are not all those of a chain.

    Source: Ho et al. 2020, arXiv:2006.11239, Sec. 4.3, Table 4.
    """
    steps = bound.times.shape[1] + 1
    grid = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    if not bool(((bound.times - grid[1:]).abs() < 1e-9).all()):
        raise ValueError("a rate-distortion table needs every term of a chain; leave out draws and give steps")
    rate = bound.prior.mean() + torch.cat([torch.zeros(1), bound.steps.mean(0).flip(0).cumsum(0)])
    errors = torch.cat([bound.first_squared_error.mean()[None], bound.squared_error.mean(0)]).flip(0).sqrt()
    return tuple(
        RatePoint(t=t.item(), rate=bits.item(), distortion=error.item())
        for t, bits, error in zip(grid.flip(0), rate, errors, strict=True)
    )


State = tuple[Tensor, Tensor]
"""Where the probability flow is, and what its density has changed by: (b, *site) and (b,)."""

Solver = Callable[[Callable[[Level, State], State], Schedule, State, Sequence[float]], State]
"""(slope with respect to log-SNR, schedule, state at the first log-SNR, log-SNRs to walk) -> state at the last."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FlowLikelihood:
    """The log-likelihood of each sample along the probability flow, in nats.

    Args:
        log_prob: log p(x_0); of grey levels, a lower bound (by uniform dequantisation).
        trace_error: standard error of the estimated trace; 0 where it is exact, NaN with a single probe.
        solver_error: the change against half as many steps, an upper estimate of what discretisation costs.
        size: number of elements of a sample.
    """

    log_prob: Float[Tensor, "b"]
    trace_error: Float[Tensor, "b"]
    solver_error: Float[Tensor, "b"]
    size: int

    @property
    def bits_per_dim(self) -> Float[Tensor, "b"]:
        """-log p(x_0), in bits per dimension."""
        return -self.log_prob / (self.size * math.log(2))


def flow_log_prob(
    denoise: Denoiser,
    process: GaussianProcess,
    data: X,
    *,
    steps: int,
    noise: Noise,
    probes: int | None = None,
    log_snr: tuple[float, float] = (13.3, -13.3),
    solver: Solver | None = None,
) -> FlowLikelihood:
    """Log-likelihood of data under the probability flow of a denoiser, by the change of variables along it.

    With u = x_t/alpha and l the log-SNR, du/dl = (D - u)/2; log p(x_0) = log p(u_last) + integral tr(dD/du - 1)/2 dl.

    Args:
        denoise: what is believed; differentiated by x_t.
        process: if it has grey levels, the data must lie on them and is dequantised; else it is a density's.
        data: the samples.
        steps: of the solver, uniform in log-SNR.
        noise: for probes and dequantisation; one key a sample.
        probes: Rademacher vectors a sample for Hutchinson's estimate of the trace; None is the exact trace, one
            backward pass an element.
        log_snr: from where the data is taken to lie to where the prior is, in nats, or the schedule's own ends.
        solver: fourth-order Runge-Kutta if left out.

    Raises:
        ValueError: if steps < 2, probes < 1, the first log-SNR is not above the last, or data is not finite or not on
            the process's grey levels.

    Source: Song et al. 2021, arXiv:2011.13456, Eqs. 39-40; Grathwohl et al. 2019, arXiv:1810.01367 (Hutchinson); Theis
        et al. 2016, arXiv:1511.01844, Sec. 3.1 (dequantisation).
    """
    require_data(data)
    if steps < 2 or (probes is not None and probes < 1):
        raise ValueError(f"the flow needs at least 2 steps and 1 probe, got {steps} and {probes}")
    schedule, size = process.schedule, data[0].numel()
    first = min(log_snr[0], _nearest_data(schedule))
    last = max(log_snr[1], schedule.at(_scalar(1.0)).log_snr.item())
    _require_fall(first, last)
    end = _of_log_snr(schedule, last)
    prior = Normal(mean=torch.zeros_like(data), std=torch.hypot(end.alpha, end.sigma))
    volume = 0.0
    if process.levels is not None:
        process.decode_log_prob(data, data, end, Estimate(x0=data))  # refuses what lies off the levels
        width = 2 / (process.levels - 1)
        data = data + width * (noise.at(0).uniform(data) - 0.5)
        volume = size * math.log(width)

    def log_prob(count: int, probe: Sequence[X] | None) -> Tensor:
        def slope(level: Level, state: State) -> State:
            with torch.enable_grad():
                u = state[0].detach().requires_grad_()
                belief = denoise(spread(level.alpha, u) * u, level).x0
                trace = _trace(belief, u, probe)
            return (belief.detach() - state[0]) / 2, (trace - size) / 2

        grid = [first + (last - first) * i / count for i in range(count + 1)]
        u, change = (solver or runge_kutta)(slope, schedule, (data, data.new_zeros(data.shape[0])), grid)
        at_end = prior.log_prob(spread(end.alpha, u) * u).flatten(1).sum(1)
        return at_end + size * end.alpha.log().item() + change + volume

    signs = [torch.where(noise.at(1, i).uniform(data) < 0.5, -1.0, 1.0).to(data) for i in range(probes or 0)]
    with torch.no_grad():
        fine = log_prob(steps, signs or None)
        each = [log_prob(steps // 2, [sign]) for sign in signs] or [log_prob(steps // 2, None)]
    coarse = torch.stack(each).mean(0)  # the walk is the same for every probe, and linear in its trace
    trace_error = torch.full_like(fine, 0.0 if probes is None else math.nan)
    if len(each) > 1:
        trace_error = torch.stack(each).std(0) / math.sqrt(len(each))
    return FlowLikelihood(
        log_prob=fine,
        trace_error=trace_error,
        solver_error=(fine - coarse).abs(),
        size=size,
    )


def runge_kutta(
    slope: Callable[[Level, State], State], schedule: Schedule, state: State, log_snr: Sequence[float]
) -> State:
    """The classical method of fourth order.

    Source: Hairer, Norsett & Wanner 1993, Solving Ordinary Differential Equations I, Table 1.2.
    """

    def moved(state: State, by: State, factor: float) -> State:
        return state[0] + factor * by[0], state[1] + factor * by[1]

    here = _of_log_snr(schedule, log_snr[0])
    for start, end in itertools.pairwise(log_snr):
        h = end - start
        middle, there = _of_log_snr(schedule, (start + end) / 2), _of_log_snr(schedule, end)
        k1 = slope(here, state)
        k2 = slope(middle, moved(state, k1, h / 2))
        k3 = slope(middle, moved(state, k2, h / 2))
        k4 = slope(there, moved(state, k3, h))
        for k, factor in ((k1, h / 6), (k2, h / 3), (k3, h / 3), (k4, h / 6)):
            state = moved(state, k, factor)
        here = there
    return state


def _trace(value: Tensor, variable: Tensor, probes: Sequence[Tensor] | None) -> Float[Tensor, "b"]:
    """tr(d value/d variable) of every sample: exact, or v'Jv averaged over the probes v."""
    if probes is None:
        flat = value.flatten(1)
        rows = (torch.autograd.grad(flat[:, i].sum(), variable, retain_graph=True)[0] for i in range(flat.shape[1]))
        return torch.stack([row.flatten(1)[:, i] for i, row in enumerate(rows)]).sum(0)
    total = value.new_zeros(value.shape[0])
    for probe in probes:
        (row,) = torch.autograd.grad(value, variable, probe, retain_graph=True)
        total = total + (row * probe).flatten(1).sum(1)
    return total / len(probes)


def _decode(
    denoise: Denoiser, process: Process, data: X, first: Level, above: Level | None, noise: Noise
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        x_t = process.marginal(data, first).sample(noise)
        belief = denoise(x_t, first)
        log_prob = process.decode_log_prob(data, x_t, first, belief, above)
    return log_prob.flatten(1).sum(1).double().cpu(), _squared_error(belief, data)


def _squared_error(belief: Estimate, data: X) -> Float[Tensor, "b"]:
    return (belief.x0 - data).square().flatten(1).mean(1).double().cpu()


def _chain_times(steps: int, draws: int | None, count: int, noise: Noise) -> list[tuple[Time, float]]:
    """Times of the steps above the first and what each counts: all of them, or one drawn in each of equal strata."""
    if draws is None:
        return [(_scalar(i / steps), 1.0) for i in range(2, steps + 1)]
    chosen: list[tuple[Time, float]] = []
    for k in range(draws):
        share = noise.at(k).uniform(torch.zeros(count, dtype=torch.float64))
        index = 2 + ((k + share) / draws * (steps - 1)).floor().clamp(max=steps - 2)
        chosen.append((index / steps, (steps - 1) / draws))
    return chosen


def _continuous_times(
    schedule: Schedule, first: float, draws: int, count: int, noise: Noise
) -> list[tuple[Time, float]]:
    """Times whose log-SNR is uniform in each of equal strata between t_1 and t = 1, and the length of a stratum.

    Where there is no signal at t = 1 the strata end at a log-SNR of -20: what lies below is worth exp(-20)/2 nats of
    squared error.
    """
    last = max(schedule.at(_scalar(1.0)).log_snr.item(), -20.0)
    _require_fall(first, last)
    shares = torch.stack([noise.at(k).uniform(torch.zeros(count, dtype=torch.float64)) + k for k in range(draws)])
    times = schedule.time_of(first + (last - first) * shares / draws)
    return [(t, (first - last) / draws) for t in times]


def _step_before(t: Time, steps: int) -> Time:
    return ((t * steps).round() - 1) / steps


def _nearest_data(schedule: Schedule) -> float:
    return schedule.at(_scalar(1e-12)).log_snr.item()


def _of_log_snr(schedule: Schedule, log_snr: float) -> Level:
    return schedule.at(schedule.time_of(_scalar(log_snr)))


def _require_fall(first: float, last: float) -> None:
    if not first > last:
        raise ValueError(
            f"the log-SNR falls from data to noise, got {first:.4g} first and {last:.4g} last; 13.3 is a usual first"
        )


def _scalar(value: float) -> Time:
    return torch.tensor(value, dtype=torch.float64)
