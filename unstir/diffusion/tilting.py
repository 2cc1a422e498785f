"""Tilting: what is drawn, weighed by what another function says of it.

Knows: how the gradient of a log-probability moves a belief or the mean of a reverse step; products of reverse steps.
Does not know: classifiers, losses of pictures, prompts, samplers.

To draw from p(x0) r(x0), where r is how well x0 fits (a classifier's p(y | x0), an observation of some pixels):

- ``steered`` and ``lowering`` move the belief by sigma^2/alpha grad log r, for any sampler of a Gaussian process;
- ``tilted`` moves the mean of each reverse step, for samplers that draw from it;
- ``multiplied`` is the product of each reverse step with an r of its own kind, in closed form.

Functions of a sample give one number a sample, and a sample's number may not depend on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.distribution import Bernoulli, Distribution, Normal
from unstir.diffusion.process import Estimate, Process
from unstir.diffusion.schedule import Level, Schedule, spread
from unstir.typing import Time, X

LogLikelihood = Callable[[X, Level], Float[Tensor, "b"]]
"""(x_t, level) -> log r of each sample, up to a constant."""

Loss = Callable[[X, Level], Float[Tensor, "b"]]
"""(the belief about x0, the level that it was made at) -> how wrong each sample would be."""


def steered(denoise: Denoiser, log_likelihood: LogLikelihood, scale: float = 1.0) -> Denoiser:
    """Classifier guidance in score form: the belief of somebody who also heard what the classifier says of x_t.

    x0 = x0 + scale sigma^2/alpha grad log p(y | x_t)

    With scale 1 and the true p(y | x_t) this is E[x0 | x_t, y] exactly, because the score of x_t given y is the sum of
    both. At a level without signal x_t says nothing of y, and the belief is left alone.

    Args:
        denoise: of a Gaussian process.
        log_likelihood: log p(y | x_t), differentiable in x_t.
        scale: above 1 the classifier is believed more than it says.

    Raises:
        ValueError: if scale is not finite; when called, if ``log_likelihood`` does not give one differentiable number a
            sample.

    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, Eq. 14 and Algorithm 2.
    """
    _require_finite(scale)

    def denoise_steered(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        belief = denoise(x_t, level, previous)
        slope = gradient(lambda x: log_likelihood(x, level), x_t)
        return belief.with_x0(belief.x0 + spread(_gain(level, scale), x_t) * slope)

    return denoise_steered


def lowering(denoise: Denoiser, loss: Loss, scale: float = 1.0) -> Denoiser:
    """Guidance by any differentiable loss of the picture that is believed in, through the denoiser.

    x0 = x0 - scale sigma^2/alpha grad loss(x0(x_t)),   the gradient with respect to x_t

    That is ``steered`` with exp(-loss) of the belief for p(y | x_t). As d x0/d x_t is alpha/sigma^2 times the
    covariance of x0 given x_t, the belief moves by that covariance times the loss's own gradient: what is uncertain
    moves, and what hangs together moves together. At a level without signal the belief is left alone.

    Args:
        denoise: of a Gaussian process; differentiated, so a step costs about three of its calls.
        loss: of the belief about x0 at a level.
        scale: of the loss.

    Raises:
        ValueError: if scale is not finite; when called, if ``loss`` does not give one differentiable number a sample.

    Source: Chung et al. 2023, arXiv:2209.14687, Algorithm 1 (whose scale is one over the root of the loss); Bansal et
        al. 2023, arXiv:2302.07121, Eq. 6 (the form on the noise).
    """
    _require_finite(scale)

    def denoise_lowering(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        belief: Estimate | None = None

        def loss_of(x: X) -> Float[Tensor, "b"]:
            nonlocal belief
            belief = denoise(x, level, previous)
            return loss(belief.x0, level)

        slope = gradient(loss_of, x_t)
        assert belief is not None
        fraction = belief.variance_fraction
        return Estimate(
            x0=belief.x0.detach() - spread(_gain(level, scale), x_t) * slope,
            variance_fraction=fraction.detach() if isinstance(fraction, Tensor) else fraction,
        )

    return denoise_lowering


def misfit(observed: Normal, data_std: float = 1.0) -> Loss:
    """How badly a belief fits a noisy look at the picture: -log p(observed | x_t) but for a constant, for ``lowering``.

    sum over sites of (observed - x0)^2 / (2 (std^2 + v)),   v = d^2 sigma^2/(alpha^2 d^2 + sigma^2)

    v is how uncertain the belief itself is, taken as for independent Gaussian data; for those, with the right d,
    ``lowering`` gives exactly the belief of somebody who saw this. Without v, the belief would be pulled too hard where
    it is hardly one.

    Args:
        observed: the mean is what was seen, the std how surely: 0 for known pixels, infinite for those not seen.
        data_std: d, the standard deviation of data around their mean.

    Raises:
        ValueError: if a std is negative, or data_std not positive.

    Source: Song et al. 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", Eq. 7 (v for d = 1).
    """
    if not data_std > 0 or not bool((observed.std >= 0).all()):
        raise ValueError(
            f"standard deviations of what was seen must be 0 or more, and that of data above 0, got at least "
            f"{observed.std.min().item():g} and {data_std:g}"
        )

    def loss(x0: X, level: Level) -> Float[Tensor, "b"]:
        own = (data_std * level.sigma) ** 2 / ((data_std * level.alpha) ** 2 + level.sigma**2)
        variance = observed.std.to(x0) ** 2 + spread(own, x0)
        return ((observed.mean.to(x0) - x0) ** 2 / (2 * variance)).flatten(1).sum(1)

    return loss


def tilted(process: Process, log_r: LogLikelihood) -> Process:
    """A process whose reverse steps lean towards what r says of where they lead, to first order.

    mean = mean + variance g,   g = grad log r at the mean of the step, where the sample will be less noisy

    For bits the logit of each moves by g, r being understood between 0 and 1 as well. Both are p(x_s | x_t) exp(g x_s),
    the reverse step times r, where log r is a straight line. It acts on samplers that draw from ``reverse``, such as
    ``Ancestral``; for others there is ``steered``.

    Args:
        process: of any kind.
        log_r: of x_s at level s, differentiable; a scale belongs inside.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Eq. 61; Dhariwal & Nichol 2021, arXiv:2105.05233, Eq. 10 and
        Algorithm 1.
    """

    def lean(law: Distribution, s: Level) -> Distribution:
        slope = gradient(lambda x: log_r(x, s), law.mean)
        if isinstance(law, Normal):
            return Normal(mean=law.mean + law.std**2 * slope, std=law.std)
        assert isinstance(law, Bernoulli)
        zero = 1 - law.probability if law.complement is None else law.complement
        logit = law.probability.log() - zero.log() + slope
        return Bernoulli(probability=torch.sigmoid(logit), complement=torch.sigmoid(-logit))

    return Reversed(process=process, change=lean)


def multiplied(process: Process, r: Normal | Bernoulli, *, is_fading: bool = False) -> Process:
    """A process whose reverse steps are multiplied with r(x_s), exactly: the inpainting and denoising of 2015.

    p(x_s | x_t) r(x_s)/Z: of two Gaussians, precisions add and means are weighed by them; of two coins, the odds
    multiply. r is constant in t: a look at the clean sample is compared with x_s as it is.

    Each step is exact, what the chain draws is only roughly p(x0) r(x0): a look at the clean sample is no look at x_s,
    and a smooth r acts again and again. Data that are standard normal come out as p r^2, so for them a std of sqrt(2)
    times the true one is right. ``lowering`` by ``misfit`` has no such error; this is cheaper. The last step of a
    sampling, to a level without noise, is the belief alone: ``known_pixels`` belongs to a delta r.

    Args:
        process: of the kind of r.
        r: for reals a Gaussian: std 0 for what is known, infinite for what is not; for bits a coin: 0 or 1 for what is
            known, 1/2 for what is not. Of a shape that broadcasts against x.
        is_fading: r^(1 - t) in place of r, which leaves the prior as it is.

    Raises:
        ValueError: if r is not of the kind of the process.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Sec. 2.5 (Eqs. 20-23 and the choice of r).
    """
    own = type(process.prior(r.mean))
    if own is not type(r):
        raise ValueError(
            f"steps that draw from a {own.__name__} cannot be multiplied with a {type(r).__name__}; give a Normal for "
            "real numbers, a Bernoulli for bits"
        )

    def times_r(law: Distribution, s: Level) -> Distribution:
        power = spread(1 - s.t if is_fading else torch.ones_like(s.t), law.mean)
        if isinstance(law, Normal):
            assert isinstance(r, Normal)
            return _product(law, r.mean.to(law.mean), r.std.to(law.mean) / power.sqrt())
        assert isinstance(law, Bernoulli)
        assert isinstance(r, Bernoulli)
        return _odds(law, r.probability.to(law.mean) ** power, (1 - r.probability).to(law.mean) ** power)

    return Reversed(process=process, change=times_r)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reversed:
    """A process with other reverse steps; everything else is as it was.

    Args:
        process: of which the forward chain and the prior are.
        change: (the law of x_s given x_t, the level s) -> another law of x_s.
    """

    process: Process
    change: Callable[[Distribution, Level], Distribution]

    @property
    def schedule(self) -> Schedule:
        """How spoiled a sample is at time t."""
        return self.process.schedule

    def prior(self, like: X) -> Distribution:
        """p(x_1), as it was."""
        return self.process.prior(like)

    def marginal(self, x0: X, t: Level) -> Distribution:
        """q(x_t | x_0), as it was."""
        return self.process.marginal(x0, t)

    def kernel(self, x_s: X, s: Level, t: Level) -> Distribution:
        """q(x_t | x_s), as it was."""
        return self.process.kernel(x_s, s, t)

    def reverse(self, x_t: X, t: Level, s: Level, belief: Estimate) -> Distribution:
        """p(x_s | x_t), changed."""
        return self.change(self.process.reverse(x_t, t, s, belief), s)

    def decode_log_prob(self, data: X, x_t: X, t: Level, belief: Estimate, above: Level | None = None) -> X:
        """The last step, as it was."""
        return self.process.decode_log_prob(data, x_t, t, belief, above)

    def divergence_rate(self, x0: X, x_t: X, t: Level, belief: Estimate) -> X:
        """Of the process as it was."""
        return self.process.divergence_rate(x0, x_t, t, belief)

    def to_natural(self, x0: X) -> X:
        """The coordinate in which beliefs add up linearly, as it was."""
        return self.process.to_natural(x0)

    def from_natural(self, y: X) -> X:
        """The inverse of ``to_natural``."""
        return self.process.from_natural(y)


def gradient(function: Callable[[X], Float[Tensor, "b"]], x: X) -> X:
    """The gradient of each sample's number with respect to the sample, also where gradients are switched off.

    Raises:
        ValueError: if the function does not give one number a sample, or its numbers cannot be differentiated.
    """
    with torch.enable_grad():
        variable = x.detach().requires_grad_()
        values = function(variable)
        if values.shape != x.shape[:1]:
            raise ValueError(
                f"what guides by its gradient gives one number a sample, of shape ({x.shape[0]},), got "
                f"{tuple(values.shape)}; sum over sites"
            )
        if not values.requires_grad:
            raise ValueError("what guides by its gradient cannot be differentiated; compute it without no_grad, of x")
        (slope,) = torch.autograd.grad(values.sum(), variable)
    return slope


def _gain(level: Level, scale: float) -> Time:
    return torch.where(level.alpha > 0, scale * level.sigma**2 / level.alpha, 0.0)


def _product(law: Normal, mean: X, std: X) -> Normal:
    """The product of two Gaussians; where the second has no spread, it decides."""
    moved = law.mean + (mean - law.mean) / (1 + (std / law.std) ** 2)
    return Normal(mean=torch.where(std == 0, mean, moved), std=(law.std**-2 + std**-2).rsqrt())


def _odds(law: Bernoulli, one: X, zero: X) -> Bernoulli:
    """The product of two coins; where they rule each other out, the second decides."""
    own = 1 - law.probability if law.complement is None else law.complement
    one_of_both, zero_of_both = law.probability * one, own * zero
    is_empty = one_of_both + zero_of_both == 0
    one, zero = torch.where(is_empty, one, one_of_both), torch.where(is_empty, zero, zero_of_both)
    return Bernoulli(probability=one / (one + zero), complement=zero / (one + zero))


def _require_finite(scale: float) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"the scale of a gradient must be a finite number, got {scale}")
