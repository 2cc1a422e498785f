"""Parzen windows: the log-likelihood of data under a blur of a model's samples, as papers of 2009 to 2015 report it.

Knows: mixtures of equal Gaussians around samples, and the choice of their width.
Does not know: where the samples come from, or what the model itself would say of the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_ROWS = 256  # of data at a time


@dataclass(frozen=True, kw_only=True)
class ParzenLogLikelihood:
    """A mean log-likelihood and its error.

    Args:
        nats: a sample, mean over the data.
        standard_error: of that mean, over the data; the samples of the model count as given.
    """

    nats: float
    standard_error: float


def parzen_log_likelihood(samples: Float[Tensor, "n d"], data: Float[Tensor, "m d"], std: float) -> ParzenLogLikelihood:
    """Log density of the data under p(v) = 1/n sum over i of N(v; samples_i, std^2 I), in nats a sample, in float64.

    For comparison with old tables alone. It is no likelihood of the model: in many dimensions it stays far below the
    true one for any affordable number of samples, it ranks models wrongly, and centroids of clusters beat samples of
    the true law. It also depends on the number of samples, and on the scale of the data (pictures in [0, 1] in the
    tables).

    Args:
        samples: of the model.
        data: that it did not see; at least 2.
        std: of a window; from ``choose_parzen_std``, on other data than these.

    Raises:
        ValueError: if ``std`` is not positive, there is no sample, fewer than 2 data, or they differ in length.

    Source: Breuleux, Bengio & Vincent 2011, "Quickly generating representative samples from an RBM-derived process",
        Neural Computation 23; Goodfellow et al. 2014, arXiv:1406.2661, Sec. 5. What is wrong with it: Theis et al.
        2016, arXiv:1511.01844.
    """
    if len(data) < 2:
        raise ValueError(f"a standard error needs at least 2 data, got {len(data)}")
    nats = _log_densities(samples, data, [std])[0]
    return ParzenLogLikelihood(nats=nats.mean().item(), standard_error=nats.std().item() / math.sqrt(len(nats)))


def choose_parzen_std(
    samples: Float[Tensor, "n d"], validation: Float[Tensor, "m d"], candidates: Sequence[float]
) -> float:
    """The candidate that gives the validation data the highest log-likelihood.

    Raises:
        ValueError: if there is no candidate, no sample or no datum, a candidate is not positive, or lengths differ.
    """
    if not candidates or not len(validation):
        raise ValueError("a width is chosen among at least one candidate, by at least one datum")
    return candidates[int(_log_densities(samples, validation, candidates).mean(1).argmax())]


def _log_densities(samples: Tensor, data: Tensor, stds: Sequence[float]) -> Float64[Tensor, "s m"]:
    if not len(samples) or samples.shape[1] != data.shape[1]:
        raise ValueError(f"samples {tuple(samples.shape)} give no density to data {tuple(data.shape)}")
    if not min(stds) > 0:
        raise ValueError(f"the width of a window must be positive, got {min(stds)}")
    samples, data = samples.double(), data.double()
    length = samples.shape[1]
    norms = samples.square().sum(1)
    parts: list[Tensor] = []
    for start in range(0, len(data), _ROWS):
        rows = data[start : start + _ROWS]
        distances = norms - 2 * rows @ samples.T + rows.square().sum(1, keepdim=True)
        parts.append(torch.stack([(distances / (-2 * std**2)).logsumexp(1) for std in stds]))
    constants = [math.log(len(samples)) + length / 2 * math.log(2 * math.pi * std**2) for std in stds]
    return torch.cat(parts, 1) - samples.new_tensor(constants)[:, None]
