"""Densities of training times: which noise levels a denoiser is trained at, and how often.

Knows: how times are drawn, how dense they lie, what was heard of their losses.
Does not know: what is done at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor

from unstir.diffusion.schedule import Schedule
from unstir.typing import Noise, Time, floats, integers


class Times(Protocol):
    """A density of training times on (0, 1]."""

    def draw(self, schedule: Schedule, count: int, noise: Noise) -> Time:
        """One time a sample; row i uses key i of ``noise`` alone."""
        ...

    def density(self, schedule: Schedule, t: Time) -> Time:
        """The density at these times with respect to the uniform one: dividing by it undoes the choice of times."""
        ...

    def learn(self, t: Time, loss: Float[Tensor, "b"]) -> None:
        """Hear what samples at these times cost; most densities do not listen."""


@dataclass(frozen=True, kw_only=True)
class UniformTimes(Times):
    """Times uniform on (0, 1], or on the grid 1/T, 2/T, ..., 1.

    Args:
        num_steps: T, or None for continuous time.

    Raises:
        ValueError: if num_steps < 1.
    """

    num_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse a grid without steps."""
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"a grid of times needs at least 1 step, got {self.num_steps}")

    def draw(self, schedule: Schedule, count: int, noise: Noise) -> Time:
        """One time a sample."""
        t = 1 - noise.uniform(torch.zeros(count, dtype=torch.float64))
        return t if self.num_steps is None else (t * self.num_steps).ceil() / self.num_steps

    def density(self, schedule: Schedule, t: Time) -> Time:
        """1."""
        return torch.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class LogitNormalTimes(Times):
    """Times whose logit is normal, mixed with a share of uniform ones so that no level is forgotten.

    Args:
        mean: of the logit; positive is towards noise.
        std: of the logit.
        uniform: share of uniform times.

    Raises:
        ValueError: unless std > 0 and 0 <= uniform <= 1.

    Source: Esser et al. 2024, arXiv:2403.03206, Sec. 3.1.
    """

    mean: float = 0.0
    std: float = 1.0
    uniform: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no density."""
        if not self.std > 0 or not 0 <= self.uniform <= 1:
            raise ValueError(
                f"logit-normal times need std > 0 and 0 <= uniform <= 1, got {self.std} and {self.uniform}"
            )

    def draw(self, schedule: Schedule, count: int, noise: Noise) -> Time:
        """One time a sample."""
        like = torch.zeros(count, dtype=torch.float64)
        normal = torch.sigmoid(self.mean + self.std * noise.at(0).normal(like))
        flat = 1 - noise.at(1).uniform(like)
        return torch.where(noise.at(2).uniform(like) < self.uniform, flat, normal)

    def density(self, schedule: Schedule, t: Time) -> Time:
        """The mixture of 1 and N(logit t; mean, std^2)/(t (1 - t))."""
        t = t.clamp(max=1 - 2**-53)  # the logit of 1 is infinite
        normal = _normal_density(torch.logit(t), self.mean, self.std) / (t * (1 - t))
        return self.uniform + (1 - self.uniform) * normal


@dataclass(frozen=True, kw_only=True)
class LogNormalTimes(Times):
    """Times at which log(sigma/alpha) is normal, within what the schedule has: EDM's density of noise levels.

    Args:
        mean: P_mean.
        std: P_std.

    Raises:
        ValueError: unless std > 0.

    Source: Karras et al. 2022, arXiv:2206.00364, Table 1 (-1.2 and 1.2).
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        """Refuse what is no density."""
        if not self.std > 0:
            raise ValueError(f"log-normal times need std > 0, got {self.std}")

    def draw(self, schedule: Schedule, count: int, noise: Noise) -> Time:
        """One time a sample."""
        low, high = self._shares(schedule)
        share = low + (high - low) * noise.uniform(torch.zeros(count, dtype=torch.float64))
        log_snr = -2 * (self.mean + self.std * cast(Tensor, torch.special.ndtri(share)))
        return schedule.time_of(log_snr.clamp(*_log_snr_ends(schedule)))

    def density(self, schedule: Schedule, t: Time) -> Time:
        """N(log(sigma/alpha); mean, std^2) |d log(sigma/alpha)/dt|, over what of the normal the schedule has."""
        level = schedule.at(t)
        low, high = self._shares(schedule)
        return _normal_density(-level.log_snr / 2, self.mean, self.std) * -level.dlog_snr / 2 / (high - low)

    def _shares(self, schedule: Schedule) -> tuple[float, float]:
        low, high = (
            0.5 * math.erfc((self.mean + log_snr / 2) / self.std / math.sqrt(2))
            for log_snr in reversed(_log_snr_ends(schedule))
        )
        if not high > low:
            raise ValueError(
                f"the schedule has no level with log(sigma/alpha) near {self.mean} +- {self.std}; move the mean"
            )
        return low, high


@dataclass(frozen=True, kw_only=True)
class LogSNRTimes(Times):
    """Times at which the log-SNR is uniform, within what the schedule has.

    Args:
        low: in nats, towards noise.
        high: in nats, towards data.

    Raises:
        ValueError: unless low < high.

    Source: Kingma & Gao 2023, arXiv:2303.00848, Sec. 3 (a density of log-SNR is all that a schedule means in training).
    """

    low: float = -13.3
    high: float = 13.3

    def __post_init__(self) -> None:
        """Refuse what is no density."""
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"log-SNR times need low < high, got {self.low} and {self.high}")

    def draw(self, schedule: Schedule, count: int, noise: Noise) -> Time:
        """One time a sample."""
        low, high = self._ends(schedule)
        share = noise.uniform(torch.zeros(count, dtype=torch.float64))
        return schedule.time_of(low + (high - low) * share)

    def density(self, schedule: Schedule, t: Time) -> Time:
        """|d log-SNR/dt|/(high - low) between the two, 0 outside."""
        low, high = self._ends(schedule)
        level = schedule.at(t)
        inside = (level.log_snr >= low) & (level.log_snr <= high)
        return torch.where(inside, -level.dlog_snr / (high - low), 0.0)

    def _ends(self, schedule: Schedule) -> tuple[float, float]:
        low, high = _log_snr_ends(schedule)
        return max(self.low, low), min(self.high, high)


@dataclass(frozen=True, kw_only=True)
class EndTime(Times):
    """Every time is t = 1, the noisy end.

    On a schedule whose end is pure noise (``RectifiedFlow``) what comes in says nothing of x0: a denoiser trained there
    alone is a regression from its condition to x0, and under a squared error its best answer is E[x0 | condition]. The
    weight must not vanish there, as those of "noise" and "min_snr" do.

    Raises:
        ValueError: when asked for a density: all mass lies on one time.

    Source: Bishop 2006, "Pattern Recognition and Machine Learning", Sec. 1.5.5 (the best answer is the mean).
    """

    def draw(self, schedule: Schedule, count: int, noise: Noise) -> Time:
        """One time a sample: 1; ``noise`` is not used."""
        return torch.ones(count, dtype=torch.float64)

    def density(self, schedule: Schedule, t: Time) -> Time:
        """None.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "times that are all t = 1 have no density to divide by; take the simple objective with them, or other "
            "times, uniform ones for instance"
        )


class LossAwareTimes(Times):
    """Steps of a chain drawn in proportion to the root of their mean squared loss: importance sampling of the bound.

    Uniform until every step has been heard ``history`` times. It remembers, so it has a ``state_dict``.

    Args:
        num_steps: T.
        history: losses remembered a step.
        uniform: probability kept aside for uniform times.

    Raises:
        ValueError: if a number is out of its range.

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Sec. 3.3, Eq. 18.
    """

    def __init__(self, *, num_steps: int, history: int = 10, uniform: float = 0.001) -> None:
        if num_steps < 1 or history < 1 or not 0 < uniform <= 1:
            raise ValueError(
                f"importance-sampled times need num_steps and history of at least 1 and 0 < uniform <= 1, got "
                f"{num_steps}, {history} and {uniform}"
            )
        self.num_steps, self.history, self.uniform = num_steps, history, uniform
        self.losses = torch.zeros(num_steps, history, dtype=torch.float64)
        self.heard = torch.zeros(num_steps, dtype=torch.int64)

    @property
    def probabilities(self) -> Float[Tensor, "n"]:
        """Of steps 1 to T."""
        flat = torch.full((self.num_steps,), 1 / self.num_steps, dtype=torch.float64)
        root = self.losses.square().mean(1).sqrt()
        if bool((self.heard < self.history).any()) or not bool(root.sum() > 0):
            return flat
        return (1 - self.uniform) * root / root.sum() + self.uniform * flat

    def draw(self, schedule: Schedule, count: int, noise: Noise) -> Time:
        """One time a sample."""
        share = noise.uniform(torch.zeros(count, dtype=torch.float64))
        steps = torch.searchsorted(self.probabilities.cumsum(0), share, right=True).clamp(max=self.num_steps - 1)
        return (steps + 1).double() / self.num_steps

    def density(self, schedule: Schedule, t: Time) -> Time:
        """T times the probability of the step."""
        return self.num_steps * self.probabilities[self._step(t)]

    def learn(self, t: Time, loss: Float[Tensor, "b"]) -> None:
        """Remember these losses, each step's newest ones."""
        for step, cost in zip(integers(self._step(t)), floats(loss.detach().double().cpu()), strict=True):
            self.losses[step, int(self.heard[step]) % self.history] = cost
            self.heard[step] += 1

    def state_dict(self) -> dict[str, Tensor]:
        """What was heard."""
        return {"losses": self.losses.clone(), "heard": self.heard.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what was heard.

        Raises:
            ValueError: if it is of another number of steps or another length of history.
        """
        if state["losses"].shape != self.losses.shape:
            raise ValueError(
                f"the history is of {tuple(state['losses'].shape)} losses, these times hold {tuple(self.losses.shape)}"
            )
        self.losses, self.heard = state["losses"].clone(), state["heard"].clone()

    def _step(self, t: Time) -> Tensor:
        return ((t * self.num_steps).round().long() - 1).clamp(0, self.num_steps - 1)


def _log_snr_ends(schedule: Schedule) -> tuple[float, float]:
    """The lowest and the highest log-SNR of a schedule, the latter just beside the data."""
    low, high = floats(schedule.at(torch.tensor([1.0, 1e-12], dtype=torch.float64)).log_snr.detach())
    return low, high


def _normal_density(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
