"""Schedules that are learned with the network: their levels carry gradients to what is learned.

Knows: how a chain's betas, or a monotone log-SNR, are made of free parameters.
Does not know: what they are learned from: the bound (``objective.VariationalBound``) is, with the noise held fixed.

Both are modules: give their parameters to an optimizer beside the network's. When they are learned,
``Tabulated.from_schedule(schedule, num_steps, beta_max=1.0)`` is a table that a model can be saved with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from unstir.diffusion.schedule import (
    Level,
    Tabulated,
    between_points,
    checked_time,
    level_of_log_snr,
    where_falls_to,
)
from unstir.typing import Time


class LearnedBetas(nn.Module):
    """A T-step chain whose betas are learned, all but the first: beta_i = sigmoid(logit_i).

    The first is held fixed, "to prevent overfitting": the bound would otherwise let it vanish.

    Args:
        start: the chain to start from. Its last beta must be below 1, for the logit of 1 cannot move.

    Raises:
        ValueError: if the last beta is 1.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Sec. 2.4.1 (gradient of the bound with "frozen noise").
    """

    def __init__(self, start: Tabulated) -> None:
        super().__init__()
        betas = torch.tensor(start.betas, dtype=torch.float64)
        if betas[-1] == 1:
            raise ValueError("the last beta is 1, whose logit is infinite; start from a chain that leaves some signal")
        self.first: Tensor
        self.register_buffer("first", betas[:1])
        self.logits = nn.Parameter(torch.logit(betas[1:]))

    @property
    def num_steps(self) -> int:
        """T."""
        return self.logits.numel() + 1

    def betas(self) -> Time:
        """The betas of steps 1 to T."""
        return torch.cat([self.first, torch.sigmoid(self.logits)])

    def alpha_bar(self, t: Time) -> Time:
        """The share of signal variance at time t, as in ``Tabulated``."""
        # log(1 - sigmoid(u)) = -softplus(u): sums of logarithms keep their digits where 1 - beta would lose them.
        logs = torch.cat([torch.log1p(-self.first), -functional.softplus(self.logits)])
        return between_points(torch.cat([logs.new_ones(1), torch.exp(torch.cumsum(logs, 0))]), t)

    def at(self, t: Time) -> Level:
        """The level at time t."""
        t = checked_time(t)
        with torch.enable_grad():
            variable = t.detach().clone().requires_grad_()
            alpha_bar = self.alpha_bar(variable)
            (slope,) = torch.autograd.grad(alpha_bar.sum(), variable, create_graph=True)
        alpha, sigma = _root(alpha_bar), _root(1 - alpha_bar)
        return Level(t=t, alpha=alpha, sigma=sigma, dalpha=slope / (2 * alpha), dsigma=-slope / (2 * sigma))

    def time_of(self, log_snr: Time) -> Time:
        """The inverse of ``at(t).log_snr``, without gradient."""
        with torch.no_grad():
            return where_falls_to(self.alpha_bar, torch.sigmoid(log_snr.double()))


class LearnedLogSNR(nn.Module):
    """A log-SNR that falls in t whatever its weights are: a network with positive weights, in continuous time.

    log_snr(t) = high + (low - high) (g(t) - g(0))/(g(1) - g(0)),   g(t) = w t + sum_j u_j sigmoid(v_j t + b_j)

    The continuous bound depends on the ends alone; what lies between them decides the variance of its estimate, which
    the mean of the *squared* loss minimises. At t = 0 itself the schedule jumps to the data, as ``LogLinear`` does.

    Args:
        high: the log-SNR near t = 0 to start from, in nats.
        low: the log-SNR at t = 1 to start from.
        hidden: number of sigmoids.
        seed: of the starting weights.

    Raises:
        ValueError: unless low < high and there is a sigmoid.

    Source: Kingma et al. 2021, arXiv:2107.00630, Sec. 5.1 and Appendix H.
    """

    def __init__(self, *, high: float = 13.3, low: float = -13.3, hidden: int = 256, seed: int = 0) -> None:
        super().__init__()
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"a learned log-SNR needs low < high, got {low} and {high}")
        if hidden < 1:
            raise ValueError(f"a learned log-SNR needs at least 1 sigmoid, got {hidden}; LogLinear is the straight one")
        generator = torch.Generator().manual_seed(seed)
        centres = torch.rand(hidden, generator=generator, dtype=torch.float64)
        steepness = torch.full((hidden,), math.log(10.0), dtype=torch.float64)
        self.low = nn.Parameter(torch.tensor(low, dtype=torch.float64))
        self.fall = nn.Parameter(torch.tensor(math.log(high - low), dtype=torch.float64))
        self.straight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.heights = nn.Parameter(torch.full((hidden,), math.log(0.1 / hidden), dtype=torch.float64))
        self.steepness = nn.Parameter(steepness)
        self.offsets = nn.Parameter(-steepness.exp() * centres)

    def _rise(self, t: Time) -> Time:
        bent = torch.sigmoid(self.steepness.exp() * t[..., None] + self.offsets)
        return self.straight.exp() * t + (self.heights.exp() * bent).sum(-1)

    def log_snr(self, t: Time) -> Time:
        """The log-SNR at time t > 0, in nats."""
        start, end = self._rise(t.new_tensor([0.0, 1.0]))
        return self.low + self.fall.exp() * (end - self._rise(t)) / (end - start)

    def alpha_bar(self, t: Time) -> Time:
        """The share of signal variance at time t."""
        return torch.where(t == 0, 1.0, torch.sigmoid(self.log_snr(t)))

    def at(self, t: Time) -> Level:
        """The level at time t."""
        t = checked_time(t)
        with torch.enable_grad():
            variable = t.detach().clone().requires_grad_()
            log_snr = self.log_snr(variable)
            (slope,) = torch.autograd.grad(log_snr.sum(), variable, create_graph=True)
        return level_of_log_snr(t, log_snr, slope)

    def time_of(self, log_snr: Time) -> Time:
        """The inverse of ``at(t).log_snr``, without gradient."""
        with torch.no_grad():
            return where_falls_to(self.log_snr, log_snr.double())


def _root(x: Tensor) -> Tensor:
    """The square root, with slope 0 at 0: levels without noise (t = 0) are constants, and inf * 0 is not a number."""
    return torch.where(x > 0, x, 1.0).sqrt() * (x > 0)
