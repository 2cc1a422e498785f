"""Parameterizations: what a network's number means.

Knows: the pair of lines that makes a belief about x0 of a network's output, for each thing a network may be asked for.
Does not know: networks, losses, samplers.

Most are affine: x0 = skip x_t + out F, where F is the network's output. Those that speak of the reverse chain's next
step carry their chain, a process and its number of steps. Those that tell a variance wrap one that tells the mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from unstir.diffusion.process import Estimate, GaussianProcess, Process, log_ratio
from unstir.diffusion.schedule import Level, combined, spread
from unstir.typing import Time, X


@runtime_checkable
class Parameterization(Protocol):
    """The meaning of a network's input and output."""

    @property
    def outputs(self) -> int:
        """How many numbers the network gives for each element of x."""
        return 1

    def encode(self, x_t: X, level: Level) -> tuple[X, Float[Tensor, "b"]]:
        """What the network is given: its input, and one number a sample that says how noisy it is (float32 always)."""
        ...

    def decode(self, output: Tensor, x_t: X, level: Level) -> Estimate:
        """The belief that a network's output stands for."""
        ...

    def target(self, x0: X, x_t: X, level: Level) -> Tensor:
        """What the output should be where the truth is x0."""
        ...


class Affine(Parameterization, Protocol):
    """x0 = skip x_t + out F. A subclass writes ``coefficients`` and nothing else."""

    def coefficients(self, level: Level) -> tuple[Time, Time]:
        """Skip and out."""
        ...

    def encode(self, x_t: X, level: Level) -> tuple[X, Float[Tensor, "b"]]:
        """x_t itself, and 1000 t."""
        return x_t, _one_each(level.t, x_t, 1000)

    def decode(self, output: Tensor, x_t: X, level: Level) -> Estimate:
        """The belief x0 = skip x_t + out F."""
        skip, out = self.coefficients(level)
        if skip.ndim == 0 and not torch.is_grad_enabled():
            return Estimate(x0=((skip.item(), x_t), (out.item(), output)))
        return Estimate(x0=combined(skip, x_t, out, output))

    def target(self, x0: X, x_t: X, level: Level) -> Tensor:
        """F = (x0 - skip x_t) / out."""
        skip, out = self.coefficients(level)
        return (x0 - spread(skip, x_t) * x_t) / spread(out, x_t)


@dataclass(frozen=True)
class PredictNoise(Affine):
    """F is the noise: x0 = (x_t - sigma F) / alpha.

    Raises:
        ValueError: where alpha is 0 (pure noise): there the noise says nothing about x0.

    Source: Ho et al. 2020, arXiv:2006.11239, Sec. 3.2.
    """

    def coefficients(self, level: Level) -> tuple[Time, Time]:
        """Skip = 1/alpha, out = -sigma/alpha."""
        if not bool(level.alpha if level.alpha.ndim == 0 else level.alpha.all()):
            raise ValueError(
                "a network that predicts noise cannot start from pure noise (alpha = 0); predict x0, v or flow, "
                "or use a schedule that keeps some signal at t = 1"
            )
        return level.alpha.reciprocal(), -level.sigma / level.alpha


@dataclass(frozen=True)
class PredictX0(Affine):
    """F is the clean sample itself.

    Source: Ho et al. 2020, arXiv:2006.11239, Sec. 3.2; Li & He 2025, arXiv:2511.13720 (why it suits large patches).
    """

    def coefficients(self, level: Level) -> tuple[Time, Time]:
        """Skip = 0, out = 1."""
        return torch.zeros_like(level.alpha), torch.ones_like(level.alpha)

    def decode(self, output: Tensor, x_t: X, level: Level) -> Estimate:
        """The output."""
        return Estimate(x0=output)


@dataclass(frozen=True)
class PredictV(Affine):
    """F is v = alpha noise - sigma x0: x0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2).

    Source: Salimans & Ho 2022, arXiv:2202.00512, Appendix D.
    """

    def coefficients(self, level: Level) -> tuple[Time, Time]:
        """Skip = alpha/(alpha^2 + sigma^2), out = -sigma/(alpha^2 + sigma^2)."""
        total = torch.hypot(level.alpha, level.sigma).square()
        return level.alpha / total, -level.sigma / total


@dataclass(frozen=True)
class PredictFlow(Affine):
    """F is the velocity d x_t/dt = alpha' x0 + sigma' noise, from data towards noise.

    x0 = (sigma' x_t - sigma F) / (alpha sigma' - sigma alpha')

    Raises:
        ValueError: where alpha' is infinite, as where a path that preserves variance ends without signal.

    Source: Lipman et al. 2023, arXiv:2210.02747, Theorem 3.
    """

    def coefficients(self, level: Level) -> tuple[Time, Time]:
        """Skip = sigma'/d, out = -sigma/d, d = alpha sigma' - sigma alpha'."""
        if bool(level.dalpha.isinf().any()):
            raise ValueError(
                "a network that predicts flow cannot start where the path's velocity is infinite (alpha falls to 0 as "
                "a root does); predict x0 or v, or use a schedule that keeps some signal at t = 1, or the straight path"
            )
        # Divided by sigma', which is infinite at t = 0 on some schedules; there x0 = x_t / alpha, as it must be.
        denominator = level.alpha - level.sigma * level.dalpha / level.dsigma
        return 1 / denominator, -level.sigma / level.dsigma / denominator


@dataclass(frozen=True)
class PredictScore(Affine):
    """F is the score, the gradient of log q(x_t): x0 = (x_t + sigma^2 F) / alpha.

    Raises:
        ValueError: where alpha is 0, as for noise, which is -sigma F.

    Source: Song et al. 2021, arXiv:2011.13456, Eq. 7; Vincent 2011 (denoising score matching).
    """

    def coefficients(self, level: Level) -> tuple[Time, Time]:
        """Skip = 1/alpha, out = sigma^2/alpha."""
        skip, out = PredictNoise().coefficients(level)
        return skip, -level.sigma * out


@dataclass(frozen=True, kw_only=True)
class PredictEDM(Affine):
    """F is what EDM's preconditioning leaves to the network: of unit variance, like its input, at every level.

    With d the spread of the data and n^2 = sigma^2 + alpha^2 d^2:
    x0 = (alpha d^2/n^2) x_t + (sigma d/n) F,   input = x_t/n,   scalar = log(sigma/alpha)/4

    Args:
        sigma_data: d, the standard deviation of the data.

    Raises:
        ValueError: unless sigma_data is positive.

    Source: Karras et al. 2022, arXiv:2206.00364, Table 1 (alpha = 1); for other alpha, of x_t/alpha.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        """Refuse data without spread."""
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data is a standard deviation, got {self.sigma_data}; 0.5 suits pictures")

    def coefficients(self, level: Level) -> tuple[Time, Time]:
        """Skip = alpha d^2/n^2, out = sigma d/n."""
        total = self._total(level)
        return level.alpha * self.sigma_data**2 / total, level.sigma * self.sigma_data / total.sqrt()

    def encode(self, x_t: X, level: Level) -> tuple[X, Float[Tensor, "b"]]:
        """x_t/n, and log(sigma/alpha)/4, within +-10 (where there is no signal, or no noise, it would be infinite)."""
        scalar = (-level.log_snr / 8).clamp(-10, 10)
        return spread(self._total(level).rsqrt(), x_t) * x_t, _one_each(scalar, x_t)

    def _total(self, level: Level) -> Time:
        return level.sigma**2 + (level.alpha * self.sigma_data) ** 2


@dataclass(frozen=True, kw_only=True)
class PredictMean(Parameterization):
    """F is the mean of the reverse chain's next step, from t to t - 1/T: E[x_s | x_t].

    Args:
        process: whose reverse step.
        num_steps: T.

    Source: Ho et al. 2020, arXiv:2006.11239, Sec. 3.2 ("mu tilde"); Sohl-Dickstein et al. 2015, arXiv:1503.03585.
    """

    process: Process
    num_steps: int

    def encode(self, x_t: X, level: Level) -> tuple[X, Float[Tensor, "b"]]:
        """x_t itself, and 1000 t."""
        return x_t, _one_each(level.t, x_t, 1000)

    def decode(self, output: Tensor, x_t: X, level: Level) -> Estimate:
        """The belief with which the next step leads to F."""
        zero, one = _next_means(self.process, self.num_steps, x_t, level)
        return Estimate(x0=(output - zero) / (one - zero))

    def target(self, x0: X, x_t: X, level: Level) -> Tensor:
        """Where the next step leads if the truth is x0."""
        zero, one = _next_means(self.process, self.num_steps, x_t, level)
        return zero + (one - zero) * x0


@dataclass(frozen=True)
class PredictBit(Parameterization):
    """F is the logit of a clean bit: P(x0 = 1 | x_t) = sigmoid(F).

    Source: Austin et al. 2021, arXiv:2107.03006, Sec. 3.3 (x0-parameterization), for two states.
    """

    def encode(self, x_t: X, level: Level) -> tuple[X, Float[Tensor, "b"]]:
        """x_t as -1 and 1, and 1000 t."""
        return 2 * x_t - 1, _one_each(level.t, x_t, 1000)

    def decode(self, output: Tensor, x_t: X, level: Level) -> Estimate:
        """sigmoid(F), never quite 0 or 1: a bit that was ruled out would cost infinitely much."""
        smallest = torch.finfo(output.dtype).eps
        return Estimate(x0=torch.sigmoid(output).clamp(smallest, 1 - smallest))

    def target(self, x0: X, x_t: X, level: Level) -> Tensor:
        """The logit of x0, finite."""
        return torch.logit(x0, eps=torch.finfo(x0.dtype).eps)


@dataclass(frozen=True, kw_only=True)
class PredictFlip(Parameterization):
    """F says how likely the reverse chain's next step, from t to t - 1/T, flips each bit.

    logit P(x_s != x_t) = F + logit of the forward chain's own probability to flip that bit in this step

    The belief that it stands for makes ``reverse`` draw just these flips on the T-step grid; elsewhere it may leave
    [0, 1].

    Args:
        process: whose reverse step.
        num_steps: T.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Table App. 1 (the network gives the bit flip probability).
    """

    process: Process
    num_steps: int

    def encode(self, x_t: X, level: Level) -> tuple[X, Float[Tensor, "b"]]:
        """x_t as -1 and 1, and 1000 t."""
        return 2 * x_t - 1, _one_each(level.t, x_t, 1000)

    def decode(self, output: Tensor, x_t: X, level: Level) -> Estimate:
        """The belief with which the next step flips so."""
        flips = torch.sigmoid(output + self._offset(x_t, level))
        zero, one = _next_means(self.process, self.num_steps, x_t, level)
        return Estimate(x0=(x_t + (1 - 2 * x_t) * flips - zero) / (one - zero))

    def target(self, x0: X, x_t: X, level: Level) -> Tensor:
        """The F of the flips that the truth x0 leads to; finite."""
        zero, one = _next_means(self.process, self.num_steps, x_t, level)
        flips = (zero + (one - zero) * x0 - x_t).abs()
        return torch.logit(flips, eps=torch.finfo(x0.dtype).eps) - self._offset(x_t, level)

    def _offset(self, x_t: X, level: Level) -> X:
        before = _level_before(self.process, self.num_steps, level)
        return torch.logit((self.process.kernel(x_t, before, level).mean - x_t).abs())


@dataclass(frozen=True, kw_only=True)
class FixedLarge(Parameterization):
    """The variance of the reverse chain is beta ("fixed large"), not beta_tilde ("fixed small", which is the default).

    Args:
        mean: what the network's output means.

    Source: Ho et al. 2020, arXiv:2006.11239, Sec. 3.2.
    """

    mean: Parameterization = field(default_factory=PredictNoise)

    def encode(self, x_t: X, level: Level) -> tuple[X, Float[Tensor, "b"]]:
        """As ``mean`` does."""
        return self.mean.encode(x_t, level)

    def decode(self, output: Tensor, x_t: X, level: Level) -> Estimate:
        """The belief of ``mean``, with beta."""
        return Estimate(x0=self.mean.decode(output, x_t, level).x0, variance_fraction=1.0)

    def target(self, x0: X, x_t: X, level: Level) -> Tensor:
        """As ``mean`` does."""
        return self.mean.target(x0, x_t, level)


@dataclass(frozen=True, kw_only=True)
class LearnedRange(Parameterization):
    """Twice the channels: the first half is what ``mean`` says, the second tells the variance, v from -1 to 1.

    log variance = f log beta + (1 - f) log beta_tilde,   f = (v + 1)/2; v is not clipped.

    Args:
        mean: what the first half means.

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 15.
    """

    mean: Parameterization = field(default_factory=PredictNoise)

    @property
    def outputs(self) -> int:
        """2: the mean and the variance."""
        return 2

    def encode(self, x_t: X, level: Level) -> tuple[X, Float[Tensor, "b"]]:
        """As ``mean`` does."""
        return self.mean.encode(x_t, level)

    def decode(self, output: Tensor, x_t: X, level: Level) -> Estimate:
        """The belief of ``mean``, with a variance for each element."""
        first, v = _halves(output, x_t)
        return Estimate(x0=self.mean.decode(first, x_t, level).x0, variance_fraction=(v + 1) / 2)

    def target(self, x0: X, x_t: X, level: Level) -> Tensor:
        """What the first half should be; no sample tells what the second should."""
        return self.mean.target(x0, x_t, level)


@dataclass(frozen=True, kw_only=True)
class LearnedVariance(Parameterization):
    """Twice the channels: the second half G is the variance of the step from t to t - 1/T, unconstrained.

    log variance = log beta + G

    Args:
        mean: what the first half means.
        process: whose reverse step.
        num_steps: T; on other grids the variance keeps its place between theirs.

    Source: Ho et al. 2020, arXiv:2006.11239, Table 2 ("learned diagonal Sigma"); Sohl-Dickstein et al. 2015,
        arXiv:1503.03585, Eq. 64 (relative to beta).
    """

    mean: Parameterization
    process: GaussianProcess
    num_steps: int

    @property
    def outputs(self) -> int:
        """2: the mean and the variance."""
        return 2

    def encode(self, x_t: X, level: Level) -> tuple[X, Float[Tensor, "b"]]:
        """As ``mean`` does."""
        return self.mean.encode(x_t, level)

    def decode(self, output: Tensor, x_t: X, level: Level) -> Estimate:
        """The belief of ``mean``, with a variance for each element."""
        first, log_of_beta = _halves(output, x_t)
        before = _level_before(self.process, self.num_steps, level)
        above = self.process.schedule.at((level.t + 1 / self.num_steps).clamp(max=1))
        small, large = self.process.variances(before, level, above)
        # A chain of one step has no other beta_tilde to stand in for its 0.
        width = torch.where(small > 0, log_ratio(small, large), -1.0)
        fraction = 1 - log_of_beta / spread(width, x_t)
        return Estimate(x0=self.mean.decode(first, x_t, level).x0, variance_fraction=fraction)

    def target(self, x0: X, x_t: X, level: Level) -> Tensor:
        """What the first half should be; no sample tells what the second should."""
        return self.mean.target(x0, x_t, level)


PARAMETERIZATIONS: dict[str, type[Parameterization]] = {
    "noise": PredictNoise,
    "x0": PredictX0,
    "v": PredictV,
    "flow": PredictFlow,
    "score": PredictScore,
    "edm": PredictEDM,
    "mean": PredictMean,
    "bit": PredictBit,
    "flip": PredictFlip,
    "fixed_large": FixedLarge,
    "learned_range": LearnedRange,
    "learned_variance": LearnedVariance,
}


def _one_each(scalar: Time, x_t: X, scale: float = 1.0) -> Float[Tensor, "b"]:
    if scalar.ndim == 0 and not scalar.requires_grad:  # a plain number is written where it is needed, and not copied
        return x_t.new_full((x_t.shape[0],), scale * scalar.item(), dtype=torch.float32)
    return (scale * scalar).to(torch.float32).expand(x_t.shape[0]).to(x_t.device)


def _halves(output: Tensor, x_t: X) -> tuple[Tensor, Tensor]:
    channels = x_t.shape[1]
    if output.shape[1] != 2 * channels:
        raise ValueError(
            f"a learned variance needs a network with {2 * channels} output channels for {channels} of x, got "
            f"{output.shape[1]}; double the network's output channels or take a fixed variance"
        )
    return output[:, :channels], output[:, channels:]


def _level_before(process: Process, num_steps: int, level: Level) -> Level:
    """The level one step of a T-step chain nearer to the data; the data itself for t <= 1/T."""
    if num_steps < 1:
        raise ValueError(f"a chain needs at least 1 step, got {num_steps}")
    # i/T * T is whole only up to rounding, and the first step must lead to 0 exactly.
    return process.schedule.at(((level.t * num_steps - 1).round(decimals=9) / num_steps).clamp(min=0))


def _next_means(process: Process, num_steps: int, x_t: X, level: Level) -> tuple[X, X]:
    """E[x_s | x_t] for x0 = 0 and for x0 = 1; ``reverse`` is linear in x0 for every process."""
    before = _level_before(process, num_steps, level)
    zero = process.reverse(x_t, level, before, Estimate(x0=torch.zeros_like(x_t)))
    one = process.reverse(x_t, level, before, Estimate(x0=torch.ones_like(x_t)))
    return zero.mean, one.mean
